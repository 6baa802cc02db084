"""Reductions: a reduced dimension leaves its result partial; the others pass."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, in_shapes, linear, reducible, whole
from autopar.passes.rules.factors import Dims, FactorRule
from autopar.passes.rules.registry import rule

_OPS = {
    "reduce_sum": "add",
    "reduce_prod": "mul",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_and": "and",
    "reduce_or": "or",
}


@rule(*_OPS)
def _reduction(eqn: JaxprEqn) -> FactorRule:
    op, axes = _OPS[eqn.primitive.name], eqn.params["axes"]
    (shape,) = in_shapes(eqn)
    factors = Factors()
    combinable = reducible(op, eqn.outvars[0].aval)
    dims = factors.dims(shape, keep=() if combinable else axes)
    return factors.rule(
        [dims],
        [_without(dims, axes)],
        reduce=[(dims[axis], op) for axis in axes],
        linear=linear(eqn, (0,), ops=(op,)) if op != "mul" else (),
    )


@rule("argmax", "argmin", "reduce_xor")
def _whole_reduction(eqn: JaxprEqn) -> FactorRule:
    """No reduction of pieces gives the result: the reduced dimension stays whole."""
    (shape,) = in_shapes(eqn)
    factors = Factors()
    dims = factors.dims(shape, keep=eqn.params["axes"])
    return factors.rule([dims], [_without(dims, eqn.params["axes"])])


@rule("reduce")
def _generic_reduction(eqn: JaxprEqn) -> FactorRule:
    """By a function of the user's, over several operands: their initial values follow them."""
    shapes = in_shapes(eqn)
    axes = eqn.params["dimensions"]
    factors = Factors()
    dims = factors.dims(shapes[0], keep=axes)
    half = len(shapes) // 2
    return factors.rule(
        [dims] * half + [whole(s) for s in shapes[half:]],
        [_without(dims, axes)] * len(eqn.outvars),
    )


def _without(dims: Dims, axes: tuple[int, ...]) -> Dims:
    return tuple(dim for d, dim in enumerate(dims) if d not in axes)
