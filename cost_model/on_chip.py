"""Which values lie in on-chip memory, and so take nothing of the device's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.cost_model.hardware import Chip
from autopar.cost_model.repeated import Instants, Numbers, Repeated, Spans

HELD_RATIO = 20.0
"""A value stays in on-chip memory while no more than so many times its own bytes are moved: XLA
holds it there no longer than some multiple of the time that it would take to bring it back."""

HELD_FILLS = 18.0
"""Nor longer than it takes to fill on-chip memory so many times (2.6 ms on v5e, where the longest
that was kept in 13 programs waited 2.5 ms between two uses by the compiler's cycles, save for one
of 8 MiB, and the first that was not, though there was room, 2.6)."""

TINY = 1e-30
"""Not to divide by nothing."""


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


def off_chip(
    spans: Spans, room: float, pace: Pace | None, layers: Sequence[Repeated] = ()
) -> Spans:
    """What is left of spans in device memory: others are on the chip as long as there is room,
    those that live shortest first.

    What is there at the end of the step lies in device memory.

    Args:
      pace: how time passes, for each instant there is.
      layers: those that stand for others. What these do lies between, too: so of a value that all
        layers make in one pass, and read in a later one, the last are on the chip.
    """
    starts, ends, sizes = spans.starts, spans.ends, spans.sizes
    last = spans.instants - 1
    soon = ends < last
    moved = np.zeros(last + 1)
    for places in (starts, ends):
        np.add.at(moved, places[soon], sizes[soon])
    limits = [(moved, HELD_RATIO * sizes)]
    if pace is not None:
        limits.append((pace.seconds, np.full(len(sizes), pace.longest_s)))
    fits = soon & (sizes > 0) & (sizes <= room)
    further = np.full(len(sizes), np.inf)
    for spent, longest in limits:
        spare = longest - _between(spent, starts, ends)
        each = np.zeros(len(sizes))
        for layer in layers:
            fixed, more = layer.between(spans, spent)
            spare, each = spare - fixed, each + more
        fits &= spare >= 0
        further = np.minimum(further, np.where(each > 0, spare / np.maximum(each, TINY), np.inf))
    placed = _placed(spans, fits, room)
    shares = [layer.left_off(spans, further) for layer in layers]
    sizes, others = sizes.copy(), sizes * np.max(shares, axis=0) if layers else sizes
    others = np.where(np.isin(np.arange(len(sizes)), placed), others, spans.sizes)
    sizes[placed] = 0.0
    return spans._replace(sizes=sizes, others=others)


def _placed(spans: Spans, fits: NDArray[np.bool_], room: float) -> Instants:
    """Those for which there is room."""
    starts, ends, sizes = spans.starts, spans.ends, spans.sizes
    (chosen,) = np.nonzero(fits)
    left = np.full(spans.instants, float(room))
    placed: list[int] = []
    for place in chosen[np.lexsort((sizes[chosen], ends[chosen] - starts[chosen]))].tolist():
        span = left[starts[place] : ends[place] + 1]
        if span.min() >= sizes[place]:
            span -= sizes[place]
            placed.append(place)
    return np.array(placed, dtype=np.intp)


def _between(spent: Numbers, starts: Instants, ends: Instants) -> Numbers:
    """What is spent after the first instants and before the last; ``spent``: at each."""
    before = np.concatenate(([0.0], np.cumsum(spent)))
    return np.where(ends > starts, before[ends] - before[starts + 1], 0.0)
