"""A step whose layers repeat, searched by those that are kept (see ``passes.fold``).

Costs count what each node and edge of the folded step stands for, and memory the values that layers
hold that are left out (``repeats.py``). What communication hides behind is linear in the number of
layers: it is simulated for the folded step and for the same without its generic layer, and the
difference taken as often as layers are missing. All this is equal to what the whole step would
give; layers that it does not hold for are not folded.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var

from autopar.cost_model import Chip, FusionBorders
from autopar.passes.fold import Fold, NotFoldable, Part, Standing
from autopar.passes.rules import regions
from autopar.passes.sources import source_name
from autopar.passes.trace import Step
from autopar.search.graph import Edge, Graph, Node, build_graph
from autopar.search.memory import MemoryModel, MeshMemory
from autopar.search.problem import Problem
from autopar.search.roles import roles
from autopar.search.tasks import Gone

_NAME = re.compile(r"(in:|out:|const:|)(\d+)(.*)")
"""Of a node: what its number counts, the number, and what is nested in that."""


@dataclass(frozen=True)
class Depth:
    """What the search looks at in place of a step: the step itself, or the step folded.

    Attributes:
      whole: the step. step: the program looked at.
      graph: its graph, which knows what its nodes and edges stand for.
      fold: how they are related, if they are not the same.
      standing: then, for each node, what its input, output or equation stands for.
    """

    whole: Step
    step: Step
    graph: Graph
    memory: MemoryModel
    fold: Fold | None = None
    standing: tuple[Standing, ...] = ()
    _memories: dict[int, MeshMemory] = field(init=False, default_factory=dict[int, MeshMemory])

    @classmethod
    def plain(
        cls, step: Step, chip: Chip, shares: Mapping[Var, float], held: frozenset[Var]
    ) -> Depth:
        """Nothing folded; ``shares``: see ``MemoryModel``, ``held``: ``build_graph``."""
        graph = build_graph(step, held)
        return cls(
            step, step, graph, MemoryModel(step, graph, roles(step, graph), chip, None, shares)
        )

    @classmethod
    def folded(cls, step: Step, fold: Fold, chip: Chip) -> Depth:
        """The folded step.

        Raises:
          NotFoldable: an edge goes from the layers of one stack to those of another, or from one to
            the next and not so from all.
        """
        part = _step_of(step, fold.part)
        graph = build_graph(part)
        standing = tuple([_standing(fold, node) for node in graph.nodes])
        graph = _with_copies(graph, standing)
        memory = MemoryModel(part, graph, roles(part, graph), chip, fold)
        return cls(step, part, graph, memory, fold, standing)

    @property
    def fusion(self) -> FusionBorders:
        """Where kernels begin and end."""
        return self.memory.fusion

    @functools.cached_property
    def gone(self) -> tuple[Gone, ...]:
        """The layers that stand for others, to be left out."""
        if self.fold is None:
            return ()
        return tuple([self._gone(self.fold, group) for group in range(len(self.fold.groups))])

    def _gone(self, fold: Fold, group: int) -> Gone:
        nodes = frozenset(n for n, one in enumerate(self.standing) if one.group == group)
        equations = frozenset(i for i, one in enumerate(fold.equations) if one.group == group)
        names = {node.name: node.index for node in self.graph.nodes}
        numbers = {place: i for i, place in enumerate(fold.part.equations)}
        instead: dict[int, int] = {}
        for place in np.flatnonzero(np.isin(self.graph.ends[:, 0], list(nodes))).tolist():
            src, dst = self.graph.ends[place].tolist()
            if dst not in nodes and self.standing[dst].stack == self.standing[src].stack:
                name = _mirrored(fold, numbers, self.graph.nodes[src], self.graph.nodes[dst])
                if name in names:
                    instead[place] = names[name]
        return Gone(nodes, equations, instead)

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
            self._memories[id(problem)] = self.memory.on(problem)
        return self._memories[id(problem)]

    def names(self, node: Node) -> tuple[str, ...]:
        """The nodes of the whole step that a node stands for."""
        if self.fold is None:
            return (node.name,)
        positions = self.standing[node.index].positions
        texts = self._texts.get(positions)
        if texts is None:
            texts = self._texts[positions] = tuple(map(str, positions))
        if node.name.isdecimal():
            return texts
        kind, _, rest = parsed(node)
        return tuple([kind + text + rest for text in texts])

    def sources(self, node: Node) -> tuple[str, ...]:
        """Readable names of the inputs or equations that a node stands for; none of another."""
        if node.name.startswith("in:"):
            return tuple([self.whole.in_paths[i] for i in self._positions(node)])
        if node.eqn is None:
            return ()
        if self.fold is None or not self.standing[node.index].generic:
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
    def _texts(self) -> dict[tuple[int, ...], tuple[str, ...]]:
        return {}

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
        return (node.index,) if self.fold is None else self.standing[node.index].positions


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


def _code(fold: Fold, node: Node) -> int:
    """The code (see ``Flow``) of the equation or input that a node is of."""
    kind, number, _ = parsed(node)
    if kind == "in:":
        return fold.layers.flow.count + fold.part.inputs[number]
    return fold.part.equations[number]


def _mirrored(fold: Fold, numbers: Mapping[int, int], made: Node, read: Node) -> str:
    """The node that is to ``made`` what that is to ``read``, a layer on; of none if it has none.

    Args:
      numbers: of equations of the step, in the folded one.
    """
    kind, _, rest = parsed(made)
    layers, code = fold.layers, _code(fold, made)
    here = {int(layers.layer[one]): one for one in layers.column(code).tolist() if one in numbers}
    own, reader = int(layers.layer[code]), int(layers.layer[_code(fold, read)])
    order = sorted({*here, reader})
    place = 2 * order.index(own) - order.index(reader)
    if kind or not 0 <= place < len(order) or order[place] not in here:
        return ""
    return f"{numbers[here[order[place]]]}{rest}"


def parsed(node: Node) -> tuple[str, int, str]:
    """The parts of a node's name, as of ``_NAME``."""
    if node.name.isdecimal():  # most are
        return "", int(node.name), ""
    found = _NAME.fullmatch(node.name)
    assert found is not None
    kind, number, rest = found.groups()
    return kind, int(number), rest


