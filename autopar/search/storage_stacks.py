"""Stacks of loops on the host: which ones a choice means, and what they hold and take."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from jax.extend.core import Var

from autopar.core.plan import Offloaded, Plan
from autopar.cost_model import Cluster
from autopar.passes.trace import Step
from autopar.search.plan_prices import PlanPrices
from autopar.search.storage_values import Value


def stacks_of(step: Step, values: Sequence[Value], away: Sequence[int]) -> dict[str, Value]:
    """The stacks of these values in the program that was made of the choice, by name."""
    wanted = {values[number].var: values[number] for number in away}
    found = {name: wanted.get(_stacked(step, name)) for name in step.stacks}
    return {name: value for name, value in found.items() if value is not None}


def _stacked(step: Step, name: str) -> Var:
    """What the body of the loop stacks."""
    position, number = map(int, name.split("."))
    return step.jaxpr.jaxpr.eqns[position].params["jaxpr"].jaxpr.outvars[number]


def offloaded_stacks(
    step: Step,
    plan: Plan,
    cluster: Cluster,
    stacks: Mapping[str, Value],
    windows: Mapping[str, float],
) -> Iterator[Offloaded]:
    """What the plan says of them.

    Each trip of the backward loop waits for what it fetches. What the forward loop copies out is
    waited for as far as it takes longer than the loop, in equal shares.
    """
    if not stacks:
        return
    prices = PlanPrices(step, plan, cluster)
    sizes = {name: prices.bytes_of(step.stacks[name]) for name in stacks}
    crossing: dict[str, float] = defaultdict(float)
    for name, value in stacks.items():
        crossing[value.body] += sizes[name] / cluster.chip.host_bandwidth
    for name, value in stacks.items():
        waits = 1 - min(1.0, windows[value.body] / crossing[value.body])
        seconds = (1 + waits) * sizes[name] / cluster.chip.host_bandwidth
        yield Offloaded(value.label, sizes[name], seconds, name)
