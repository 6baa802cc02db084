r"""Bytes at one instant as costs: a limit on memory relaxed.

With a price $\lambda \ge 0$ of a byte, the least of cost + $\lambda$ (bytes at the instant $-$
budget) is no higher than the cost of anything that fits the budget (Lagrange). Bytes are those that
a ``Limit`` counts, and operands that products of scattered gradients find in memory (``Streamed``),
which depend on both ends of an edge: no linear limit has them.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.extend.core import Var
from numpy.typing import NDArray

from autopar.core.layout import Layout, Partial, Split, shifted
from autopar.core.mesh import MeshSpec
from autopar.cost_model.on_chip import HELD_RATIO
from autopar.search.copies import SHORT_KERNELS
from autopar.search.memory import MeshMemory
from autopar.search.network import FORBIDDEN, IntArray, Network, add_pair
from autopar.search.program_memory import ProgramMemory

Shares = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scattered:
    """An operand that is in memory at an instant if an edge scatters a product.

    Attributes:
      root: the value that the operand is a view of.
      src, dst: variables of the edge's ends.
      left: for each state of ``src``, the number of the layout that it leaves the product in.
      shares: ``[layout, state of dst]``, of the bytes, what is counted.
      bytes: the least that it takes, all that the edge stands for together.
    """

    root: Var
    src: int
    dst: int
    left: IntArray
    shares: Shares
    bytes: float


def scattered(program: ProgramMemory, instant: int) -> list[Scattered]:
    """All such operands at an instant; each product that shares one has its part of it."""
    problem, timeline = program.problem, program.timeline
    graph = problem.graph
    found: list[tuple[int, int, Var, int, float]] = []
    sharing: dict[tuple[Var, int], set[int]] = defaultdict(set)
    for place in np.flatnonzero(np.isin(graph.ends[:, 0], list(program.streamed))).tolist():
        product, operands = program.streamed[graph.edges[place].src]
        for one in operands if graph.edges[place].coalesced else ():
            if one.start <= instant <= one.end and one.end - one.start > SHORT_KERNELS:
                root, states = timeline.root(one.var), problem.domains[product]
                layouts = {state.operands[one.slot] for state in states}
                least = min(program.bytes_in(one.var, layout) for layout in layouts)
                sharing[root, one.start].add(product)
                found.append((place, product, root, one.start, least))
    known: dict[object, Scattered] = {}
    for place, _, root, start, least in found:
        edge, size = graph.edges[place], least / len(sharing[root, start])
        src, dst = problem.variables[edge.src], problem.variables[edge.dst]
        left = [shifted(s.results[edge.port], edge.src_shift) for s in problem.domains[edge.src]]
        right = [shifted(s.operands[edge.slot], edge.dst_shift) for s in problem.domains[edge.dst]]
        layouts = list(dict.fromkeys(left))
        numbers = np.array([layouts.index(one) for one in left])
        shares = _shares(layouts, right, problem.mesh)
        if shares.any():
            copies = int(graph.edge_copies[place])
            known[place, root] = Scattered(root, src, dst, numbers, shares, copies * size)
    return list(known.values())


def _shares(left: Sequence[Layout], right: Sequence[Layout], mesh: MeshSpec) -> Shares:
    """Of the mesh axes, the part that is scattered: a product is handed on by several edges, and
    one axis is scattered on one of them at most.
    """
    cut = [
        [
            sum(
                old == Partial("add") and isinstance(new, Split) and axis.size > 1
                for axis, old, new in zip(mesh.axes, before, after, strict=True)
            )
            for after in right
        ]
        for before in left
    ]
    return np.array(cut, np.float64) / max(1, sum(axis.size > 1 for axis in mesh.axes))


def on_chip_at_most(program: ProgramMemory, instant: int) -> float:
    """Bytes at an instant that may lie on the chip, whatever the layouts (see ``on_chip``)."""
    timeline, room = program.timeline, program.vmem_bytes
    tables = [program.table(one.var, one.scale)[1] for one in timeline.buffers]
    least, most = (np.array([f(table) for table in tables], np.float64) for f in (np.min, np.max))
    starts, ends = (
        np.array([getattr(one, end) for one in timeline.buffers], np.intp)
        for end in ("start", "end")
    )
    moved, short = np.zeros(timeline.instants + 1), ends < timeline.instants - 1
    for places in (starts, ends):
        np.add.at(moved, places[short] + 1, least[short])
    between = np.cumsum(moved)
    waits = np.where(ends > starts, between[ends] - between[np.minimum(starts + 1, ends)], 0.0)
    there = short & (starts <= instant) & (instant <= ends)
    there &= (least <= room) & (waits <= HELD_RATIO * np.minimum(most, room))
    return float(min(room, np.minimum(most[there], room).sum()))


def priced(memory: MeshMemory, instant: int, price: float) -> Network:
    """The network of a program at a price: units of cost a byte."""
    network = memory.program.problem.network
    unary, pairs = list(network.unary), dict(network.pairs)
    for variable, weight in memory.program.weights(instant).items():
        unary[variable] = np.minimum(unary[variable] + ticks(price * weight), FORBIDDEN)
    for one in scattered(memory.program, instant):
        table = ticks(price * one.bytes * one.shares[one.left])
        if one.src == one.dst:
            unary[one.src] = np.minimum(unary[one.src] + table.diagonal(), FORBIDDEN)
        else:
            add_pair(pairs, one.src, one.dst, table)
    return dataclasses.replace(network, unary=tuple(unary), pairs=pairs)


def ticks(costs: NDArray[Any]) -> IntArray:
    """Rounded down, so that a bound stays one."""
    return np.floor(np.minimum(costs, FORBIDDEN)).astype(np.int64)
