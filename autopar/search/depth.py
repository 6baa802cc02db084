"""A step whose layers repeat, searched by those that are kept (see ``passes.fold``).

Costs count what each node and edge of the folded step stands for. What cannot be counted so, memory
and the time of the step as a whole, is linear in the number of layers: it is simulated for the
folded step and for the same with one layer less, and the difference taken as often as layers are
missing. All this is equal to what the whole step would give; layers that it does not hold for are
not folded.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var
from numpy.typing import NDArray

from autopar.cost_model import Chip, FusionBorders
from autopar.cost_model.memory import Timeline
from autopar.passes.fold import Fold, NotFoldable, Part, Standing
from autopar.passes.rules import regions
from autopar.passes.sources import source_name
from autopar.passes.trace import Step
from autopar.search.graph import Edge, Graph, Node, build_graph
from autopar.search.memory import MemoryModel, MeshMemory
from autopar.search.memory_curve import Less
from autopar.search.problem import Problem, edge_groups
from autopar.search.roles import roles

_NAME = re.compile(r"(in:|out:|const:|)(\d+)(.*)")
"""Of a node: what its number counts, the number, and what is nested in that."""


@dataclass(frozen=True, slots=True)
class Shorter:
    """The folded step without the generic layer of one stack.

    Attributes:
      nodes, instants, generic, times: see ``Less``.
    """

    memory: MemoryModel
    graph: Graph
    nodes: tuple[int, ...]
    instants: NDArray[np.intp]
    generic: NDArray[np.bool_]
    times: int

    def on(self, problem: Problem) -> Less:
        """Its memory on one mesh."""
        program = self.memory.program(self.problem(problem))
        return Less(program, self.nodes, self.instants, self.generic, self.times)

    def problem(self, problem: Problem) -> Problem:
        """The same network, as to its own nodes."""
        variables = tuple([problem.variables[node] for node in self.nodes])
        return dataclasses.replace(
            problem,
            graph=self.graph,
            domains=tuple([problem.domains[node] for node in self.nodes]),
            variables=variables,
            groups=edge_groups(self.graph, variables),
        )


@dataclass(frozen=True)
class Depth:
    """What the search looks at in place of a step: the step itself, or the step folded.

    Attributes:
      whole: the step. step: the program looked at.
      graph: its graph, which knows what its nodes and edges stand for.
      fold: how they are related, if they are not the same.
    """

    whole: Step
    step: Step
    graph: Graph
    memory: MemoryModel
    fold: Fold | None = None
    shorter: tuple[Shorter, ...] = ()
    _memories: dict[int, MeshMemory] = field(init=False, default_factory=dict[int, MeshMemory])

    @classmethod
    def plain(
        cls, step: Step, chip: Chip, shares: Mapping[Var, float], held: frozenset[Var]
    ) -> Depth:
        """Nothing folded; ``shares``: see ``MemoryModel``, ``held``: ``build_graph``."""
        graph = build_graph(step, held)
        return cls(step, step, graph, MemoryModel(step, graph, roles(step, graph), chip, shares))

    @classmethod
    def folded(cls, step: Step, fold: Fold, chip: Chip) -> Depth:
        """The folded step.

        Raises:
          NotFoldable: a program with one layer less is not what it would have to be.
        """
        part = _step_of(step, fold.part)
        graph = _with_copies(build_graph(part), fold)
        memory = MemoryModel(part, graph, roles(part, graph), chip)
        shorter: list[Shorter] = []
        for one, times in zip(fold.shorter, fold.times, strict=True):
            less = _step_of(step, one)
            small = build_graph(less)
            model = MemoryModel(less, small, roles(less, small), chip)
            nodes = _counterparts((graph, fold.part), (small, one))
            matched = _instants(memory.timeline, model.timeline)
            shorter.append(Shorter(model, small, nodes, *matched, times - 1))
        _check(graph, shorter)
        return cls(step, part, graph, memory, fold, tuple(shorter))

    @functools.cached_property
    def fusion(self) -> FusionBorders:
        """Where kernels begin and end. What a kernel reads of every layer, it reads of all."""
        fusion = self.memory.fusion
        reads = dict(fusion.reads)
        for one in self.shorter:
            for key, fewer in one.memory.fusion.reads.items():
                if key in reads:
                    reads[key] += one.times * (fusion.reads[key] - fewer)
        return dataclasses.replace(fusion, reads=reads) if self.shorter else fusion

    @property
    def roles(self) -> tuple[str, ...]:
        """Of each input of the whole step."""
        if self.fold is None:
            return self.memory.roles
        found = {
            position: role
            for role, standing in zip(self.memory.roles, self.fold.inputs, strict=True)
            for position in standing.positions
        }
        return tuple([found[position] for position in range(len(found))])

    def memory_on(self, problem: Problem) -> MeshMemory:
        """What the whole step holds on one mesh."""
        if id(problem) not in self._memories:
            program, less = self.memory.program(problem), [one.on(problem) for one in self.shorter]
            self._memories[id(problem)] = MeshMemory(program, self.memory.usable_bytes, tuple(less))
        return self._memories[id(problem)]

    def names(self, node: Node) -> tuple[str, ...]:
        """The nodes of the whole step that a node stands for."""
        if self.fold is None:
            return (node.name,)
        kind, _, rest = parsed(node)
        positions = _standing(self.fold, node).positions
        return tuple([f"{kind}{position}{rest}" for position in positions])

    def sources(self, node: Node) -> tuple[str, ...]:
        """Readable names of the inputs or equations that a node stands for; none of another."""
        if node.name.startswith("in:"):
            return tuple([self.whole.in_paths[i] for i in self._positions(node)])
        if node.eqn is None:
            return ()
        if self.fold is None or not _standing(self.fold, node).generic:
            return (source_name(node.eqn),)
        top = self.whole.jaxpr.jaxpr.eqns
        rest = node.name.partition("/")[2]
        return tuple([source_name(self._nested(top[i], rest)) for i in self._positions(node)])

    def nodes(self, values: Iterable[int | Var]) -> dict[int | Var, int]:
        """The nodes that say where inputs of the whole step, and results of equations, lie."""
        inputs = {
            position: node.index
            for node in self.graph.nodes
            if node.kind == "input" and node.name.startswith("in:")
            for position in self._positions(node)
        }
        found: dict[int | Var, int] = {}
        for one in values:
            node = inputs[one] if isinstance(one, int) else self.graph.sources[one].node
            if self.graph.nodes[node].kind != "op":  # else nobody reads it
                found[one] = node
        return found

    @functools.cached_property
    def _bodies(self) -> dict[int, Mapping[str, Jaxpr]]:
        return {}

    def _nested(self, eqn: JaxprEqn, name: str) -> JaxprEqn:
        """The equation of this name within another, which may have none."""
        while name:
            if id(eqn) not in self._bodies:
                self._bodies[id(eqn)] = {one.name: one.body for one in regions(eqn) or ()}
            region, position, name = (*name.split("/", 2), "", "")[:3]
            eqn = self._bodies[id(eqn)][region].eqns[int(position)]
        return eqn

    def _positions(self, node: Node) -> tuple[int, ...]:
        return (node.index,) if self.fold is None else _standing(self.fold, node).positions


def _step_of(step: Step, part: Part) -> Step:
    """A part of the step, as a step."""
    kept_in = {position: i for i, position in enumerate(part.inputs)}
    kept_out = {position: i for i, position in enumerate(part.outputs)}
    return dataclasses.replace(
        step,
        jaxpr=part.jaxpr,
        in_paths=tuple([step.in_paths[i] for i in part.inputs]),
        out_paths=tuple([step.out_paths[i] for i in part.outputs]),
        donated=tuple([step.donated[i] for i in part.inputs]),
        ties=tuple([(kept_out[o], kept_in[i]) for o, i in step.ties if o in kept_out]),
    )


def _standing(fold: Fold, node: Node) -> Standing:
    """What the input, output or equation of a node stands for; of a hub, that of its equation."""
    kind, number, _ = parsed(node)
    if kind == "const:":
        return Standing((number,), -1)
    table = {"in:": fold.inputs, "out:": fold.outputs}.get(kind, fold.equations)
    return table[number]


def parsed(node: Node) -> tuple[str, int, str]:
    """The parts of a node's name, as of ``_NAME``."""
    found = _NAME.fullmatch(node.name)
    assert found is not None
    kind, number, rest = found.groups()
    return kind, int(number), rest


