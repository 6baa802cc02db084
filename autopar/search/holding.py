"""What lies in memory only because the layouts of one choice differ.

Under ``jit`` a gradient's product is *windowed* with its reduce-scatter (``forms``); what XLA:TPU
holds for one, ``Streamed`` and ``WINDOW_PARTS`` say. Every other gradient that is reduced waits,
whole, until the backward pass is over: all-reduces are combined, up to 120 MiB of them, and
reduce-scatters put off (measured, v5e; where memory runs out, XLA reduces some earlier).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jax.extend.core import JaxprEqn, Var

from autopar.core.layout import Layout, Partial, Split, local_shape
from autopar.cost_model.timeline import Extra, Owned, Timeline
from autopar.search.copies import SHORT_KERNELS, UNROLLED_RING, Gradient, Held, Streamed
from autopar.search.domains import State
from autopar.search.forms import is_windowed
from autopar.search.graph import Edge
from autopar.search.problem import Problem

Move = tuple[Edge, Layout, Layout, Extra]
"""A layout change: its edge, from what to what, and the copy that it makes."""

WINDOW_PARTS = 2
"""Parts of a windowed product's result that a loop holds: the sums that go round, one each way."""

UNROLLED_PARTS = 6
"""The same without a loop: each way what is summed here, what was, and what comes in."""

FREED_RATIO = 2
"""Under ``shard_map`` a gradient is computed in its place if it frees so many times its own bytes
and then waits to be reduced; else it is put off until the backward pass is over (measured, v5e)."""

BESIDE = 2
"""Kernels by which the other product that reads the same, that of the operand, may come later."""


@dataclass(slots=True)
class Moved:
    """What layout changes add to a timeline: extra spans, and buffers that live longer."""

    extra: list[Extra | Owned] = field(default_factory=list[Extra | Owned])
    lasting: dict[Var, int] = field(default_factory=dict[Var, int])


