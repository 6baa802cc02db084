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
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.search.graph import Graph
from autopar.search.network import IntArray

RADIUS = 4


def classes(graph: Graph, signatures: Sequence[Hashable], radius: int = RADIUS) -> tuple[int, ...]:
    """The class of every node, numbered by first appearance.

    Args:
      signatures: per node, whatever must agree for two nodes to share a choice.
    """
    uses = number([edge.use for edge in graph.edges])
    ends = np.array([(edge.src, edge.dst) for edge in graph.edges], np.int64).reshape(-1, 2)
    roles = np.array(uses, np.int64)
    # Every edge is seen from both its ends, in a role of its own from each.
    sight = _Sight(
        node=np.concatenate((ends[:, 0], ends[:, 1])),
        role=np.concatenate((2 * roles, 2 * roles + 1)),
        other=np.concatenate((ends[:, 1], ends[:, 0])),
    )
    chains = [
        tail or node.kind == "input" for node, tail in zip(graph.nodes, graph.tails, strict=True)
    ]
    colours = number(signatures)
    for _ in range(radius):
        colours = _refined(colours, sight)
    sight = sight.of(np.array(chains, np.bool_))
    before = 0
    while len(set(colours)) > before:
        before = len(set(colours))
        colours = _refined(colours, sight)
    return tuple(colours)


@dataclass(frozen=True, slots=True)
class _Sight:
    """``node`` sees ``other`` in some ``role``: three arrays, an entry for each end of an edge."""

    node: IntArray
    role: IntArray
    other: IntArray

    def of(self, chosen: NDArray[np.bool_]) -> _Sight:
        """What the ``chosen`` nodes see."""
        mask = chosen[self.node]
        return _Sight(self.node[mask], self.role[mask], self.other[mask])


def _refined(colours: Sequence[int], sight: _Sight) -> list[int]:
    """One round: tells apart nodes that see unlike sets of (role, colour)."""
    count = len(colours)
    seen = sight.role * count + np.array(colours, np.int64)[sight.other]
    order = np.lexsort((seen, sight.node))
    nodes, seen = sight.node[order], seen[order]
    again = np.zeros(len(nodes), np.bool_)
    again[1:] = (nodes[1:] == nodes[:-1]) & (seen[1:] == seen[:-1])
    nodes, seen = nodes[~again], seen[~again]
    borders = np.searchsorted(nodes, np.arange(count + 1)).tolist()
    raw, size = seen.tobytes(), seen.itemsize
    return number(
        [
            (colour, raw[size * start : size * end])
            for colour, start, end in zip(colours, borders[:-1], borders[1:], strict=True)
        ]
    )


def number(keys: Sequence[Hashable]) -> list[int]:
    """Equal keys get equal numbers, in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