def _with_copies(graph: Graph, fold: Fold) -> Graph:
    """The graph, counting what its nodes and edges stand for."""
    standing = [_standing(fold, node) for node in graph.nodes]
    edges = [_copies(standing[edge.src], standing[edge.dst], edge, graph) for edge in graph.edges]
    copies = [len(one.positions) for one in standing]
    return dataclasses.replace(
        graph, copies=np.array(copies, np.int64), edge_copies=np.array(edges, np.int64)
    )


def _copies(src: Standing, dst: Standing, edge: Edge, graph: Graph) -> int:
    """How many uses an edge stands for.

    From one layer to the next there is one use more than generic layers: one of the two edges of
    the generic layer stands for that one, the edge that is named by a layer that is kept.
    """
    if not src.generic and not dst.generic:
        return 1
    if src.stack != dst.stack and src.stack >= 0 and dst.stack >= 0:
        inner, other = (src, dst) if src.generic else (dst, src)
        if other.generic:
            raise NotFoldable
        return len(inner.positions)
    if src.generic and dst.generic:
        return len(src.positions)
    if min(src.stack, dst.stack) < 0:
        return max(len(src.positions), len(dst.positions))
    named = src if named_by_source(graph, edge) else dst
    return len(named.positions)


def named_by_source(graph: Graph, edge: Edge) -> bool:
    """Whether the value that an edge moves is named by what makes it, not by what reads it."""
    src, dst = graph.nodes[edge.src], graph.nodes[edge.dst]
    return src.kind in ("input", "op") or dst.kind == "input"


