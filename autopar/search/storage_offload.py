"""State on the host: what may rest there under a plan, how much should, and what that costs.

Every byte of the optimiser's own state costs the same: it crosses the link to the host twice a
step, and frees its room on the device at every instant. So the only question is how many. Weights
that loops go over come after it: every loop fetches them again, and their gradients cross too. Each
amount leaves the backward pass another budget to recompute in; the sum of both costs is what
amounts are compared by.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from autopar.core.layout import Layout, local_shape
from autopar.core.plan import Offloaded, Plan
from autopar.cost_model import Chip, format_bytes
from autopar.cost_model.work import itemsize
from autopar.passes.offload import pieces_under
from autopar.passes.trace import Step
from autopar.search.draft import Draft
from autopar.search.options import Options
from autopar.search.prepared import Away

SMALLEST = 2**20
"""Bytes below which an input stays on the device: many small loops would be slower."""

AMOUNTS = 8
"""Shares of what may be moved that are compared."""


@dataclass(frozen=True, slots=True)
class Movable:
    """A flat input that may rest on the host.

    Attributes:
      bytes: on the host, per device; of a weight with those of its gradient.
      seconds: of all its crossings of the link, a step.
      layout: in which it rests.
      is_weight: whether loops go over it.
    """

    position: int
    bytes: int
    seconds: float
    layout: Layout
    is_weight: bool = False


def movable(step: Step, plan: Plan, chip: Chip) -> tuple[Movable, ...]:
    """What may rest on the host under the layouts of ``plan``: state, then weights, by size."""
    found: list[Movable] = []
    for update in step.updates:
        layouts = [plan.inputs[i].layout for i in sorted(update.movable)]
        if pieces_under(update, layouts, plan.mesh) is None:
            continue
        elements = math.prod(local_shape(update.shape, layouts[0], plan.mesh))
        for i in sorted(update.movable):
            size = held = elements * itemsize(step.in_avals[i])
            crossings = 2 * size
            if weight := i in update.scanned:
                gradients = elements * sum(itemsize(var.aval) for var in update.stacks)
                held = size + gradients
                crossings += 2 * gradients + size * _loops(step, i)
            if size >= SMALLEST:
                found.append(Movable(i, held, crossings / chip.host_bandwidth, layouts[0], weight))
    return tuple(sorted(found, key=lambda one: (one.is_weight, -one.bytes, one.position)))


def _loops(step: Step, position: int) -> int:
    """How many loops go over an input."""
    var = step.jaxpr.jaxpr.invars[position]
    return sum(e.primitive.name == "scan" and var in e.invars for e in step.jaxpr.jaxpr.eqns)


@dataclass(frozen=True)
class HostState:
    """What may rest on the host, and what of it has room there. Found when first asked for.

    As text: the rest of a sentence on the least memory there is.

    Attributes:
      layouts: the plan under whose layouts.
    """

    layouts: Draft
    chip: Chip
    options: Options

    @property
    def room(self) -> int:
        """Bytes of the host's memory, a device."""
        given = self.options.host_bytes
        return self.chip.host_bytes if given is None else given

    @cached_property
    def movable(self) -> tuple[Movable, ...]:
        """What may rest there."""
        none = self.options.offload == "none"
        return () if none else movable(self.layouts.prepared.step, self.layouts.plan, self.chip)

    @cached_property
    def fitting(self) -> tuple[Movable, ...]:
        """What of this there is room for, the largest first."""
        kept, left = list[Movable](), self.room
        for part in self.movable:
            if part.bytes <= left:
                kept.append(part)
                left -= part.bytes
        return tuple(kept)

    def away(self, parts: Sequence[Movable], stacks: Sequence[str]) -> Away:
        """These, and stacks of loops, on the host; all that may be there rests as it does now."""
        inputs = frozenset(part.position for part in parts)
        resting = {one.position: one.layout for one in self.movable} if inputs else {}
        return Away(inputs, tuple(stacks), resting)

    def __str__(self) -> str:
        held, more = (sum(p.bytes for p in parts) for parts in (self.fitting, self.movable))
        text = f" and {format_bytes(held)} of state on the host" if held else ""
        if more > held:
            text += (
                f" (the host's {format_bytes(self.room)} a device have no room for "
                f"{format_bytes(more - held)} more: give more host_memory)"
            )
        return text


def amounts(parts: Sequence[Movable]) -> Iterator[tuple[Movable, ...]]:
    """Growing parts of what may be moved; all of it last."""
    wanted, total, kept = 1, sum(part.bytes for part in parts), list[Movable]()
    for part in parts:
        kept.append(part)
        if sum(one.bytes for one in kept) * AMOUNTS >= wanted * total:
            yield tuple(kept)
            wanted = sum(one.bytes for one in kept) * AMOUNTS // total + 1


def with_host(
    step: Step, plan: Plan, chip: Chip, away: Sequence[Movable], stacks: tuple[Offloaded, ...]
) -> Plan | None:
    """The plan with these inputs on the host, and these stacks of loops; ``None`` if an input is
    laid out so that it cannot be.

    ``step`` is the program that the plan is for.
    """
    if not away and not stacks:
        return plan
    here = {one.position: one for one in movable(step, plan, chip)}
    if not all(part.position in here for part in away):
        return None
    parts = [here[part.position] for part in away]
    parts.sort(key=lambda part: part.position)
    inputs = (Offloaded(step.in_paths[p.position], p.bytes, p.seconds) for p in parts)
    offloaded = (*inputs, *stacks)
    seconds = sum(one.seconds for one in offloaded)
    predicted = dataclasses.replace(
        plan.predicted,
        step_s=plan.predicted.step_s + seconds,
        host_bytes=sum(one.bytes for one in offloaded),
    )
    solver = dataclasses.replace(plan.solver, objective_s=plan.solver.objective_s + seconds)
    return dataclasses.replace(plan, offloaded=offloaded, predicted=predicted, solver=solver)
