"""What a matrix product takes longer for being run piece by piece, as XLA:TPU does under ``jit``.

A product whose result is scattered at once is *windowed* (``forms``). Its larger operand, which the
loop slices, is copied into a layout that slices well, and written before if it was to be computed
on the way; the pieces of the result that come round the ring are added up (measured, v5e).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from jax.extend.core import Literal, Var

from autopar.core.layout import Layout, local_shape
from autopar.cost_model import Cluster
from autopar.cost_model.work import itemsize, shape_of
from autopar.search.depth import Depth
from autopar.search.domains import State
from autopar.search.forms import Forms
from autopar.search.problem import Problem

COPYING = 4
"""Times the bytes of the operand that its copy takes: it is read and written, at half the rate of a
plain copy."""

WRITING = 2
"""The same of writing it, and reading it again."""

SUMMING = 3
"""Times the bytes of the result: each piece is added to what comes round, and written."""


def windowed_s(depth: Depth, cluster: Cluster, problem: Problem, states: Sequence[State]) -> float:
    """Seconds a step, beyond what the equations take."""
    graph, fusion = problem.graph, depth.memory.fusion
    forms, moved = Forms(graph, problem.mesh, cluster.levels), 0.0
    for place, left, right in problem.moves(states):
        edge = graph.edges[place]
        shape, size = edge.shape, edge.itemsize
        path = problem.resharder.path(shape, size, left, right, coalesced=edge.coalesced)
        for one, form in zip(path, forms.of(path, edge, left), strict=True):
            if form != "windowed":
                continue
            node = graph.nodes[forms.maker(edge.src)]
            assert node.eqn is not None, "only products are windowed"
            operands = zip(node.eqn.invars, states[node.index].operands, strict=True)
            parts = [(_bytes(problem, atom, layout), atom) for atom, layout in operands]
            sliced, atom = max(parts, key=lambda part: part[0])
            fused = isinstance(atom, Var) and fusion.root(atom) in fusion.fused
            each = SUMMING * one.bytes + (COPYING + (WRITING if fused else 0)) * sliced
            moved += each * edge.weight * int(graph.edge_copies[place])
    return moved / (cluster.chip.hbm_bandwidth * cluster.chip.hbm_efficiency)


def _bytes(problem: Problem, atom: Var | Literal, layout: Layout) -> int:
    return math.prod(local_shape(shape_of(atom.aval), layout, problem.mesh)) * itemsize(atom.aval)
