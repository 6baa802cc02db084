"""Regions: the loops, branches and rematerialised bodies nested in an equation.

A region is planned in place: its equations join the same search, weighted by how often they run,
and links say which inner value lies as which outer one.
"""

from __future__ import annotations

from dataclasses import dataclass

from jax.extend.core import Jaxpr, Literal, Var

Atom = Var | Literal


@dataclass(frozen=True, slots=True)
class Link:
    """``inner`` lies as ``outer`` does; ``stacked`` if the outer value has a leading loop dimension
    more (a scanned input or output), which is never cut.
    """

    outer: Atom
    inner: Atom
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Region:
    """One nested jaxpr of an equation.

    Attributes:
      name: what the region is within its equation (``body``, ``cond``, ``branch0``).
      body: its equations; every ``Var`` in it is unique in the whole step.
      trips: how often it runs (a ``while`` loop's count is unknown and taken as 1).
      inputs: links into the body. A carry's initial value is here too.
      outputs: links out of the body (``outer`` is a result of the equation). Those of the carries
        come first, in the order of ``carries``.
      carries: ``(carried in, carried out)`` inner pairs that must lie alike at every trip.
    """

    name: str
    body: Jaxpr
    trips: int
    inputs: tuple[Link, ...]
    outputs: tuple[Link, ...]
    carries: tuple[tuple[Var, Atom], ...] = ()
