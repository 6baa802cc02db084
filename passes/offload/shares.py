"""How much of what rests on the host the device holds all the same."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from jax.extend.core import Jaxpr, Var

from autopar.passes.offload.updates import Update, shape_of
from autopar.passes.rules import regions

AT_ONCE = 2
"""Trips of a loop whose parts are on the device together: one in use, one on its way."""


def shares(
    jaxpr: Jaxpr, updates: Sequence[Update], away: Collection[int], stacks: Collection[Var] = ()
) -> Mapping[Var, float]:
    """For every value that is on the host if these flat inputs and stacks are: what share a device
    holds.

    Of state, a piece at a time, which may lie in on-chip memory: nothing. Of weights that loops go
    over, of their gradients, and of stacks, what a trip or two take; casts of weights are not
    hoisted then.
    """
    found = {var: _at_once(var) for var in stacks}
    for update in updates:
        found.update((jaxpr.invars[i], 0.0) for i in update.inputs.intersection(away))
        weights = [jaxpr.invars[i] for i in update.scanned if i in away]
        for var in (*weights, *(update.stacks if weights else ())):
            found[var] = _at_once(var)
    for eqn in jaxpr.eqns if found else ():
        for region in regions(eqn) or ():
            inner = {link.inner for link in region.inputs if link.stacked and link.outer in found}
            for cast in region.body.eqns:
                if cast.primitive.name == "convert_element_type" and cast.invars[0] in inner:
                    found[cast.outvars[0]] = 1 / region.trips
    return found


def _at_once(var: Var) -> float:
    return min(1.0, AT_ONCE / shape_of(var)[0])
