"""From one plan's layouts to plans within the budget: storage chosen, then sharding again.

1. Under the layouts, what to keep and what to recompute is chosen (``storage_choice``).
2. The step is rewritten so (``remat``), and the sharding of that program is searched under the
   limit, by the ordinary machinery: all that is accepted is priced and simulated as any plan is.
   While it does not fit, less is kept.
3. Where that may still be faster, or nothing has fitted, state rests on the host
   (``storage_offload``), and so do stacks of loops (``storage_stacks``); 1 and 2 are done with what
   room this leaves.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from autopar.core.errors import InfeasibleError
from autopar.core.plan import Plan, Recomputation
from autopar.cost_model import Cluster, format_bytes
from autopar.passes.trace import Step
from autopar.search import planner
from autopar.search.memory import heaviest
from autopar.search.options import Options
from autopar.search.plan_prices import PlanPrices
from autopar.search.prepared import Away, Prepared
from autopar.search.storage_choice import Choice, choose, lightest
from autopar.search.storage_model import StorageModel
from autopar.search.storage_names import dropped_names
from autopar.search.storage_offload import HostState, Movable, amounts, with_host
from autopar.search.storage_program import NO_LINK, Link
from autopar.search.storage_stacks import offloaded_stacks, stacks_of
from autopar.search.storage_values import Value

UNLIMITED = 2**62
"""Bytes; more than any device has."""

ATTEMPTS = 6
"""Choices tried, each for less or more memory by what the last was wrong."""

SMALLER = 0.998
"""Of its own memory, what the next choice may have at most."""


@dataclass(frozen=True)
class Start:
    """One program under the layouts of one plan.

    Attributes:
      layouts: the plan, whose mesh is kept.
      budget: bytes a device.
      model: the choices there are.
    """

    step: Step
    cluster: Cluster
    options: Options
    layouts: Plan
    budget: int
    model: StorageModel

    @classmethod
    def of(cls, prepared: Prepared, layouts: Plan, options: Options) -> Start:
        """``prepared``: the program that ``layouts`` is a plan for."""
        step, cluster = prepared.step, prepared.cluster
        budget = options.memory_bytes or cluster.chip.usable_bytes
        model = StorageModel.of(prepared, layouts, options.remat == "auto")
        return cls(step, cluster, options, layouts, budget, model)

    def plans(self, known: Sequence[Plan]) -> list[Plan]:
        """What is found, of plans that may be faster than the ``known`` ones."""
        self.options.progress("choosing what to recompute")
        found = self._rematerialised()
        plans = [] if found is None else [found]
        if self._may_pay([*known, *plans]) and self._link(()) is not NO_LINK:
            self.options.progress("choosing what to keep on the host")
            found = self._offloaded()
            plans += [] if found is None else [found]
        return plans

    @cached_property
    def state(self) -> HostState:
        """What of the step's state may rest on the host."""
        return HostState.of(self.step, self.layouts, self.cluster.chip, self.options)

    @cached_property
    def _room(self) -> float:
        """Bytes that the next choice may take, without what the model of memory leaves out."""
        return float(self.budget) - self.model.unseen(self.layouts)

    def _link(self, away: Sequence[Movable]) -> Link:
        """What stacks may go over to the host, beside this state; ``NO_LINK``: nothing goes."""
        if self.options.offload == "none" or not (self.state.fitting or self.model.windows):
            return NO_LINK
        room = self.state.room - sum(part.bytes for part in away)
        return Link(self.cluster.chip.host_bandwidth, max(0, room), self.model.windows)

    def _rematerialised(self, away: Sequence[Movable] = (), link: Link = NO_LINK) -> Plan | None:
        """The fastest plan found that recomputes something, on the mesh of ``layouts``, or none.

        Each attempt tells by how much the choice's own model of memory is wrong, and the next asks
        for as much less, or more. All share the time limit. ``away`` rests on the host; it may be
        all that it takes.
        """
        model = self.model.lighter(self.step.shares([part.position for part in away]))
        values, base, target = model.values, model.base, self._room
        deadline = time.monotonic() + self.options.time_limit_s
        best: Plan | None = None
        tried: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        for _ in range(ATTEMPTS):
            choice = choose(values, base, target, link) or lightest(values, base, link)
            chosen, left = (choice.recomputed, choice.away), deadline - time.monotonic()
            if chosen in tried or (tried and left <= 0):
                break
            tried.add(chosen)
            found, needed = self._carried_out(choice, away, max(1.0, left))
            unseen = needed - choice.peak
            if found is None or needed > self.budget:
                target = min(self.budget - unseen, choice.peak * SMALLER)
                continue
            target = self.budget - unseen
            if best is None or found.solver.objective_s < best.solver.objective_s:
                best = found
        return best

    def _carried_out(
        self, choice: Choice, away: Sequence[Movable], seconds: float
    ) -> tuple[Plan | None, int]:
        """The plan, if there is one, and the memory that it, or the lightest found, needs."""
        options = dataclasses.replace(self._options(), time_limit_s=seconds)
        values = self.model.values
        names = dropped_names(values, self.model.bodies, choice.recomputed)
        options.progress(f"recomputing {len(choice.recomputed)} values")
        program = self.step.rematerialised(names)
        stacks = stacks_of(program, values, choice.away)
        rests = Away(frozenset(part.position for part in away), tuple(stacks))
        try:
            prepared = Prepared.of(program, self.cluster, options, rests)
            found = planner.search(program, self.cluster, options, prepared)
        except InfeasibleError as error:
            return None, error.least_bytes or 0
        needed = found.predicted.peak_bytes
        more = offloaded_stacks(program, found, self.cluster, stacks, self.model.windows)
        placed = with_host(program, found, self.cluster.chip, away, tuple(more))
        if placed is None:
            return None, needed
        recomputed = tuple(_recomputations(values, choice))
        return dataclasses.replace(placed, recompute=names, recomputed=recomputed), needed

    def _may_pay(self, plans: Sequence[Plan]) -> bool:
        """Whether a plan with no more on the host than is too much may be faster than these."""
        over = max(0, self.layouts.predicted.peak_bytes - self.budget)
        waits = 1 if self.model.windows else 2  # a loop's stacks leave while it runs
        seconds = self.layouts.solver.bound_s + waits * over / self.cluster.chip.host_bandwidth
        return all(seconds < plan.solver.objective_s for plan in plans)

    def _offloaded(self) -> Plan | None:
        """A plan with state or stacks on the host, that recomputes what memory still asks for."""
        parts = self.state.fitting
        ranked: list[tuple[float, int, tuple[Movable, ...]]] = []
        for away in ((), *amounts(parts)):
            lighter = self.model.lighter(self.step.shares([part.position for part in away]))
            choice = choose(lighter.values, lighter.base, self._room, self._link(away))
            if choice is not None and (away or choice.away):
                seconds = choice.seconds + sum(part.seconds for part in away)
                ranked.append((seconds, len(away), away))
        for away in dict.fromkeys((*(away for _, _, away in sorted(ranked)[:2]), tuple(parts))):
            found = self._rematerialised(away, self._link(away))
            if found is not None:
                return found
        return None

    def _least(self, program: Step, rests: Away) -> tuple[int, str]:
        """Bytes that the lightest sharding of a program takes, and what fills them."""
        prepared = Prepared.of(program, self.cluster, self._options(), rests)
        try:
            plan = planner.search(program, self.cluster, self._options(), prepared)
        except InfeasibleError as error:
            return error.least_bytes or UNLIMITED, error.heaviest
        return plan.predicted.peak_bytes, _heaviest(prepared, plan)

    def _options(self) -> Options:
        """Of the search of a rewritten step."""
        alone = self.layouts.mesh.device_count == 1  # nothing to choose, so nothing to limit
        budget = UNLIMITED if alone else self.budget
        return dataclasses.replace(self.options, mesh=self.layouts.mesh, memory_bytes=budget)

    def infeasible(self, known: tuple[int, str]) -> InfeasibleError:
        """The honest 'no': the least memory found, and what fills it.

        ``known``: the same of plans that recompute nothing.
        """
        state, model = self.state, self.model
        base = model.lighter(self.step.shares(state.positions)).base
        choice = lightest(model.values, base, self._link(state.fitting))
        names = dropped_names(model.values, model.bodies, choice.recomputed)
        program = self.step.rematerialised(names)
        stacks = stacks_of(program, model.values, choice.away)
        rests = Away(state.positions, tuple(stacks))
        needed, heaviest = self._least(program, rests)
        if needed > known[0]:  # the lightest shards more, and recomputes nothing
            needed, heaviest = known
        fills = f", at its peak above all for {heaviest}" if heaviest else ""
        return InfeasibleError(
            f"no plan fits {format_bytes(self.budget)} a device: the least found on mesh "
            f"{self.layouts.mesh}, with all recomputed that helps{state}, needs "
            f"{format_bytes(needed)}{fills}; give more memory, more devices or a smaller batch",
            needed,
        )


def _heaviest(prepared: Prepared, plan: Plan) -> str:
    """The largest values at the peak, by name and size."""
    step, cluster = prepared.step, prepared.cluster
    timeline = prepared.memory.timeline
    prices = PlanPrices(step, plan, cluster)
    sizes = {buffer.var: prices.bytes_of(buffer.var) for buffer in timeline.buffers}
    instant, _ = timeline.peak(sizes, vmem_bytes=cluster.chip.vmem_bytes)
    paths = dict(zip(step.jaxpr.jaxpr.invars, step.in_paths, strict=True))
    return heaviest(timeline, sizes, instant, paths)


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
