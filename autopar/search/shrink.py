r"""Exact reductions of a network, each returning what is needed to undo it.

* *Dead-end elimination* (Goldstein, 1994): value $a$ of $x_i$ goes if some $b$ is never worse,
  $c_i(b) - c_i(a) + \sum_j \max_{x_j} [c_{ij}(b, x_j) - c_{ij}(a, x_j)] \le 0$, and is no heavier
  in any limit.
* *Variable elimination*: a variable in no limit with at most two neighbours is replaced by the
  cost $\min_{x_i}[\ldots]$ over its neighbours (bucket elimination, Dechter 1999).

Neither loses the optimum. What is left is what a solver has to search.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autopar.search.network import FORBIDDEN, IntArray, Limit, Network

MAX_TABLE = 1_000_000
"""Entries above which a reduction's scratch table is not worth building."""


@dataclass(frozen=True, slots=True)
class Eliminated:
    """A variable that takes whichever of ``values`` is best beside what its neighbours took.

    Attributes:
      costs: of its values, ``tables``: of them beside each neighbour's.
      neighbours: each neighbour, and the values that its table counts.
    """

    index: int
    values: IntArray
    costs: IntArray
    neighbours: tuple[tuple[int, IntArray], ...]
    tables: tuple[IntArray, ...]

    def best(self, chosen: Mapping[int, int]) -> int:
        """The value for these of its neighbours; the first, if several are as good."""
        total = self.costs
        for (n, values), table in zip(self.neighbours, self.tables, strict=True):
            total = total + table[:, np.searchsorted(values, chosen[n])]
        return int(self.values[total.argmin()])


@dataclass(frozen=True, slots=True)
class Undo:
    """Turns an assignment of the shrunk network into one of the original."""

    kept: tuple[tuple[int, IntArray], ...]
    eliminated: tuple[Eliminated, ...]

    def __call__(self, choice: tuple[int, ...]) -> tuple[int, ...]:
        chosen = {i: int(values[c]) for (i, values), c in zip(self.kept, choice, strict=True)}
        for one in reversed(self.eliminated):
            chosen[one.index] = one.best(chosen)
        return tuple(chosen[i] for i in range(len(chosen)))


@dataclass(slots=True)
class _Work:
    """The network while it shrinks. Values keep their original numbers in ``values``."""

    unary: dict[int, IntArray]
    tables: dict[int, dict[int, IntArray]]
    weights: dict[int, list[IntArray]]
    values: dict[int, IntArray]
    offset: int
    eliminated: list[Eliminated] = field(default_factory=list)

    def keep(self, i: int, mask: NDArray[np.bool_]) -> None:
        self.unary[i] = self.unary[i][mask]
        self.values[i] = self.values[i][mask]
        self.weights[i] = [w[mask] for w in self.weights[i]]
        for j, table in self.tables[i].items():
            self.tables[i][j] = table[mask]
            self.tables[j][i] = self.tables[i][j].T

    def connect(self, i: int, j: int, table: IntArray) -> None:
        old = self.tables[i].get(j)
        merged = table if old is None else np.minimum(old + table, FORBIDDEN)
        self.tables[i][j] = merged
        self.tables[j][i] = merged.T

    def drop(self, i: int) -> None:
        for j in self.tables.pop(i):
            del self.tables[j][i]
        del self.unary[i], self.weights[i]


def shrink(network: Network, dead_ends: bool = True) -> tuple[Network, Undo]:
    """Applies every reduction until none changes anything; without ``dead_ends`` elimination only,
    which takes a fifth of the time.
    """
    work = _start(network)
    dirty = set(work.unary)
    while dirty:
        touched: set[int] = set()
        for i in sorted(dirty) if dead_ends else ():
            if i in work.unary and _drop_dead_ends(work, i):
                touched.add(i)
                touched.update(work.tables[i])
        for i in sorted(work.unary, key=lambda i: (len(work.tables[i]), i)):
            touched.update(_eliminate(work, i))
        dirty = {i for i in touched if i in work.unary}
    return _finish(network, work)


