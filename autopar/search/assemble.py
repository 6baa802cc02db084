r"""From the graph of a step to the cost function network of one mesh.

$$ \underbrace{\sum_{n} t_n \, \mathrm{compute}(n, x_n)}_{\texttt{\_op\_costs}}
 + \underbrace{\sum_{e} w_e \, \mathrm{reshard}(\mathrm{out}(x_{src}), \mathrm{in}(x_{dst}))}_
   {\texttt{\_edge\_table}} $$

with $t$ and $w$ how often a node or edge runs. Nodes of one class share a variable; an edge within
a class becomes a unary cost.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Var
from numpy.typing import NDArray

from autopar.core.layout import Layout, local_shape, replicated, shifted
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster, FusionBorders, Resharder, equation_seconds, work
from autopar.cost_model.attention import NO_ATTENTION, AttentionKernels, Charges
from autopar.cost_model.work import itemsize, shape_of
from autopar.search.domains import Domain, Domains, State, partial_ops
from autopar.search.graph import Edge, Graph, Node
from autopar.search.network import FORBIDDEN, IntArray, Network, add_pair, picked, times, to_ticks
from autopar.search.operations import Operation, without_rule
from autopar.search.problem import Problem, edge_groups
from autopar.search.quotient import classes, number, numbered


@dataclass(frozen=True, slots=True)
class Restriction:
    """What is not left to the search.

    Attributes:
      resting: for an input node, the layouts it may rest in.
      borders: for an output node or a hub, the layouts it may have.
      allow: whether an op may take a state; ``None`` allows all.
      own: for an op of whose layouts the step itself speaks, the states it may take.
      alike: pairs of inputs, hubs or outputs that must lie alike, inputs at rest.
    """

    resting: Mapping[int, tuple[Layout, ...]] = field(default_factory=dict)
    borders: Mapping[int, tuple[Layout, ...]] = field(default_factory=dict)
    allow: Callable[[Node, State], bool] | None = None
    own: Mapping[int, Domain] = field(default_factory=dict)
    alike: tuple[tuple[int, int], ...] = ()


def assemble(
    graph: Graph,
    ops: tuple[Operation | None, ...],
    fusion: FusionBorders,
    cluster: Cluster,
    mesh: MeshSpec,
    restriction: Restriction,
    resharder: Resharder,
    alike: bool,
    attention: AttentionKernels = NO_ATTENTION,
) -> Problem:
    """Builds the network. ``ops`` has one entry per node (see ``operations``).

    With ``alike`` nodes that look the same from nearby share a variable.
    """
    assembler = _Assembler(graph, ops, fusion, attention, cluster, mesh, restriction, resharder)
    assembler.fill_domains()
    variables = tuple(range(len(graph.nodes)))
    if alike:  # one device leaves no choice that would have to look around
        keys = assembler.keys
        variables = classes(graph, keys) if mesh.device_count > 1 else tuple(number(keys))
    groups = edge_groups(graph, variables)
    network = assembler.network(variables, groups)
    domains = tuple(assembler.domains)
    found = (graph, mesh, domains, variables, groups, network, resharder)
    return Problem(*found, without_rule(ops, graph.copies.tolist()))


@dataclass(slots=True)
class _Assembler:
    graph: Graph
    ops: tuple[Operation | None, ...]
    fusion: FusionBorders
    attention: AttentionKernels
    cluster: Cluster
    mesh: MeshSpec
    restriction: Restriction
    resharder: Resharder
    domains: list[Domain] = field(default_factory=list)
    keys: list[Hashable] = field(default_factory=list)
    costs: list[IntArray] = field(default_factory=list)
    _made: Domains = field(init=False)
    _cut: Callable[[tuple[int, ...], Layout], tuple[int, ...]] = field(init=False)
    _kinds: dict[int, Domain] = field(default_factory=dict)
    _inputs: dict[Hashable, Domain] = field(default_factory=dict)
    _texts: dict[int, str] = field(default_factory=dict)
    _partials: dict[tuple[int, int], frozenset[str]] = field(default_factory=dict)
    _seconds: dict[Hashable, IntArray] = field(default_factory=dict)
    _tables: dict[Hashable, IntArray] = field(default_factory=dict)
    _ends: dict[Hashable, _End] = field(default_factory=dict)

    def __post_init__(self) -> None:
        mesh = self.mesh  # not through self: all this would wait for the garbage collector
        self._made = Domains(mesh)
        self._cut = functools.cache(lambda shape, layout: local_shape(shape, layout, mesh))

    def fill_domains(self) -> None:
        """Domain, own cost and signature of every node."""
        makers = _makers(self.graph)
        tied = frozenset(itertools.chain(*self.restriction.alike))
        for node in self.graph.nodes:
            if node.kind == "op":
                domain, key, cost = self._op(node)
            elif node.kind == "input":
                domain, key, cost = self._input(node)
            else:
                domain, key, cost = self._border(node, makers)
            self.domains.append(domain)
            self.keys.append((node.kind, key, node.trips, node.shape, node.index in tied))
            self.costs.append(cost)

    def _op(self, node: Node) -> tuple[Domain, Hashable, IntArray]:
        op = self.ops[node.index]
        assert node.eqn is not None
        assert op is not None
        own = self.restriction.own.get(node.index)
        domain = own or self._of_kind(op)
        allow = self.restriction.allow
        if allow is not None:
            kept = tuple(state for state in domain if allow(node, state))
            domain = kept or domain[:1]
        charges = self.attention.of(node.eqn, *self.fusion.of(node.eqn))
        key = (op.kind, charges, node.trips, domain if allow or own else None)
        if key not in self._seconds:
            self._seconds[key] = self._op_costs(node, domain, charges) * node.trips
        return domain, key, self._seconds[key]

    def _of_kind(self, op: Operation) -> Domain:
        if op.kind not in self._kinds:
            self._kinds[op.kind] = self._made.op(op.rule)
        return self._kinds[op.kind]

    def _op_costs(self, node: Node, domain: Domain, charges: Charges) -> IntArray:
        eqn, cut = node.eqn, self._cut
        assert eqn is not None
        total = work(eqn)
        ins = [shape_of(atom.aval) for atom in eqn.invars]
        outs = [shape_of(var.aval) for var in eqn.outvars]
        local = [
            (tuple(map(cut, ins, state.operands)), tuple(map(cut, outs, state.results)))
            for state in domain
        ]
        # Axes that do another's work leave devices with the same shapes.
        seconds = {
            shapes: equation_seconds(total, *shapes, self.cluster.chip, *charges)
            for shapes in dict.fromkeys(local)
        }
        return to_ticks(np.array([seconds[shapes] for shapes in local]))

    def _input(self, node: Node) -> tuple[Domain, Hashable, IntArray]:
        resting = self.restriction.resting.get(node.index)
        if node.name.startswith("const"):
            resting = (replicated(self.mesh),)
        shared = node.index in self.graph.shared_inputs
        asked = (node.shape, shared, resting)
        if asked not in self._inputs:
            every = self._made.layouts(node.shape, frozenset())
            rests = every if resting is None else resting
            self._inputs[asked] = self._made.input(node.shape, shared, rests)
        domain = self._inputs[asked]
        assert node.var is not None
        size = itemsize(node.var.aval)
        key = ("input", node.shape, id(domain), size)
        if key not in self._seconds:
            # A re-layout between rest and use, light and waited for by nobody else: coalesced.
            rests, uses = self._end(domain, True), self._end(domain, False)
            table = self._reshard(node.shape, size, rests, uses, True)
            self._seconds[key] = table[rests.of_state, uses.of_state]
        return domain, (self._text(node.var), resting, shared), self._seconds[key]

    def _border(
        self, node: Node, makers: Mapping[int, list[tuple[int, int]]]
    ) -> tuple[Domain, Hashable, IntArray]:
        ops = frozenset(
            op for source, port in makers.get(node.index, ()) for op in self._port_ops(source, port)
        )
        domain = self._made.hub(node.shape, ops)
        allowed = self.restriction.borders.get(node.index)
        if allowed is not None:
            domain = tuple(state for state in domain if state.results[0] in allowed)
        dtype = None if node.var is None else self._text(node.var)
        if ("border", len(domain)) not in self._seconds:
            self._seconds["border", len(domain)] = np.zeros(len(domain), np.int64)
        return domain, (dtype, allowed), self._seconds["border", len(domain)]

    def _text(self, var: Var) -> str:
        """Of its type; few abstract values stand for many variables."""
        key = id(var.aval)
        if key not in self._texts:
            self._texts[key] = str(var.aval)
        return self._texts[key]

    def _port_ops(self, source: int, port: int) -> frozenset[str]:
        op = self.ops[source]
        if op is None or source in self.restriction.own:
            return frozenset()
        if (op.kind, port) not in self._partials:
            self._partials[op.kind, port] = partial_ops(self._of_kind(op), port)
        return self._partials[op.kind, port]

    def network(self, variables: tuple[int, ...], groups: IntArray) -> Network:
        """Sums costs over the nodes and edges of each variable, or pair of variables."""
        unary: dict[int, IntArray] = {}
        known = {id(cost): cost for cost in self.costs}
        counts: dict[tuple[int, int], int] = defaultdict(int)
        for one, cost, copies in zip(
            variables, self.costs, self.graph.copies.tolist(), strict=True
        ):
            counts[one, id(cost)] += copies
        for (variable, which), count in counts.items():  # nodes alike share their costs
            cost = times(known[which], count)
            unary[variable] = unary[variable] + cost if variable in unary else cost
        pairs: dict[tuple[int, int], IntArray] = {}
        alone = self.mesh.device_count == 1  # nothing moves
        first = numbered(groups)[1]
        weights = np.zeros(len(first), np.int64)
        every = np.array([edge.weight for edge in self.graph.edges], np.int64)
        np.add.at(weights, groups, every * self.graph.edge_copies)
        for place, weight in () if alone else zip(first.tolist(), weights.tolist(), strict=True):
            edge = self.graph.edges[place]
            src, dst = variables[edge.src], variables[edge.dst]
            weighted = self._edge_table(edge, weight)
            if src == dst:
                unary[src] = np.minimum(unary[src] + weighted.diagonal(), FORBIDDEN)
            else:
                add_pair(pairs, src, dst, weighted)
        for one, other in self.restriction.alike:
            if variables[one] != variables[other]:
                add_pair(pairs, variables[one], variables[other], self._unlike(one, other))
        return Network(tuple(unary[v] for v in range(len(unary))), pairs)

    def _unlike(self, one: int, other: int) -> IntArray:
        """Forbids all pairs of states in which two nodes, inputs at rest, lie otherwise."""
        left, right = self._end(self.domains[one], True), self._end(self.domains[other], True)
        forbidden = FORBIDDEN * left.differs(right).astype(np.int64)
        return picked(forbidden, left.of_state, right.of_state)

    def _edge_table(self, edge: Edge, weight: int) -> IntArray:
        """``weight`` times the price of the re-layout, for every pair of states of the two ends."""
        left = self._end(self.domains[edge.src], False, edge.port, edge.src_shift)
        right = self._end(self.domains[edge.dst], True, edge.slot, edge.dst_shift)
        fused = self._is_fused(edge)
        key = (edge.shape, edge.itemsize, id(left), id(right), edge.coalesced, fused, weight)
        if key not in self._tables:
            table = self._reshard(edge.shape, edge.itemsize, left, right, edge.coalesced)
            if fused:
                table = table + self._written(edge, left, right)
            self._tables[key] = picked(times(table, weight), left.of_state, right.of_state)
        return self._tables[key]

    def _is_fused(self, edge: Edge) -> bool:
        """Whether the edge leaves a hub that no memory is written for."""
        node = self.graph.nodes[edge.src]
        return (
            node.kind == "hub"
            and node.var is not None
            and self.fusion.root(node.var) in self.fusion.fused
        )

    def _written(self, edge: Edge, left: _End, right: _End) -> IntArray:
        """The price of writing a fused value, which a change of its layout reads from memory."""
        chip = self.cluster.chip
        sizes = [math.prod(local_shape(edge.shape, one, self.mesh)) for one in left.layouts]
        seconds = np.array(sizes) * edge.itemsize / (chip.hbm_bandwidth * chip.hbm_efficiency)
        return to_ticks(seconds[:, None] * left.differs(right))

    def _end(self, domain: Domain, reads: bool, place: int = 0, shift: int = 0) -> _End:
        """The layouts of an operand or result in each state."""
        key = (id(domain), reads, place, shift)
        if key not in self._ends:
            sides = [state.operands if reads else state.results for state in domain]
            self._ends[key] = _End.of([shifted(side[place], shift) for side in sides])
        return self._ends[key]

    def _reshard(
        self, shape: tuple[int, ...], size: int, left: _End, right: _End, coalesced: bool
    ) -> IntArray:
        """Price of the re-layout for every pair of layouts of the two ends."""
        key = (shape, size, id(left), id(right), coalesced)
        if key not in self._tables:
            seconds = self.resharder.matrix(shape, size, left.layouts, right.layouts, coalesced)
            self._tables[key] = to_ticks(seconds)
        return self._tables[key]


@dataclass(frozen=True, slots=True)
class _End:
    """One end of an edge: its distinct ``layouts``, and which of them each state has."""

    layouts: tuple[Layout, ...]
    of_state: IntArray

    @classmethod
    def of(cls, layouts: Sequence[Layout]) -> _End:
        return cls(tuple(dict.fromkeys(layouts)), np.array(number(layouts), np.int64))

    def differs(self, other: _End) -> NDArray[np.bool_]:
        """For every pair of layouts of the two."""
        count, names = len(self.layouts), np.array(number((*self.layouts, *other.layouts)))
        return names[:count, None] != names[count:]


def _makers(graph: Graph) -> dict[int, list[tuple[int, int]]]:
    """Of each hub, the ops and results that feed it."""
    is_op, is_hub = (
        np.array([node.kind == kind for node in graph.nodes], np.bool_) for kind in ("op", "hub")
    )
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for place in np.flatnonzero(is_op[graph.ends[:, 0]] & is_hub[graph.ends[:, 1]]).tolist():
        edge = graph.edges[place]
        found[edge.dst].append((edge.src, edge.port))
    return found
