"""Bytes of one program on one mesh: at every instant, by the layouts chosen."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Var

from autopar.core.layout import Layout, Partial, Split, local_shape, shifted
from autopar.cost_model.memory import SHORT_KERNELS, Bytes, Extra, Timeline
from autopar.cost_model.tiles import Minor, tiled_elements
from autopar.cost_model.work import itemsize, shape_of
from autopar.search.copies import UNROLLED_RING, Held, Streamed
from autopar.search.domains import State
from autopar.search.graph import Edge, Graph
from autopar.search.network import IntArray
from autopar.search.problem import Problem


@dataclass(slots=True)
class ProgramMemory:
    """Bytes of every buffer in every state."""

    timeline: Timeline
    held: tuple[Held, ...]
    streamed: Mapping[int, tuple[int, tuple[Streamed, ...]]]
    problem: Problem
    vmem_bytes: int
    paths: Mapping[Var, str]
    tiles: Mapping[Var, Minor]
    _tables: dict[object, IntArray] = field(default_factory=dict)
    _sizes: dict[object, int] = field(default_factory=dict)

    def live(self, states: Sequence[State], pieces: bool = True) -> Bytes:
        """Bytes at every instant; ``pieces``: see ``Streamed``."""
        extras = self._extras(states, pieces)
        return self.timeline.profile(self.bytes_of(states), extras, self.vmem_bytes)

    def load(self, instant: int, states: Sequence[State]) -> int:
        """What the limit at an instant counts of a choice."""
        graph, total = self.problem.graph, 0.0
        bytes_of = self.bytes_of(states)
        for buffer in self.timeline.live_at(instant):
            total += buffer.scale * bytes_of[buffer.var]
        for start, end, size in self._standing(graph, states):
            total += size if start <= instant <= end else 0.0
        return int(total)

    def stacked(self, states: Sequence[State]) -> Mapping[str, Bytes]:
        """Bytes at every instant, by category."""
        extras = list(self._extras(states))
        return self.timeline.stacked(self.bytes_of(states), extras, self.vmem_bytes)

    def weights(self, instant: int) -> dict[int, IntArray]:
        """Of each variable, the bytes at an instant in each of its states, copies left out."""
        weights: dict[int, IntArray] = {}
        for buffer in self.timeline.live_at(instant):
            _add(weights, self.problem, *self._table(buffer.var, buffer.scale))
        for node in self.problem.graph.nodes:
            if node.kind == "input" and node.index in self.problem.graph.shared_inputs:
                start, end = self.timeline.uses.get(node.var, (0, -1)) if node.var else (0, -1)
                if start <= instant <= end:
                    _add(weights, self.problem, node.index, self._copies(node.index))
        for held in self.held:
            if held.is_weight and held.start <= instant <= held.end:
                _add(weights, self.problem, *self._table(held.var, 1.0))
        return weights

    def bytes_of(self, states: Sequence[State]) -> dict[Var, int]:
        """Of every buffer."""
        found: dict[Var, int] = {}
        sources = self.problem.graph.sources
        for buffer in self.timeline.buffers:
            node, port, shift = sources[buffer.var]
            layout = _resting(self.problem, node, states, port)
            found[buffer.var] = self._local_bytes(buffer.var, shifted(layout, shift))
        return found

    def _extras(self, states: Sequence[State], pieces: bool = True) -> Iterable[Extra]:
        """Copies: an input in use as it does not rest, and both ends of every re-layout."""
        yield from self.copies(states)
        for _, extra in self.streams(states) if pieces else ():
            yield extra

    def streams(self, states: Sequence[State]) -> Iterable[tuple[Var, Extra]]:
        """Operands of products that must lie in memory (see ``Streamed``), each with its value."""
        streamed: dict[tuple[Var, int], tuple[int, float]] = {}
        for place, left, right in self.problem.moves(states):
            edge = self.problem.graph.edges[place]
            if self._copied(edge, left, right) is not None:
                for one, size in self._streaming(edge, left, right, states):
                    root = self.timeline.root(one.var)
                    end, most = streamed.get((root, one.start), (0, 0.0))
                    streamed[root, one.start] = max(end, one.end), max(most, size)
        for (var, start), (end, size) in streamed.items():
            yield var, (start, end, size)

    def copies(self, states: Sequence[State]) -> Iterable[Extra]:
        """All other copies."""
        graph = self.problem.graph
        yield from self._standing(graph, states)
        changed: set[int] = set()
        for place, left, right in self.problem.moves(states):
            edge = graph.edges[place]
            extra = self._copied(edge, left, right)
            if extra is not None:
                changed.update((edge.src, edge.dst))
                yield extra
        for held in self.held:
            if not held.is_weight and held.node in changed:
                yield (
                    held.start,
                    held.end,
                    self._local_bytes(held.var, states[held.node].results[0]),
                )

    def _standing(self, graph: Graph, states: Sequence[State]) -> Iterable[Extra]:
        """The copies that a limit counts too: inputs in use as they do not rest, cast weights."""
        for index in graph.shared_inputs:
            node, state = graph.nodes[index], states[index]
            if node.var in self.timeline.uses and state.operands != state.results:
                assert node.var is not None
                start, end = self.timeline.uses[node.var]
                yield start, end, self._local_bytes(node.var, state.results[0])
        for held in self.held:
            if held.is_weight:
                yield (
                    held.start,
                    held.end,
                    self._local_bytes(held.var, states[held.node].results[0]),
                )

    def _copied(self, edge: Edge, left: Layout, right: Layout) -> Extra | None:
        """What a re-layout adds: the copy an op reads, or the unreduced value a hub received."""
        nodes = self.problem.graph.nodes
        reader = nodes[edge.dst].eqn
        maker = nodes[edge.src].eqn
        eqn, layout = (reader, right) if reader is not None else (maker, left)
        if eqn is None or not eqn.outvars or eqn.outvars[0] not in self.timeline.instant_of:
            return None
        instant = self.timeline.instant_of[eqn.outvars[0]]
        local = local_shape(edge.shape, layout, self.problem.mesh)
        return instant, instant, float(math.prod(local) * edge.itemsize)

    def _streaming(
        self, edge: Edge, left: Layout, right: Layout, states: Sequence[State]
    ) -> Iterable[tuple[Streamed, float]]:
        """What a product must find in memory, if this edge scatters it, and its bytes."""
        ring = max(
            axis.size if old == Partial("add") and isinstance(new, Split) else 1
            for axis, old, new in zip(self.problem.mesh.axes, left, right, strict=True)
        )
        product, operands = self.streamed.get(edge.src, (0, ()))
        for one in operands:
            waits = edge.coalesced and one.end - one.start > SHORT_KERNELS
            if ring > UNROLLED_RING or (ring > 1 and waits):
                yield one, self._local_bytes(one.var, states[product].operands[one.slot])

    def _table(self, var: Var, scale: float) -> tuple[int, IntArray]:
        """The node that decides about ``var``, and its bytes in each of its states."""
        source = self.problem.graph.sources[var]
        domain = self.problem.domains[source.node]
        shape, size = shape_of(var.aval), itemsize(var.aval)
        minor = self.tiles.get(var)
        key = (shape, size, scale, id(domain), source.port, source.shift, minor)
        if key not in self._tables:
            is_input = self.problem.graph.nodes[source.node].kind == "input"
            layouts = [s.operands[0] if is_input else s.results[source.port] for s in domain]
            self._tables[key] = np.array(
                [scale * self._local_bytes(var, shifted(one, source.shift)) for one in layouts],
                np.int64,
            )
        return source.node, self._tables[key]

    def _copies(self, index: int) -> IntArray:
        """Bytes of the in-use copy of an input in each of its states; 0 where it is as at rest."""
        var = self.problem.graph.nodes[index].var
        assert var is not None
        domain = self.problem.domains[index]
        same = [state.operands == state.results for state in domain]
        sizes = [self._local_bytes(var, state.results[0]) for state in domain]
        return np.where(same, 0, np.array(sizes, np.int64))

    def _local_bytes(self, var: Var, layout: Layout) -> int:
        minor = self.tiles.get(var)
        key = (id(var.aval), layout, minor)  # few abstract values stand for many variables
        if key not in self._sizes:
            local = local_shape(shape_of(var.aval), layout, self.problem.mesh)
            self._sizes[key] = tiled_elements(local, minor) * itemsize(var.aval)
        return self._sizes[key]


def _add(weights: dict[int, IntArray], problem: Problem, node: int, table: IntArray) -> None:
    variable = problem.variables[node]
    weights[variable] = weights[variable] + table if variable in weights else table


def _resting(problem: Problem, node: int, states: Sequence[State], port: int) -> Layout:
    if problem.graph.nodes[node].kind == "input":
        return states[node].operands[0]
    return states[node].results[port]
