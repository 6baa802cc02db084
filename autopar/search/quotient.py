"""Layers alike: one variable for every group of nodes that look the same from nearby.

Weisfeiler-Leman refinement: two nodes stay together while their own signatures, and the *sets* of
their neighbours' (so that first and last layers join the others), agree out to ``RADIUS`` steps. A
model of eighty equal layers then costs no more to search than one of eight. Choosing alike for
alike is a restriction: the plan is optimal among plans that treat such layers alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

from autopar.search.graph import Graph

RADIUS = 4


def classes(graph: Graph, signatures: Sequence[Hashable], radius: int = RADIUS) -> tuple[int, ...]:
    """The class of every node, numbered by first appearance.

    Args:
      signatures: per node, whatever must agree for two nodes to share a choice.
    """
    neighbours: dict[int, list[tuple[Hashable, int]]] = defaultdict(list)
    for edge in graph.edges:
        role = (edge.port, edge.slot, edge.shape, edge.src_shift, edge.dst_shift, edge.coalesced)
        neighbours[edge.src].append((("to", *role), edge.dst))
        neighbours[edge.dst].append((("from", *role), edge.src))
    colours = _number(list(signatures))
    for _ in range(radius):
        around = [
            (colours[i], frozenset((role, colours[j]) for role, j in neighbours[i]))
            for i in range(len(colours))
        ]
        colours = _number(around)
    return tuple(colours)


def _number(keys: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
