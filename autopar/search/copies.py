"""Values that lie in memory only because a layout changes: what a re-layout writes or must find."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jax.extend.core import Var

from autopar.cost_model.timeline import Timeline
from autopar.search.graph import Graph

SHORT_KERNELS = 6
"""Kernels that an operand waits, at most, while it is not worth writing (measured, v5e)."""

UNROLLED_RING = 4
"""A ring of so many is one trip of such a loop, two steps each way, and no loop (measured, v5e)."""


@dataclass(frozen=True, slots=True)
class Held:
    """A hub whose value fusion would not keep, but a re-layout writes.

    It is live from instant ``start`` to ``end``. ``is_weight``: computed from inputs alone by light
    work, a cast weight above all. That is taken to be held always (a small overestimate where its
    layout is its maker's), so that a linear limit sees it.
    """

    node: int
    var: Var
    start: int
    end: int
    is_weight: bool


@dataclass(frozen=True, slots=True)
class Streamed:
    """An operand of a matrix product that fusion would compute on the way into it.

    Where the product is a gradient that is scattered at once, XLA:TPU runs it piece by piece in a
    loop that hides the scatter, and what a loop reads must lie in memory: from instant ``start``,
    at which the operand is first computed, to ``end``, at which the product is. (A short ring is no
    loop; then only what the forward pass has computed already is kept.)
    """

    slot: int
    var: Var
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Gradient:
    """A product, run at ``instant``, that only the update needs, and what it reads from memory."""

    node: int
    instant: int
    sources: tuple[Var, ...]


def gradients(
    graph: Graph, timeline: Timeline, sources: Mapping[Var, tuple[Var, ...]]
) -> tuple[Gradient, ...]:
    """The gradients of weights outside of loops. ``sources``: of every kernel."""
    late = np.ones(len(graph.nodes), np.bool_)
    np.logical_and.at(late, graph.ends[:, 0], np.array(graph.tails, np.bool_)[graph.ends[:, 1]])
    found: list[Gradient] = []
    for node in graph.nodes:
        eqn = node.eqn
        if eqn is None or eqn.primitive.name != "dot_general" or node.trips > 1:
            continue
        instant = timeline.instant_of.get(eqn.outvars[0])
        if instant is not None and late[node.index]:
            read = sources.get(timeline.kernels[instant].outvars[0], ())
            held = dict.fromkeys(timeline.root(var) for var in read)
            found.append(Gradient(node.index, instant, tuple(held)))
    return tuple(found)


def held_hubs(graph: Graph, timeline: Timeline) -> tuple[Held, ...]:
    """The hubs of op results that are no buffers of the timeline, and when they are read."""
    buffers = {buffer.var for buffer in timeline.buffers}
    unwritten = [
        node.kind == "hub"
        and node.var is not None
        and node.var not in buffers
        and timeline.root(node.var) not in buffers
        for node in graph.nodes
    ]
    readers: dict[int, list[int]] = defaultdict(list)
    for place in np.flatnonzero(np.array(unwritten, np.bool_)[graph.ends[:, 0]]).tolist():
        edge = graph.edges[place]
        eqn = graph.nodes[edge.dst].eqn
        if eqn is not None and eqn.outvars and eqn.outvars[0] in timeline.instant_of:
            readers[edge.src].append(timeline.instant_of[eqn.outvars[0]])
    found: list[Held] = []
    for index, instants in sorted(readers.items()):
        var = graph.nodes[index].var
        assert var is not None
        found.append(Held(index, var, min(instants), max(instants), graph.heads[index]))
    return tuple(found)


_ONWARD = frozenset(("transpose", "convert_element_type", "reshape", "copy"))
"""What may stand between a product and the scatter of it."""


def streamed_operands(
    graph: Graph, timeline: Timeline
) -> Mapping[int, tuple[int, tuple[Streamed, ...]]]:
    """For each node that hands on a matrix product: its node, and operands not in memory."""
    buffers = {buffer.var for buffer in timeline.buffers}
    found: dict[int, tuple[int, tuple[Streamed, ...]]] = {}
    for node in graph.nodes:
        eqn = node.eqn
        if eqn is None or eqn.primitive.name != "dot_general":
            continue
        end = timeline.instant_of.get(eqn.outvars[0])
        fused = [
            Streamed(slot, atom, timeline.instant_of[root], end)
            for slot, atom in enumerate(eqn.invars)
            if isinstance(atom, Var) and end is not None
            if (root := timeline.root(atom)) not in buffers and root in timeline.instant_of
            if timeline.instant_of[root] <= end and not graph.heads[graph.sources[root].node]
        ]
        if end is not None:
            found[node.index] = (node.index, tuple(fused))
    onward = [node.eqn is not None and node.eqn.primitive.name in _ONWARD for node in graph.nodes]
    order = np.argsort(graph.ends[:, 0], kind="stable")
    for place in order[np.array(onward, np.bool_)[graph.ends[order, 1]]].tolist():
        edge = graph.edges[place]
        if edge.src in found:
            found.setdefault(edge.dst, found[edge.src])
    return found