def _with_copies(graph: Graph, standing: Sequence[Standing]) -> Graph:
    """The graph, counting what its nodes and edges stand for.

    From one layer to the next there is one use more than generic layers: one of the two edges of
    the generic layer stands for that one, the edge that is named by a layer that is kept.

    Raises:
      NotFoldable: an edge has generic layers of two groups at its ends, or more edges lead into a
        generic layer from its own stack than on from it.
    """
    copies = np.array([len(one.positions) for one in standing], np.int64)
    stack = np.array([one.stack for one in standing], np.int64)
    group = np.array([one.group for one in standing], np.int64)
    src, dst = graph.ends.T
    generic = group >= 0
    if (generic[src] & generic[dst] & (group[src] != group[dst])).any():
        raise NotFoldable
    border = (stack[src] == stack[dst]) & (generic[src] != generic[dst])
    named = np.where([named_by_source(graph, edge) for edge in graph.edges], src, dst)
    edges = np.where(border, copies[named], np.maximum(copies[src], copies[dst]))
    surplus = np.zeros(stack.max(initial=0) + 1, np.int64)
    np.add.at(surplus, stack[src[border]], np.where(edges[border] > 1, 1, -1))
    if surplus.any():
        raise NotFoldable
    return dataclasses.replace(graph, copies=copies, edge_copies=edges)


def named_by_source(graph: Graph, edge: Edge) -> bool:
    """Whether the value that an edge moves is named by what makes it, not by what reads it."""
    src, dst = graph.nodes[edge.src], graph.nodes[edge.dst]
    return src.kind in ("input", "op") or dst.kind == "input"
