"""The pass itself: names of equations to positions, loops first, then straight-line code."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator

from jax.extend.core import ClosedJaxpr, Jaxpr

from autopar.core.errors import PlanError
from autopar.passes.dce import prune
from autopar.passes.remat.flat import recompute
from autopar.passes.remat.loops import partners, recompute_in_loop
from autopar.passes.remat.sides import is_backward, is_repeatable


def droppable(closed: ClosedJaxpr) -> frozenset[str]:
    """The names of all equations whose results may be recomputed in the backward pass."""
    return frozenset(_droppable(closed.jaxpr, range(len(closed.jaxpr.eqns))))


def _droppable(jaxpr: Jaxpr, positions: Iterable[int]) -> Iterator[str]:
    """Those of the equations at these places."""
    for position in positions:
        eqn = jaxpr.eqns[position]
        if is_backward(eqn):
            continue
        if partners(jaxpr.eqns, position):
            for inner, nested in enumerate(eqn.params["jaxpr"].jaxpr.eqns):
                if is_repeatable(nested):
                    yield f"{position}/body/{inner}"
        elif is_repeatable(eqn):
            yield str(position)


def rematerialise(closed: ClosedJaxpr, names: Collection[str]) -> ClosedJaxpr:
    """The same program, in which the backward pass recomputes what these equations make.

    Raises:
      PlanError: a name is no equation of the forward pass that may run twice.
    """
    jaxpr = closed.jaxpr
    places = {name.split("/")[0] for name in names}
    there = {int(place) for place in places if place.isdecimal()} & {*range(len(jaxpr.eqns))}
    unknown = frozenset(names).difference(_droppable(jaxpr, there))
    if unknown:
        raise PlanError(
            f"equations {', '.join(sorted(unknown)[:4])} cannot be recomputed in the backward "
            "pass: they are not there, are part of it, or have effects; plan this step again"
        )
    straight: set[int] = set()
    looped: dict[int, set[int]] = defaultdict(set)
    for name in names:
        outer, *inner = name.split("/")
        if inner:
            looped[int(outer)].add(int(inner[-1]))
        else:
            straight.add(int(outer))
    eqns = list(jaxpr.eqns)
    for position, dropped in sorted(looped.items()):
        recompute_in_loop(eqns, position, dropped)
    found = recompute(jaxpr.replace(eqns=eqns), straight)
    pruned, _ = prune(found, [True] * len(found.outvars), [True] * len(found.invars))
    return ClosedJaxpr(pruned.replace(debug_info=jaxpr.debug_info), closed.consts)
