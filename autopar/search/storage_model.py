"""What the choice of storage needs to know of one program under one plan's layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jax.extend.core import Var

from autopar.core.plan import Plan
from autopar.cost_model import Timeline
from autopar.cost_model.memory import Extra
from autopar.search.plan_prices import PlanPrices
from autopar.search.planner import Candidate
from autopar.search.prepared import Prepared
from autopar.search.storage_bodies import Body
from autopar.search.storage_program import Profile
from autopar.search.storage_values import Value, storage_values


@dataclass(frozen=True, slots=True)
class StorageModel:
    """The choices of one program under one plan's layouts.

    Attributes:
      base: bytes at each instant that no choice changes. peak: of the program as it is written.
      windows: seconds that each forward loop takes, by body.
      timeline, fixed, extras, vmem_bytes: what ``base`` is made of: bytes of all that is no choice.
    """

    values: tuple[Value, ...]
    bodies: tuple[Body, ...]
    base: Profile
    peak: float
    windows: Mapping[str, float]
    timeline: Timeline
    fixed: Mapping[Var, int]
    extras: tuple[Extra, ...]
    vmem_bytes: int

    @classmethod
    def of(cls, prepared: Prepared, found: Candidate, plan: Plan, remat: bool) -> StorageModel:
        """``prepared``: the program that ``plan`` is for, ``found``: what was written out as it.
        ``remat``: whether there is a choice.
        """
        step, chip = prepared.step, prepared.cluster.chip
        timeline = prepared.memory.whole
        prices = PlanPrices(step, plan, prepared.cluster)
        states = found.problem.states(found.solution.choice or ())
        memory = prepared.memory.program(found.problem)
        copies, streams = list(memory.copies(states)), list(memory.streams(states))
        values, bodies = (), ()
        attached: frozenset[Var] = frozenset()
        if remat:
            values, bodies, attached = storage_values(
                *(step.jaxpr, prepared.memory.fusion, timeline),
                *(prices.seconds, prices.bytes_of, chip.hbm_bandwidth),
                {var: size for var, (_, _, size) in streams},
            )
        sizes = {buffer.var: prices.bytes_of(buffer.var) for buffer in timeline.buffers}
        extras = [*copies, *(extra for _, extra in streams)]
        peak = float(np.max(timeline.profile(sizes, extras, chip.vmem_bytes)))
        chosen = {var for one in (*values, *bodies) for var in one.buffers}
        rest = {var: 0 if var in chosen else size for var, size in sizes.items()}
        windows = {body.name: body.trips * _seconds(body, prices) for body in bodies if body.span}
        fixed = (*copies, *(extra for var, extra in streams if var not in attached))
        parts = (timeline, rest, fixed, chip.vmem_bytes)
        return cls(values, bodies, np.zeros(0), peak, windows, *parts).lighter({})

    @property
    def gain_s(self) -> float:
        """Seconds, not above zero, that all recomputing that saves time would save."""
        return sum(min(0.0, v.seconds) * v.trips for v in self.values if v.droppable)

    def lighter(self, shares: Mapping[Var, float]) -> StorageModel:
        """The same with only shares of some values on the device."""
        timeline = self.timeline.scaled(shares)
        base = timeline.profile(self.fixed, self.extras, self.vmem_bytes)
        for value in self.values:
            if not value.body:
                base[value.start : value.last_forward + 1] += value.bytes
        return dataclasses.replace(self, base=base)

    def unseen(self, plan: Plan) -> float:
        """Bytes of the plan's peak that this model leaves out."""
        return max(0.0, plan.predicted.peak_bytes - self.peak)


def _seconds(body: Body, prices: PlanPrices) -> float:
    """Of a trip."""
    eqns = body.eqns.items()
    return sum(prices.seconds(body.named(place), eqn, body.borders) for place, eqn in eqns)
