"""The flow graph of a step: who makes each value, who uses it, and how often.

Built from the simplified jaxpr with its loops walked in place. Nodes are the choices to make:

* an ``input``: how it lies at rest, and, when several read it, how it lies while they do;
* an ``op``: one equation, and its strategy;
* a ``hub``: a value that several use, or that crosses the border of a loop, in the one layout in
  which it is materialised (so sharing is pairwise; see docs/search.md);
* an ``output``: how a result of the step lies.

An edge is one use. Where its ends want different layouts the value is resharded, ``weight`` times.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Literal as OneOf
from typing import NamedTuple

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.cost_model.work import itemsize, shape_of
from autopar.passes.rules import Link, Region, regions
from autopar.passes.trace import Step
from autopar.search import sides
from autopar.search.network import IntArray

Atom = Var | Literal
NodeKind = OneOf["input", "op", "hub", "output"]

HEAVY = frozenset(
    ("dot_general", "ragged_dot", "conv_general_dilated", "gather", "sort", "scatter-add")
)
"""Primitives that anchor the forward and backward pass; what only light work follows is a tail."""


class Node(NamedTuple):
    """One choice of the plan. ``name`` is stable: ``in:3``, ``12``, ``30/body/4``, and for hubs
    ``12.0`` (a result), ``30/body.in2`` and ``30.out1`` (what crosses a loop's border).
    """

    index: int  # pyright: ignore[reportIncompatibleMethodOverride]  (a tuple method; unused)
    kind: NodeKind
    name: str
    trips: int
    var: Var | None = None
    eqn: JaxprEqn | None = None
    shape: tuple[int, ...] = ()


class Edge(NamedTuple):
    """A use of result ``port`` of node ``src`` as operand ``slot`` of node ``dst``.

    ``src_shift`` (``dst_shift``) is 1 where that end sees the value without its leading loop
    dimension. ``shape`` is that of the value moved, the loop dimension included.
    """

    src: int
    port: int
    dst: int
    slot: int
    shape: tuple[int, ...]
    itemsize: int
    weight: int
    src_shift: int = 0
    dst_shift: int = 0
    coalesced: bool = False


class Source(NamedTuple):
    """Where a value comes from: result ``port`` of ``node``; ``shift`` as in ``Edge``."""

    node: int
    port: int
    shift: int = 0


@dataclass(frozen=True, slots=True)
class Graph:
    """The whole step.

    Attributes:
      sources: for every variable, the node that fixes its layout.
      shared_inputs: indices of ``input`` nodes that several nodes read.
      tails: for each node, whether only light work follows it: the optimiser's side of the step.
      heads: for each node, whether only light work on inputs precedes it: weights and their casts.
      ends: the nodes of each edge, ``[edge, 2]``.
      uses: of each edge a number; equal ones for the same price, given the states of the ends.
      copies: how many nodes of the step each node stands for (see ``passes.fold``).
      edge_copies: how many uses each edge stands for.
    """

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    sources: dict[Var, Source]
    shared_inputs: frozenset[int]
    tails: tuple[bool, ...]
    heads: tuple[bool, ...]
    ends: IntArray
    uses: IntArray
    copies: IntArray
    edge_copies: IntArray

    @property
    def size(self) -> int:
        """The nodes of the step."""
        return int(self.copies.sum())


_Use = tuple[Var, int, int, int, int]
"""A variable, the node that uses it, in which slot, how often; ``dst_shift`` of the edge."""


@dataclass(slots=True)
class _Builder:
    nodes: list[Node] = field(default_factory=list)
    sources: dict[Var, Source] = field(default_factory=dict)
    uses: list[_Use] = field(default_factory=list)

    def add(
        self,
        kind: NodeKind,
        name: str,
        trips: int,
        var: Var | None = None,
        eqn: JaxprEqn | None = None,
        shape: tuple[int, ...] | None = None,
    ) -> int:
        if shape is None:
            shape = () if var is None else shape_of(var.aval)
        self.nodes.append(Node(len(self.nodes), kind, name, trips, var, eqn, shape))
        return len(self.nodes) - 1

    def use(self, atom: Atom, dst: int, slot: int, weight: int, shift: int = 0) -> None:
        if isinstance(atom, Var):
            self.uses.append((atom, dst, slot, weight, shift))


def build_graph(step: Step, held: frozenset[Var] = frozenset()) -> Graph:
    """Walks the step, regions included, and connects every use to its source.

    Args:
      held: results of equations that get a hub even if they have one use.
    """
    builder = _Builder()
    jaxpr = step.jaxpr.jaxpr
    for position, var in enumerate(jaxpr.invars):
        node = builder.add("input", f"in:{position}", 1, var)
        builder.sources[var] = Source(node, 0)
    for position, var in enumerate(jaxpr.constvars):
        node = builder.add("input", f"const:{position}", 1, var)
        builder.sources[var] = Source(node, 0)
    _walk(builder, jaxpr, "", 1)
    _connect_outputs(builder, step)
    return _finish(builder, held)


def _connect_outputs(builder: _Builder, step: Step) -> None:
    """A tied output is a use by the input it becomes; any other gets a node of its own."""
    tied = dict(step.ties)
    for position, atom in enumerate(step.jaxpr.jaxpr.outvars):
        if position in tied:
            builder.use(atom, tied[position], 0, 1)
        else:
            var = atom if isinstance(atom, Var) else None
            node = builder.add("output", f"out:{position}", 1, var)
            builder.use(atom, node, 0, 1)


def _walk(builder: _Builder, jaxpr: Jaxpr, prefix: str, trips: int) -> None:
    nodes, uses, sources = builder.nodes, builder.uses, builder.sources
    for position, eqn in enumerate(jaxpr.eqns):
        name = f"{prefix}{position}"
        nested = regions(eqn)
        if nested is not None:
            _enter(builder, nested, name, trips)
            continue
        node = len(nodes)
        nodes.append(Node(node, "op", name, trips, None, eqn))
        uses += [
            (atom, node, slot, trips, 0)
            for slot, atom in enumerate(eqn.invars)
            if isinstance(atom, Var)
        ]
        for port, var in enumerate(eqn.outvars):
            sources[var] = Source(node, port)


def _enter(builder: _Builder, nested: Sequence[Region], name: str, trips: int) -> None:
    """Walks the regions of one equation. Every value that crosses the border gets a hub."""
    for region in nested:
        inner = trips * region.trips
        for slot, link in enumerate(region.inputs):
            if isinstance(link.inner, Var):
                node = _hub(builder, link.inner, f"{name}/{region.name}.in{slot}", inner)
                builder.use(link.outer, node, 0, trips, int(link.stacked))
        _walk(builder, region.body, f"{name}/{region.name}/", inner)
        for into, out in region.carries:
            builder.use(out, builder.sources[into].node, 0, inner)
        for link, (into, _) in zip(region.outputs, region.carries, strict=False):
            if isinstance(link.outer, Var):
                builder.sources[link.outer] = builder.sources[into]
        for slot, link in enumerate(region.outputs[len(region.carries) :]):
            _leave(builder, link, f"{name}.out{len(region.carries) + slot}", inner)


def _leave(builder: _Builder, link: Link, name: str, trips: int) -> None:
    """A result of a region that is no carry: one hub, fed by every region that yields it."""
    outer = link.outer
    assert isinstance(outer, Var)
    if outer not in builder.sources:
        shape = shape_of(outer.aval)[int(link.stacked) :]
        node = builder.add("hub", name, trips, outer, shape=shape)
        builder.sources[outer] = Source(node, 0, int(link.stacked))
    builder.use(link.inner, builder.sources[outer].node, 0, trips)


def _hub(builder: _Builder, var: Var, name: str, trips: int) -> int:
    node = builder.add("hub", name, trips, var)
    builder.sources[var] = Source(node, 0)
    return node


def _finish(builder: _Builder, held: frozenset[Var]) -> Graph:
    """Gives every op result with several uses, or ``held``, its hub, then turns uses into edges."""
    nodes, sources = builder.nodes, builder.sources
    by_source: dict[Source, list[_Use]] = defaultdict(list)
    for use in builder.uses:
        by_source[sources[use[0]]].append(use)
    edges, shared = _Edges(), set[int]()
    heavy = [node.eqn is not None and node.eqn.primitive.name in HEAVY for node in nodes]
    looping = [node.kind == "hub" and node.trips > 1 for node in nodes]
    rests = [node.kind == "input" for node in nodes]  # the step is over: nothing waits
    tails = sides.tails(heavy, looping, _readers(builder, rests))
    for (index, port, shift), uses in sorted(by_source.items(), key=itemgetter(0)):
        node, origin = nodes[index], index
        if node.kind == "input" and sum([not rests[dst] for _, dst, *_ in uses]) > 1:
            shared.add(index)
        var = uses[0][0]
        if node.kind == "op" and (len(uses) > 1 or var in held):
            origin = builder.add("hub", f"{node.name}.{port}", node.trips, var)
            late = all(tails[dst] for _, dst, *_ in uses)
            tails.append(late)
            edges.add(index, port, shift, (var, origin, 0, node.trips, 0), late)
            sources[var] = Source(origin, 0)
            port = 0
        for use in uses:
            dst = use[1]
            if dst != origin:  # else an input is handed back unchanged
                light = node.kind == "input" or rests[dst] or tails[dst]
                edges.add(origin, port, shift, use, light)
    found = tuple(edges.edges)
    ends = np.array([(edge.src, edge.dst) for edge in found], np.int64).reshape(-1, 2)
    hubs = [False] * (len(nodes) - len(heavy))
    heads = sides.heads([*heavy, *hubs], [*rests, *hubs], ends)
    parts = tuple(nodes), found, sources, frozenset(shared), tuple(tails), heads
    once = np.ones(len(nodes), np.int64), np.ones(len(found), np.int64)
    return Graph(*parts, ends, np.array(edges.uses, np.int64), *once)


def _readers(builder: _Builder, rests: Sequence[bool]) -> list[list[int]]:
    """The nodes that read each, but for inputs of the next step."""
    readers: list[list[int]] = [[] for _ in builder.nodes]
    for var, dst, *_ in builder.uses:
        if not rests[dst]:
            readers[builder.sources[var].node].append(dst)
    return readers


@dataclass(slots=True)
class _Edges:
    """Edges in the making, and ``Graph.uses``."""

    edges: list[Edge] = field(default_factory=list)
    uses: list[int] = field(default_factory=list)
    _numbers: dict[object, int] = field(default_factory=dict)
    _known: dict[object, tuple[tuple[int, ...], int, int]] = field(default_factory=dict)

    def add(self, src: int, port: int, shift: int, use: _Use, coalesced: bool) -> None:
        var, dst, slot, weight, onward = use
        # Few abstract values stand for many variables: what they are is looked up once each.
        key = (port, slot, id(var.aval), shift, onward, coalesced)
        if key in self._known:
            shape, size, number = self._known[key]
        else:
            shape, size = shape_of(var.aval), itemsize(var.aval)
            alike = (port, slot, shape, size, shift, onward, coalesced)
            number = self._numbers.setdefault(alike, len(self._numbers))
            self._known[key] = shape, size, number
        self.edges.append(Edge(src, port, dst, slot, shape, size, weight, shift, onward, coalesced))
        self.uses.append(number)
