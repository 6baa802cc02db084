r"""Which values of the forward pass to keep and which to recompute, under a memory limit.

For each value $v$, $k_v$ (kept until the backward pass last reads it) and $r_v$ (recomputed there):

$$ \min \sum_v c_v r_v \quad\text{subject to}\quad
   k_v + r_v = 1 \text{ if the backward pass reads } v, \; \le 1 \text{ else}; \qquad
   r_v \le k_u + r_u \text{ for every source } u \text{ of } v; $$
$$ \mathrm{base}(t) + \sum_v \mathrm{bytes}_v \left( k_v [t \in K_v] + r_v [t \in R_v] \right) \le
   \mathrm{budget} \quad \text{for every instant } t. $$

$K_v$ reaches from the forward pass's last read of $v$ to the backward pass's; $R_v$ from the moment
its group is recomputed: a group is what is connected through recomputed values, and runs when the
backward pass first needs one of them. When that is depends on the choice; the instants are limited
lazily, with the groups of the choice at hand, until a choice holds under its own groups.

Built in ``_Program``; solved by HiGHS to a thousandth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from autopar.search.storage_values import Value

Profile = NDArray[np.float64]

ROUNDS = 40
INSTANTS = 4
"""Instants limited in a round."""

GAP = 1e-3
SECONDS = 10.0
"""Of one round of the solver."""

TIE_S = 1e-7
"""What recomputing costs at least, so that nothing is recomputed idly."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to recompute.

    Attributes:
      recomputed: numbers of the values. kept: of those that are held for the backward pass.
      seconds: what recomputing costs; bound: no choice costs less (under the limits stated).
      peak: bytes, by the model above.
    """

    recomputed: tuple[int, ...]
    kept: tuple[int, ...]
    seconds: float
    bound: float
    peak: float


def choose(values: Sequence[Value], base: Profile, budget: float) -> Choice | None:
    """The cheapest choice within ``budget``; ``None`` if there is none, or none was found.

    Args:
      base: bytes at every instant without any of the values beyond their use in the forward pass.
    """
    program = _Program(values, base, budget)
    for _ in range(ROUNDS):
        found = program.solve()
        if found is None:
            return None
        live = program.profile(found)
        over = _peaks(live, budget)
        if not over:
            return program.choice(found, float(live.max(initial=0.0)))
        if not program.limit(over, found):
            return None
    return None


def _peaks(live: Profile, budget: float) -> list[int]:
    """The highest instants above the budget that are no lower than their neighbours."""
    padded = np.concatenate(([0.0], live, [0.0]))
    tops = (live > budget * (1 + 1e-9)) & (live >= padded[:-2]) & (live > padded[2:])
    return sorted(np.flatnonzero(tops).tolist(), key=lambda i: -live[i])[:INSTANTS]


@dataclass(slots=True)
class _Found:
    keep: NDArray[np.bool_]
    again: NDArray[np.bool_]
    cost: float
    bound: float


class _Program:
    """The integer program; variables are all $k$, then all $r$."""

    def __init__(self, values: Sequence[Value], base: Profile, budget: float) -> None:
        self.values, self.base, self.budget = values, base, budget
        self.bytes = np.array([v.bytes for v in values], np.float64)
        self.trips = np.array([v.trips for v in values], np.float64)
        self.costs = np.array([v.seconds * v.trips + TIE_S for v in values])
        self.wanted = _wanted(values)
        self._rows: list[tuple[list[int], list[float], float, float]] = []
        self._limits: dict[tuple[int, bytes], None] = {}
        for number, value in enumerate(values):
            self._constrain([number, self._again(number)], [1, 1], float(value.needed), 1.0)
            for source in value.sources:
                row = [self._again(number), source, self._again(source)]
                self._constrain(row, [1, -1, -1], -np.inf, 0.0)

    def _again(self, number: int) -> int:
        return len(self.values) + number

    def _constrain(self, columns: list[int], weights: list[float], low: float, high: float) -> None:
        self._rows.append((columns, weights, low, high))

    def solve(self) -> _Found | None:
        n = len(self.values)
        if not n:
            return _Found(np.zeros(0, bool), np.zeros(0, bool), 0.0, 0.0)
        scale = 1e6  # microseconds, for the solver's tolerances
        costs = np.concatenate((np.zeros(n), self.costs * scale))
        rows = np.repeat(np.arange(len(self._rows)), [len(row[0]) for row in self._rows])
        columns = np.concatenate([row[0] for row in self._rows]).astype(np.intp)
        weights = np.concatenate([np.asarray(row[1], np.float64) for row in self._rows])
        matrix = csr_array((weights, (rows, columns)), shape=(len(self._rows), 2 * n))
        lows, highs = zip(*(row[2:] for row in self._rows), strict=True)
        found = milp(
            costs,
            integrality=np.ones(2 * n),
            bounds=Bounds(0, 1),
            constraints=LinearConstraint(matrix, lows, highs),
            options={"mip_rel_gap": GAP, "time_limit": SECONDS},
        )
        if found.x is None:
            return None
        taken = found.x > 0.5
        bound = float(found.mip_dual_bound or 0.0) / scale
        return _Found(taken[:n], taken[n:], float(found.fun) / scale, bound)

    def profile(self, found: _Found) -> Profile:
        """Bytes at every instant, with the groups that this choice makes."""
        change = np.zeros(len(self.base) + 1)
        starts = self._starts(found)
        for number in np.flatnonzero(found.keep | found.again):
            value, size = self.values[number], self.bytes[number]
            if found.keep[number]:
                start, end = self._kept(number)
                size *= self.trips[number]
            else:
                start, end = self._recomputed(number, starts)
            if end >= start:
                change[start] += size
                change[end + 1] -= size
            del value
        return self.base + np.cumsum(change[:-1])

    def _kept(self, number: int) -> tuple[int, int]:
        value = self.values[number]
        end = max(value.last, self.wanted[number])
        return (value.start if value.trips > 1 else value.last_forward + 1), end

    def _recomputed(self, number: int, starts: NDArray[np.intp]) -> tuple[int, int]:
        value, start = self.values[number], int(starts[number])
        return start, max(value.last, start)

    def _starts(self, found: _Found) -> NDArray[np.intp]:
        """When each value's group is recomputed; of one that is not, when it would be alone."""
        parent = list(range(len(self.values)))

        def root(number: int) -> int:
            while parent[number] != number:
                parent[number] = parent[parent[number]]
                number = parent[number]
            return number

        for number in np.flatnonzero(found.again):
            for source in self.values[number].sources:
                if found.again[source]:
                    parent[root(int(number))] = root(source)
        earliest: dict[int, int] = {}
        own = [v.first if v.needed else w for v, w in zip(self.values, self.wanted, strict=True)]
        for number in np.flatnonzero(found.again):
            key = root(int(number))
            earliest[key] = min(earliest.get(key, own[number]), own[number])
        return np.array(
            [earliest[root(i)] if found.again[i] else own[i] for i in range(len(own))], np.intp
        )

    def limit(self, instants: Sequence[int], found: _Found) -> bool:
        """Limits these instants, with the groups of ``found``. False if they were so already."""
        starts = self._starts(found)
        fresh = False
        for instant in instants:
            columns, weights = list[int](), list[float]()
            for number in range(len(self.values)):
                start, end = self._kept(number)
                if start <= instant <= end:
                    columns.append(number)
                    weights.append(self.bytes[number] * self.trips[number])
                start, end = self._recomputed(number, starts)
                if start <= instant <= end:
                    columns.append(self._again(number))
                    weights.append(self.bytes[number])
            key = (instant, np.array(columns).tobytes())
            if key not in self._limits:
                fresh = True
                self._limits[key] = None
                room = self.budget - self.base[instant]
                unit = max(1.0, self.budget)
                self._constrain(columns, [w / unit for w in weights], -np.inf, room / unit)
        return fresh

    def choice(self, found: _Found, peak: float) -> Choice:
        recomputed = tuple(np.flatnonzero(found.again).tolist())
        kept = tuple(np.flatnonzero(found.keep).tolist())
        return Choice(
            recomputed, kept, float(self.costs[list(recomputed)].sum()), found.bound, peak
        )


def _wanted(values: Sequence[Value]) -> list[int]:
    """For each value, the last instant at which something made of it may have to be recomputed."""
    wanted = [value.first for value in values]
    for value in reversed(range(len(values))):
        for source in values[value].sources:
            wanted[source] = max(wanted[source], wanted[value])
    return wanted
