"""The regions nested in loops, branches and rematerialised bodies, and how to put them back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from autopar.passes.rules.build import Factors
from autopar.passes.rules.factors import FactorRule
from autopar.passes.rules.regions import Link, Region
from autopar.passes.rules.registry import rule

BODIES: dict[str, tuple[str, ...]] = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "remat2": ("jaxpr",),
    "checkpoint": ("jaxpr",),
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
}
"""The parameters that hold the regions of a primitive, in the order of ``regions``."""


def regions(eqn: JaxprEqn) -> tuple[Region, ...] | None:
    """The regions of ``eqn``; ``None`` if it has none that are planned in place.

    ``shard_map``, ``pallas_call`` and ``custom_partitioning`` are not: how their bodies run is
    their author's.
    """
    name = eqn.primitive.name
    if name not in BODIES:
        return None
    return _REGIONS.get(name, _call_regions)(eqn)


def rebuild(eqn: JaxprEqn, bodies: Sequence[ClosedJaxpr | Jaxpr]) -> dict[str, Any]:
    """The parameters of ``eqn`` with other bodies, one per region, of the same inputs and results.

    An open jaxpr takes the place of a closed one with that one's constants.
    """
    params = dict(eqn.params)
    rest = iter(bodies)
    for key in BODIES[eqn.primitive.name]:
        old = params[key]
        if isinstance(old, tuple):
            params[key] = tuple(_like(body, next(rest)) for body in old)
        else:
            params[key] = _like(old, next(rest))
    if next(rest, None) is not None:
        raise ValueError(f"{eqn.primitive.name} has fewer regions than the {len(bodies)} bodies")
    return params


def _like(old: ClosedJaxpr | Jaxpr, new: ClosedJaxpr | Jaxpr) -> ClosedJaxpr | Jaxpr:
    """``new``, closed or open as ``old`` is."""
    if isinstance(old, ClosedJaxpr):
        return new if isinstance(new, ClosedJaxpr) else ClosedJaxpr(new, old.consts)
    if isinstance(new, ClosedJaxpr):
        if new.consts:
            raise ValueError("an open body cannot have constants: make them its inputs")
        return new.jaxpr
    return new


@rule("platform_index")
def _platform_index(eqn: JaxprEqn) -> FactorRule:
    """The index, a scalar, of the branch for the platform it is compiled for."""
    return Factors().rule([], [()] * len(eqn.outvars))


def _call_regions(eqn: JaxprEqn) -> tuple[Region, ...]:
    """One body, run once, whose inputs and results are those of the equation."""
    (key,) = BODIES[eqn.primitive.name]
    body = _open(eqn.params[key])
    inputs = tuple(map(Link, eqn.invars, body.invars))
    return (Region("body", body, 1, inputs, tuple(map(Link, eqn.outvars, body.outvars))),)


def _scan_regions(eqn: JaxprEqn) -> tuple[Region, ...]:
    """Operands are constants, initial carries, and what is scanned over."""
    body = _open(eqn.params["jaxpr"])
    consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    inputs = tuple(
        Link(outer, inner, stacked=i >= consts + carries)
        for i, (outer, inner) in enumerate(zip(eqn.invars, body.invars, strict=True))
    )
    outputs = tuple(
        Link(outer, inner, stacked=i >= carries)
        for i, (outer, inner) in enumerate(zip(eqn.outvars, body.outvars, strict=True))
    )
    carried = zip(body.invars[consts : consts + carries], body.outvars[:carries], strict=True)
    return (Region("body", body, eqn.params["length"], inputs, outputs, tuple(carried)),)


def _while_regions(eqn: JaxprEqn) -> tuple[Region, ...]:
    """Operands are the condition's constants, the body's, and the initial carries."""
    cond, body = _open(eqn.params["cond_jaxpr"]), _open(eqn.params["body_jaxpr"])
    n_cond, n_body = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    initial = eqn.invars[n_cond + n_body :]
    cond_inputs = map(Link, (*eqn.invars[:n_cond], *initial), cond.invars)
    body_inputs = map(Link, eqn.invars[n_cond:], body.invars)
    outputs = tuple(map(Link, eqn.outvars, body.outvars))
    carried = tuple(zip(body.invars[n_body:], body.outvars, strict=True))
    return (
        Region("cond", cond, 1, tuple(cond_inputs), ()),
        Region("body", body, 1, tuple(body_inputs), outputs, carried),
    )


def _cond_regions(eqn: JaxprEqn) -> tuple[Region, ...]:
    """The first operand says which branch runs, and belongs to none of them."""
    found: list[Region] = []
    for index, branch in enumerate(eqn.params["branches"]):
        body = _open(branch)
        inputs = tuple(map(Link, eqn.invars[1:], body.invars))
        outputs = tuple(map(Link, eqn.outvars, body.outvars))
        found.append(Region(f"branch{index}", body, 1, inputs, outputs))
    return tuple(found)


def _open(body: ClosedJaxpr | Jaxpr) -> Jaxpr:
    return body.jaxpr if isinstance(body, ClosedJaxpr) else body


_REGIONS: dict[str, Callable[[JaxprEqn], tuple[Region, ...]]] = {
    "scan": _scan_regions,
    "while": _while_regions,
    "cond": _cond_regions,
}
