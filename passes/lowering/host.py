"""What a plan keeps in host memory, as both backends carry it out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Var

from autopar.core.errors import PlanError
from autopar.core.layout import Layout
from autopar.core.plan import Plan
from autopar.passes.lowering.context import unplaced
from autopar.passes.offload import Pieces, Update, on_device, pieces_under, to_host
from autopar.passes.offload import stream as run_update
from autopar.passes.rules.build import dtype_of
from autopar.passes.trace import Step

_IDENTITIES = frozenset(("sharding_constraint", "reshard"))


@dataclass(frozen=True, slots=True)
class Streamed:
    """One update, and how its arrays lie: all alike, and cut into pieces on each device."""

    update: Update
    layout: Layout
    cut: Pieces


@dataclass(frozen=True, slots=True)
class OnHost:
    """What is on the host, and who updates it.

    Attributes:
      inputs: the flat inputs there. weights: those among them that loops go over.
      stacks: gradients that are stacked there, as their weights are there, and values of loops.
      updates: by the position of their last equation. members: positions of all of theirs.
    """

    inputs: frozenset[int]
    weights: frozenset[int]
    stacks: frozenset[Var]
    updates: Mapping[int, Streamed]
    members: frozenset[int]


def on_host(step: Step, plan: Plan) -> OnHost:
    """What ``plan`` keeps on the host.

    Raises:
      PlanError: something that this step, so laid out, cannot update piece by piece.
    """
    wanted = {one.value for one in plan.offloaded if not one.stack}
    inputs = frozenset(i for i, path in enumerate(step.in_paths) if path in wanted)
    found = [update for update in step.updates if not inputs.isdisjoint(update.movable)]
    updated = frozenset(i for update in found for i in update.movable)
    if len(inputs) != len(wanted) or not inputs <= updated:
        odd = wanted - {step.in_paths[i] for i in inputs & updated}
        raise PlanError(
            f"{', '.join(sorted(odd)[:4])} cannot be kept on the host: it is no input of this step "
            "that elementwise work updates, and loops alone go over; plan this step again"
        )
    updates = {update.members[-1]: _streamed(update, inputs, plan) for update in found}
    members = frozenset(position for update in found for position in update.members)
    scanned = [update for update in found if not inputs.isdisjoint(update.scanned)]
    weights = inputs.intersection(i for update in scanned for i in update.scanned)
    gradients = (var for update in scanned for var in update.stacks)
    stacks = frozenset((*gradients, *_stacks(step, plan)))
    return OnHost(inputs, weights, stacks, updates, members)


def _stacks(step: Step, plan: Plan) -> Iterator[Var]:
    for one in plan.offloaded:
        if one.stack and one.stack not in step.stacks:
            raise PlanError(
                f"{one.value} ({one.stack}) cannot be kept on the host: it is nothing that a loop "
                "stacks and loops alone go over; plan this step again"
            )
        if one.stack:
            yield step.stacks[one.stack]


def _streamed(update: Update, inputs: frozenset[int], plan: Plan) -> Streamed:
    ours = [plan.inputs[i] for i in sorted(update.movable & inputs)]
    cut = pieces_under(update, [value.layout for value in ours], plan.mesh)
    if cut is None:
        raise PlanError(
            f"{ours[0].path} cannot be kept on the host: a device's part cannot be cut into equal "
            "pieces, or it lies otherwise than what is updated with it; plan this step again"
        )
    return Streamed(update, ours[0].layout, cut)


def stream(one: Streamed, jaxpr: Jaxpr, operands: Sequence[Any]) -> list[Any]:
    """The results of an update, from the parts of one device: its operands, then its scalars."""
    read = (*one.update.operands, *one.update.scalars)
    values = dict(zip(read, operands, strict=True))
    return run_update(one.update, jaxpr, values, one.cut, _evaluate)


def loop(
    eqn: JaxprEqn,
    operands: Sequence[Any],
    stacks: frozenset[Var],
    run: Callable[[Sequence[Any]], list[Any]],
) -> list[Any]:
    """A ``scan`` that goes over stacks on the host, and leaves those of ``stacks`` there.

    Args:
      run: the body, on values that are all on the device.
    """
    params, count = eqn.params, eqn.params["num_carry"]
    first = params["num_consts"]
    consts, initial = operands[:first], operands[first : first + count]
    dtypes = map(dtype_of, eqn.outvars[:count])
    carries = tuple(map(jnp.asarray, initial, dtypes))

    def body(carry: tuple[Any, ...], part: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        results = run([*consts, *carry, *map(on_device, part)])
        made = zip(eqn.outvars[count:], results[count:], strict=True)
        return tuple(results[:count]), tuple(to_host(x) if v in stacks else x for v, x in made)

    carried, stacked = lax.scan(
        body,
        carries,
        tuple(operands[first + count :]),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carried, *stacked]


def _evaluate(eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """One elementwise equation on pieces."""
    if eqn.primitive.name in _IDENTITIES:
        return list(operands)
    params = eqn.primitive.get_bind_params(unplaced(eqn.params))
    found = eqn.primitive.bind(*operands, **params)
    return list(found) if eqn.primitive.multiple_results else [found]
