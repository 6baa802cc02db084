"""Domains: the states each node of the graph can be in, on one mesh.

A state of an op is a joint strategy, one ``AxisStrategy`` per mesh axis. A state of a hub or output
is a layout. A state of an input is a pair: its layout at rest, and the one it has while in use.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from autopar.core.layout import B, Layout, Partial, Placement, Split, divides
from autopar.core.mesh import MeshSpec
from autopar.passes.rules import FactorRule, axis_strategies


@dataclass(frozen=True, slots=True)
class State:
    """One choice of a node.

    Attributes:
      operands: the layout in which each operand is wanted (slot by slot).
      results: the layout in which each result is left (port by port).
      factors: for an op, the loop factor each mesh axis cuts.
    """

    operands: tuple[Layout, ...]
    results: tuple[Layout, ...]
    factors: tuple[str | None, ...] = ()


Domain = tuple[State, ...]
Choice = TypeVar("Choice")


@dataclass(slots=True)
class Domains:
    """Enumerates and caches domains for one mesh. Equal questions share one answer, and questions
    that differ in extents which the same axes divide are equal.
    """

    mesh: MeshSpec
    _ops: dict[FactorRule, Domain] = field(default_factory=dict)
    _layouts: dict[tuple[tuple[int, ...], frozenset[str]], tuple[Layout, ...]] = field(
        default_factory=dict
    )
    _cached: dict[object, Domain] = field(default_factory=dict)

    def op(self, rule: FactorRule) -> Domain:
        """Joint strategies of an equation, most replicated first."""
        sizes = tuple([(factor, self._divisor(size)) for factor, size in rule.sizes])
        rule = dataclasses.replace(rule, sizes=sizes)
        if rule not in self._ops:
            self._ops[rule] = tuple(_joint_states(rule, self.mesh))
        return self._ops[rule]

    def layouts(self, shape: tuple[int, ...], partial: frozenset[str]) -> tuple[Layout, ...]:
        """Every layout of a value that divides evenly, partial by at most one of ``partial``."""
        shape = self._divisors(shape)
        key = (shape, partial)
        if key not in self._layouts:
            self._layouts[key] = tuple(_layouts(shape, partial, self.mesh))
        return self._layouts[key]

    def hub(self, shape: tuple[int, ...], partial: frozenset[str]) -> Domain:
        """A value passes through in one layout."""
        key = ("hub", self._divisors(shape), partial)
        if key not in self._cached:
            found = self.layouts(shape, partial)
            self._cached[key] = tuple(State((layout,), (layout,)) for layout in found)
        return self._cached[key]

    def input(self, shape: tuple[int, ...], shared: bool, resting: Iterable[Layout]) -> Domain:
        """``operands`` is the layout at rest, ``results`` the one in use (equal unless shared)."""
        rests = tuple(resting)
        key = ("input", self._divisors(shape), shared, rests)
        if key not in self._cached:
            uses = self.layouts(shape, frozenset())
            self._cached[key] = tuple(
                State((rest,), (use,))
                for rest in rests
                for use in (uses if shared else (rest,))
                if use == rest or refines(rest, use)
            )
        return self._cached[key]

    def _divisors(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(map(self._divisor, shape))

    def _divisor(self, extent: int) -> int:
        """All that matters of an extent: an even split is one by a factor of all devices."""
        return math.gcd(extent, math.prod(self.mesh.sizes)) if extent else 0


def refines(rest: Layout, use: Layout) -> bool:
    """Whether ``use`` is ``rest`` with some axes gathered: the only re-layout worth sharing.

    Cutting further is free at each use, and moving a split is never cheaper than resting there.
    """
    return all(u in (r, B) for r, u in zip(rest, use, strict=True))


def _joint_states(rule: FactorRule, mesh: MeshSpec) -> Iterable[State]:
    """One strategy per axis, kept where factors divide and partials agree; best of equals."""
    fits = functools.cache(lambda factors: _fits(rule, factors, mesh))
    strategies = [
        (s.factor, s.operands, s.results, bool(_reductions((*s.operands, *s.results))))
        for s in axis_strategies(rule)
    ]
    found: dict[tuple[object, object], State] = {}
    for combination in itertools.product(*_along(strategies, mesh)):
        factors, reads, writes, reduced = zip(*combination, strict=True)
        if not fits(factors):
            continue
        operands, results = tuple(zip(*reads, strict=True)), tuple(zip(*writes, strict=True))
        mixable = sum(reduced) > 1
        if mixable and any(len(_reductions(layout)) > 1 for layout in (*operands, *results)):
            continue
        found.setdefault((operands, results), State(operands, results, factors))
    return found.values()


def _along(choices: Sequence[Choice], mesh: MeshSpec) -> list[Sequence[Choice]]:
    """For each axis, what there is to choose, replication first: along a single device no more."""
    return [choices if axis.size > 1 else choices[:1] for axis in mesh.axes]


def _fits(rule: FactorRule, factors: Sequence[str | None], mesh: MeshSpec) -> bool:
    """Whether the axes divide the factors they cut, and cut no dimension of a value twice."""
    cut: dict[str, int] = {}
    for factor, axis in zip(factors, mesh.axes, strict=True):
        if factor is not None:
            cut[factor] = cut.get(factor, 1) * axis.size
    if not all(rule.size(factor) % ways == 0 for factor, ways in cut.items()):
        return False
    return _one_per_dim(rule, cut)


def _one_per_dim(rule: FactorRule, cut: dict[str, int]) -> bool:
    """No factor may be cut twice through one operand that names it in two dimensions."""
    return all(
        dims.count(factor) <= 1 for dims in (*rule.operands, *rule.results) for factor in cut
    )


def _reductions(placements: Iterable[Placement]) -> frozenset[str]:
    return frozenset(p.op for p in placements if isinstance(p, Partial))


def _layouts(shape: tuple[int, ...], partial: frozenset[str], mesh: MeshSpec) -> Iterable[Layout]:
    # Without elements there is nothing to cut, and JAX cannot read an array that is.
    dims = () if 0 in shape else range(len(shape))
    choices: list[Placement] = [B, *(Split(d) for d in dims if shape[d] > 1)]
    choices += [Partial(op) for op in sorted(partial)]
    for layout in itertools.product(*_along(choices, mesh)):
        if len(_reductions(layout)) <= 1 and divides(shape, layout, mesh):
            yield layout


def parts(state: State, mesh: MeshSpec) -> int:
    """Among how many devices an op's work is divided."""
    return math.prod(
        axis.size
        for factor, axis in zip(state.factors, mesh.axes, strict=True)
        if factor is not None
    )


def partial_ops(states: Iterable[State], port: int) -> frozenset[str]:
    """The reductions by which result ``port`` is partial in some state."""
    return frozenset(p.op for s in states for p in s.results[port] if isinstance(p, Partial))
