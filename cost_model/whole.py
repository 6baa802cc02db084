"""Collectives over a whole slice, as XLA:TPU makes them (measured, libtpu 0.0.42, v5e and v6e).

Over all chips of a square slice of two dimensions, from 4x4 on, it has no reduce-scatter: it
reduces everything everywhere, and each device keeps its part. From 64 chips on, a gather of no more
than 16 MiB is a sum too, of what is zero but for the device's own part. Either sends twice as much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopar.cost_model.hardware import Level

LEAST_SIDE = 4
WHOLE_DEVICES = 64
SUMMED_GATHER_BYTES = 16 * 2**20


def scatters_by_reduction(levels: Sequence[Level], size: int) -> bool:
    """Whether a reduce-scatter over ``size`` devices of a cluster is an all-reduce."""
    sides = {level.size for level in levels}
    square = len(levels) == 2 and len(sides) == 1 and min(sides) >= LEAST_SIDE
    torus = all(level.kind == "torus" for level in levels)
    return square and torus and size == math.prod(level.size for level in levels)


def gathers_by_reduction(levels: Sequence[Level], size: int, payload_bytes: float) -> bool:
    """Whether an all-gather of ``payload_bytes``, the result's, is an all-reduce."""
    whole = len(levels) == 2 and size == math.prod(level.size for level in levels)
    torus = all(level.kind == "torus" for level in levels)
    small = payload_bytes <= SUMMED_GATHER_BYTES
    return whole and torus and size >= WHOLE_DEVICES and small
