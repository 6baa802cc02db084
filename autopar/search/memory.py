"""Memory of a plan: the static timeline of the step, with bytes by the layouts chosen.

``MemoryModel`` is built once a step, ``MeshMemory`` once a mesh. The peak of a full choice is
simulated exactly (copies made while re-laying a value included); a ``Limit`` says the same of one
instant as a linear constraint, without those copies, so it never forbids what would fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jax.extend.core import Var
from numpy.typing import NDArray

from autopar.core.plan import MemoryCurve
from autopar.cost_model import Chip, format_bytes
from autopar.cost_model.attention import NO_ATTENTION, attention_kernels
from autopar.cost_model.fusion import all_bodies, fusion_borders
from autopar.cost_model.memory import Bytes, Timeline, liveness
from autopar.cost_model.tiles import convolved, padding
from autopar.passes.trace import Step, source_name
from autopar.search.copies import gradients, held_hubs, streamed_operands
from autopar.search.domains import State
from autopar.search.graph import Graph
from autopar.search.network import FORBIDDEN, Limit, Network
from autopar.search.problem import Problem
from autopar.search.program_memory import ProgramMemory

PEAKS = 3
"""Instants limited in one round: fewer mean more rounds, more mean slower ones."""


SAMPLES = 240
"""Instants of a step that a plan tells the memory of."""

AMID = 4
"""A layer is in one piece if what runs amid it is so many times shorter."""

SHOWN = 3
"""Values named where a plan does not fit."""


class MemoryModel:
    """What does not depend on the mesh: fusion, liveness, and the roles of the inputs.

    Attributes:
      timeline: when each value is there. whole: with what needs no memory (``away``, scores of
        attention that stay on the chip) as if it did.

    Args:
      away: what a device holds of values that are on the host.
    """

    def __init__(
        self,
        step: Step,
        graph: Graph,
        roles: Sequence[str],
        chip: Chip,
        away: Mapping[Var, float] = MappingProxyType({}),
    ) -> None:
        self.roles = tuple(roles)
        self.fusion = fusion_borders(step.jaxpr.jaxpr, step.signatures)
        self.attention = (
            attention_kernels(step.jaxpr.jaxpr) if chip.attention_efficiency else NO_ATTENTION
        )
        self.whole = liveness(
            step.jaxpr,
            roles,
            step.donated,
            step.ties,
            borders=self.fusion,
            bf16_dots=chip.bf16_dots,
        )
        shares = {**dict.fromkeys(self.attention.scores, 0.0), **away}
        self.timeline: Timeline = self.whole.scaled(shares)
        top = step.jaxpr.jaxpr
        self.vmem_bytes = chip.vmem_bytes
        self.paths = dict(zip(top.invars, step.in_paths, strict=True))
        bodies = (top, *all_bodies(top.eqns))
        self.tiles = convolved(bodies) if chip.bf16_dots else {}
        self.padding = padding(self.tiles, self.fusion.roots)
        self.gradients = gradients(graph, self.timeline, self.fusion.sources)
        self.held = held_hubs(graph, self.timeline)
        self.streamed = streamed_operands(graph, self.timeline)

    def program(self, problem: Problem) -> ProgramMemory:
        """What the program holds on one mesh."""
        parts = (self.timeline, self.held, self.streamed, problem)
        laid = (self.tiles, self.padding, self.fusion.softmaxes)
        return ProgramMemory(*parts, self.vmem_bytes, self.paths, self.gradients, *laid)

    def on(self, problem: Problem) -> MeshMemory:
        """The memory of one mesh's problem."""
        return MeshMemory(self.program(problem))


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

    parts: Mapping[str, Bytes]
    places: NDArray[np.intp]
    exact: NDArray[np.bool_]

    @property
    def peak(self) -> int:
        """The instant of the most bytes."""
        return int(np.argmax(np.where(self.exact, sum(self.parts.values()), -1.0)))


