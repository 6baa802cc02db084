"""Collectives over a whole slice, as XLA:TPU makes them (measured, libtpu 0.0.42, v5e and v6e).

Over all chips of a square slice of two dimensions, from 4x4 on, it has no reduce-scatter: it
reduces everything everywhere, and each device keeps its part. From 64 chips on, a gather of no more
than 16 MiB is a sum too, of what is zero but for the device's own part. Either sends twice as much.

Nor is anything scattered in parts of a single tile, 8 x 128 elements (two tiles, over all of a 2x2
slice), or in parts that fill no tiles, as those of vectors do. ``folded`` lets them. Parts of other
numbers of tiles than it likes are padded, and put right with permutes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopar.cost_model.hardware import Level
from autopar.cost_model.work import LANES, ROWS

LEAST_SIDE = 4
WHOLE_DEVICES = 64
SUMMED_GATHER_BYTES = 16 * 2**20


def scatters_by_reduction(levels: Sequence[Level], size: int) -> bool:
    """Whether a reduce-scatter over ``size`` devices of a cluster is an all-reduce."""
    sides = {level.size for level in levels}
    square = len(levels) == 2 and len(sides) == 1 and min(sides) >= LEAST_SIDE
    torus = all(level.kind == "torus" for level in levels)
    return square and torus and size == math.prod(level.size for level in levels)


def folded(part: Sequence[int]) -> tuple[int, ...]:
    """The shape in which a device's part can be scattered: in rows of 128, if it fills no tiles."""
    elements = math.prod(part)
    fills = len(part) > 1 and min(part[-2:]) >= ROWS
    if fills or elements % LANES or elements <= ROWS * LANES:
        return tuple(part)
    return elements // LANES, LANES


def is_too_small(levels: Sequence[Level], size: int, part: Sequence[int]) -> bool:
    """Whether parts of this shape are not scattered, but reduced everywhere."""
    torus = all(level.kind == "torus" for level in levels)
    fills = min((1, 1, *part)[-2:]) >= ROWS
    return torus and (not fills or _tiles(part) <= (2 if _is_small_square(levels, size) else 1))


def scatter_padding(levels: Sequence[Level], size: int, part: Sequence[int], itemsize: int) -> int:
    """Bytes by which each part of this shape is padded, and sent back by every device but one."""
    if not all(level.kind == "torus" for level in levels):
        return 0
    tiles, tile = _tiles(part), ROWS * LANES * itemsize
    several = 4 * -(-tiles * tile // 10**6) if _is_small_square(levels, size) else 2
    return -tiles % several * tile


def _tiles(part: Sequence[int]) -> int:
    *outer, rows, lanes = (1, 1, *part)
    return math.prod(outer) * -(-rows // ROWS) * -(-lanes // LANES)


def _is_small_square(levels: Sequence[Level], size: int) -> bool:
    """Whether it is all of a 2x2 slice."""
    return [level.size for level in levels] == [2, 2] and size == 4


def gathers_by_reduction(levels: Sequence[Level], size: int, payload_bytes: float) -> bool:
    """Whether an all-gather of ``payload_bytes``, the result's, is an all-reduce."""
    whole = len(levels) == 2 and size == math.prod(level.size for level in levels)
    torus = all(level.kind == "torus" for level in levels)
    small = payload_bytes <= SUMMED_GATHER_BYTES
    return whole and torus and size >= WHOLE_DEVICES and small
