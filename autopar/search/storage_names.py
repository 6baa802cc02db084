"""From the values that a choice recomputes to the equations that the pass is to drop."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet

from jax.extend.core import Var

from autopar.passes.remat import is_repeatable
from autopar.search.storage_bodies import Body
from autopar.search.storage_values import Value


def dropped_names(
    values: Sequence[Value], bodies: Sequence[Body], recomputed: Sequence[int]
) -> tuple[str, ...]:
    """The equations to recompute if these values are.

    They are those of the values' kernels; what is fused from their results; and what all these read
    that does not lie in memory: a barrier would put it there. Of a loop, all that is not kept.
    """
    chosen = {name for number in recomputed for name in values[number].group}
    kept = {v.var for v in values} - {values[number].var for number in recomputed}
    for body in bodies:
        if body.span is not None:
            chosen |= _all_but(body, kept)
            continue
        lost: set[Var] = set()
        for position, eqn in body.eqns.items():
            name = body.named(position)
            reads = any(isinstance(atom, Var) and atom in lost for atom in eqn.invars)
            if name in chosen or (reads and kept.isdisjoint(eqn.outvars)):
                chosen.add(name)
                lost.update(eqn.outvars)
        for position, eqn in reversed(body.eqns.items()):
            if body.named(position) in chosen:
                makers = (
                    body.makers.get(a) for a in eqn.invars if isinstance(a, Var) and a not in kept
                )
                chosen.update(body.named(p) for p in makers if p is not None and p in body.eqns)
    return tuple(sorted(chosen, key=_place))


def _all_but(body: Body, kept: AbstractSet[Var]) -> set[str]:
    """All of a loop's body that is not kept: what it does not stack is fused as it likes."""
    return {
        body.named(position)
        for position, eqn in body.eqns.items()
        if is_repeatable(eqn) and kept.isdisjoint(eqn.outvars)
    }


def _place(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("/") if part.isdigit())