@dataclass(frozen=True, slots=True)
class Copies:
    """Says what the layout changes of a choice add.

    Attributes:
      local_bytes: of a value in a layout.
    """

    timeline: Timeline
    held: tuple[Held, ...]
    streamed: Mapping[int, tuple[int, tuple[Streamed, ...]]]
    gradients: tuple[Gradient, ...]
    problem: Problem
    local_bytes: Callable[[Var, Layout], int]

    def of(
        self, states: Sequence[State], sizes: Mapping[Var, int], pieces: bool, waiting: bool = True
    ) -> Moved:
        """Everything.

        Args:
          sizes: bytes of the buffers.
          pieces: whether products are windowed (``jit``).
          waiting: whether there is room for gradients that wait to be reduced.
        """
        moves = self._moves(states)
        found = Moved([*self._copies(states, moves)])
        windows: list[tuple[int, int, float]] = []
        for edge, left, right, _ in moves:
            ring = self._ring(left, right) if pieces else 1
            if edge.coalesced and self._is_windowed(edge, ring):
                windows.append(self._window(edge, ring, right))
            elif waiting and edge.coalesced and _is_summed(left, right):
                self._wait(found, edge, left, sizes)
        found.extra += self._window_parts(windows)
        found.extra += [extra for _, extra in self._streams(states, moves)] if pieces else []
        for gradient in self.gradients if waiting and not pieces else ():
            found.lasting |= self._put_off(gradient, states, sizes)
        return found

    def _moves(self, states: Sequence[State]) -> list[Move]:
        found: list[Move] = []
        for place, left, right in self.problem.moves(states):
            edge = self.problem.graph.edges[place]
            extra = self._copied(edge, left, right)
            if extra is not None:
                found.append((edge, left, right, extra))
        return found

    def streams(self, states: Sequence[State]) -> Iterable[tuple[Var, Extra]]:
        """Operands of products that must lie in memory (see ``Streamed``), each with its value."""
        return self._streams(states, self._moves(states))

    def _streams(
        self, states: Sequence[State], moves: Sequence[Move]
    ) -> Iterable[tuple[Var, Extra]]:
        streamed: dict[tuple[Var, int], tuple[int, float]] = {}
        for edge, left, right, _ in moves:
            for one, size in self._streaming(edge, self._ring(left, right), states):
                root = self.timeline.root(one.var)
                end, most = streamed.get((root, one.start), (0, 0.0))
                streamed[root, one.start] = max(end, one.end), max(most, size)
        for (var, start), (end, size) in streamed.items():
            yield var, (start, end, size)

    def copies(self, states: Sequence[State]) -> Iterable[Extra]:
        """All other copies."""
        return self._copies(states, self._moves(states))

    def _copies(self, states: Sequence[State], moves: Sequence[Move]) -> Iterable[Extra]:
        yield from self.standing(states)
        changed: set[int] = set()
        for edge, _, _, extra in moves:
            changed.update((edge.src, edge.dst))
            yield extra
        for held in self.held:
            if not held.is_weight and held.node in changed:
                yield self._span(held, states)

    def standing(self, states: Sequence[State]) -> Iterable[Extra]:
        """The copies that a limit counts too: inputs in use as they do not rest, cast weights."""
        graph = self.problem.graph
        for index in graph.shared_inputs:
            node, state = graph.nodes[index], states[index]
            if node.var in self.timeline.uses and state.operands != state.results:
                assert node.var is not None
                start, end = self.timeline.uses[node.var]
                yield start, end, self.local_bytes(node.var, state.results[0])
        yield from (extra for _, extra in self.casts(states))

    def casts(self, states: Sequence[State]) -> Iterable[tuple[Var, Extra]]:
        """Casts of weights, each with its value."""
        for held in self.held:
            if held.is_weight:
                yield held.var, self._span(held, states)

    def _span(self, held: Held, states: Sequence[State]) -> Extra:
        size = self.local_bytes(held.var, states[held.node].results[0])
        return held.start, held.end, size

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

    def _ring(self, left: Layout, right: Layout) -> int:
        """Devices round the ring of a reduce-scatter; 1 if it is none."""
        return math.prod(
            axis.size if old == Partial("add") and isinstance(new, Split) else 1
            for axis, old, new in zip(self.problem.mesh.axes, left, right, strict=True)
        )

    def _is_windowed(self, edge: Edge, ring: int) -> bool:
        devices = self.problem.mesh.device_count
        return edge.src in self.streamed and is_windowed(self._product(edge), ring, devices)

    def _product(self, edge: Edge) -> JaxprEqn | None:
        return self.problem.graph.nodes[self.streamed[edge.src][0]].eqn

    def _window(self, edge: Edge, ring: int, right: Layout) -> tuple[int, int, float]:
        """When a windowed product runs, its ring, and the bytes of a part of its result."""
        eqn = self._product(edge)
        assert eqn is not None, "only products are windowed"
        local = local_shape(edge.shape, right, self.problem.mesh)
        at = self.timeline.instant_of[eqn.outvars[0]]
        return at, ring, float(math.prod(local) * edge.itemsize)

    def _streaming(
        self, edge: Edge, ring: int, states: Sequence[State]
    ) -> Iterable[tuple[Streamed, float]]:
        """What a product must find in memory, if this edge scatters it, and its bytes."""
        product, operands = self.streamed.get(edge.src, (0, ()))
        for one in operands:
            waits = edge.coalesced and one.end - one.start > SHORT_KERNELS
            if ring > UNROLLED_RING or (ring > 1 and waits):
                yield one, self.local_bytes(one.var, states[product].operands[one.slot])

    def _wait(self, found: Moved, edge: Edge, left: Layout, sizes: Mapping[Var, int]) -> None:
        """Notes that the gradient which an edge reduces waits, but for a loop's."""
        node, until = self.problem.graph.nodes[edge.src], self.timeline.last_heavy
        var = node.var if node.eqn is None else node.eqn.outvars[edge.port]
        if var is None or node.trips > 1:
            return
        root = self.timeline.root(var)
        start = self.timeline.instant_of.get(root)
        if root in sizes:
            found.lasting[root] = until
        elif start is not None and start < until:  # else fused into what updates with it
            found.extra.append((start, until, self.local_bytes(var, left)))

    def _put_off(
        self, one: Gradient, states: Sequence[State], sizes: Mapping[Var, int]
    ) -> Mapping[Var, int]:
        """What a gradient reads, if it is put off, and until when."""
        nodes, made = self.problem.graph.nodes, self.problem.graph.sources
        result, eqn = states[one.node].results[0], nodes[one.node].eqn
        assert eqn is not None
        read = [
            var for var in one.sources if var in sizes and nodes[made[var].node].kind != "input"
        ]
        freed = sum(sizes[v] for v in read if self.timeline.uses[v][1] <= one.instant + BESIDE)
        written = self.local_bytes(eqn.outvars[0], result)
        if Partial("add") in result and FREED_RATIO * written < freed:
            return {}
        return dict.fromkeys(read, self.timeline.last_heavy)

    def _window_parts(self, windows: Sequence[tuple[int, int, float]]) -> Iterable[Extra | Owned]:
        """What windowed products hold. Loops run last, but are given memory before the first one's
        operands are made.
        """
        first = min((at for at, _, _ in windows), default=0)
        read = [var for one in self.gradients if one.instant == first for var in one.sources]
        made = [self.timeline.uses[var][0] for var in read if var in self.timeline.uses]
        first = min([at for at in made if at], default=first)
        for at, ring, size in windows:
            if ring > UNROLLED_RING:
                yield min(first, at), at, WINDOW_PARTS * size, at
            else:
                yield at, self.timeline.last_heavy, UNROLLED_PARTS * size


def _is_summed(left: Layout, right: Layout) -> bool:
    return any(old == Partial("add") != new for old, new in zip(left, right, strict=True))
