"""From the states the solver chose to the kernels and collectives of one step, in order.

What ``cost_model.overlap`` simulates: one task an equation, one a layout change, one a loop. A
layout change belongs to the innermost loop that holds both its ends; there it needs what makes the
value, and what reads the value needs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from autopar.core.layout import Layout, local_shapes, shifted
from autopar.cost_model import FusionBorders, Resharder, work
from autopar.cost_model.attention import AttentionKernels
from autopar.cost_model.compute import Load, equation_load
from autopar.cost_model.overlap import Move, Task
from autopar.cost_model.work import itemsize, shape_of
from autopar.search.assemble import Problem
from autopar.search.domains import State
from autopar.search.graph import Graph, Node

Order = tuple[float, int]
"""Where a task stands: after which equation, and how far behind it."""

BEFORE: Order = (-1.0, 0)


@dataclass(slots=True)
class _Item:
    """A task in the making; ``needs`` are keys of other items of its loop."""

    order: Order
    task: Task
    needs: list[object] = field(default_factory=list[object])


def tasks(
    problem: Problem,
    states: Sequence[State],
    fusion: FusionBorders,
    attention: AttentionKernels,
    resharder: Resharder,
) -> tuple[Task, ...]:
    """The tasks of one step."""
    return _Builder(problem, states, fusion, attention, resharder).build()


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
        self.graph, self.mesh, self.states = problem.graph, problem.mesh, states
        self.fusion, self.attention, self.resharder = fusion, attention, resharder
        self.loops = _Loops(problem.graph)
        self.items: dict[str, dict[object, _Item]] = defaultdict(dict)

    def build(self) -> tuple[Task, ...]:
        for node in self.graph.nodes:
            self._place(node)
        for name, order in self.loops.first.items():
            if name:
                self.items[self.loops.parent(name)][name] = _Item((order, 0), Task())
        for index, edge in enumerate(self.graph.edges):
            self._connect(index, edge.src, edge.dst)
        return self._ordered("")

    def _place(self, node: Node) -> None:
        home = self.loops.home[node.index]
        if node.kind == "op":
            task = Task(self._load(node), ahead=self.graph.heads[node.index])
            self.items[home][node.index] = _Item((node.index, 0), task)
            return
        moves = self._rest_moves(node)
        self.items[home][node.index] = _Item(BEFORE, Task(moves=moves))

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

    def _connect(self, index: int, src: int, dst: int) -> None:
        """Makes the reader of an edge need its maker, through the layout change if there is one."""
        edge, graph = self.graph.edges[index], self.graph
        place = self.loops.common(src, dst)
        maker, reader = self.loops.stand_in(src, place), self.loops.stand_in(dst, place)
        to_rest = graph.nodes[dst].kind == "input"
        left = shifted(self.states[src].results[edge.port], edge.src_shift)
        slot = 0 if to_rest else edge.slot
        right = shifted(self.states[dst].operands[slot], edge.dst_shift)
        items = self.items[place]
        moves = self._moves(edge.shape, edge.itemsize, left, right, edge.coalesced)
        back = to_rest or (place and graph.nodes[dst].name.startswith(f"{place}.in"))
        if moves:
            order = items[maker].order
            items["edge", index] = _Item((order[0], order[1] + 1), Task(moves=moves), [maker])
            maker = ("edge", index)
        if back:
            return  # the next step, or the next trip of the loop
        items[reader].needs.append(maker)
        if graph.nodes[dst].kind != "op" and reader == dst:
            after = items[maker].order
            items[reader].order = max(items[reader].order, (after[0], after[1] + 1))

    def _ordered(self, name: str) -> tuple[Task, ...]:
        items = self.items[name]
        keys = sorted(items, key=lambda key: items[key].order)
        position = {key: i for i, key in enumerate(keys)}
        found: list[Task] = []
        for index, key in enumerate(keys):
            item = items[key]
            needs = {position[need] for need in item.needs if position[need] < index}
            task = replace(item.task, needs=tuple(sorted(needs)))
            if isinstance(key, str):
                task = replace(task, body=self._ordered(key), trips=self.loops.trips(key))
            found.append(task)
        return tuple(found)


class _Loops:
    """Which loop each node is in. A loop is named by its region; the step itself is ``""``.

    Regions that run as often as what is around them (``remat``, branches) are part of that.
    """

    def __init__(self, graph: Graph) -> None:
        self._runs: dict[str, int] = {"": 1}
        for node in graph.nodes:
            if node.kind == "op":
                self._runs.setdefault(node.name.rpartition("/")[0], node.trips)
            elif ".in" in node.name:  # a region may hold nothing but other regions
                self._runs.setdefault(node.name.rpartition(".in")[0], node.trips)
        self.first: dict[str, int] = {}
        self.home = [self._home(node) for node in graph.nodes]
        for node, home in zip(graph.nodes, self.home, strict=True):
            while node.kind == "op":
                self.first.setdefault(home, node.index)
                if not home:
                    break
                home = self.parent(home)

    def _home(self, node: Node) -> str:
        if node.name.startswith(("in:", "const:", "out:")):
            return ""
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
        while region:
            outside = region.rpartition("/")[0].rpartition("/")[0]
            if self._runs[outside] != self._runs[region]:
                return region
            region = outside
        return region

    def parent(self, loop: str) -> str:
        return self._loop(loop.rpartition("/")[0].rpartition("/")[0])

    def trips(self, loop: str) -> int:
        return self._runs[loop] // self._runs[self.parent(loop)]

    def common(self, a: int, b: int) -> str:
        """The innermost loop that holds both nodes."""
        around: list[str] = [self.home[a]]
        while around[-1]:
            around.append(self.parent(around[-1]))
        place = self.home[b]
        while place not in around:
            place = self.parent(place)
        return place

    def stand_in(self, node: int, place: str) -> object:
        """The node, or the loop in ``place`` that holds it."""
        home, inner = self.home[node], None
        while home != place:
            home, inner = self.parent(home), home
        return node if inner is None else inner
