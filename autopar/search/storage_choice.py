r"""Which values of the forward pass to keep and which to recompute, under a memory limit.

For each value $v$, $k_v$ (kept until the backward pass last reads it) and $r_v$ (recomputed there):

$$ \min \sum_v c_v r_v + s_v k_v \quad\text{subject to}\quad
   k_v + r_v = 1 \text{ if the backward pass reads } v, \; \le 1 \text{ else}; \qquad
   r_v \le k_u + r_u \text{ for every source } u \text{ of } v; $$
$$ \mathrm{base}(t) + \sum_v \left( b_v k_v [t \in K_v] + a_v r_v [t \in R_v] \right) \le
   \mathrm{budget} \quad \text{for every instant } t. $$

$b_v$ is what $v$ holds, kept, and $a_v$, recomputed. $c_v$ is the time of recomputing, $s_v$ that
of writing to a stack and reading it, in loops.
$K_v$ reaches from the forward pass's last read of $v$ to the backward pass's; $R_v$ from the moment
its group is recomputed: a group is what is connected through recomputed values, and runs when the
backward pass first needs one of them. Instants are limited lazily, with what the groups of the
choice at hand bring there, until a choice holds under its own groups. Each program on the way is a
relaxation of the next, so the last one's optimum is the optimum.

Built in ``_Program``; solved by HiGHS to a thousandth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
      seconds: what recomputing and stacking cost. bound: no choice costs less.
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


def lightest(values: Sequence[Value], base: Profile) -> Choice:
    """A choice of about the least memory, to a fiftieth."""
    low, high = (
        float(base.max(initial=0.0)),
        float(base.sum() + sum(v.bytes * v.trips for v in values)),
    )
    best = choose(values, base, high)
    assert best is not None
    high = best.peak
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        found = choose(values, base, middle)
        if found is None:
            low = middle
        else:
            best, high = found, min(middle, found.peak)
    return best


def _peaks(live: Profile, budget: float) -> list[int]:
    """The highest instants above the budget that are no lower than their neighbours."""
    padded = np.concatenate(([0.0], live, [0.0]))
    tops = (live > budget * (1 + 1e-9)) & (live >= padded[:-2]) & (live > padded[2:])
    return sorted(np.flatnonzero(tops).tolist(), key=lambda i: -live[i])[:INSTANTS]


@dataclass(slots=True)
class _Found:
    keep: NDArray[np.bool_]
    again: NDArray[np.bool_]
    bound: float


class _Program:
    r"""The integer program.

    Columns are all $k$, all $r$, and for a limited instant $t$ and a value $v$ whose group may have
    run by then though nothing has read $v$ yet, $g_{v,t} \ge r_v + r_w - 1$ (or
    $g_{w,t} + r_v - 1$) for every neighbour $w$ that has run (may have run) by then.
    """

    def __init__(self, values: Sequence[Value], base: Profile, budget: float) -> None:
        self.values, self.base, self.budget = values, base, budget
        self.kept = np.array([v.bytes * v.trips for v in values], np.float64)
        self.again = np.array([v.again for v in values], np.float64)
        self.costs = np.array([v.seconds * v.trips + TIE_S for v in values])
        self.stacking = np.array([v.stacking * v.trips for v in values])
        self.wanted = _wanted(values)
        self.own = [v.first if v.needed else w for v, w in zip(values, self.wanted, strict=True)]
        self.neighbours: list[set[int]] = [set(v.sources) for v in values]
        for number, value in enumerate(values):
            for source in value.sources:
                self.neighbours[source].add(number)
        self._limits: dict[int, set[int]] = {}

    def solve(self) -> _Found | None:
        n = len(self.values)
        if not n:
            return _Found(np.zeros(0, bool), np.zeros(0, bool), 0.0)
        rows = self._rows()
        scale = 1e6  # microseconds, for the solver's tolerances
        costs = np.concatenate((self.stacking * scale, self.costs * scale, np.zeros(rows.extra)))
        found = milp(
            costs,
            integrality=np.concatenate((np.ones(2 * n), np.zeros(rows.extra))),
            bounds=Bounds(0, 1),
            constraints=rows.constraint(len(costs)),
            options={"mip_rel_gap": GAP, "time_limit": SECONDS},
        )
        if found.x is None:
            return None
        taken = found.x > 0.5
        return _Found(taken[:n], taken[n : 2 * n], float(found.mip_dual_bound or 0.0) / scale)

    def _rows(self) -> _Rows:
        n, rows = len(self.values), _Rows()
        for number, value in enumerate(self.values):
            rows.add([number, n + number], [1, 1], float(value.needed), 1.0)
            if not value.droppable:
                rows.add([n + number], [1], 0.0, 0.0)
            for source in value.sources:
                rows.add([n + number, source, n + source], [1, -1, -1], -np.inf, 0.0)
        for instant, pulled in self._limits.items():
            self._limit_rows(rows, instant, sorted(pulled))
        return rows

    def _limit_rows(self, rows: _Rows, instant: int, pulled: Sequence[int]) -> None:
        n = len(self.values)
        column = {number: 2 * n + rows.extra + i for i, number in enumerate(pulled)}
        rows.extra += len(pulled)
        columns, weights = list[int](), list[float]()
        for number, value in enumerate(self.values):
            start, end = self._kept(number)
            if start <= instant <= end:
                columns.append(number)
                weights.append(self.kept[number])
            if self.own[number] <= instant <= max(value.last, self.own[number]):
                columns.append(n + number)
                weights.append(self.again[number])
        for number in pulled:
            columns.append(column[number])
            weights.append(self.again[number])
            for other in self.neighbours[number]:
                run = n + other if self.own[other] <= instant else column.get(other)
                if run is not None:
                    rows.add([column[number], n + number, run], [1, -1, -1], -1.0, np.inf)
        unit = max(1.0, self.budget)
        room = (self.budget - self.base[instant]) / unit
        rows.add(columns, [weight / unit for weight in weights], -np.inf, room)

    def profile(self, found: _Found) -> Profile:
        """Bytes at every instant, with the groups that this choice makes."""
        change = np.zeros(len(self.base) + 1)
        starts = self._starts(found)
        for number in np.flatnonzero(found.keep | found.again).tolist():
            value, size = self.values[number], self.again[number]
            start, end = starts[number], max(value.last, starts[number])
            if found.keep[number]:
                start, end = self._kept(number)
                size = self.kept[number]
            if end >= start:
                change[start] += size
                change[end + 1] -= size
        return self.base + np.cumsum(change[:-1])

    def _kept(self, number: int) -> tuple[int, int]:
        value = self.values[number]
        end = max(value.last, self.wanted[number])
        return (value.start if value.body else value.last_forward + 1), end

    def _starts(self, found: _Found) -> list[int]:
        """When each value's group is recomputed; of one that is not, when it would be alone."""
        starts = list(self.own)
        seen: set[int] = set()
        for number in np.flatnonzero(found.again).tolist():
            if number in seen:
                continue
            group, waiting = {number}, [number]
            while waiting:
                fresh = [o for o in self.neighbours[waiting.pop()] if found.again[o]]
                waiting.extend(o for o in fresh if o not in group)
                group.update(fresh)
            first = min(self.own[member] for member in group)
            for member in group:
                starts[member] = first
            seen |= group
        return starts

    def limit(self, instants: Sequence[int], found: _Found) -> bool:
        """Limits these instants, with the groups of ``found``. False if they were so already."""
        starts = self._starts(found)
        fresh = False
        for instant in instants:
            pulled = {
                number
                for number in np.flatnonzero(found.again).tolist()
                if starts[number] <= instant < self.own[number]
            }
            fresh |= instant not in self._limits or not pulled <= self._limits[instant]
            self._limits.setdefault(instant, set()).update(pulled)
        return fresh

    def choice(self, found: _Found, peak: float) -> Choice:
        recomputed = tuple(np.flatnonzero(found.again).tolist())
        kept = tuple(np.flatnonzero(found.keep).tolist())
        seconds = float(self.costs[found.again].sum() + self.stacking[found.keep].sum())
        return Choice(recomputed, kept, seconds, found.bound, peak)


@dataclass(slots=True)
class _Rows:
    """Linear constraints, sparse. ``extra``: columns beyond those of the values."""

    extra: int = 0
    columns: list[list[int]] = field(default_factory=list[list[int]])
    weights: list[list[float]] = field(default_factory=list[list[float]])
    bounds: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])

    def add(self, columns: list[int], weights: list[float], low: float, high: float) -> None:
        self.columns.append(columns)
        self.weights.append(weights)
        self.bounds.append((low, high))

    def constraint(self, width: int) -> LinearConstraint:
        rows = np.repeat(np.arange(len(self.columns)), [len(one) for one in self.columns])
        entries = (np.concatenate(self.weights), (rows, np.concatenate(self.columns)))
        matrix = csr_array(entries, shape=(len(self.columns), width))
        low, high = np.array(self.bounds).T
        return LinearConstraint(matrix, low, high)  # pyright: ignore[reportArgumentType]


def _wanted(values: Sequence[Value]) -> list[int]:
    """For each value, the last instant at which something made of it may have to be recomputed."""
    wanted = [value.first for value in values]
    for value in reversed(range(len(values))):
        for source in values[value].sources:
            wanted[source] = max(wanted[source], wanted[value])
    return wanted
