"""Memory of a plan: the static timeline of the step, with bytes by the layouts chosen.

``MemoryModel`` is built once a step, ``MeshMemory`` once a mesh. The peak of a full choice is
simulated exactly (copies made while re-laying a value included); a ``Limit`` says the same of one
instant as a linear constraint, without those copies, so it never forbids what would fit.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from jax.extend.core import Var

from autopar.core.layout import Layout, Partial, Split, local_shape, shifted
from autopar.core.plan import MemoryCurve
from autopar.cost_model import Chip, format_bytes
from autopar.cost_model.attention import NO_ATTENTION, attention_kernels
from autopar.cost_model.fusion import all_bodies, fusion_borders
from autopar.cost_model.memory import SHORT_KERNELS, Bytes, Extra, Timeline, liveness
from autopar.cost_model.tiles import Minor, convolved, tiled_elements
from autopar.cost_model.work import itemsize, shape_of
from autopar.passes.trace import Step, source_name
from autopar.search.copies import UNROLLED_RING, Held, Streamed, held_hubs, streamed_operands
from autopar.search.domains import State
from autopar.search.graph import Edge, Graph
from autopar.search.network import FORBIDDEN, IntArray, Limit, Network
from autopar.search.problem import Problem

PEAKS = 3
"""Instants limited in one round: fewer mean more rounds, more mean slower ones."""


SAMPLES = 240
"""Instants of a step that a plan tells the memory of."""

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
        self.held = held_hubs(graph, self.timeline)
        self.streamed = streamed_operands(graph, self.timeline)

    def on(self, problem: Problem) -> MeshMemory:
        """The memory model of one mesh's problem."""
        parts = (self.timeline, self.held, self.streamed, problem)
        return MeshMemory(*parts, self.vmem_bytes, self.paths, self.tiles)


@dataclass(slots=True)
class MeshMemory:
    """Bytes of every buffer in every state, on one mesh."""

    timeline: Timeline
    held: tuple[Held, ...]
    streamed: Mapping[int, tuple[int, tuple[Streamed, ...]]]
    problem: Problem
    vmem_bytes: int
    paths: Mapping[Var, str]
    tiles: Mapping[Var, Minor]
    _tables: dict[object, IntArray] = field(default_factory=dict)
    _sizes: dict[object, int] = field(default_factory=dict)

    def peak(self, states: Sequence[State], pieces: bool = True) -> tuple[int, int]:
        """``(instant, bytes)`` at which a choice holds the most; ``pieces``: see ``Streamed``."""
        extras = self._extras(states, pieces)
        return self.timeline.peak(self._bytes_of(states), extras, self.vmem_bytes)

    def over(self, states: Sequence[State], budget: int) -> list[tuple[int, int, int]]:
        """``(instant, bytes, bytes of copies)`` of the ``PEAKS`` highest peaks above ``budget``.

        A peak is no lower than its neighbours, so that one limit stands for those around it. The
        copies are what a limit leaves out, less what it counts though it is on the chip.
        """
        bytes_of, extras = self._bytes_of(states), list(self._extras(states))
        live = self.timeline.profile(bytes_of, extras, self.vmem_bytes)
        padded = np.concatenate(([0.0], live, [0.0]))
        is_peak = (live > budget) & (live >= padded[:-2]) & (live > padded[2:])
        found = sorted(np.flatnonzero(is_peak), key=lambda i: (-live[i], i))[:PEAKS]
        return [(int(i), int(live[i]), int(live[i]) - self._load(int(i), states)) for i in found]

    def _load(self, instant: int, states: Sequence[State]) -> int:
        """What the limit at an instant counts of a choice."""
        graph, total = self.problem.graph, 0.0
        bytes_of = self._bytes_of(states)
        for buffer in self.timeline.live_at(instant):
            total += buffer.scale * bytes_of[buffer.var]
        for start, end, size in self._standing(graph, states):
            total += size if start <= instant <= end else 0.0
        return int(total)

    def stacked(self, states: Sequence[State]) -> Mapping[str, Bytes]:
        """Bytes at every instant, by category: what ``breakdown`` and ``curve`` tell of."""
        extras = list(self._extras(states))
        return self.timeline.stacked(self._bytes_of(states), extras, self.vmem_bytes)

    def breakdown(self, parts: Mapping[str, Bytes]) -> dict[str, int]:
        """Bytes by category at the peak."""
        instant = int(np.argmax(sum(parts.values())))
        return {name: int(held[instant]) for name, held in parts.items() if held[instant]}

    def curve(self, parts: Mapping[str, Bytes]) -> MemoryCurve:
        """Bytes by category over the step; of every stretch of it, at its fullest instant."""
        total = np.sum(list(parts.values()), axis=0)
        stretches = np.array_split(np.arange(len(total)), min(len(total), SAMPLES))
        chosen = [int(stretch[np.argmax(total[stretch])]) for stretch in stretches]
        held = {name: tuple(map(int, held[chosen])) for name, held in parts.items() if held.any()}
        kernels = self.timeline.kernels
        fullest = source_name(kernels[int(np.argmax(total))]) if kernels else ""
        return MemoryCurve(tuple(chosen), held, fullest)

    def heaviest(self, states: Sequence[State]) -> str:
        """The largest values at the peak, by name and size."""
        return heaviest(self.timeline, self._bytes_of(states), self.peak(states)[0], self.paths)

    def limit(self, instant: int, budget: int) -> Limit:
        """``live bytes at instant <= budget`` as a linear constraint over the variables."""
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
        room = budget + self.vmem_bytes  # short-lived values may lie on the chip
        return Limit({v: w for v, w in sorted(weights.items()) if w.any()}, room)

    def lightest(self, instants: Iterable[int]) -> Network:
        """The same choices, with bytes at these instants for an objective.

        A kibibyte weighs as much as a microsecond, so that among light plans a fast one is found.
        """
        network = self.problem.network
        unary = [np.where(c < FORBIDDEN // 2, c // 1000, FORBIDDEN) for c in network.unary]
        for instant in instants:
            for variable, weight in self.limit(instant, 0).weights.items():
                unary[variable] = np.minimum(unary[variable] + weight // 1024, FORBIDDEN)
        pairs = {
            pair: np.where(table < FORBIDDEN // 2, table // 1000, FORBIDDEN)
            for pair, table in network.pairs.items()
        }
        return Network(tuple(unary), pairs)

    def _bytes_of(self, states: Sequence[State]) -> dict[Var, int]:
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
        for edge, left, right in self.problem.moves(states):
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
        for edge, left, right in self.problem.moves(states):
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


def _add(weights: dict[int, IntArray], problem: Problem, node: int, table: IntArray) -> None:
    variable = problem.variables[node]
    weights[variable] = weights[variable] + table if variable in weights else table


def _resting(problem: Problem, node: int, states: Sequence[State], port: int) -> Layout:
    if problem.graph.nodes[node].kind == "input":
        return states[node].operands[0]
    return states[node].results[port]
