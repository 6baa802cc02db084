"""Sharding, then storage, then sharding again: plans whose backward pass recomputes values.

1. The sharding is searched without a limit. If the plan fits the memory, it is the answer.
2. It is searched under the limit. If the plan is hardly slower, it is the answer.
3. Under the layouts of the first, what to keep and what to recompute is chosen
   (``storage_choice``).
4. The step is rewritten so (``remat``), and the sharding of that program is searched under the
   limit, by the ordinary machinery: all that is accepted is priced and simulated as any plan is.
   While it does not fit, less is kept.
5. Where that may still be faster, or nothing has fitted, state rests on the host
   (``storage_offload``), and 4 is done with what room this leaves.

The fastest of what fits, of 2, 4 and 5, is the answer.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence

from autopar.core.errors import InfeasibleError
from autopar.core.plan import Plan, Recomputation
from autopar.cost_model import Cluster, format_bytes
from autopar.passes.trace import Step
from autopar.search import planner
from autopar.search.memory import heaviest
from autopar.search.options import Options
from autopar.search.plan_prices import PlanPrices
from autopar.search.prepared import Prepared
from autopar.search.storage_choice import Choice, choose, lightest
from autopar.search.storage_model import StorageModel, timeline_of
from autopar.search.storage_names import dropped_names
from autopar.search.storage_offload import HostState, Movable, amounts, with_host
from autopar.search.storage_values import Value

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
    if options.search != "optimal" or options.remat == options.offload == "none":
        return planner.search(step, cluster, options)
    prepared = Prepared.of(step, cluster, options)
    unlimited = dataclasses.replace(options, memory_bytes=UNLIMITED)
    free = planner.search(step, cluster, unlimited, prepared)
    budget = options.memory_bytes or cluster.chip.usable_bytes
    if free.predicted.peak_bytes <= budget:
        return dataclasses.replace(free, options=options.as_text())
    least, heaviest = free.predicted.peak_bytes, ""
    plans: list[Plan] = []
    options.progress(f"needs {format_bytes(least)} of {format_bytes(budget)}: sharding more")
    if free.mesh.device_count > 1:
        try:
            plans.append(planner.search(step, cluster, options, prepared))
        except InfeasibleError as error:
            if error.least_bytes is not None and error.least_bytes < least:
                least, heaviest = error.least_bytes, error.heaviest
    if not any(plan.solver.objective_s <= NEAR * free.solver.bound_s for plan in plans):
        options.progress("choosing what to recompute")
        model = StorageModel.of(prepared, free, options.remat == "auto")
        found = _rematerialised(step, cluster, model, free, budget, options)
        plans += [] if found is None else [found]
        state = HostState.of(step, free, cluster.chip, options)
        if state.fitting and _may_pay(free, plans, budget, cluster):
            options.progress("choosing what to keep on the host")
            found = _offloaded(step, cluster, model, free, budget, options, state.fitting)
            plans += [] if found is None else [found]
        if not plans:
            known = least, heaviest
            raise _infeasible(step, cluster, model, free, known, budget, options, state)
    best = min(plans, key=lambda plan: plan.solver.objective_s)
    return _judged(best, free, options)


def _judged(plan: Plan, free: Plan, options: Options) -> Plan:
    """What is proven of the plan: none is faster than the best without a limit."""
    bound = min(free.solver.bound_s, plan.solver.objective_s)
    if plan.recompute or plan.offloaded:
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
    away: Sequence[Movable] = (),
) -> Plan | None:
    """The fastest plan found that recomputes something, on the mesh of ``free``, if one fits.

    Each attempt tells by how much the choice's own model of memory is wrong, and the next asks for
    as much less, or more. All share the time limit. ``away`` rests on the host; it may be all that
    it takes.
    """
    alone = free.mesh.device_count == 1  # nothing to choose, so nothing to limit
    given = dataclasses.replace(
        options, mesh=free.mesh, memory_bytes=UNLIMITED if alone else budget
    )
    target = float(budget) - model.unseen(free)
    model = model.lighter(step.shares([part.position for part in away]))
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
        found, needed = _searched(step.rematerialised(names), cluster, given, away)
        unseen = needed - choice.peak
        if found is None or needed > budget:
            target = min(budget - unseen, choice.peak * SMALLER)
            continue
        target = budget - unseen
        if best is None or found.solver.objective_s < best.solver.objective_s:
            recomputed = tuple(_recomputations(model.values, choice))
            best = dataclasses.replace(found, recompute=names, recomputed=recomputed)
    return best


def _searched(
    step: Step, cluster: Cluster, options: Options, away: Sequence[Movable] = ()
) -> tuple[Plan | None, int]:
    """The plan, if there is one, and the memory that it needs, or that the lightest found does."""
    try:
        prepared = Prepared.of(step, cluster, options, frozenset(p.position for p in away))
        found = planner.search(step, cluster, options, prepared)
    except InfeasibleError as error:
        return None, error.least_bytes or 0
    return with_host(step, found, cluster.chip, away), found.predicted.peak_bytes


def _may_pay(free: Plan, plans: Sequence[Plan], budget: int, cluster: Cluster) -> bool:
    """Whether a plan with no more on the host than is too much may be faster than these."""
    over = max(0, free.predicted.peak_bytes - budget)
    seconds = free.solver.bound_s + 2 * over / cluster.chip.host_bandwidth
    return all(seconds < plan.solver.objective_s for plan in plans)


def _offloaded(
    step: Step,
    cluster: Cluster,
    model: StorageModel,
    free: Plan,
    budget: int,
    options: Options,
    parts: Sequence[Movable],
) -> Plan | None:
    """A plan that keeps some state on the host, and recomputes what memory still asks for."""
    target = float(budget) - model.unseen(free)
    ranked: list[tuple[float, int, tuple[Movable, ...]]] = []
    for away in amounts(parts):
        lighter = model.lighter(step.shares([part.position for part in away]))
        choice = choose(lighter.values, lighter.base, target)
        if choice is not None:
            seconds = choice.seconds + sum(part.seconds for part in away)
            ranked.append((seconds, len(away), away))
    for away in dict.fromkeys((*(away for _, _, away in sorted(ranked)[:2]), tuple(parts))):
        found = _rematerialised(step, cluster, model, free, budget, options, away)
        if found is not None:
            return found
    return None


def _infeasible(
    step: Step,
    cluster: Cluster,
    model: StorageModel,
    free: Plan,
    known: tuple[int, str],
    budget: int,
    options: Options,
    state: HostState,
) -> InfeasibleError:
    """The honest 'no': the least memory found, and what fills it.

    ``known``: the same of plans that recompute nothing.
    """
    choice = lightest(model.values, model.lighter(step.shares(state.positions)).base)
    names = dropped_names(model.values, model.bodies, choice.recomputed)
    program = step.rematerialised(names)
    given = dataclasses.replace(options, mesh=free.mesh, memory_bytes=UNLIMITED)
    prepared = Prepared.of(program, cluster, given, state.positions)
    plan = planner.search(program, cluster, given, prepared)
    needed = plan.predicted.peak_bytes
    heaviest = _heaviest(prepared, plan, state)
    if needed > known[0]:  # the lightest shards more, and recomputes nothing
        needed, heaviest = known
    fills = f", at its peak above all for {heaviest}" if heaviest else ""
    return InfeasibleError(
        f"no plan fits {format_bytes(budget)} a device: the least found on mesh {free.mesh}, with "
        f"all recomputed that helps{state}, needs {format_bytes(needed)}{fills}; give more memory, "
        "more devices or a smaller batch",
        needed,
    )


def _heaviest(prepared: Prepared, plan: Plan, state: HostState) -> str:
    """The largest values at the peak, by name and size."""
    step, cluster = prepared.step, prepared.cluster
    timeline = timeline_of(prepared, plan).scaled(step.shares(state.positions))
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
