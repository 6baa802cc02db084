"""A choice of storage carried out: the program that it makes, sharded within the memory."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from autopar.core.errors import InfeasibleError
from autopar.core.plan import Plan, Recomputation
from autopar.search import planner
from autopar.search.memory_prices import priced
from autopar.search.network import TICK_S, Solution
from autopar.search.options import UNLIMITED, Options
from autopar.search.planner import Candidate
from autopar.search.prepared import Prepared
from autopar.search.solve import solve
from autopar.search.storage_choice import Choice
from autopar.search.storage_model import StorageModel
from autopar.search.storage_names import dropped_names
from autopar.search.storage_offload import HostState, Movable, with_host
from autopar.search.storage_stacks import offloaded_stacks, stacks_of
from autopar.search.storage_values import Value

TRIES = 5
"""Solutions looked at for layouts found by a price, the first with none."""

DEARER = 1.5
"""How much higher the next price is."""

SMALLER = 0.998
"""Of its own memory, what the next choice may have at most."""

CAUTIOUS = 0.88
"""Of what a choice leaves, what the next may have more: what recomputes less takes more than the
model says (measured: 1.02 to 1.13 times; casts of weights are then held for the backward pass)."""

STEP = 0.1
"""Of what is between a choice that fits and one that does not, what the next must be above."""


@dataclass(frozen=True)
class Attempt:
    """One choice, carried out.

    Attributes:
      names: of the equations that are recomputed.
      found: how the program is best sharded, ``None`` if it does not fit.
      needed: bytes that this, or the lightest plan found, needs.
      least_s: seconds of the layouts that the choice was made under, and of the choice.
      given: what of these the layouts lose for memory, in ticks.
      seconds: that the search took.
    """

    choice: Choice
    names: tuple[str, ...]
    prepared: Prepared
    options: Options
    stacks: Mapping[str, Value]
    found: planner.Candidate | None
    needed: int
    least_s: float
    given: int
    seconds: float

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        model: StorageModel,
        choice: Choice,
        state: HostState,
        away: Sequence[Movable],
        least_s: float,
        options: Options,
        given: int = 0,
        price: float = 0.0,
        known_s: float = math.inf,
    ) -> Attempt:
        """``prepared``: the program as it is written, ``away``: of its inputs, on the host.
        ``price``: of a byte in ticks, if the layouts were found by one. ``known_s``: what takes as
        long is not looked for under a limit.
        """
        began = time.perf_counter()
        names = dropped_names(model.values, model.bodies, choice.recomputed)
        options.progress(f"recomputing {len(choice.recomputed)} values")
        program = prepared.step.rematerialised(names)
        stacks = stacks_of(program, model.values, choice.away)
        rests = state.away(away, tuple(stacks))
        again = Prepared.folded(program, prepared.cluster, options, rests)
        found, needed = None, 0
        try:
            free = _free(again, options)
            needed = free.peak_bytes
            found = free if needed <= (options.memory_bytes or 0) else None
            if price and found is None:
                found = _fitting(again, free, options, price, given)
            found = found or planner.best(again, options, False, known_s)
            needed = found.peak_bytes
        except InfeasibleError as error:
            needed = error.least_bytes or needed
        seconds = time.perf_counter() - began
        made = choice, names, again, options, stacks, found, needed
        return cls(*made, least_s, given, seconds)

    @property
    def objective_s(self) -> float:
        """Of the step. The new program's own prices take recomputing to save more time than it does
        (see ``GAIN``): it is not believed to be faster than what the choice is priced at, and what
        its sharding loses for memory, more than the layouts of the choice do, comes on top of that.
        """
        if self.found is None:
            return math.inf
        cost = self.found.solution.cost
        lost = cost - self.prepared.free[self.found.problem.mesh].cost
        return max(cost * TICK_S, self.least_s + max(0, lost - self.given) * TICK_S)

    def plan(
        self, model: StorageModel, away: Sequence[Movable], windows: Mapping[str, float]
    ) -> Plan | None:
        """The plan; ``None`` if an input is laid out so that it cannot rest on the host."""
        assert self.found is not None
        step, cluster = self.prepared.step, self.prepared.cluster
        plan = planner.planned(self.prepared, self.found, self.options, self.seconds)
        more = self.objective_s - plan.solver.objective_s
        plan = dataclasses.replace(
            plan,
            solver=dataclasses.replace(plan.solver, objective_s=self.objective_s),
            predicted=dataclasses.replace(
                plan.predicted,
                step_s=plan.predicted.step_s + more,
                compute_s=plan.predicted.compute_s + more,
            ),
        )
        stacks = offloaded_stacks(step, plan, cluster, self.stacks, windows)
        placed = with_host(step, plan, cluster.chip, away, tuple(stacks))
        if placed is None:
            return None
        recomputed = tuple(_recomputations(model.values, self.choice))
        return dataclasses.replace(placed, recompute=self.names, recomputed=recomputed)


@dataclass(slots=True)
class Room:
    """Bytes that the next choice may have, by its own model of memory, after what has been tried.

    Each attempt tells by how much that model is wrong, which differs from choice to choice: so what
    is between the largest choice known to fit and the smallest known not to is halved, where the
    last one's error leads out of it.

    Attributes:
      whole: what the last one's error leaves.
    """

    budget: float
    next: float
    whole: float = field(init=False)
    fits: float = 0.0
    exceeds: float = math.inf

    def __post_init__(self) -> None:
        self.whole = self.next

    def learn(self, choice: Choice, needed: float) -> None:
        """``needed``: bytes of the plan that came of the choice."""
        self.next = self.whole = self.budget - (needed - choice.peak)
        if needed > self.budget:
            self.exceeds = min(self.exceeds, choice.peak)
            self.next = min(self.next, choice.peak * SMALLER)
        else:
            self.fits = max(self.fits, choice.peak)
            self.next = choice.peak + CAUTIOUS * (self.next - choice.peak)
        if self.fits and self.exceeds < math.inf:
            least = self.fits + STEP * (self.exceeds - self.fits)
            if not least < self.next < self.exceeds:
                self.next = (self.fits + self.exceeds) / 2


def _recomputations(values: Sequence[Value], choice: Choice) -> Iterator[Recomputation]:
    """What a choice recomputes, those of one name together, by what they save."""
    groups: dict[str, list[Value]] = defaultdict(list)
    for number in choice.recomputed:
        groups[values[number].label].append(values[number])
    for label, group in sorted(groups.items(), key=lambda item: -_held(item[1])):
        seconds = sum(value.seconds * value.trips for value in group)
        count = sum(value.trips for value in group)
        yield Recomputation(label, count, _held(group), seconds)


def _held(group: Sequence[Value]) -> int:
    return sum(value.bytes * value.trips for value in group if value.needed)


def _free(prepared: Prepared, options: Options) -> Candidate:
    """The best plan without a limit, on the mesh of the options."""
    unlimited = dataclasses.replace(options, memory_bytes=UNLIMITED)
    return planner.best(prepared, unlimited)


def _fitting(
    prepared: Prepared, without: Candidate, options: Options, price: float, given: int
) -> Candidate | None:
    """A plan within the memory, on the mesh of the options, found by a price of the bytes at the
    peak: the one given, then higher or lower ones. ``None`` if a few do not do.

    Args:
      without: the best plan without a limit.
      given: ticks more than this that are good enough.
    """
    assert options.memory_bytes is not None
    problem, free = without.problem, without.solution
    memory, deadline = prepared.depth.memory_on(problem), time.monotonic() + options.time_limit_s
    found, best = free, None
    short, ample, now, instant = 0.0, math.inf, 0.0, 0
    for _ in range(TRIES):
        if found.choice is None:
            break
        cost = problem.network.cost(found.choice)
        place, peak = memory.peak(problem.states(found.choice))
        if peak > options.memory_bytes:
            short, instant = now, place
        else:
            ample = now
            solution = Solution(found.choice, cost, free.bound, "feasible")
            if best is None or cost < best.solution.cost:
                best = Candidate(problem, solution, peak)
            if cost <= free.cost + given:
                break
        if ample <= DEARER * short:
            break
        now = _between(short, ample, price)
        network = priced(memory, instant, now)
        found = solve(network, max(1.0, deadline - time.monotonic()))
    return best


def _between(short: float, ample: float, first: float) -> float:
    """The next price, after one at which memory was short and one at which it was not."""
    if ample == math.inf:
        return DEARER * short if short else first
    return math.sqrt(short * ample) if short else ample / 2
