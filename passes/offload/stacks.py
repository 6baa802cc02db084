"""Which stacks of a loop may rest on the host: what a forward ``scan`` leaves for backward ones.

The body of the forward loop copies its part out, that of the backward loop fetches it: XLA:TPU
starts the one as soon as the part is there and waits for it at the end of the trip, and starts the
other with the trip (seen in what it compiles). The device never holds the stack.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from jax.extend.core import Jaxpr, JaxprEqn, Var

from autopar.passes.offload.updates import scanned_by


def stacks(jaxpr: Jaxpr) -> Mapping[str, Var]:
    """Names of the stacks that only loops go over, ``12.3``: equation and result, from 0 on."""
    if not any(eqn.primitive.name == "scan" for eqn in jaxpr.eqns):
        return {}
    readers: dict[Var, list[JaxprEqn]] = defaultdict(list)
    for eqn in jaxpr.eqns:
        for var in {atom for atom in eqn.invars if isinstance(atom, Var)}:
            readers[var].append(eqn)
    results = {atom for atom in jaxpr.outvars if isinstance(atom, Var)}
    return {
        f"{position}.{number}": var
        for position, eqn in enumerate(jaxpr.eqns)
        if eqn.primitive.name == "scan"
        for number, var in enumerate(eqn.outvars)
        if number >= eqn.params["num_carry"] and readers[var] and var not in results
        if all(var in scanned_by(reader) for reader in readers[var])
    }
