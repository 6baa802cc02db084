"""A network of the search, and what its variables and values mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autopar.core.layout import Layout, shifted
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Resharder
from autopar.search.domains import Domain, State
from autopar.search.graph import Graph
from autopar.search.network import IntArray, Network
from autopar.search.quotient import number, numbered


@dataclass(frozen=True, slots=True)
class Problem:
    """A network, and what its variables and values mean.

    Attributes:
      domains: for every node, the states of its variable.
      variables: for every node, the variable that chooses for it.
      groups: for every edge, a number; equal ones where the same variables are joined alike.
      resharder: what priced changes of layout.
      fallbacks: primitives without a rule, and how many equations of each there are.
    """

    graph: Graph
    mesh: MeshSpec
    domains: tuple[Domain, ...]
    variables: tuple[int, ...]
    groups: IntArray
    network: Network
    resharder: Resharder
    fallbacks: Mapping[str, int]

    def states(self, choice: tuple[int, ...]) -> tuple[State, ...]:
        """The state of every node under an assignment."""
        return tuple(
            domain[choice[variable]]
            for domain, variable in zip(self.domains, self.variables, strict=True)
        )

    def moves(self, states: Sequence[State]) -> Iterator[tuple[int, Layout, Layout]]:
        """The edges (numbers) on which an assignment re-lays a value, from what layout to what."""
        if self.mesh.device_count == 1:
            return
        edges = self.graph.edges
        moved: list[tuple[Layout, Layout] | None] = []
        for place in numbered(self.groups)[1].tolist():
            edge = edges[place]
            left = shifted(states[edge.src].results[edge.port], edge.src_shift)
            right = shifted(states[edge.dst].operands[edge.slot], edge.dst_shift)
            moved.append(None if left == right else (left, right))
        differs = np.array([ends is not None for ends in moved], np.bool_)
        for place in np.flatnonzero(differs[self.groups]).tolist():
            ends = moved[self.groups[place]]
            assert ends is not None
            yield place, *ends

    def axis_choices(self) -> list[IntArray]:
        """For each variable ``[value, mesh axis]``: equal numbers where values do the same."""
        found: dict[int, IntArray] = {}
        known: dict[int, IntArray] = {}
        for domain, variable in zip(self.domains, self.variables, strict=True):
            if variable not in found:
                if id(domain) not in known:
                    known[id(domain)] = _per_axis(domain, len(self.mesh.axes))
                found[variable] = known[id(domain)]
        return [found[variable] for variable in range(len(found))]


def edge_groups(graph: Graph, variables: Sequence[int]) -> IntArray:
    """See ``Problem.groups``."""
    ends = np.array(variables, np.int64)[graph.ends]
    pairs = ends[:, 0] * len(variables) + ends[:, 1]
    return numbered(pairs * (len(graph.edges) + 1) + graph.uses)[0]


def _per_axis(domain: Domain, count: int) -> IntArray:
    does = [
        tuple([layout[axis] for layout in (*state.operands, *state.results)])
        for state in domain
        for axis in range(count)
    ]
    return np.array(number(does), np.int64).reshape(-1, count)