@dataclass(slots=True)
class MeshMemory:
    """What a step holds on one mesh.

    Where layers are folded, bytes are linear in the number of layers at every instant of a layer
    that is kept, and between these in the others: so the peak lies in one that is kept.
    """

    program: ProgramMemory
    less: tuple[Less, ...] = ()
    _known: NDArray[np.intp] = field(init=False)

    def __post_init__(self) -> None:
        known = np.ones(self.program.timeline.instants, np.bool_)
        for less in self.less:
            known &= less.instants >= 0
        self._known = np.flatnonzero(known)

    @property
    def vmem_bytes(self) -> int:
        """Of on-chip memory."""
        return self.program.vmem_bytes

    def peak(self, states: Sequence[State], pieces: bool = True) -> tuple[int, int]:
        """``(instant, bytes)`` at which a choice holds the most; ``pieces``: see ``Streamed``."""
        live = self._live(states, pieces)
        place = int(np.argmax(live))
        return int(self._known[place]), int(live[place])

    def over(self, states: Sequence[State], budget: int) -> list[tuple[int, int, int]]:
        """``(instant, bytes, bytes of copies)`` of the ``PEAKS`` highest peaks above ``budget``.

        A peak is no lower than its neighbours, so that one limit stands for those around it. The
        copies are what a limit leaves out, less what it counts though it is on the chip.
        """
        live = self._live(states)
        padded = np.concatenate(([0.0], live, [0.0]))
        is_peak = (live > budget) & (live >= padded[:-2]) & (live > padded[2:])
        found = sorted(np.flatnonzero(is_peak), key=lambda i: (-live[i], i))[:PEAKS]
        known = [(int(self._known[i]), int(live[i])) for i in found]
        return [(i, size, size - self._load(i, states)) for i, size in known]

    def _live(self, states: Sequence[State], pieces: bool = True) -> Bytes:
        """Bytes at the instants known."""
        base = self.program.live(states, pieces)
        total = base.copy()
        for less in self.less:
            other = less.program.live(less.states(states), pieces)
            total += less.times * (base - other[less.instants])
        return total[self._known]

    def _load(self, instant: int, states: Sequence[State]) -> int:
        """What the limit at an instant counts of a choice."""
        total = own = self.program.load(instant, states)
        for less in self.less:
            other = less.program.load(int(less.instants[instant]), less.states(states))
            total += less.times * (own - other)
        return total

    def limit(self, instant: int, budget: int) -> Limit:
        """``live bytes at instant <= budget`` as a linear constraint over the variables."""
        own = self.program.weights(instant)
        weights = dict(own)
        for less in self.less:
            other = less.program.weights(int(less.instants[instant]))
            for part, sign in ((own, less.times), (other, -less.times)):
                for variable, each in part.items():
                    weights[variable] = weights.get(variable, np.zeros_like(each)) + sign * each
        room = budget + self.vmem_bytes  # short-lived values may lie on the chip
        return Limit({v: w for v, w in sorted(weights.items()) if w.any()}, room)

    def lightest(self, instants: Iterable[int]) -> Network:
        """The same choices, with bytes at these instants for an objective.

        A kibibyte weighs as much as a microsecond, so that among light plans a fast one is found.
        """
        network = self.program.problem.network
        unary = [np.where(c < FORBIDDEN // 2, c // 1000, FORBIDDEN) for c in network.unary]
        for instant in instants:
            for variable, weight in self.limit(instant, 0).weights.items():
                unary[variable] = np.minimum(unary[variable] + weight // 1024, FORBIDDEN)
        pairs = {
            pair: np.where(table < FORBIDDEN // 2, table // 1000, FORBIDDEN)
            for pair, table in network.pairs.items()
        }
        return Network(tuple(unary), pairs)

    def heaviest(self, states: Sequence[State]) -> str:
        """The largest values at the peak, by name and size."""
        program = self.program
        bytes_of = program.bytes_of(states)
        return heaviest(program.timeline, bytes_of, self.peak(states)[0], program.paths)

    def stacked(self, states: Sequence[State]) -> Stacked:
        """What ``breakdown`` and ``curve`` tell of.

        A layer that another stands for holds what that does, and lies between those before and
        after it as to what all others have left.
        """
        base = self.program.stacked(states)
        others = [less.program.stacked(less.states(states)) for less in self.less]
        places, times = self._unfolded()
        parts: dict[str, Bytes] = {}
        for name, held in base.items():
            parts[name] = held[places]
            for less, other, (before, after) in zip(self.less, others, times, strict=True):
                each = held - other[name][less.instants]
                left, right = _nearest(less.instants >= 0)
                parts[name] += after * each[left][places] + before * each[right][places]
        exact = np.isin(places, self._known)
        return Stacked(parts, places, exact)

    def _unfolded(self) -> tuple[NDArray[np.intp], list[tuple[NDArray[np.intp], ...]]]:
        """The program's instant for each of the step's; for each stack how many of the layers that
        are left out are over by then, and how many are to come.
        """
        which = np.full(self.program.timeline.instants, -1)
        for stack, less in enumerate(self.less):
            which[less.generic] = stack
        instants = _together(which)
        bounds = np.flatnonzero(np.diff(which[instants])) + 1
        places: list[NDArray[np.intp]] = []
        over: list[NDArray[np.intp]] = []
        for piece in np.split(instants, bounds):
            stack = int(which[piece[0]])
            copies = self.less[stack].times + 1 if stack >= 0 else 1
            places.append(np.tile(piece, copies))
            over.append(np.repeat(np.arange(copies), len(piece)))
        every, done = np.concatenate(places), np.concatenate(over)
        times: list[tuple[NDArray[np.intp], ...]] = []
        for stack, less in enumerate(self.less):
            before = np.where(which[every] == stack, done, 0)
            times.append((before, less.times - before))
        return every, times

    def breakdown(self, stacked: Stacked) -> dict[str, int]:
        """Bytes by category at the peak."""
        peak = stacked.peak
        return {name: int(held[peak]) for name, held in stacked.parts.items() if held[peak]}

    def curve(self, stacked: Stacked) -> MemoryCurve:
        """Bytes by category over the step; of every stretch of it, at its fullest instant."""
        total = np.sum(list(stacked.parts.values()), axis=0)
        stretches = np.array_split(np.arange(len(total)), min(len(total), SAMPLES))
        chosen = [int(stretch[np.argmax(total[stretch])]) for stretch in stretches]
        held = {
            name: tuple(map(int, held[chosen]))
            for name, held in stacked.parts.items()
            if held.any()
        }
        kernels = self.program.timeline.kernels
        fullest = source_name(kernels[stacked.places[stacked.peak]]) if kernels else ""
        return MemoryCurve(tuple(chosen), held, fullest)


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


def heaviest(
    timeline: Timeline, bytes_of: Mapping[Var, int], instant: int, paths: Mapping[Var, str]
) -> str:
    """The largest values at an instant, by name and size; ``paths`` are the names of inputs."""
    sizes: dict[str, int] = defaultdict(int)
    for buffer in timeline.live_at(instant):
        made = paths.get(buffer.var) or source_name(timeline.kernels[buffer.start])
        sizes[made] += int(buffer.scale * bytes_of[buffer.var])
    largest = sorted(sizes.items(), key=lambda one: (-one[1], one[0]))[:SHOWN]
    return ", ".join(f"{name} ({format_bytes(size)})" for name, size in largest)
