"""Sharding, then storage, then sharding again: plans whose backward pass recomputes values.

1. The sharding is searched without a limit. If the plan fits the memory, it is the answer.
2. It is searched under the limit. If the plan is hardly slower, it is the answer.
3. Under the layouts of the first, what to keep and what to recompute is chosen
   (``storage_choice``).
4. The step is rewritten so (``remat``), and the sharding of that program is searched under the
   limit, by the ordinary machinery: all that is accepted is priced and simulated as any plan is.
   While it does not fit, less is kept.

The faster of what fits, of 2 and 4, is the answer.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autopar.core.errors import InfeasibleError
from autopar.core.plan import Plan, Recomputation
from autopar.cost_model import (
    Cluster,
    FusionBorders,
    Timeline,
    format_bytes,
    fusion_borders,
    liveness,
)
from autopar.passes.trace import Step
from autopar.search import planner
from autopar.search.memory import heaviest
from autopar.search.options import Options
from autopar.search.plan_prices import PlanPrices
from autopar.search.prepared import Prepared
from autopar.search.storage_choice import Choice, Profile, choose, lightest
from autopar.search.storage_names import dropped_names
from autopar.search.storage_values import Body, Value, storage_values

UNLIMITED = 2**62
"""Bytes; more than any device has."""

NEAR = 1.01
"""Nothing is recomputed if a plan that fits is this near to the best without a limit."""

ATTEMPTS = 6
"""Choices tried, each for less or more memory by what the last was wrong."""

SMALLER = 0.998
"""Of its own memory, what the next choice may have at most."""


def search(step: Step, cluster: Cluster, options: Options) -> Plan:
    """The best plan of one program, rematerialised if memory asks for it.

    Raises:
      InfeasibleError: nothing fits the memory, though everything that may be is recomputed.
    """
    if options.remat == "none" or options.search != "optimal":
        return planner.search(step, cluster, options)
    prepared = Prepared.of(step, cluster, options)
    unlimited = dataclasses.replace(options, memory_bytes=UNLIMITED)
    free = planner.search(step, cluster, unlimited, prepared)
    budget = options.memory_bytes or cluster.chip.usable_bytes
    if free.predicted.peak_bytes <= budget:
        return dataclasses.replace(free, options=options.as_text())
    least = free.predicted.peak_bytes
    plans: list[Plan] = []
    options.progress(f"needs {format_bytes(least)} of {format_bytes(budget)}: sharding more")
    if free.mesh.device_count > 1:
        try:
            plans.append(planner.search(step, cluster, options, prepared))
        except InfeasibleError as error:
            least = min(least, error.least_bytes or least)
    if not any(plan.solver.objective_s <= NEAR * free.solver.bound_s for plan in plans):
        options.progress("choosing what to recompute")
        model = StorageModel.of(step, cluster, free)
        found = _rematerialised(step, cluster, model, free, budget, options)
        plans += [] if found is None else [found]
        if not plans:
            raise _infeasible(step, cluster, model, free, least, budget, options)
    best = min(plans, key=lambda plan: plan.solver.objective_s)
    return _judged(best, free, options)


def _judged(plan: Plan, free: Plan, options: Options) -> Plan:
    """What is proven of the plan: none is faster than the best without a limit."""
    bound = min(free.solver.bound_s, plan.solver.objective_s)
    if plan.recompute:
        solver = dataclasses.replace(plan.solver, status="feasible", bound_s=bound)
    else:
        solver = dataclasses.replace(plan.solver, bound_s=max(bound, plan.solver.bound_s))
    return dataclasses.replace(
        plan, solver=solver, options=options.as_text(), unlimited=free.predicted.curve
    )


def _rematerialised(
    step: Step,
    cluster: Cluster,
    model: StorageModel,
    free: Plan,
    budget: int,
    options: Options,
) -> Plan | None:
    """The fastest plan found that recomputes something, on the mesh of ``free``, if one fits.

    Each attempt tells by how much the choice's own model of memory is wrong, and the next asks for
    as much less, or more. All share the time limit.
    """
    alone = free.mesh.device_count == 1  # nothing to choose, so nothing to limit
    given = dataclasses.replace(
        options, mesh=free.mesh, memory_bytes=UNLIMITED if alone else budget
    )
    target = float(budget) - model.unseen(free)
    deadline = time.monotonic() + options.time_limit_s
    best: Plan | None = None
    tried: set[tuple[int, ...]] = set()
    for _ in range(ATTEMPTS):
        given = dataclasses.replace(given, time_limit_s=max(1.0, deadline - time.monotonic()))
        choice = choose(model.values, model.base, target) or lightest(model.values, model.base)
        if choice.recomputed in tried or (tried and time.monotonic() > deadline):
            break
        tried.add(choice.recomputed)
        names = dropped_names(model.values, model.bodies, choice.recomputed)
        options.progress(f"recomputing {len(choice.recomputed)} values")
        found, needed = _searched(step.rematerialised(names), cluster, given)
        unseen = needed - choice.peak
        if found is None or needed > budget:
            target = min(budget - unseen, choice.peak * SMALLER)
            continue
        target = budget - unseen
        if best is None or found.solver.objective_s < best.solver.objective_s:
            recomputed = tuple(_recomputations(model.values, choice))
            best = dataclasses.replace(found, recompute=names, recomputed=recomputed)
    return best


def _searched(step: Step, cluster: Cluster, options: Options) -> tuple[Plan | None, int]:
    """The plan, if there is one, and the memory that it needs, or that the lightest found does."""
    try:
        found = planner.search(step, cluster, options)
    except InfeasibleError as error:
        return None, error.least_bytes or 0
    return found, found.predicted.peak_bytes


@dataclass(frozen=True, slots=True)
class StorageModel:
    """The choices of one program under one plan's layouts.

    Attributes:
      base: bytes at each instant that no choice changes. peak: of the program as it is written.
    """

    values: tuple[Value, ...]
    bodies: tuple[Body, ...]
    base: Profile
    peak: float

    @classmethod
    def of(cls, step: Step, cluster: Cluster, plan: Plan) -> StorageModel:
        borders, timeline = _timeline(step, cluster, plan)
        chip = cluster.chip
        prices = PlanPrices(step, plan, cluster)
        values, bodies = storage_values(
            *(step.jaxpr, borders, timeline, prices.seconds, prices.bytes_of),
            chip.hbm_bandwidth,
        )
        sizes = {buffer.var: prices.bytes_of(buffer.var) for buffer in timeline.buffers}
        peak = float(np.max(timeline.profile(sizes, vmem_bytes=chip.vmem_bytes)))
        chosen = {var for one in (*values, *bodies) for var in one.buffers}
        rest = {var: 0 if var in chosen else size for var, size in sizes.items()}
        base = timeline.profile(rest, vmem_bytes=chip.vmem_bytes)
        for value in values:
            if not value.body:
                base[value.start : value.last_forward + 1] += value.bytes
        return cls(values, bodies, base, peak)

    def unseen(self, plan: Plan) -> float:
        """Bytes of the plan's peak that this model leaves out: copies of values being re-laid."""
        return max(0.0, plan.predicted.peak_bytes - self.peak)


