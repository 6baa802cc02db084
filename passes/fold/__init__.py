"""Fold: what of a step stands for all of it, where layers repeat.

A model of eighty equal layers is eighty times the same equations, forward, backward and in the
optimiser. The search prices each kind once, and so it needs few of them:

* ``runs.py`` finds where the program repeats itself, by the signatures of its equations;
* ``layers.py`` numbers the repetitions so that one layer's forward pass, backward pass and update
  have one number;
* ``splice.py`` leaves layers out, and lets what read them read their neighbours.

The first and last layers are kept (of every order in which the program goes through them), with one
more, the *generic* layer, that stands for all others. What is left is an ordinary program. Steps
whose layers differ, or do not lie so, are not folded.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jax.extend.core import ClosedJaxpr, Var

from autopar.passes.fingerprint import Columns
from autopar.passes.fold.flow import SUMS as SUMS
from autopar.passes.fold.flow import Flow
from autopar.passes.fold.layers import LEAST, Group, find_layers
from autopar.passes.fold.layers import RADIUS as RADIUS
from autopar.passes.fold.layers import Layers as Layers
from autopar.passes.fold.layers import NotFoldable as NotFoldable
from autopar.passes.fold.runs import find_runs
from autopar.passes.fold.splice import Part, splice

WORTH = 0.6
"""A step is folded if what is to be looked at is less than this share of it."""


class Standing(NamedTuple):
    """What an equation, input or output of a folded step stands for.

    Attributes:
      positions: in the step. Several, if it is in a generic layer.
      stack: of the layers that it is in one of; -1 if it is in none.
      group: of the layers that its own stands for; -1 if it stands for itself alone.
    """

    positions: tuple[int, ...]
    stack: int
    group: int = -1

    @property
    def generic(self) -> bool:
        """Whether it is in a layer that stands for others."""
        return self.group >= 0


class Alike(NamedTuple):
    """What stands beside a value of a layer that stands for others.

    Attributes:
      times: how many others there are. beside: the same of the layers before and after.
    """

    times: int
    beside: frozenset[Var]


@dataclass(frozen=True)
class Fold:
    """A step of which generic layers stand for others.

    Attributes:
      part: the program with one generic layer of every stack.
      groups: of layers that one stands for, the first of those that are folded.
      equations, inputs, outputs: of ``part``, what they stand for.
      layers: those of the step.
    """

    part: Part
    groups: tuple[Group, ...]
    equations: tuple[Standing, ...]
    inputs: tuple[Standing, ...]
    outputs: tuple[Standing, ...]
    layers: Layers

    @cached_property
    def alike(self) -> Mapping[Var, Alike]:
        """The values of layers that stand for others: inputs and results, not nested ones."""
        top, flow = self.part.jaxpr.jaxpr, self.layers.flow
        codes = (*self.part.equations, *(flow.count + i for i in self.part.inputs))
        values = (*(eqn.outvars for eqn in top.eqns), *([var] for var in top.invars))
        results = dict(zip(codes, values, strict=True))
        found: dict[Var, Alike] = {}
        for code, standing in zip(codes, (*self.equations, *self.inputs), strict=True):
            if standing.generic:
                here = [one for one in self.layers.column(code).tolist() if one in results]
                place = here.index(code)
                beside = [results[one] for one in (*here[:place][-1:], *here[place + 1 :][:1])]
                for port, var in enumerate(results[code]):
                    near = frozenset(one[port] for one in beside)
                    found[var] = Alike(len(standing.positions) - 1, near)
        return found


def number_layers(closed: ClosedJaxpr, columns: Columns) -> Layers | None:
    """Numbers the layers of a simplified step; ``None`` if nothing repeats itself."""
    runs = find_runs(columns.kinds)
    return find_layers(Flow.of(closed.jaxpr, columns), runs) if runs else None


def fold(
    closed: ClosedJaxpr, ties: tuple[tuple[int, int], ...], layers: Layers | None
) -> Fold | None:
    """Folds the layers of a simplified step; ``None`` if there are none to fold.

    Args:
      ties: ``(output, input)`` positions: outputs that are the next step's inputs.
      layers: as they are numbered.
    """
    if layers is None:
        return None
    count = layers.flow.count
    groups = [group for group in layers.groups() if group.saved >= LEAST * count]
    if not groups or not _pays(count, groups):
        return None
    try:
        return _folded(closed, ties, layers, groups)
    except NotFoldable:
        return None


def _pays(count: int, groups: list[Group]) -> bool:
    """Whether there is less to do for a step of so many equations."""
    left = count - sum(group.saved for group in groups)
    return left < WORTH * count


def _folded(
    closed: ClosedJaxpr,
    ties: tuple[tuple[int, int], ...],
    layers: Layers,
    groups: list[Group],
) -> Fold:
    flow = layers.flow
    gone = np.any([layers.having(one.stack, one.folded[1:]) for one in groups], axis=0)
    part = splice(closed, ties, flow, layers, gone)
    of_group = np.full(len(layers.stack), -1)
    for number, one in enumerate(groups):
        of_group[layers.having(one.stack, one.folded[:1])] = number

    def standing(code: int) -> Standing:
        stack, group = int(layers.stack[code]), int(of_group[code])
        if group < 0:
            return Standing((code,), stack)
        return Standing(layers.like(code, groups[group].folded), stack, group)

    equations = tuple(map(standing, part.equations))
    inputs = tuple(
        one._replace(positions=tuple(code - flow.count for code in one.positions))
        for one in (standing(flow.count + i) for i in part.inputs)
    )
    known = dict(zip(part.equations, equations, strict=True))
    sources = dict(zip(part.inputs, inputs, strict=True))
    outputs = _outputs(closed, dict(ties), flow, part, known, sources)
    for found, total in (
        (equations, flow.count),
        (inputs, flow.inputs),
        (outputs, len(flow.outputs)),
    ):
        positions = np.fromiter(itertools.chain(*(one.positions for one in found)), np.intp)
        if not np.array_equal(np.bincount(positions, minlength=total), np.ones(total)):
            raise NotFoldable
    return Fold(part, tuple(groups), equations, inputs, outputs, layers)


def _outputs(
    closed: ClosedJaxpr,
    ties: Mapping[int, int],
    flow: Flow,
    part: Part,
    equations: Mapping[int, Standing],
    inputs: Mapping[int, Standing],
) -> tuple[Standing, ...]:
    """What the results of ``part`` stand for, in the order of its outputs."""
    jaxpr = closed.jaxpr
    follows = {source: out for out, source in ties.items()}
    place = {var: i for i, var in enumerate(jaxpr.outvars) if isinstance(var, Var)}
    found: list[Standing] = []
    for out in part.outputs:
        maker, atom = int(flow.outputs[out]), jaxpr.outvars[out]
        made = equations.get(maker, Standing((out,), -1))
        if out in ties:
            source = inputs[ties[out]]
            positions = tuple(follows[i] for i in source.positions)
            found.append(Standing(positions, source.stack, source.group))
        elif made.generic:
            port = next(i for i, v in enumerate(jaxpr.eqns[maker].outvars) if v is atom)
            likes = [jaxpr.eqns[i].outvars[port] for i in made.positions]
            positions = tuple(place[var] for var in likes if var in place)
            found.append(Standing(positions, made.stack, made.group))
        else:
            found.append(Standing((out,), made.stack))
    return tuple(found)
