"""Rematerialisation in straight-line code.

What is dropped falls into *groups*, connected through dropped values; light work on the inputs
(casts of weights, masks) connects nothing, and is copied into every group that wants it. A group is
copied to where the backward pass first needs a value of it, behind ONE barrier over all that it
reads from outside *and what flows backward at that point*. So the group waits until the backward
pass is there: without what flows backward XLA schedules it early, and nothing is won; with a
barrier a value it is worse still; without any, it is merged with the original (measured).
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any

import numpy as np
from jax.extend import source_info_util
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.core import compat
from autopar.passes.remat.copies import Env, again, read
from autopar.passes.remat.sides import Atom, backward, is_heavy, light


@dataclass(slots=True)
class Group:
    """Equations recomputed together.

    Attributes:
      members: their positions. first: that of the first backward equation that reads one of them.
      wanted: their results that the backward pass reads.
    """

    first: int
    members: set[int] = field(default_factory=set[int])
    wanted: dict[Var, None] = field(default_factory=dict[Var, None])


def recompute(jaxpr: Jaxpr, dropped: Collection[int]) -> Jaxpr:
    """Has the backward equations read recomputed results of the ``dropped`` equations.

    The originals stay for the forward pass; what nobody reads any more is the caller's to prune.
    """
    uses = _Uses(jaxpr, frozenset(dropped))
    groups = list(uses.groups())
    starts: dict[int, list[Group]] = defaultdict(list)
    for group in groups:
        starts[group.first].append(group)
    with source_info_util.reset_name_stack(), source_info_util.transform_name_stack("transpose"):
        marked = source_info_util.current_name_stack()
    env: Env = {}
    eqns: list[JaxprEqn] = []
    last: list[Var] = []
    for position, eqn in enumerate(jaxpr.eqns):
        if not uses.backward[position]:
            eqns.append(eqn)
            continue
        for group in starts[position]:
            eqns.extend(_recomputed(jaxpr, group, uses.gates(position, last), env, marked))
        moved = [read(env, atom) for atom in eqn.invars]
        same = all(map(operator.is_, moved, eqn.invars))
        eqns.append(eqn if same else eqn.replace(invars=moved))
        last = [var for var in eqn.outvars if getattr(var.aval, "shape", ())] or last
    return jaxpr.replace(eqns=eqns)


class _Uses:
    """Who reads what is dropped."""

    def __init__(self, jaxpr: Jaxpr, dropped: frozenset[int]) -> None:
        self.eqns: Sequence[JaxprEqn] = jaxpr.eqns
        self.backward = backward(jaxpr.eqns)
        places = compress(range(len(self.eqns)), self.backward)
        self.transposed = {var: p for p in places for var in self.eqns[p].outvars}
        until = self._flowing()
        self._flows = tuple(until)
        spans = [(self.transposed[var], last, _bytes(var)) for var, last in until.items()]
        self._spans = np.array(spans, np.int64).reshape(-1, 3).T
        self._maker = {var: p for p in dropped for var in jaxpr.eqns[p].outvars}
        lights = light(jaxpr)
        self._light = frozenset(p for p in dropped if lights.issuperset(jaxpr.eqns[p].outvars))

    def makers(self, atoms: Sequence[Atom]) -> dict[Var, int]:
        """The dropped values among ``atoms``, and who makes them."""
        return {a: self._maker[a] for a in atoms if isinstance(a, Var) and a in self._maker}

    def _flowing(self) -> dict[Var, int]:
        """What heavy work of the backward pass is still to be done with, and who reads it last.

        Gradients of weights are not among these: only the optimiser waits for them.
        """
        until: dict[Var, int] = {}
        for position in compress(range(len(self.eqns))[::-1], self.backward[::-1]):
            eqn = self.eqns[position]
            if is_heavy(eqn) or not until.keys().isdisjoint(eqn.outvars):
                for atom in eqn.invars:
                    if isinstance(atom, Var) and atom in self.transposed:
                        until.setdefault(atom, position)
        return until

    def gates(self, position: int, last: Sequence[Var]) -> list[Var]:
        """What flows backward at an equation: into it, and past it, if it is no larger.

        What flows into it may be there long before: the gradient of attention's values is, before
        that of its scores, and XLA would recompute the block before while the scores are held. If
        nothing flows into it: what the backward pass made last.
        """
        atoms = self.eqns[position].invars
        own = [atom for atom in atoms if isinstance(atom, Var) and atom in self.transposed]
        most = max((_bytes(var) for var in own), default=0)
        made, until, size = self._spans
        (places,) = np.nonzero((made < position) & (position < until) & (size <= most))
        past = [self._flows[place] for place in places]
        return list(dict.fromkeys((*own, *past))) or list(last[:1])

    def groups(self) -> Iterator[Group]:
        """All groups, each with all that it takes to compute what is wanted of it."""
        component = self._components()
        groups: dict[int, Group] = {}
        readers: list[tuple[int, Var, int]] = []
        for position, eqn in enumerate(self.eqns):
            for var, maker in self.makers(eqn.invars if self.backward[position] else ()).items():
                if maker in self._light:
                    readers.append((position, var, maker))
                else:
                    group = groups.setdefault(component[maker], Group(position))
                    group.wanted[var] = None
                    self._close(group.members, maker)
        found = list(groups.values())
        for position, var, maker in readers:
            group = self._latest(found, position, maker)
            group.wanted[var] = None
            self._close(group.members, maker)
        yield from found

    def _latest(self, groups: list[Group], position: int, maker: int) -> Group:
        """The group from which to take a light value: one that has it, or starts here, or new."""
        here = [g for g in groups if g.first == position]
        before = [g for g in groups if maker in g.members and g.first < position]
        if not here and not before:
            groups.append(Group(position))
            return groups[-1]
        return max(before or here, key=lambda group: group.first)

    def _close(self, members: set[int], position: int) -> None:
        """Adds an equation, and the dropped ones that it depends on."""
        waiting = [position]
        while waiting:
            if (one := waiting.pop()) not in members:
                members.add(one)
                waiting.extend(self.makers(self.eqns[one].invars).values())

    def _components(self) -> dict[int, int]:
        """For every dropped equation that is not light, a number of its group."""
        parent: dict[int, int] = {p: p for p in self._maker.values() if p not in self._light}

        def root(position: int) -> int:
            while parent[position] != position:
                parent[position] = parent[parent[position]]
                position = parent[position]
            return position

        for position in sorted(parent):
            for maker in self.makers(self.eqns[position].invars).values():
                if maker in parent:
                    parent[root(maker)] = root(position)
        return {position: root(position) for position in parent}


def _recomputed(
    jaxpr: Jaxpr, group: Group, gates: Sequence[Var], env: Env, marked: Any
) -> Iterator[JaxprEqn]:
    """A barrier, and the group once more behind it; ``env`` then has its results, and the gates.

    ``marked``: the name stack in front of all this.
    """
    eqns = [jaxpr.eqns[position] for position in sorted(group.members)]
    made = {var for eqn in eqns for var in eqn.outvars}
    operands = (atom for eqn in eqns for atom in eqn.invars if not isinstance(atom, Literal))
    outside = [*dict.fromkeys(var for var in operands if var not in made)]
    before = [*outside, *(read(env, gate) for gate in gates)]
    barrier = _barrier(jaxpr, before, jaxpr.eqns[group.first], marked)
    inner: Env = dict(zip(outside, barrier.outvars, strict=False))
    yield barrier
    yield from again(eqns, inner, marked)
    env.update((var, inner[var]) for var in group.wanted)
    env.update(zip(gates, barrier.outvars[len(outside) :], strict=True))


def _barrier(jaxpr: Jaxpr, operands: Sequence[Atom], near: JaxprEqn, stack: Any) -> JaxprEqn:
    """The operands, of which nothing is computed before all are there.

    It is a ``remat2`` of nothing, which lowers to one ``optimization_barrier``: each value that
    enters a region has a layout of its own.
    """
    inner = [compat.new_var(atom.aval) for atom in operands]
    body = jaxpr.replace(constvars=[], invars=inner, outvars=inner, eqns=[])
    return near.replace(
        primitive=compat.remat_p,
        invars=list(operands),
        outvars=[compat.new_var(atom.aval) for atom in operands],
        params={"jaxpr": body, "prevent_cse": True, "differentiated": True, "policy": None},
        effects=frozenset(),
        source_info=near.source_info.replace(name_stack=stack),
    )


def _bytes(var: Var) -> int:
    """Of the whole value; 0 for what is no array."""
    dtype = getattr(var.aval, "dtype", None)
    return math.prod(getattr(var.aval, "shape", ())) * getattr(dtype, "itemsize", 0)