def _start(network: Network) -> _Work:
    count = len(network.unary)
    tables: dict[int, dict[int, IntArray]] = {i: {} for i in range(count)}
    for (i, j), table in network.pairs.items():
        tables[i][j], tables[j][i] = table, table.T
    weights = {
        i: [
            limit.weights.get(i, np.zeros(len(network.unary[i]), np.int64))
            for limit in network.limits
        ]
        for i in range(count)
    }
    values = {i: np.arange(len(costs)) for i, costs in enumerate(network.unary)}
    return _Work(dict(enumerate(network.unary)), tables, weights, values, network.offset)


def _drop_dead_ends(work: _Work, i: int) -> bool:
    """Removes dominated values of ``i``. Among equals the first survives. True if any went."""
    costs = work.unary[i]
    allowed = costs < FORBIDDEN // 2
    fewer = bool(allowed.any() and not allowed.all())
    if fewer:
        work.keep(i, allowed)
        costs = work.unary[i]
    size = len(costs)
    if size == 1 or any(size * table.size > MAX_TABLE for table in work.tables[i].values()):
        return fewer
    excess = costs[None, :] - costs[:, None]  # [a, b]: how much worse b is than a, at most
    for table in work.tables[i].values():
        excess = excess + (table[None, :, :] - table[:, None, :]).max(axis=2)
    dominated = excess <= 0
    for weight in work.weights[i]:
        dominated &= weight[None, :] <= weight[:, None]
    np.fill_diagonal(dominated, False)
    if not dominated.any():
        return fewer
    earlier = np.tril(np.ones((size, size), bool), -1)  # b before a
    mutual = dominated & dominated.T
    dominated &= ~mutual | earlier
    work.keep(i, np.logical_not(dominated.any(axis=1)))
    return True


def _eliminate(work: _Work, i: int) -> tuple[int, ...]:
    """Removes ``i`` if it is settled, alone, a leaf, or in a chain. Returns who that touched."""
    neighbours = tuple(sorted(work.tables[i]))
    shape = tuple(len(work.unary[n]) for n in neighbours)
    size = len(work.unary[i])
    if any(w.any() for w in work.weights[i]) or (size > 1 and len(neighbours) > 2):
        return ()
    if size * math.prod(shape) > MAX_TABLE and size > 1:
        return ()
    tables = tuple([work.tables[i][n] for n in neighbours])
    scope = tuple([(n, work.values[n]) for n in neighbours])
    gone = Eliminated(i, work.values[i], work.unary[i], scope, tables)
    work.drop(i)
    if size == 1:
        work.eliminated.append(dataclasses.replace(gone, neighbours=(), tables=()))
        work.offset += int(gone.costs[0])
        for n, table in zip(neighbours, tables, strict=True):
            work.unary[n] = np.minimum(work.unary[n] + table[0], FORBIDDEN)
        return neighbours
    work.eliminated.append(gone)
    total = gone.costs.reshape((size,) + (1,) * len(shape))
    for axis, table in enumerate(tables):
        spread = [1] * len(shape)
        spread[axis] = shape[axis]
        total = total + table.reshape((size, *spread))
    least = np.minimum(total.min(axis=0), FORBIDDEN)
    if len(neighbours) == 2:
        work.connect(*neighbours, least)
    elif neighbours:
        n = neighbours[0]
        work.unary[n] = np.minimum(work.unary[n] + least, FORBIDDEN)
    else:
        work.offset += int(least)
    return neighbours


def _finish(network: Network, work: _Work) -> tuple[Network, Undo]:
    kept = tuple(sorted(work.unary))
    number = {i: k for k, i in enumerate(kept)}
    pairs: dict[tuple[int, int], IntArray] = {}
    for i in kept:
        for j, table in work.tables[i].items():
            if i < j:
                pairs[number[i], number[j]] = table
    limits = tuple(
        Limit(
            {number[i]: work.weights[i][k] for i in kept if work.weights[i][k].any()}, limit.bound
        )
        for k, limit in enumerate(network.limits)
    )
    smaller = Network(tuple(work.unary[i] for i in kept), pairs, limits, work.offset)
    return smaller, Undo(tuple((i, work.values[i]) for i in kept), tuple(work.eliminated))
