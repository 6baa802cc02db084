"""The integer program of ``storage_choice``, with its instants limited lazily; HiGHS solves it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint
from scipy.sparse import csr_array

from autopar.passes.offload import AT_ONCE
from autopar.search.integer_program import solved
from autopar.search.storage_offload import SMALLEST
from autopar.search.storage_values import Value

Profile = NDArray[np.float64]

GAP = 1e-3
SECONDS = 10.0
"""Of one round of the solver."""

TIE_S = 1e-7
"""What recomputing costs at least, so that nothing is recomputed idly."""


@dataclass(frozen=True, slots=True)
class Link:
    """To the host's memory.

    Attributes:
      bandwidth: bytes a second. room: bytes that are free there.
      windows: of the forward loops, by body, the seconds that copies out hide behind.
    """

    bandwidth: float
    room: float
    windows: Mapping[str, float]


NO_LINK = Link(1.0, 0.0, {})
"""Nothing can be put on the host."""


@dataclass(slots=True)
class Found:
    """A solution: which values are kept, recomputed, on the host; its cost and bound, seconds."""

    keep: NDArray[np.bool_]
    again: NDArray[np.bool_]
    away: NDArray[np.bool_]
    seconds: float
    bound: float


class Program:
    r"""The integer program.

    Columns are all $k$, all $r$, all $o$, all $e$, and for a limited instant $t$ and a value $v$
    whose group may have run by then though nothing has read $v$ yet, $g_{v,t} \ge r_v + r_w - 1$
    (or $g_{w,t} + r_v - 1$) for every neighbour $w$ that has run (may have run) by then.
    """

    def __init__(self, values: Sequence[Value], base: Profile, budget: float, link: Link) -> None:
        self.values, self.base, self.budget, self.link = values, base, budget, link
        self.kept = np.array([v.bytes * v.trips for v in values], np.float64)
        self.again = np.array([v.again for v in values], np.float64)
        self.costs = np.array([v.seconds * v.trips + TIE_S for v in values])
        self.stacking = np.array([v.stacking * v.trips for v in values])
        self.crossing = self.kept / link.bandwidth
        self.held_away = np.array([v.bytes * min(v.trips, AT_ONCE) for v in values], np.float64)
        self.windows = tuple(link.windows)
        self.wanted = _wanted(values)
        self.own = [v.first if v.needed else w for v, w in zip(values, self.wanted, strict=True)]
        self.neighbours: list[set[int]] = [set(v.sources) for v in values]
        for number, value in enumerate(values):
            for source in value.sources:
                self.neighbours[source].add(number)
        self._limits: dict[int, set[int]] = {}

    @property
    def limited(self) -> tuple[int, ...]:
        """The instants limited so far."""
        return tuple(sorted(self._limits))

    def solve(self) -> Found | None:
        n = len(self.values)
        if not n:
            none = np.zeros(0, np.bool_)
            return Found(none, none, none, 0.0, 0.0)
        rows = self._rows()
        scale = 1e6  # microseconds, for the solver's tolerances
        waits, more = np.ones(len(self.windows)), np.zeros(rows.extra)
        costs = np.concatenate((self.stacking, self.costs, self.crossing, waits, more)) * scale
        in_loop = np.array([value.body in self.windows for value in self.values])
        may_leave = in_loop & (self.kept >= SMALLEST)
        most = np.concatenate((np.ones(2 * n), may_leave, waits * np.inf, more + 1))
        found = solved(
            costs,
            integrality=np.concatenate((np.ones(3 * n), waits * 0, more)),
            bounds=Bounds(0, most),  # pyright: ignore[reportArgumentType]
            constraints=rows.constraint(len(costs)),
            options={"mip_rel_gap": GAP, "time_limit": SECONDS},
        )
        if found.x is None:
            return None
        keep, again, away = (found.x[: 3 * n] > 0.5).reshape(3, n)
        bound = float(found.mip_dual_bound or 0.0) / scale
        return Found(keep, again, away, float(found.fun) / scale, bound)

    def _rows(self) -> Rows:
        n, rows = len(self.values), Rows()
        for number, value in enumerate(self.values):
            one = [number, n + number, 2 * n + number]
            rows.add(one, [1, 1, 1], float(value.needed), 1.0)
            if not value.droppable:
                rows.add([n + number], [1], 0.0, 0.0)
            for source in value.sources:
                there = [source, n + source, 2 * n + source]
                rows.add([n + number, *there], [1, -1, -1, -1], -np.inf, 0.0)
        self._link_rows(rows)
        for instant, pulled in self._limits.items():
            self._limit_rows(rows, instant, sorted(pulled))
        return rows

    def _link_rows(self, rows: Rows) -> None:
        """What is put on the host has room there; each loop waits for what it has no time for."""
        n = len(self.values)
        members: dict[str, list[int]] = defaultdict(list)
        for number, value in enumerate(self.values):
            members[value.body].append(number)
        for place, body in enumerate(self.windows):
            columns = [2 * n + number for number in members[body]]
            crossings = [float(self.crossing[number]) for number in members[body]]
            seconds = self.link.windows[body]
            rows.add([*columns, 3 * n + place], [*crossings, -1.0], -np.inf, seconds)
        if self.windows:
            unit = max(1.0, self.link.room)
            sizes = (self.kept / unit).tolist()
            rows.add([*range(2 * n, 3 * n)], sizes, -np.inf, self.link.room / unit)

    def _limit_rows(self, rows: Rows, instant: int, pulled: Sequence[int]) -> None:
        n = len(self.values)
        first = 3 * n + len(self.windows) + rows.extra
        column = {number: first + i for i, number in enumerate(pulled)}
        rows.extra += len(pulled)
        columns, weights = list[int](), list[float]()
        for number, value in enumerate(self.values):
            start, end = self._kept(number)
            if start <= instant <= end:
                columns += [number, 2 * n + number]
                weights += [self.kept[number], self.held_away[number]]
            again = sum(size for first, last, size in value.beside if first <= instant <= last)
            if self.own[number] <= instant <= max(value.last, self.own[number]):
                again += self.again[number]
            if again:
                columns.append(n + number)
                weights.append(again)
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

    def profile(self, found: Found) -> Profile:
        """Bytes at every instant, with the groups that this choice makes."""
        change = np.zeros(len(self.base) + 1)
        starts = self._starts(found)
        for number in np.flatnonzero(found.keep | found.again | found.away).tolist():
            value, size = self.values[number], self.again[number]
            start, end = starts[number], max(value.last, starts[number])
            if not found.again[number]:
                start, end = self._kept(number)
                size = (self.kept if found.keep[number] else self.held_away)[number]
            beside = value.beside if found.again[number] else ()
            for first, last, more in ((start, end, size), *beside):
                if last >= first:
                    change[first] += more
                    change[last + 1] -= more
        return self.base + np.cumsum(change[:-1])

    def _kept(self, number: int) -> tuple[int, int]:
        value = self.values[number]
        end = max(value.last, self.wanted[number])
        return (value.start if value.body else value.last_forward + 1), end

    def _starts(self, found: Found) -> list[int]:
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

    def limit(self, instants: Sequence[int], found: Found) -> bool:
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


@dataclass(slots=True)
class Rows:
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
