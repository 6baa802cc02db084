"""From the states the solver chose to the kernels and collectives of one step, in order.

What ``cost_model.overlap`` simulates: one task an equation, one a layout change, one a loop. A
layout change belongs to the innermost loop that holds both its ends; there it needs what makes the
value, and what reads the value needs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from autopar.core.layout import Layout, local_shapes, shifted
from autopar.cost_model import FusionBorders, Resharder, work
from autopar.cost_model.attention import AttentionKernels
from autopar.cost_model.compute import Load, equation_load
from autopar.cost_model.overlap import Move, Task
from autopar.cost_model.work import itemsize, shape_of
from autopar.search.domains import State
from autopar.search.graph import Edge, Graph, Node
from autopar.search.problem import Problem

Order = tuple[float, int]
"""Where a task stands: after which equation, and how far behind it."""

BEFORE: Order = (-1.0, 0)


@dataclass(frozen=True, slots=True)
class Gone:
    """A layer to be left out.

    Attributes:
      nodes: its nodes. equations: their positions in the step.
      instead: for edges by which it is left, what is read of the layer before it.
    """

    nodes: frozenset[int]
    equations: frozenset[int]
    instead: Mapping[int, int]

    def has(self, key: object, edges: Sequence[Edge]) -> bool:
        """Whether an item is of it: a node, a layout change, or a loop."""
        if isinstance(key, int):
            return key in self.nodes
        if isinstance(key, str):
            return int(key.partition("/")[0]) in self.equations
        assert isinstance(key, tuple)
        return edges[key[1]].dst in self.nodes


@dataclass(slots=True)
class _Item:
    """A task in the making; ``needs`` are keys of other items of its loop, each with the edge that
    it is needed by.
    """

    order: Order
    task: Task
    needs: list[tuple[object, int]]


def tasks(
    problem: Problem,
    states: Sequence[State],
    fusion: FusionBorders,
    attention: AttentionKernels,
    resharder: Resharder,
) -> tuple[Task, ...]:
    """The tasks of one step."""
    return _Builder(problem, states, fusion, attention, resharder).build(())[0]


def tasks_without(
    problem: Problem,
    states: Sequence[State],
    fusion: FusionBorders,
    attention: AttentionKernels,
    resharder: Resharder,
    gone: Sequence[Gone],
) -> tuple[tuple[Task, ...], ...]:
    """The tasks of one step, and of the same without each layer that is ``gone``."""
    return _Builder(problem, states, fusion, attention, resharder).build(gone)


class _Builder:
    """Distributes nodes and edges over loops, then puts each loop's items in order."""

    def __init__(
        self,
        problem: Problem,
        states: Sequence[State],
        fusion: FusionBorders,
        attention: AttentionKernels,
        resharder: Resharder,
    ) -> None:
        self.problem, self.graph, self.mesh = problem, problem.graph, problem.mesh
        self.states, self.fusion, self.attention = states, fusion, attention
        self.resharder = resharder
        self.loops = _Loops(problem.graph)
        self.items: dict[str, dict[object, _Item]] = defaultdict(dict)
        # Nodes that share a variable do the same, and so do edges of one group.
        self.own: dict[tuple[int, bool], Task] = {}
        self.moved: dict[int, tuple[Move, ...]] = {}

    def build(self, gone: Sequence[Gone]) -> tuple[tuple[Task, ...], ...]:
        heads, own = self.graph.heads, self.own
        places = zip(self.graph.nodes, self.loops.home, self.problem.variables, heads, strict=True)
        for node, home, variable, head in places:
            task = own.get((variable, head))
            if task is None:
                task = own[variable, head] = self._own_task(node)
            order = (node.index, 0) if node.kind == "op" else BEFORE
            self.items[home][node.index] = _Item(order, task, [])
        for name, order in self.loops.first.items():
            if name:
                self.items[self.loops.parent(name)][name] = _Item((order, 0), Task(), [])
        self._connect()
        return (self._ordered(""), *[self._ordered("", one) for one in gone])

    def _own_task(self, node: Node) -> Task:
        """What a node does by itself: a kernel, or the gathering of an input."""
        if node.kind == "op":
            return Task(self._load(node), ahead=self.graph.heads[node.index])
        return Task(moves=self._rest_moves(node))

    def _load(self, node: Node) -> Load:
        eqn, state = node.eqn, self.states[node.index]
        assert eqn is not None
        charges = self.attention.of(eqn, *self.fusion.of(eqn))
        ins = [shape_of(atom.aval) for atom in eqn.invars]
        outs = [shape_of(var.aval) for var in eqn.outvars]
        local_ins = local_shapes(ins, state.operands, self.mesh)
        return equation_load(
            work(eqn), local_ins, local_shapes(outs, state.results, self.mesh), *charges
        )

    def _rest_moves(self, node: Node) -> tuple[Move, ...]:
        """The gathering of an input that is used in another layout than it rests in."""
        state = self.states[node.index]
        if node.kind != "input" or node.var is None or state.operands == state.results:
            return ()
        size = itemsize(node.var.aval)
        return self._moves(node.shape, size, state.operands[0], state.results[0], True)

    def _moves(
        self, shape: Sequence[int], size: int, left: Layout, right: Layout, coalesced: bool
    ) -> tuple[Move, ...]:
        names = self.mesh.names
        return tuple(
            Move(one.kind, names.index(one.axis), self.mesh.axes[names.index(one.axis)].size,
                 one.bytes, coalesced)
            for one in self.resharder.path(shape, size, left, right, coalesced=coalesced)
            if one.bytes and one.kind != "mask"
        )  # fmt: skip

    def _connect(self) -> None:
        """Makes the reader of every edge need its maker, or the layout change between them."""
        nodes, home, moved = self.graph.nodes, self.loops.home, self.moved
        groups = self.problem.groups.tolist()
        for index, (edge, group) in enumerate(zip(self.graph.edges, groups, strict=True)):
            src, dst = edge.src, edge.dst
            place, maker, reader = home[dst], src, dst
            if place != home[src]:
                place, maker, reader = self.loops.meet(src, dst)
            items = self.items[place]
            moves = moved.get(group)
            if moves is None:
                moves = moved[group] = self._edge_moves(edge)
            if moves:
                order = items[maker].order
                change = ("edge", index)
                needs: list[tuple[object, int]] = [(maker, index)]
                items[change] = _Item((order[0], order[1] + 1), Task(moves=moves), needs)
                maker = change
            node = nodes[dst]
            if node.kind == "input" or (place and node.name.startswith(f"{place}.in")):
                continue  # the next step, or the next trip of the loop
            item = items[reader]
            item.needs.append((maker, index))
            if node.kind != "op" and reader == dst:
                after = items[maker].order
                item.order = max(item.order, (after[0], after[1] + 1))

    def _edge_moves(self, edge: Edge) -> tuple[Move, ...]:
        left = shifted(self.states[edge.src].results[edge.port], edge.src_shift)
        right = shifted(self.states[edge.dst].operands[edge.slot], edge.dst_shift)
        return self._moves(edge.shape, edge.itemsize, left, right, edge.coalesced)

    def _ordered(self, name: str, gone: Gone | None = None) -> tuple[Task, ...]:
        items, edges = self.items[name], self.graph.edges
        keys = list(items)
        orders = {key: item.order for key, item in items.items()}
        if gone is not None:
            keys = [key for key in keys if not gone.has(key, edges)]
            for edge, maker in gone.instead.items():  # a change of layout follows its maker
                after = orders[self.loops.stand_in(maker, name)]
                orders["edge", edge] = after[0], after[1] + 1
        keys.sort(key=orders.__getitem__)
        position = {key: i for i, key in enumerate(keys)}
        found: list[Task] = []
        for index, key in enumerate(keys):
            item = items[key]
            task = item.task
            needed = item.needs if gone is None else self._beyond(item.needs, name, position, gone)
            places = [position[need] for need, _ in needed]
            needs = tuple([place for place in places if place < index])
            if isinstance(key, str):
                found.append(
                    Task(needs=needs, body=self._ordered(key), trips=self.loops.trips(key))
                )
            else:
                found.append(Task(task.load, task.moves, needs, task.ahead) if needs else task)
        return tuple(found)

    def _beyond(
        self,
        needs: Sequence[tuple[object, int]],
        place: str,
        there: Collection[object],
        gone: Gone,
    ) -> Iterator[tuple[object, int]]:
        """What is needed without a layer: for what is of it, that of the layer before."""
        for need, edge in needs:
            if need in there:
                yield need, edge
            elif edge in gone.instead:
                yield self.loops.stand_in(gone.instead[edge], place), edge


