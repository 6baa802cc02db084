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

from autopar.passes.fold import RADIUS, SUMS
from autopar.search.graph import Graph
from autopar.search.network import IntArray


def classes(graph: Graph, signatures: Sequence[Hashable], radius: int = RADIUS) -> tuple[int, ...]:
    """The class of every node, numbered by first appearance.

    Args:
      signatures: per node, whatever must agree for two nodes to share a choice.
    """
    # Every edge is seen from both its ends, in a role of its own from each.
    sums = np.array(
        [node.eqn is not None and node.eqn.primitive.name in SUMS for node in graph.nodes], np.bool_
    )
    seen = ~sums[graph.ends].all(axis=1)
    ends, roles = graph.ends[seen], graph.uses[seen]
    sight = _Sight(
        node=np.concatenate((ends[:, 0], ends[:, 1])),
        role=np.concatenate((2 * roles, 2 * roles + 1)),
        other=np.concatenate((ends[:, 1], ends[:, 0])),
    )
    chains = [
        tail or node.kind == "input" for node, tail in zip(graph.nodes, graph.tails, strict=True)
    ]
    colours = np.array(number(signatures), np.int64)
    for _ in range(radius):
        colours = _refined(colours, sight)
    sight = sight.of(np.array(chains, np.bool_))
    before = 0
    while (count := len(_distinct(colours))) > before:
        before = count
        colours = _refined(colours, sight)
    return tuple(colours.tolist())


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


def _refined(colours: IntArray, sight: _Sight) -> IntArray:
    """One round: tells apart nodes that see unlike sets of (role, colour).

    A set is known by the sum of its members' 64-bit hashes: of a thousand sets, two have the same
    once in 10^13 rounds.
    """
    count = len(colours)
    kinds = (int(sight.role.max(initial=0)) + 1) * count
    node, seen = np.divmod(
        _distinct(sight.node * kinds + sight.role * count + colours[sight.other]), kinds
    )
    sums = _hashed(colours + kinds)
    np.add.at(sums, node, _hashed(seen))
    return numbered(sums)[0]


def _distinct(numbers: IntArray) -> IntArray:
    """In order; by sorting, which takes a third of the time of ``np.unique``'s hashing."""
    ordered = np.sort(numbers)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def numbered(keys: NDArray[np.generic]) -> tuple[IntArray, IntArray]:
    """Of whole numbers what ``number`` gives, and the first place of each."""
    _, first, where = np.unique(keys, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[where], np.sort(first)


def _hashed(numbers: IntArray) -> NDArray[np.uint64]:
    """Well mixed bits of each number (the finaliser of splitmix64; Steele, Lea and Flood 2014)."""
    bits = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def number(keys: Sequence[Hashable]) -> list[int]:
    """Equal keys get equal numbers, in the order of first appearance."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(key, len(numbers)) for key in keys]
