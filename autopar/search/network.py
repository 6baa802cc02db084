r"""Cost function networks: the mathematical form of the search.

Choose one value $x_i$ for every variable so that

$$ \min_x \sum_i c_i(x_i) + \sum_{i<j} c_{ij}(x_i, x_j) \quad\text{with}\quad
   \sum_i w_{ik}(x_i) \le W_k \;\text{for every limit}\; k. $$

Costs are whole nanoseconds, so every solver computes the same sum, and equal plans are equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]

FORBIDDEN = 10**15
"""A cost no plan reaches (eleven days); at or above half of it a choice is impossible."""

TICK_S = 1e-9
"""Seconds in one unit of cost."""


def to_ticks(seconds: NDArray[np.float64]) -> IntArray:
    """Rounds seconds to whole units; infinity becomes ``FORBIDDEN``."""
    return np.rint(np.minimum(seconds / TICK_S, FORBIDDEN)).astype(np.int64)


def times(ticks: IntArray, count: int) -> IntArray:
    """So many times these costs; what is forbidden stays so, however often."""
    return np.minimum(np.minimum(ticks, FORBIDDEN // max(count, 1) + 1) * count, FORBIDDEN)


def picked(table: IntArray, rows: IntArray, cols: IntArray) -> IntArray:
    """``table[np.ix_(rows, cols)]``, which takes four times as long: one axis after the other."""
    if len(rows) < len(table):
        return table[rows].take(cols, axis=1)
    return table.take(cols, axis=1).take(rows, axis=0)


@dataclass(frozen=True, slots=True)
class Limit:
    """``sum of weights[i][x_i] <= bound`` over the variables that have weights."""

    weights: Mapping[int, IntArray]
    bound: int


FOLDED = 1e-3
"""Share of a limit's bound that ``folded`` may give away."""


def folded(limit: Limit) -> Limit:
    """The same limit without what all choices weigh, and without the variables that matter least.

    Those are taken at their heaviest: what the result allows, ``limit`` allows, and at most
    ``FOLDED`` of its bound is given away.
    Variables in no limit can be eliminated; solvers prove with far fewer weights what takes them
    25 times as long with all (measured on a GPT's step: 1.4 s instead of more than 25).
    """
    weights, bound = dict(limit.weights), limit.bound
    left = FOLDED * bound
    for variable in sorted(weights, key=lambda v: (int(np.ptp(weights[v])), v)):
        left -= int(np.ptp(weights[variable]))
        if left < 0:
            break
        bound -= int(weights.pop(variable).max())
    fixed = {variable: int(weight.min()) for variable, weight in weights.items()}
    rest = {variable: weight - fixed[variable] for variable, weight in weights.items()}
    return Limit(rest, bound - sum(fixed.values()))


@dataclass(frozen=True, slots=True)
class Network:
    """Unary costs by variable, binary ones by pair ``(i, j)``, ``i < j``; limits; a constant."""

    unary: tuple[IntArray, ...]
    pairs: Mapping[tuple[int, int], IntArray]
    limits: tuple[Limit, ...] = ()
    offset: int = 0

    def cost(self, choice: Sequence[int]) -> int:
        """The objective of a full assignment. At least ``FORBIDDEN`` if it is not allowed."""
        total = self.offset + sum(
            int(costs[value]) for costs, value in zip(self.unary, choice, strict=True)
        )
        total += sum(int(table[choice[i], choice[j]]) for (i, j), table in self.pairs.items())
        broken = any(
            sum(int(w[choice[i]]) for i, w in limit.weights.items()) > limit.bound
            for limit in self.limits
        )
        return total + FORBIDDEN * broken

    def restricted(self, values: Sequence[IntArray]) -> Network:
        """The same, with only these values of each variable left, in this order."""
        return Network(
            tuple([costs[kept] for costs, kept in zip(self.unary, values, strict=True)]),
            {(i, j): picked(t, values[i], values[j]) for (i, j), t in self.pairs.items()},
            tuple(
                [
                    Limit({i: w[values[i]] for i, w in x.weights.items()}, x.bound)
                    for x in self.limits
                ]
            ),
            self.offset,
        )

    @property
    def entries(self) -> int:
        """Numbers in the tables of pairs: what solving it costs in memory."""
        return sum(table.size for table in self.pairs.values())


@dataclass(frozen=True, slots=True)
class Solution:
    """What a solver found.

    Attributes:
      choice: a value for every variable, or ``None`` if none was found.
      cost: its objective, in units of ``TICK_S``.
      bound: no assignment costs less (equal to ``cost`` when proven optimal).
      status: ``optimal``; ``feasible``, not proven; ``stopped``, the same because time was up;
        ``infeasible``; or ``unknown``, nothing was found in the time.
    """

    choice: tuple[int, ...] | None
    cost: int
    bound: int
    status: str


def add_pair(pairs: dict[tuple[int, int], IntArray], i: int, j: int, table: IntArray) -> None:
    """Adds a binary cost, indexed ``[x_i, x_j]``, in whichever order the pair is stored."""
    key, value = ((i, j), table) if i < j else ((j, i), table.T)
    if key in pairs:
        value = np.minimum(pairs[key] + value, FORBIDDEN)
    pairs[key] = value
