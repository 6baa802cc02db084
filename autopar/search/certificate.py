"""A bound for plans whose repeated layers differ.

A large step is searched with one choice for all layers alike, and what is proven then is proven of
such plans. The certificate is a lower bound of the *unrolled* network, in which every node chooses
for itself: that of ``bounds.py``, raised by sweeps until it is within ``NEAR`` of the plan's cost,
rises no more, or time is up. It knows nothing of memory: where memory makes a plan dearer, the gap
has that in it.
"""

from __future__ import annotations

import dataclasses
import time

from autopar.core.plan import Plan
from autopar.cost_model import Cluster
from autopar.passes.trace import Step
from autopar.search.bounds import Messages
from autopar.search.network import TICK_S, Network
from autopar.search.options import Options
from autopar.search.prepared import Prepared

NEAR = 1e-3
"""Share of the cost at which the bound is near enough."""

RISES = 1e-4
"""Share of the cost by which a round must raise the bound to be followed by another."""


def certified(step: Step, cluster: Cluster, plan: Plan, options: Options) -> Plan:
    """The plan, its bound one for plans whose repeated layers differ too.

    Takes no longer than the time limit of a mesh, beside what it takes to build the network.
    """
    program = step.program(plan.step, plan.recompute)
    if not plan.solver.layers_alike or program is None:
        return plan
    options.progress("bounding plans whose layers differ")
    network = Prepared.of(program, cluster, options).unrolled(plan.mesh).network
    cost = round(plan.solver.objective_s / TICK_S)
    bound_s = min(lower_bound(network, cost, options.time_limit_s), cost) * TICK_S
    proven = (1 - NEAR) * plan.solver.objective_s <= bound_s
    report = dataclasses.replace(
        plan.solver,
        bound_s=bound_s,
        layers_alike=False,
        status="optimal" if proven else "feasible",
    )
    return dataclasses.replace(plan, solver=report)


def lower_bound(network: Network, cost: int, seconds: float) -> int:
    """No assignment costs less. ``cost`` is that of a known one, in units of ``TICK_S``."""
    deadline = time.monotonic() + seconds
    work, before = Messages(network), -1
    while work.bound < (1 - NEAR) * cost and time.monotonic() < deadline:
        work.round()
        work.raise_bound()
        if work.bound - before <= RISES * cost:
            break
        before = work.bound
    return work.bound
