"""Which values lie in on-chip memory, and so take nothing of the device's."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.cost_model.hardware import Chip

HELD_RATIO = 20.0
"""A value stays in on-chip memory while no more than so many times its own bytes are moved: XLA
holds it there no longer than some multiple of the time that it would take to bring it back."""

HELD_FILLS = 18.0
"""Nor longer than it takes to fill on-chip memory so many times (2.6 ms on v5e, where the longest
that was kept in 13 programs waited 2.5 ms between two uses by the compiler's cycles, save for one
of 8 MiB, and the first that was not, though there was room, 2.6)."""

Instants = NDArray[np.intp]
Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pace:
    """How time passes.

    Attributes:
      seconds: of the kernel that runs at each instant.
      longest_s: that a value may wait for its last reader in on-chip memory.
    """

    seconds: Numbers
    longest_s: float

    @classmethod
    def of(cls, seconds: Numbers, chip: Chip) -> Pace:
        """On a chip of these rates."""
        return cls(seconds, HELD_FILLS * chip.vmem_bytes / chip.hbm_bandwidth)


def on_chip(
    starts: Instants, ends: Instants, sizes: Numbers, room: float, last: int, pace: Pace | None
) -> Instants:
    """Places of the values there is room for, those that live shortest first.

    What is there at the end of the step, the instant ``last``, lies in device memory.
    """
    moved = np.zeros(last + 2)
    np.add.at(moved, starts[ends < last] + 1, sizes[ends < last])
    np.add.at(moved, ends[ends < last] + 1, sizes[ends < last])
    fits = (ends < last) & (sizes > 0) & (sizes <= room)
    fits &= _between(np.cumsum(moved), starts, ends) <= HELD_RATIO * sizes
    if pace is not None:
        before = np.concatenate(([0.0], np.cumsum(pace.seconds)))
        fits &= _between(before, starts, ends) <= pace.longest_s
    (chosen,) = np.nonzero(fits)
    left = np.full(last + 1, float(room))
    placed: list[int] = []
    for place in chosen[np.lexsort((sizes[chosen], ends[chosen] - starts[chosen]))].tolist():
        span = left[starts[place] : ends[place] + 1]
        if span.min() >= sizes[place]:
            span -= sizes[place]
            placed.append(place)
    return np.array(placed, dtype=np.intp)


def _between(before: Numbers, starts: Instants, ends: Instants) -> Numbers:
    """What comes after the first instants and before the last; ``before``: what does each."""
    return np.where(ends > starts, before[ends] - before[starts + 1], 0.0)