class _Loops:
    """Which loop each node is in. A loop is named by its region; the step itself is ``""``.

    Regions that run as often as what is around them (``remat``, branches) are part of that.
    """

    def __init__(self, graph: Graph) -> None:
        self._runs: dict[str, int] = {"": 1}
        for node in graph.nodes:
            if node.trips == 1:
                continue
            if node.kind == "op":
                self._runs[node.name.rpartition("/")[0]] = node.trips
            elif ".in" in node.name:  # a region may hold nothing but other regions
                self._runs.setdefault(node.name.rpartition(".in")[0], node.trips)
        self._around: dict[str, str] = {}
        self.first: dict[str, int] = {}
        self.home = ["" if node.trips == 1 else self._home(node) for node in graph.nodes]
        for node, home in zip(graph.nodes, self.home, strict=True):
            while node.kind == "op" and home not in self.first:
                self.first[home] = node.index
                home = self.parent(home) if home else home

    def _home(self, node: Node) -> str:
        region = node.name.rpartition("/")[0]
        if node.kind == "hub" and ".in" in node.name:
            region = node.name.rpartition(".in")[0]
        elif node.kind == "hub" and ".out" in node.name:
            owner = node.name.rpartition(".out")[0] + "/"
            inside = [
                r for r, runs in self._runs.items() if r.startswith(owner) and runs == node.trips
            ]
            region = min(inside, default=region)
        return self._loop(region)

    def _loop(self, region: str) -> str:
        """The outermost region that runs as often, on the way out."""
        found = self._around.get(region)
        if found is None:
            outside = region.rpartition("/")[0].rpartition("/")[0]
            alike = region and self._runs.get(outside, 1) == self._runs[region]
            found = self._around[region] = self._loop(outside) if alike else region
        return found

    def parent(self, loop: str) -> str:
        return self._loop(loop.rpartition("/")[0].rpartition("/")[0])

    def trips(self, loop: str) -> int:
        return self._runs[loop] // self._runs[self.parent(loop)]

    def meet(self, a: int, b: int) -> tuple[str, object, object]:
        """The innermost loop that holds both nodes, and what stands for each in it."""
        place = self.home[b]
        if place == self.home[a]:
            return place, a, b
        around: list[str] = [self.home[a]]
        while around[-1]:
            around.append(self.parent(around[-1]))
        while place not in around:
            place = self.parent(place)
        return place, self.stand_in(a, place), self.stand_in(b, place)

    def stand_in(self, node: int, place: str) -> object:
        """The node, or the loop in ``place`` that holds it."""
        home, inner = self.home[node], None
        while home != place:
            home, inner = self.parent(home), home
        return node if inner is None else inner