def _counterparts(longer: tuple[Graph, Part], shorter: tuple[Graph, Part]) -> tuple[int, ...]:
    """For each node of a program with a layer less, the node of the other."""
    graph, part = longer
    index = dict(zip(_absolute(graph.nodes, part), range(len(graph.nodes)), strict=True))
    try:
        return tuple([index[name] for name in _absolute(shorter[0].nodes, shorter[1])])
    except KeyError:
        raise NotFoldable from None


def _absolute(nodes: Sequence[Node], part: Part) -> Iterator[tuple[str, int, str]]:
    """The names of nodes, by their positions in the whole step."""
    tables = {"in:": part.inputs, "out:": part.outputs, "": part.equations}
    for node in nodes:
        kind, number, rest = parsed(node)
        yield kind, tables[kind][number] if kind in tables else number, rest


def _instants(longer: Timeline, shorter: Timeline) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The instant of the shorter program for each of the longer, and which are of no layer of it.

    Where a layer is left out, kernels of its neighbours may change places. They have no counterpart
    (-1): what is there in one program and not in the other is not what a layer adds.
    """
    index = {key: i for i, key in enumerate(_kernels(shorter))}
    found = np.array([index.get(key, -1) for key in _kernels(longer)], np.intp)
    generic = found < 0
    if np.count_nonzero(~generic) != shorter.instants:
        raise NotFoldable
    moved = found[~generic] != np.arange(shorter.instants)
    found[np.flatnonzero(~generic)[moved]] = -1
    return found, generic


def _kernels(timeline: Timeline) -> Iterator[object]:
    """A key for each instant: a kernel's first result, and how often it was begun before."""
    seen: dict[object, int] = {}
    for eqn in timeline.kernels:
        var = eqn.outvars[0]
        seen[var] = seen.get(var, -1) + 1
        yield var, seen[var]


def _check(graph: Graph, shorter: Sequence[Shorter]) -> None:
    """That nodes and edges stand for as many as there are."""
    for count, copies, of in (
        (len(graph.nodes), graph.copies, lambda one: len(one.graph.nodes)),
        (len(graph.edges), graph.edge_copies, lambda one: len(one.graph.edges)),
    ):
        if int(copies.sum()) != count + sum(one.times * (count - of(one)) for one in shorter):
            raise NotFoldable
