"""Sharding and storage: plans whose backward pass recomputes values, or fetches them.

1. The sharding is searched without a limit. If the plan fits the memory, it is the answer, or,
   where loops stack values, the same with some of them recomputed.
2. It is searched under the limit, on the mesh of that plan, for what is hardly slower: that is the
   answer.
3. Storage is chosen under the layouts of the first (``storage_start``), and on several devices
   under those that a price of memory makes (``storage_joint``), the most promising first.
4. If that is much slower than the best without a limit, sharding is searched on all meshes for what
   is faster, under the limit and under one between what the first plan needs and the budget; then
   storage is chosen under the layouts of the latter, as long as this pays.

The fastest of what fits, of 2, 3 and 4, is the answer, or 2 where layers may differ (``mixing``).
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence

from autopar.core.errors import InfeasibleError, PinError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.cost_model import Cluster, format_bytes
from autopar.passes.trace import Step
from autopar.search import planner
from autopar.search.draft import Draft
from autopar.search.mixing import mixed
from autopar.search.options import UNLIMITED, Options
from autopar.search.prepared import Prepared
from autopar.search.storage_joint import Joint, binding
from autopar.search.storage_start import Start

NEAR = 1.01
"""Nothing is recomputed if a plan that fits is this near to the best without a limit."""

STACKED = 1.05
"""Loops stack less if that is predicted to take hardly longer: where 3.5 % more was predicted, the
compiled step took a quarter less (measured, v5e)."""

LESS = 0.9
"""Of the memory of the best plan, what one may take whose loops recompute though all fits."""

WEIGHED = 2
"""Layouts under which storage is chosen, of those found by prices of memory, beside the first."""

BETWEEN = 2
"""Limits of the sharding tried, between the budget and what the best without one needs."""


def search(step: Step, cluster: Cluster, options: Options) -> Plan:
    """The best plan of one program, rematerialised if memory asks for it.

    Raises:
      InfeasibleError: nothing fits the memory, though everything that may be is recomputed.
    """
    if options.search != "optimal":
        return planner.search(step, cluster, options)
    began = time.monotonic()
    prepared = Prepared.folded(step, cluster, options)
    if options.remat == options.offload == "none":
        return _written(_fastest([_lightest(prepared, options)]))
    unlimited = dataclasses.replace(options, memory_bytes=UNLIMITED)
    best = planner.best(prepared, unlimited)
    free = Draft(prepared, best, unlimited, time.monotonic() - began)
    budget = options.memory_bytes or cluster.chip.usable_bytes
    if free.peak_bytes <= budget:
        fitting = [*_stacking_less(free, options), free]
        return _judged(fitting[0], free, options)
    plans: list[Draft | Plan] = []
    needed, several = format_bytes(free.peak_bytes), free.mesh.device_count > 1
    options.progress(f"needs {needed} of {format_bytes(budget)}: sharding more")
    if several:
        plans += _sharded(prepared, options, NEAR * free.solver.bound_s, (free.mesh,))
    if not plans:
        start = Start.of(free, free, options)
        deadline = began + options.time_limit_s
        for one in _weighed(start, deadline) if several else [start]:
            if not plans or one.promise_s < _least(plans):
                plans += one.plans(plans)
        if several and not _near(plans, free):
            plans += _sharded(prepared, options, _least(plans))
            plans += _between(free, plans, options, deadline)
        if not plans:
            plans.append(_last(free, options, start))
    return _judged(_fastest(plans), free, options)


def _least(plans: Sequence[Draft | Plan]) -> float:
    """Seconds of the fastest."""
    return min((plan.solver.objective_s for plan in plans), default=math.inf)


def _near(plans: Sequence[Draft | Plan], free: Draft) -> bool:
    """Whether one is fast enough."""
    return _least(plans) <= NEAR * free.solver.bound_s


def _fastest(plans: Sequence[Draft | Plan]) -> Draft | Plan:
    """Of these, or of what comes of them where layers may differ."""
    found = min(plans, key=lambda plan: plan.solver.objective_s)
    alike = [plan for plan in plans if isinstance(plan, Draft)]
    return next(filter(None, (mixed(one, found.solver.objective_s) for one in alike)), found)


def _stacking_less(free: Draft, options: Options) -> list[Plan]:
    """A plan whose loops recompute, though all fits, if it takes less memory and hardly longer.

    Loops as they are written stack more than they need: compiled, that takes a quarter of the step
    (measured, v5e, four small models), of which not all is predicted.
    """
    if options.remat == "none" or not free.prepared.step.stacks:
        return []
    start, room = Start.of(free, free, options), LESS * free.peak_bytes
    plan = start.rematerialised() if start.first_needs() <= room else None
    if plan is None or plan.predicted.peak_bytes > room:
        return []
    return [plan] if plan.solver.objective_s <= STACKED * free.solver.objective_s else []


def _sharded(
    prepared: Prepared,
    options: Options,
    known_s: float,
    on: Sequence[MeshSpec] | None = None,
) -> list[Draft]:
    """The best plan within the memory that recomputes nothing and takes less than ``known_s``, if
    there is one; ``on``: see ``planner.best``.
    """
    began = time.perf_counter()
    with contextlib.suppress(InfeasibleError, PinError):  # other meshes need not suit the pins
        found = planner.best(prepared, options, False, known_s, on)
        return [Draft(prepared, found, options, time.perf_counter() - began)]
    return []


def _lightest(prepared: Prepared, options: Options) -> Draft:
    """The same, or the plan of least memory; errors as of ``planner.search``."""
    began = time.perf_counter()
    found = planner.best(prepared, options)
    return Draft(prepared, found, options, time.perf_counter() - began)


def _last(free: Draft, options: Options, start: Start) -> Draft:
    """The plan of least memory, where recomputing does not help. It recomputes nothing.

    Raises:
      InfeasibleError: that does not fit either.
    """
    prepared, least = free.prepared, (free.peak_bytes, "")
    if free.mesh.device_count > 1:
        try:
            return _lightest(prepared, options)
        except InfeasibleError as error:
            if error.least_bytes is not None:
                least = error.least_bytes, error.heaviest
    raise start.infeasible(least)


def _weighed(start: Start, deadline: float) -> list[Start]:
    """Under the layouts at hand, and under those that a price of memory makes, the most promising
    first. With loops nothing is priced, nor where the choices are not those of the program that is
    looked at.
    """
    model, choice = start.model, start.first
    other = start.prepared.depth.fold is not None and model.rest is not None
    if other or model.windows or not (choice and choice.instants):
        return [start]
    memory = start.prepared.depth.memory_on(start.layouts.found.problem)
    found = binding(model, choice.instants, memory.known, start.room)
    if found is None:
        return [start]
    start.options.progress("weighing sharding and recomputing")
    instant, price = found
    joint = Joint(start.layouts, model, instant, deadline)
    joint.search(start.budget, price)
    every = [dataclasses.replace(start, joint=joint)]
    every += [
        dataclasses.replace(start, layouts=draft, price=price, joint=joint)
        for draft, price in joint.drafts()
    ]
    every.sort(key=lambda one: one.promise_s)
    return every[:WEIGHED] + [one for one in every[WEIGHED:] if one.layouts is start.layouts]


def _between(
    free: Draft,
    plans: Sequence[Draft | Plan],
    options: Options,
    deadline: float,
) -> list[Plan]:
    """Plans that shard more than ``free``, and leave less to recompute.

    A limit under which sharding alone is no faster than the best plan known is too low.
    """
    prepared = free.prepared
    budget = options.memory_bytes or prepared.cluster.chip.usable_bytes
    low, high = budget, free.peak_bytes
    found: list[Plan] = []
    for _ in range(BETWEEN):
        every = [*plans, *found]
        left = deadline - time.monotonic()
        if left <= 0 or _near(every, free):
            break
        limit = math.isqrt(low * high)
        options.progress(f"sharding for {format_bytes(limit)}, then storage")
        given = dataclasses.replace(options, memory_bytes=limit, time_limit_s=left)
        more: list[Plan] = []
        for layouts in _sharded(prepared, given, _least(every)):
            left = max(1.0, deadline - time.monotonic())
            given = dataclasses.replace(options, time_limit_s=left)
            more = Start.of(layouts, free, given).plans(every)
        if _least(more) < _least(every):
            high = limit
        else:
            low = limit
        found += more
    return found


def _written(found: Draft | Plan) -> Plan:
    return found.plan if isinstance(found, Draft) else found


def _judged(found: Draft | Plan, free: Draft, options: Options) -> Plan:
    """The plan, and what is proven of it: if it recomputes nothing, of plans that do not."""
    plan = _written(found)
    solver = plan.solver
    if not (plan.recompute or plan.offloaded):
        bound = max(min(free.solver.bound_s, solver.objective_s), solver.bound_s)
        solver = dataclasses.replace(solver, bound_s=bound)
    return dataclasses.replace(plan, solver=solver, options=options.as_text(), unlimited=free.curve)
