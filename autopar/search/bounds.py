r"""A lower bound of a network by message passing, and the values that it rules out.

Costs are moved between variables and pairs without changing any assignment's total
(*equivalence-preserving transformations*), so that

$$ L = \sum_i \min_a \theta_i(a) + \sum_{ij} \min_{ab} \theta_{ij}(a, b) $$

grows; it bounds every assignment from below. The moves are those of sequential reweighted message
passing (Kolmogorov, *A new look at reweighted message passing*, 2015): a variable takes what all
its pairs can spare, and hands it on to those that come later. With the cost $U$ of some assignment,
value $a$ of $i$ is in none as good if

$$ L + [\theta_i(a) - \min \theta_i] + \sum_j [\min_b \theta_{ij}(a, b) - \min \theta_{ij}] > U. $$

Limits are left out: they only make assignments dearer.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autopar.search.network import IntArray, Network

Costs = NDArray[np.float64]

CAP = 1e13
"""Ticks; costs above it count as this (2.8 hours): sums stay exact to a fraction of a tick."""

ROUNDING = 1e-6
"""Share of the objective that rounding may cost a bound; it is given away."""

STALLED = 1e-4
"""Share of the objective, or of the entries, that a round must win to be worth another."""

SWEEPS = 3
"""Sweeps forth and back between two rounds of ruling out."""


@dataclass(frozen=True, slots=True)
class Tightened:
    """What is left of a network: its values, by their old numbers, and a bound of the whole."""

    network: Network
    values: tuple[IntArray, ...]
    bound: int


def tightened(network: Network, cost: int, enough: int, seconds: float) -> Tightened:
    """Rules out values that are in no assignment of at most ``cost``.

    Args:
      cost: the objective of a known assignment that keeps the limits.
      enough: entries of the pairs' tables at which to stop.
      seconds: after which to stop anyway.
    """
    work = _Messages(network)
    deadline = time.monotonic() + seconds
    bound, stalled = -CAP, False
    while time.monotonic() < deadline and not stalled and work.entries > enough:
        for _ in range(SWEEPS):
            work.sweep()
        before, entries = bound, work.entries
        bound = max(bound, work.rule_out(cost))
        stalled = bound - before < STALLED * cost and work.entries > entries * (1 - STALLED)
    values = tuple(work.values)
    return Tightened(network.restricted(values), values, min(cost, math.floor(max(0, bound))))


@dataclass(slots=True)
class _Messages:
    """The network under moves: ``moved[k]`` is what pair ``k`` has given to each of its ends."""

    network: Network
    ends: list[tuple[int, int]] = field(init=False)
    tables: list[Costs] = field(init=False)
    moved: list[list[Costs]] = field(init=False)
    costs: list[Costs] = field(init=False)
    values: list[IntArray] = field(init=False)
    around: list[list[tuple[int, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.ends = sorted(self.network.pairs)
        self.costs = [np.minimum(costs, CAP).astype(np.float64) for costs in self.network.unary]
        self.tables = [
            np.minimum(self.network.pairs[pair], CAP).astype(np.float64) for pair in self.ends
        ]
        self.moved = [[np.zeros(length) for length in table.shape] for table in self.tables]
        self.values = [np.arange(len(costs)) for costs in self.costs]
        self.around = [[] for _ in self.costs]
        for k, pair in enumerate(self.ends):
            for side, variable in enumerate(pair):
                self.around[variable].append((k, side))

    @property
    def entries(self) -> int:
        return sum(table.size for table in self.tables)

    def sweep(self) -> None:
        """Once through the variables forth, once back."""
        everyone = range(len(self.costs))
        for order in (everyone, everyone[::-1]):
            for i in order:
                later = [
                    (k, side) for k, side in self.around[i] if self._follows(k, side, order.step)
                ]
                for k, side in self.around[i]:
                    spare = self._spare(k, side)
                    self.costs[i] += spare
                    self.moved[k][side] += spare
                if later:
                    share = self.costs[i] / max(len(later), len(self.around[i]) - len(later))
                    for k, side in later:
                        self.moved[k][side] -= share
                    self.costs[i] -= len(later) * share

    def _follows(self, k: int, side: int, step: int) -> bool:
        return (self.ends[k][1 - side] - self.ends[k][side]) * step > 0

    def _spare(self, k: int, side: int) -> Costs:
        """For each value of one end, the least that the pair costs."""
        left, right = self.moved[k]
        if side == 0:
            return (self.tables[k] - right).min(axis=1) - left
        return (self.tables[k] - left[:, None]).min(axis=0) - right

    def rule_out(self, cost: int) -> float:
        """Drops values that only dearer assignments have; returns the bound."""
        excess = [costs - costs.min() for costs in self.costs]
        bound = self.network.offset + sum(float(costs.min()) for costs in self.costs)
        for k, (i, j) in enumerate(self.ends):
            left, right = self._spare(k, 0), self._spare(k, 1)
            least = float(left.min())
            bound += least
            excess[i] += left - least
            excess[j] += right - least
        room = cost * (1 + ROUNDING) - bound
        masks = [over <= room for over in excess]
        self.costs = [c[mask] for c, mask in zip(self.costs, masks, strict=True)]
        self.values = [v[mask] for v, mask in zip(self.values, masks, strict=True)]
        for k, (i, j) in enumerate(self.ends):
            if not (masks[i].all() and masks[j].all()):
                self.tables[k] = np.ascontiguousarray(self.tables[k][np.ix_(masks[i], masks[j])])
                self.moved[k] = [self.moved[k][0][masks[i]], self.moved[k][1][masks[j]]]
        return bound - cost * ROUNDING