def _infeasible(
    step: Step,
    cluster: Cluster,
    model: StorageModel,
    free: Plan,
    least: int,
    budget: int,
    options: Options,
) -> InfeasibleError:
    """The honest 'no': the least memory found, and what fills it."""
    choice = lightest(model.values, model.base)
    names = dropped_names(model.values, model.bodies, choice.recomputed)
    program = step.rematerialised(names)
    given = dataclasses.replace(options, mesh=free.mesh, memory_bytes=UNLIMITED)
    plan = planner.search(program, cluster, given)
    needed = plan.predicted.peak_bytes
    fills = f", at its peak above all for {_heaviest(program, cluster, plan)}"
    if needed > least:  # the lightest shards more, and recomputes nothing
        needed, fills = least, ""
    return InfeasibleError(
        f"no plan fits {format_bytes(budget)} a device: the least found on mesh {free.mesh}, with "
        f"all recomputed that helps, needs {format_bytes(needed)}{fills}; give more memory, more "
        "devices or a smaller batch",
        needed,
    )


def _heaviest(step: Step, cluster: Cluster, plan: Plan) -> str:
    """The largest values at the peak, by name and size."""
    _, timeline = _timeline(step, cluster, plan)
    prices = PlanPrices(step, plan, cluster)
    sizes = {buffer.var: prices.bytes_of(buffer.var) for buffer in timeline.buffers}
    instant, _ = timeline.peak(sizes, vmem_bytes=cluster.chip.vmem_bytes)
    paths = dict(zip(step.jaxpr.jaxpr.invars, step.in_paths, strict=True))
    return heaviest(timeline, sizes, instant, paths)


def _timeline(step: Step, cluster: Cluster, plan: Plan) -> tuple[FusionBorders, Timeline]:
    borders = fusion_borders(step.jaxpr)
    timeline = liveness(
        step.jaxpr,
        [value.role for value in plan.inputs],
        step.donated,
        step.ties,
        borders=borders,
        bf16_dots=cluster.chip.bf16_dots,
    )
    return borders, timeline


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
