"""What a step holds by category, at every instant of it, layers that were folded included."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.core.plan import MemoryCurve
from autopar.cost_model.timeline import Bytes, Layered, Timeline
from autopar.passes.sources import source_name

Instants = NDArray[np.intp]
Parts = Mapping[str, Bytes]

SAMPLES = 240
"""Instants of a step that a plan tells the memory of."""


@dataclass(frozen=True, slots=True)
class Stacked:
    """Bytes at every instant of the step, by category.

    Attributes:
      places: of each instant, that of the program that the search looks at.
      exact: whether it is an instant of that program, and not of a layer that another stands for.
    """

    timeline: Timeline
    parts: Parts
    places: NDArray[np.intp]
    exact: NDArray[np.bool_]

    @property
    def peak(self) -> int:
        """The instant of the most bytes."""
        return int(np.argmax(np.where(self.exact, sum(self.parts.values()), -1.0)))

    def breakdown(self) -> dict[str, int]:
        """Bytes by category at the peak."""
        peak = self.peak
        return {name: int(held[peak]) for name, held in self.parts.items() if held[peak]}

    def curve(self) -> MemoryCurve:
        """Bytes by category over the step; of every stretch of it, at its fullest instant."""
        total = np.sum(list(self.parts.values()), axis=0)
        stretches = np.array_split(np.arange(len(total)), min(len(total), SAMPLES))
        chosen = [int(stretch[np.argmax(total[stretch])]) for stretch in stretches]
        held = {
            name: tuple(map(int, held[chosen])) for name, held in self.parts.items() if held.any()
        }
        kernels = self.timeline.kernels
        fullest = source_name(kernels[self.places[self.peak]]) if kernels else ""
        return MemoryCurve(tuple(chosen), held, fullest)


@dataclass(frozen=True, slots=True)
class Unfolded:
    """The instants of the whole step.

    Attributes:
      places: for each, the instant of the program that the search looks at.
      over: for each stack, how many of the layers that are left out are over by then.
    """

    places: Instants
    over: tuple[Instants, ...]

    @classmethod
    def of(cls, timeline: Timeline) -> Unfolded:
        """Of the program that the search looks at."""
        which = np.full(timeline.instants, -1)
        line = np.zeros(timeline.instants)
        for stack, one in enumerate(timeline.layers):
            which[one.inside] = stack
            line += one.over + 0.5 * one.inside
        order = np.argsort(line, kind="stable")
        places: list[Instants] = []
        over: list[Instants] = []
        for piece in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
            stack = int(which[piece[0]])
            copies = timeline.layers[stack].times + 1 if stack >= 0 else 1
            places.append(np.tile(piece, copies))
            over.append(np.repeat(np.arange(copies), len(piece)))
        every, done = np.concatenate(places), np.concatenate(over)
        stacks = range(len(timeline.layers))
        return cls(every, tuple(np.where(which[every] == one, done, 0) for one in stacks))

    def bytes(self, held: Layered) -> Bytes:
        """At every instant, of those of the program that the search looks at."""
        found = held.own[self.places]
        parts = zip(held.before, held.after, held.times, self.over, strict=True)
        for before, after, times, over in parts:
            found = found + (times - over) * before[self.places] + over * after[self.places]
        return found
