"""Rewrites a program so that the dimensions of refined classes are two in every value.

Each value has a *home*, the variable it is now held in, written as the equation that makes it
leaves it. Whoever reads it asks for the shape he wants, and gets a reshape of the home if that is
another; equal questions in one body share an answer. Reshapes keep elements in row-major order, so
a reader is right whatever he asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from autopar.core import compat
from autopar.passes.refine.classes import LIFTED
from autopar.passes.refine.equations import Form, Rewritten, flat, rewritten, written
from autopar.passes.rules import Atom, Region, rebuild, regions
from autopar.passes.rules.build import Shape, shape_of

Blocks = dict[Var, tuple[int, ...]]
"""In how many blocks each dimension of a refined value is written."""


def rewrite(closed: ClosedJaxpr, blocks: Blocks) -> ClosedJaxpr:
    """``closed`` with the values of ``blocks`` refined; its inputs and results stay flat."""
    body = _Body(blocks)
    for eqn in closed.jaxpr.eqns:
        body.add(eqn)
    last = closed.jaxpr.eqns[-1]
    outvars = [body.read(atom, shape_of(atom), last) for atom in closed.jaxpr.outvars]
    return ClosedJaxpr(closed.jaxpr.replace(outvars=outvars, eqns=body.eqns), closed.consts)


class _Body:
    """One jaxpr being rewritten."""

    def __init__(self, blocks: Blocks) -> None:
        self.eqns: list[JaxprEqn] = []
        self._blocks = blocks
        self._homes: dict[Var, Var] = {}
        self._reshaped: dict[tuple[Var, Shape], Var] = {}

    def add(self, eqn: JaxprEqn) -> None:
        """Appends ``eqn``: on refined values, or as it is, with reshapes before it."""
        if eqn.primitive.name in LIFTED:
            self._nest(eqn)
            return
        operands = [self._form(atom) for atom in eqn.invars]
        results = [self._form(var) for var in eqn.outvars]
        found = rewritten(eqn, operands, results) or Rewritten(
            eqn.params,
            tuple(flat(shape_of(atom)) for atom in eqn.invars),
            tuple(flat(shape_of(var)) for var in eqn.outvars),
        )
        self._append(eqn, found.params, [*map(written, found.operands)], found.results)

    def read(self, atom: Atom, shape: Shape, near: JaxprEqn) -> Atom:
        """``atom`` in ``shape``; a reshape, if it takes one, is named after ``near``."""
        home = atom if isinstance(atom, Literal) else self._homes.get(atom, atom)
        if shape_of(home) == shape or not hasattr(home.aval, "dtype"):
            return home
        assert isinstance(home, Var)
        if (home, shape) not in self._reshaped:
            result = _var_like(home, shape)
            params = {"new_sizes": shape, "dimensions": None, "sharding": None}
            self.eqns.append(
                near.replace(
                    primitive=jax.lax.reshape_p,
                    invars=[home],
                    outvars=[result],
                    params=params,
                    effects=frozenset(),
                )
            )
            self._reshaped[home, shape] = result
        return self._reshaped[home, shape]

    def bind(self, var: Var, shape: Shape) -> Var:
        """The variable that holds ``var`` from now on."""
        if shape == shape_of(var):
            return var
        self._homes[var] = _var_like(var, shape)
        return self._homes[var]

    def _form(self, atom: Atom) -> Form:
        shape = shape_of(atom)
        if isinstance(atom, Literal) or atom not in self._blocks:
            return flat(shape)
        return tuple(
            (n, extent // n) if n > 1 else (extent,)
            for n, extent in zip(self._blocks[atom], shape, strict=True)
        )

    def _append(
        self, eqn: JaxprEqn, params: dict[str, Any], wanted: Sequence[Shape], left: Sequence[Form]
    ) -> None:
        invars = [self.read(a, shape, eqn) for a, shape in zip(eqn.invars, wanted, strict=True)]
        outvars = [self.bind(v, written(f)) for v, f in zip(eqn.outvars, left, strict=True)]
        self.eqns.append(eqn.replace(invars=invars, outvars=outvars, params=params))

    def _nest(self, eqn: JaxprEqn) -> None:
        """Values lie on both sides of the border of a region in the same form."""
        bodies = [self._region(region, eqn) for region in regions(eqn) or ()]
        wanted = [written(self._form(atom)) for atom in eqn.invars]
        left = [self._form(var) for var in eqn.outvars]
        self._append(eqn, rebuild(eqn, bodies), wanted, left)

    def _region(self, region: Region, eqn: JaxprEqn) -> Jaxpr:
        inner = _Body(self._blocks)
        invars = [inner.bind(var, written(self._form(var))) for var in region.body.invars]
        for nested in region.body.eqns:
            inner.add(nested)
        outvars = list(region.body.outvars)
        for slot, link in enumerate(region.outputs):
            shape = written(self._form(link.outer))[int(link.stacked) :]
            outvars[slot] = inner.read(link.inner, shape, eqn)
        for slot in range(len(region.outputs), len(outvars)):
            outvars[slot] = inner.read(outvars[slot], shape_of(outvars[slot]), eqn)
        return region.body.replace(invars=invars, outvars=outvars, eqns=inner.eqns)


def _var_like(var: Var, shape: Shape) -> Var:
    aval: Any = var.aval
    return compat.new_var(ShapedArray(shape, aval.dtype, weak_type=aval.weak_type))
