"""Bytes of one program on one mesh: at every instant, by the layouts chosen."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Var

from autopar.core.layout import Layout, local_shape, shifted
from autopar.cost_model.on_chip import Pace
from autopar.cost_model.tiles import Minor, tiled_elements
from autopar.cost_model.timeline import Bytes, Extra, Lasting, Layered, Owned, Timeline
from autopar.cost_model.work import itemsize, shape_of
from autopar.search.copies import Gradient, Held, Streamed
from autopar.search.domains import State
from autopar.search.holding import Copies, Moved
from autopar.search.kernel_times import KernelTimes
from autopar.search.network import IntArray
from autopar.search.problem import Problem

UNGROUPED = 4
"""Dimensions of scores whose queries do not share keys: batch, heads, and both lengths."""


@dataclass(frozen=True, slots=True)
class _Last:
    """What a choice holds; ``choice`` names its ``states``. ``held``: see ``Copies.of``."""

    choice: tuple[int, ...]
    states: tuple[State, ...]
    pace: Pace | None
    held: dict[tuple[bool, bool], tuple[dict[Var, int], Moved]] = field(default_factory=dict)


@dataclass(slots=True)
class ProgramMemory:
    """Bytes of every buffer in every state.

    Attributes:
      waits: whether gradients wait to be reduced (see ``holding``).
      times: of the kernels, where there is on-chip memory.
    """

    timeline: Timeline
    held: tuple[Held, ...]
    streamed: Mapping[int, tuple[int, tuple[Streamed, ...]]]
    problem: Problem
    vmem_bytes: int
    paths: Mapping[Var, str]
    gradients: tuple[Gradient, ...]
    tiles: Mapping[Var, Minor]
    padding: Mapping[Var, float]
    scores: Mapping[Var, Var]
    waits: bool
    times: KernelTimes | None = None
    _tables: dict[object, IntArray] = field(default_factory=dict)
    _sizes: dict[object, int] = field(default_factory=dict)
    _last: _Last | None = None

    def live(self, states: Sequence[State], pieces: bool = True, waiting: bool = True) -> Bytes:
        """Bytes at every instant; ``pieces``, ``waiting``: see ``Copies.of``."""
        return self.timeline.profile(*self._held(states, pieces, waiting))

    def load(self, instant: int, states: Sequence[State]) -> int:
        """What the limit at an instant counts of a choice."""
        bytes_of, total = self.bytes_of(states), 0.0
        for buffer, count in self.timeline.live_at(instant):
            total += count * buffer.scale * bytes_of[buffer.var]
        for start, end, size in self._held_by_moves.standing(states):
            total += self.timeline.count(start, end, instant) * size
        return int(total)

    def stacked(self, states: Sequence[State], waiting: bool = True) -> Mapping[str, Layered]:
        """Bytes at every instant, by category."""
        return self.timeline.stacked(*self._held(states, True, waiting))

    def _held(
        self, states: Sequence[State], pieces: bool, waiting: bool
    ) -> tuple[Mapping[Var, int], Iterable[Extra | Owned], float, Lasting, Pace | None]:
        """The arguments of ``Timeline.profile``; of the last choice asked for they are kept."""
        choice, asked = tuple(map(id, states)), (pieces, waiting and self.waits)
        if self._last is None or self._last.choice != choice:
            self._last = _Last(choice, tuple(states), self._pace(states))
        if asked not in self._last.held:
            sizes = self.bytes_of(states, pieces)
            self._last.held[asked] = sizes, self._held_by_moves.of(states, sizes, *asked)
        sizes, moved = self._last.held[asked]
        return sizes, moved.extra, self.vmem_bytes, moved.lasting, self._last.pace

    def weights(self, instant: int, without: Collection[Var] = ()) -> dict[int, IntArray]:
        """Of each variable, the bytes at an instant in each of its states, copies left out, and
        some values.
        """
        weights: dict[int, IntArray] = {}
        count = self.timeline.count
        for buffer, copies in self.timeline.live_at(instant):
            if buffer.var not in without:
                node, table = self.table(buffer.var, buffer.scale)
                _add(weights, self.problem, node, copies * table)
        for node in self.problem.graph.nodes:
            if node.kind == "input" and node.index in self.problem.graph.shared_inputs:
                span = self.timeline.uses.get(node.var) if node.var else None
                if span and (copies := count(*span, instant)):
                    _add(weights, self.problem, node.index, copies * self._copies(node.index))
        for held in self.held:
            copies = count(held.start, held.end, instant) if held.is_weight else 0
            if copies and held.var not in without:
                node, table = self.table(held.var, 1.0)
                _add(weights, self.problem, node, copies * table)
        return weights

    def bytes_of(self, states: Sequence[State], pieces: bool = True) -> dict[Var, int]:
        """Of every buffer."""
        found: dict[Var, int] = {}
        sources = self.problem.graph.sources
        for buffer in self.timeline.buffers:
            node, port, shift = sources[buffer.var]
            layout = _resting(self.problem, node, states, port)
            found[buffer.var] = self.bytes_in(buffer.var, shifted(layout, shift), pieces)
        return found

    def streams(self, states: Sequence[State]) -> Iterable[tuple[Var, Extra]]:
        """Operands of products that must lie in memory (see ``Streamed``), each with its value."""
        return self._held_by_moves.streams(states)

    def casts(self, states: Sequence[State]) -> Iterable[tuple[Var, Extra]]:
        """Casts of weights that are held, each with its value."""
        return self._held_by_moves.casts(states)

    def copies(self, states: Sequence[State]) -> Iterable[Extra]:
        """All other copies."""
        return self._held_by_moves.copies(states)

    def _pace(self, states: Sequence[State]) -> Pace | None:
        return None if self.times is None else self.times.of(self.problem, states)

    @property
    def _held_by_moves(self) -> Copies:
        parts = (self.timeline, self.held, self.streamed, self.gradients)
        return Copies(*parts, self.problem, self.bytes_in)

    def table(self, var: Var, scale: float) -> tuple[int, IntArray]:
        """The node that decides about ``var``, and its bytes in each of its states."""
        source = self.problem.graph.sources[var]
        domain = self.problem.domains[source.node]
        shape, size = shape_of(var.aval), itemsize(var.aval)
        minor = self.tiles.get(var)
        laid = minor, self.padding.get(var), var in self.scores
        key = (shape, size, scale, id(domain), source.port, source.shift, laid)
        if key not in self._tables:
            is_input = self.problem.graph.nodes[source.node].kind == "input"
            layouts = [s.operands[0] if is_input else s.results[source.port] for s in domain]
            self._tables[key] = np.array(
                [scale * self.bytes_in(var, shifted(one, source.shift)) for one in layouts],
                np.int64,
            )
        return source.node, self._tables[key]

    def _copies(self, index: int) -> IntArray:
        """Bytes of the in-use copy of an input in each of its states; 0 where it is as at rest."""
        var = self.problem.graph.nodes[index].var
        assert var is not None
        domain = self.problem.domains[index]
        same = [state.operands == state.results for state in domain]
        sizes = [self.bytes_in(var, state.results[0]) for state in domain]
        return np.where(same, 0, np.array(sizes, np.int64))

    def bytes_in(self, var: Var, layout: Layout, pieces: bool = True) -> int:
        """Bytes of one device's part; see ``live`` for ``pieces``.

        A matmul's kernel goes on to a softmax only where a device has several sequences and several
        heads; else it writes its scores (measured, v5e: the dimension of one hides the pattern;
        under ``shard_map`` it is folded away, if queries are not grouped).
        """
        minor, scores = self.tiles.get(var), self.scores.get(var)
        if scores is not None and not pieces and len(shape_of(var.aval)) <= UNGROUPED:
            scores = None
        # Few abstract values stand for many variables.
        times = self.padding.get(var, 1.0)
        key = (id(var.aval), layout, minor, scores is None, times)
        if key not in self._sizes:
            local = local_shape(shape_of(var.aval), layout, self.problem.mesh)
            held = var if scores is None or 1 not in local[:-2] else scores
            elements = int(times * tiled_elements(local, minor))
            self._sizes[key] = elements * itemsize(held.aval)
        return self._sizes[key]


def _add(weights: dict[int, IntArray], problem: Problem, node: int, table: IntArray) -> None:
    variable = problem.variables[node]
    weights[variable] = weights[variable] + table if variable in weights else table


def _resting(problem: Problem, node: int, states: Sequence[State], port: int) -> Layout:
    if problem.graph.nodes[node].kind == "input":
        return states[node].operands[0]
    return states[node].results[port]
