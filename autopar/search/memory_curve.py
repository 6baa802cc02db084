"""What a step holds by category, at every instant of it, layers that were folded included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.core.plan import MemoryCurve
from autopar.cost_model.memory import Bytes, Timeline
from autopar.passes.sources import source_name
from autopar.search.domains import State
from autopar.search.program_memory import ProgramMemory

Instants = NDArray[np.intp]
Parts = Mapping[str, Bytes]

SAMPLES = 240
"""Instants of a step that a plan tells the memory of."""

AMID = 4
"""A layer is in one piece if what runs amid it is so many times shorter."""


@dataclass(frozen=True, slots=True)
class Less:
    """The memory of the same step with one layer less: the difference is what each layer adds.

    Attributes:
      nodes: the node of the step's graph for each of its own.
      instants: its instant for each of the step's, or -1 where no other is like it.
      generic: whether each instant of the step is of the layer that is left out.
      times: how many layers more there are than in the program that the search looks at.
    """

    program: ProgramMemory
    nodes: Sequence[int]
    instants: NDArray[np.intp]
    generic: NDArray[np.bool_]
    times: int

    def states(self, states: Sequence[State]) -> tuple[State, ...]:
        """Of its own nodes."""
        return tuple([states[node] for node in self.nodes])


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

    less: tuple[Less, ...]
    places: Instants
    over: tuple[Instants, ...]

    @classmethod
    def of(cls, instants: int, less: tuple[Less, ...]) -> Unfolded:
        """Of a program of so many instants."""
        which = np.full(instants, -1)
        for stack, one in enumerate(less):
            which[one.generic] = stack
        order = _together(which)
        places: list[Instants] = []
        over: list[Instants] = []
        for piece in np.split(order, np.flatnonzero(np.diff(which[order])) + 1):
            stack = int(which[piece[0]])
            copies = less[stack].times + 1 if stack >= 0 else 1
            places.append(np.tile(piece, copies))
            over.append(np.repeat(np.arange(copies), len(piece)))
        every, done = np.concatenate(places), np.concatenate(over)
        stacks = range(len(less))
        return cls(less, every, tuple(np.where(which[every] == one, done, 0) for one in stacks))

    def parts(self, base: Parts, others: Sequence[Parts]) -> dict[str, Bytes]:
        """Bytes by category, of those of the program and of the same with a layer less.

        A layer that another stands for holds what that does, and lies between those before and
        after it as to what all others have left.
        """
        found = {name: held[self.places] for name, held in base.items()}
        for less, other, over in zip(self.less, others, self.over, strict=True):
            before, after = (near[self.places] for near in _nearest(less.instants >= 0))
            for name, held in base.items():
                each = held - other[name][less.instants]
                found[name] += (less.times - over) * each[before] + over * each[after]
        return found


def _together(which: NDArray[np.intp]) -> NDArray[np.intp]:
    """Instants in order, but for kernels of neighbours that run amid those of a generic layer: they
    come after these, so that the layer is in one piece.
    """
    pieces = np.split(np.arange(len(which)), np.flatnonzero(np.diff(which)) + 1)
    found: list[NDArray[np.intp]] = []
    for piece in pieces:
        amid = found[-1] if found else piece[:0]
        before = found[-2] if len(found) > 1 else piece[:0]
        generic = len(before) and which[piece[0]] == which[before[0]] >= 0
        if generic and AMID * len(amid) <= max(len(before), len(piece)):
            found[-2:] = [np.concatenate((before, piece)), amid]
        else:
            found.append(piece)
    return np.concatenate(found)


def _nearest(known: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """For each place the nearest that is known, itself or before it, and itself or after it."""
    places = np.arange(len(known))
    before = np.maximum.accumulate(np.where(known, places, -1))
    after = np.minimum.accumulate(np.where(known, places, len(known))[::-1])[::-1]
    return np.where(before < 0, after, before), np.where(after == len(known), before, after)
