"""How an array is cut into equal pieces that the device holds one at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.core.layout import Layout, local_shape
from autopar.core.mesh import MeshSpec
from autopar.passes.offload.updates import Update

FEWEST = 4
"""Pieces of an array at least: of a loop of fewer trips XLA may make plain copies."""

PIECE_BYTES = 8 * 2**20
"""What a piece should hold at most: several lie in on-chip memory together."""

ROWS, LANES = 8, 128
"""What the sizes of the two minor dimensions of a piece are multiples of: a tile of a TPU."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """``count`` pieces of ``size`` along the first dimension of an array reshaped to ``view``."""

    view: tuple[int, ...]
    count: int
    size: int


def pieces(shape: Sequence[int], itemsize: int) -> Pieces | None:
    """The fewest pieces that are small enough, or the smallest there are; ``None`` if none are.

    Args:
      shape: of the array, on one device.
      itemsize: bytes an element.
    """
    found = list(_all(tuple(shape)))
    total = math.prod(shape) * itemsize
    small = [one for one in found if total <= one.count * PIECE_BYTES]
    if small:
        return min(small, key=lambda one: one.count)
    return max(found, key=lambda one: one.count, default=None)


def pieces_under(update: Update, layouts: Sequence[Layout], mesh: MeshSpec) -> Pieces | None:
    """The pieces of an update's arrays whose state rests so; ``None`` if it cannot be streamed."""
    if any(layout != layouts[0] for layout in layouts):
        return None
    return pieces(local_shape(update.shape, layouts[0], mesh), update.itemsize)


def _all(shape: tuple[int, ...]) -> Iterator[Pieces]:
    """XLA:TPU cuts what is on the host along one dimension, not the minor one (measured).

    Which is the last, but for arrays that another pads less.
    """
    if any(_padding(extent) < _padding(shape[-1]) for extent in shape):
        return
    if len(shape) < 2:
        view, unit = shape, ROWS * LANES
    elif shape[-2] % ROWS == 0:
        view, unit = (math.prod(shape[:-1]), shape[-1]), ROWS
    else:
        view, unit = (math.prod(shape[:-2]), *shape[-2:]), 1
    extent = view[0] if view else 0
    for size in range(unit, extent // FEWEST + 1, unit):
        if extent % size == 0:
            yield Pieces(view, extent // size, size)


def _padding(extent: int) -> float:
    """By how much a dimension of this extent is padded over lanes."""
    return -(-extent // LANES) * LANES / max(1, extent)
