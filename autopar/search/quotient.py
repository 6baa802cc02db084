"""Layers alike: one variable for every group of nodes that look the same from nearby.

Weisfeiler-Leman refinement: two nodes stay together while their own signatures, and the *sets* of
their neighbours' (so that first and last layers join the others), agree out to ``RADIUS`` steps. A
model of eighty equal layers then costs no more to search than one of eight. Choosing alike for
alike is a restriction: the plan is optimal among plans that treat such layers alike.

Inputs and the optimiser's side are refined until nothing changes: every kernel has a chain of its
own there, longer than the radius, that ends in nothing but itself. Cut short, the moments of ``q``
and ``out`` would look alike and make both kernels rest alike (measured: 1.3 % of a GPT's step).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from autopar.search.graph import Graph

RADIUS = 4


def classes(graph: Graph, signatures: Sequence[Hashable], radius: int = RADIUS) -> tuple[int, ...]:
    """The class of every node, numbered by first appearance.

    Args:
      signatures: per node, whatever must agree for two nodes to share a choice.
    """
    count = len(graph.nodes)
    roles = _number(
        [(e.port, e.slot, e.shape, e.src_shift, e.dst_shift, e.coalesced) for e in graph.edges]
    )
    # One number for a role and a colour together: role * count + colour, reading ends apart.
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for edge, role in zip(graph.edges, roles, strict=True):
        neighbours[edge.src].append((2 * role * count, edge.dst))
        neighbours[edge.dst].append(((2 * role + 1) * count, edge.src))
    everywhere = [True] * count
    chains = [
        tail or node.kind == "input" for node, tail in zip(graph.nodes, graph.tails, strict=True)
    ]
    colours = _number(list(signatures))
    for _ in range(radius):
        colours = _refine(colours, neighbours, everywhere)
    before = 0
    while len(set(colours)) > before:
        before = len(set(colours))
        colours = _refine(colours, neighbours, chains)
    return tuple(colours)


def _refine(
    colours: Sequence[int],
    neighbours: Sequence[Sequence[tuple[int, int]]],
    chosen: Sequence[bool],
) -> list[int]:
    """One round: tells apart those of the ``chosen`` nodes that have unlike neighbours."""
    return _number(
        [
            (
                colour,
                frozenset([role + colours[j] for role, j in neighbours[i]]) if here else None,
            )
            for i, (colour, here) in enumerate(zip(colours, chosen, strict=True))
        ]
    )


def _number(keys: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
