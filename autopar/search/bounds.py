r"""A lower bound of a network by message passing, the values that it rules out, good assignments.

Costs are moved between variables and pairs without changing any assignment's total
(*equivalence-preserving transformations*), so that

$$ L = \sum_i \min_a \theta_i(a) + \sum_{ij} \min_{ab} \theta_{ij}(a, b) $$

grows; it bounds every assignment from below. The moves are those of sequential reweighted message
passing (Kolmogorov, *A new look at reweighted message passing*, 2015): a variable takes what its
pairs with those before it can spare, and hands it on to those that come later; then all the same
backwards. The order is one in which neighbours are near (Cuthill and McKee, *Reducing the bandwidth
of sparse symmetric matrices*, 1969): it halves the number of sweeps. So does, once more, to begin
each trip forth and back a little beyond where the last one led, in the direction in which it led
(Nesterov, *A method of solving a convex programming problem with convergence rate O(1/k^2)*, 1983):
whatever is moved, the bound is one. No assignment of at most $U$
has value $a$ of $i$ if

$$ L + [\theta_i(a) - \min \theta_i] + \sum_j [\min_b \theta_{ij}(a, b) - \min \theta_{ij}] > U. $$

After a sweep one way the pairs have nothing to spare for what comes before. So if all variables,
the other way, take what is best beside those chosen already, an assignment comes of it, and once
the bound has settled a good one.

Limits are left out: they only make assignments dearer. Tables are kept in single precision. No cost
is negative, so that changes an assignment's cost by a share of 2^-24 at most, and ``ROUNDING`` has
room for that; messages, and what is proven by them, are in double precision.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import reverse_cuthill_mckee

from autopar.search.network import IntArray, Network

Costs = NDArray[np.float64]

CAP = 1e13
"""Ticks; costs above it count as this (2.8 hours): sums stay exact to a fraction of a tick."""

BEYOND = 0.5
"""Part of the way of the last trip that the next begins beyond its end."""

TRIPS = 4
"""Trips forth and back in a round."""

WORTHWHILE = 0.8
"""Share of the entries that may be left for values to be dropped: what comes next is slower."""

ROUNDING = 1e-6
"""Share of the objective that rounding may cost a bound; it is given away."""


@dataclass(slots=True)
class Messages:
    """A network under moves.

    Attributes:
      order: the variables, neighbours near each other.
      ends: of each pair its variables, the earlier in ``order`` first; ``tables``: its costs.
      around: of each variable its pairs, and which end of them it is.
      values: of each variable the numbers in ``network`` of the values left.
      state: what moves change, in one: what each variable's values cost by now, then what each
        pair has given to its ends; ``costs`` and ``moved`` are its parts.
      before: ``state`` where the last trip began; ``trips``: how many there were since values went.
      bound: the highest $L$ yet.
    """

    network: Network
    order: Sequence[int] = field(init=False)
    ends: list[tuple[int, int]] = field(init=False)
    tables: list[NDArray[np.float32]] = field(init=False)
    around: list[list[tuple[int, int]]] = field(init=False)
    values: list[IntArray] = field(init=False)
    state: Costs = field(init=False)
    costs: list[Costs] = field(init=False)
    moved: list[tuple[Costs, Costs]] = field(init=False)
    before: Costs = field(init=False)
    trips: int = 0
    bound: int = 0

    def __post_init__(self) -> None:
        pairs = sorted(self.network.pairs)
        self.order = _near(len(self.network.unary), pairs)
        place = {variable: place for place, variable in enumerate(self.order)}
        self.ends, self.tables = [], []
        known: dict[tuple[int, bool], NDArray[np.float32]] = {}  # pairs may share a table
        for i, j in pairs:
            table, forth = self.network.pairs[i, j], place[i] < place[j]
            self.ends.append((i, j) if forth else (j, i))
            if (key := (id(table), forth)) not in known:
                costs = np.array(table if forth else table.T, np.float32, order="C")
                known[key] = np.minimum(costs, np.float32(CAP), out=costs)
            self.tables.append(known[key])
        self.values = [np.arange(len(costs)) for costs in self.network.unary]
        self.around = [[] for _ in self.values]
        for k, pair in enumerate(self.ends):
            for side, variable in enumerate(pair):
                self.around[variable].append((k, side))
        costs = [np.minimum(costs, CAP) for costs in self.network.unary]
        self._take(np.concatenate([*costs, np.zeros(sum(sum(t.shape) for t in self.tables))]))
        self.before = self.state

    def _take(self, state: Costs) -> None:
        """Goes on from this state, of the values that are left."""
        self.state = state
        sizes = [len(values) for values in self.values]
        sizes += [len(self.values[i]) for pair in self.ends for i in pair]
        stops = list(itertools.accumulate(sizes, initial=0))
        parts = [state[start:stop] for start, stop in itertools.pairwise(stops)]
        self.costs, moved = parts[: len(self.values)], parts[len(self.values) :]
        self.moved = list(zip(moved[::2], moved[1::2], strict=True))

    def copy(self) -> Messages:
        """Another, to go on from here in another way."""
        other = copy.copy(self)
        other.tables, other.values = list(self.tables), list(self.values)
        other._take(self.state.copy())
        return other

    @property
    def entries(self) -> int:
        """Numbers in the tables of what is left."""
        return sum(table.size for table in self.tables)

    def left(self) -> Network:
        """What is left of the network."""
        return self.network.restricted(self.values)

    def round(self) -> None:
        """``TRIPS`` of them, after which it is worth looking at what they gave."""
        for _ in range(TRIPS):
            self.trip()

    def trip(self) -> None:
        """Through the variables, forth and back, from beyond where the last trip led."""
        reached = self.state.copy()
        if self.trips > 1:
            self.state += BEYOND * (reached - self.before)
        self.before, self.trips = reached, self.trips + 1
        self.sweep(back=False)
        self.sweep(back=True)

    def sweep(self, back: bool) -> None:
        """Once through the variables, forth or back."""
        for i in reversed(self.order) if back else self.order:
            costs = self.costs[i]
            later = [self.moved[k][side] for k, side in self.around[i] if side == back]
            # What pairs with later ones could spare, the sweep before has taken.
            for k, side in self.around[i]:
                if side != back:
                    spare, moved = self._spare(k, side), self.moved[k][side]
                    costs += spare
                    moved += spare
            if later:
                share = costs / max(len(later), len(self.around[i]) - len(later))
                for moved in later:
                    moved -= share
                costs -= len(later) * share

    def _spare(self, k: int, side: int) -> Costs:
        """For each value of one end, the least that the pair costs."""
        table, (left, right) = self.tables[k], self.moved[k]
        if side == 0:
            return np.minimum.reduce(table - right.astype(np.float32), axis=1) - left
        return np.minimum.reduce(table - left.astype(np.float32)[:, None], axis=0) - right

    def decoded(self, back: bool) -> list[int]:
        """An assignment, by values of ``network``; after a sweep forth, ask for it ``back``."""
        chosen: dict[int, int] = {}
        for i in reversed(self.order) if back else self.order:
            total = self.costs[i].copy()
            for k, side in self.around[i]:
                if side != back:
                    other = chosen[self.ends[k][1 - side]]
                    row = self.tables[k][:, other] if side == 0 else self.tables[k][other]
                    total += row - self.moved[k][1 - side][other] - self.moved[k][side]
            chosen[i] = int(total.argmin())
        return [int(kept[chosen[i]]) for i, kept in enumerate(self.values)]

    def raise_bound(self) -> tuple[float, list[Costs]]:
        """After a sweep back: $L$ of the moves made, and what each value costs above the least."""
        excess = [costs - costs.min() for costs in self.costs]
        bound = self.network.offset + sum(float(costs.min()) for costs in self.costs)
        for k, (_, later) in enumerate(self.ends):
            left, right = self.moved[k]
            over = (self.tables[k] - left[:, None]).min(axis=0) - right
            least = float(over.min())
            bound += least
            excess[later] += over - least  # of the other end there is none after a sweep back
        self.bound = max(self.bound, math.floor(bound * (1 - ROUNDING)))
        return bound, excess

    def rule_out(self, cost: int) -> bool:
        """After a sweep back: drops what no assignment of at most ``cost`` has, updates the bound.

        False if there is no such assignment.
        """
        bound, excess = self.raise_bound()
        if self.bound > cost:
            return False
        masks = [over <= cost * (1 + ROUNDING) - bound for over in excess]
        counts = [int(np.count_nonzero(mask)) for mask in masks]
        if not all(counts):
            return False
        if sum(counts[i] * counts[j] for i, j in self.ends) >= WORTHWHILE * self.entries:
            return True
        self.values = [v[mask] for v, mask in zip(self.values, masks, strict=True)]
        places = [np.flatnonzero(mask) for mask in masks]
        for k, (i, j) in enumerate(self.ends):
            if not (masks[i].all() and masks[j].all()):
                self.tables[k] = self.tables[k].take(places[i], axis=0).take(places[j], axis=1)
        kept = np.concatenate(masks + [masks[i] for pair in self.ends for i in pair])
        self._take(self.state[kept])
        self.before, self.trips = self.state, 0
        return True


def _near(count: int, pairs: Sequence[tuple[int, int]]) -> list[int]:
    """The variables in an order in which those of a pair are near each other."""
    if not pairs:
        return list(range(count))
    ends = np.array(pairs, np.int64)
    both = np.concatenate((ends, ends[:, ::-1]))
    graph = coo_array((np.ones(len(both)), (both[:, 0], both[:, 1])), shape=(count, count))
    return reverse_cuthill_mckee(graph.tocsr(), symmetric_mode=True).tolist()
