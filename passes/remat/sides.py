"""Which equations belong to the backward pass, and which may run a second time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.passes.rules import regions
from autopar.passes.rules.control_flow import BODIES

Atom = Var | Literal

_IMPURE = frozenset(("rng_uniform", "infeed", "outfeed", "create_token"))
"""What gives another result each time, though JAX lists no effect."""

_HEAVY = frozenset(
    (
        *("dot_general", "ragged_dot", "ragged_dot_general", "conv_general_dilated", "gather"),
        *("sort", "scatter-add", "scatter", "cumsum", "shard_map", "pallas_call", "fft"),
    )
)


def is_backward(eqn: JaxprEqn) -> bool:
    """Whether reverse-mode differentiation made the equation: JAX marks what it transposes."""
    return "transpose(" in str(eqn.source_info.name_stack)


def backward(eqns: Sequence[JaxprEqn]) -> list[bool]:
    """``is_backward`` of each; many share a name stack, whose text takes longer than all else."""
    stacks = [id(eqn.source_info.name_stack) for eqn in eqns]
    known = dict(zip(stacks, eqns, strict=True))
    marked = {stack for stack, eqn in known.items() if is_backward(eqn)}
    return [stack in marked for stack in stacks]


def is_repeatable(eqn: JaxprEqn) -> bool:
    """Whether it may run twice: no effect on the world, and the same bits each time."""
    inner = (nested for body in _bodies(eqn) for nested in body.eqns)
    return not eqn.effects and eqn.primitive.name not in _IMPURE and all(map(is_repeatable, inner))


def is_heavy(eqn: JaxprEqn) -> bool:
    """Whether it is more than elementwise work: a product, say, or a loop."""
    return eqn.primitive.name in _HEAVY or eqn.primitive.name in BODIES


def light(jaxpr: Jaxpr) -> frozenset[Var]:
    """Values made of the inputs alone by light work: casts of weights, masks, positions."""
    found: set[Atom] = {*jaxpr.constvars, *jaxpr.invars}
    for eqn in jaxpr.eqns:
        read = [atom for atom in eqn.invars if not isinstance(atom, Literal)]
        if found.issuperset(read) and not is_heavy(eqn):
            found.update(eqn.outvars)
    return frozenset(v for v in found if isinstance(v, Var))


def _bodies(eqn: JaxprEqn) -> Iterator[Jaxpr]:
    for region in regions(eqn) or ():
        yield region.body
