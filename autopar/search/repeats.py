"""Where the layers run that others stand for: the passes of a folded step, on its timeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from jax.extend.core import JaxprEqn

from autopar.cost_model.fusion import all_bodies
from autopar.cost_model.repeated import Instants, Repeated
from autopar.cost_model.timeline import Timeline
from autopar.passes.fold import Fold

Key = tuple[int, int]
"""Position of an equation, and which of its kernels, or of its results."""


def kernel_keys(eqns: Sequence[JaxprEqn], kernels: Sequence[JaxprEqn]) -> Iterator[Key]:
    """Of each kernel, the equation that it is of, or that holds it."""
    owner: dict[int, int] = {}
    for number, eqn in enumerate(eqns):
        owner[id(eqn)] = number
        owner.update((id(e), number) for body in all_bodies((eqn,)) for e in body.eqns)
    seen: dict[int, int] = {}
    for eqn in kernels:
        number = owner[id(eqn)]
        yield number, seen.setdefault(number, 0)
        seen[number] += 1


def repeated(fold: Fold, timeline: Timeline) -> tuple[Repeated, ...]:
    """The layer of each group that stands for others."""
    keys = tuple(kernel_keys(fold.part.jaxpr.jaxpr.eqns, timeline.kernels))
    instants = {key: instant for instant, key in enumerate(keys)}
    return tuple([_of_group(fold, group, keys, instants) for group in range(len(fold.groups))])


def _of_group(fold: Fold, group: int, keys: Sequence[Key], instants: Mapping[Key, int]) -> Repeated:
    numbers = {place: i for i, place in enumerate(fold.part.equations)}
    like, later = np.arange(len(keys)), np.arange(len(keys))
    inside: list[int] = []
    for instant, (number, kernel) in enumerate(keys):
        if fold.equations[number].group != group:
            continue
        inside.append(instant)
        column = fold.layers.column(fold.part.equations[number]).tolist()
        here = [numbers[place] for place in column if place in numbers]
        there = [instants.get((one, kernel), instant) for one in here]
        like[there] = instant
        later[instant] = max(there)
    passes = _passes(np.array(inside, np.intp), later, len(keys))
    top = fold.part.jaxpr.jaxpr
    inputs = zip(top.invars, fold.inputs, strict=True)
    return Repeated(
        len(fold.groups[group].folded) - 1,
        passes,
        _over(passes, like),
        like,
        {var: one.group == group for var, one in inputs},
    )


def _passes(inside: Instants, later: Instants, count: int) -> Instants:
    """The pass of each instant of the layer: one is over when all layers have gone through it.

    Args:
      later: when the last layer does the same.
    """
    found, number, reach = np.full(count, -1), -1, -1
    for instant in inside.tolist():
        if instant > reach:
            number += 1
        found[instant], reach = number, max(reach, int(later[instant]))
    return found


def _over(passes: Instants, like: Instants) -> Instants:
    """How many passes of the layers left out are over: if what is done has its like in the layer,
    that says whether they come before it in a pass; else what is in the middle of each.
    """
    middles = [np.median(np.flatnonzero(passes == n)) for n in range(int(passes.max()) + 1)]
    every = np.arange(len(passes))
    by_time = np.searchsorted(np.array(middles), every, side="left")
    by_like = passes[like] + (like < every)
    return np.where(passes[like] >= 0, by_like, by_time)
