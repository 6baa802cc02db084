"""Sorts and scans along one dimension, which stays whole; the others pass."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, in_shapes, linear
from autopar.passes.rules.factors import FactorRule, Linear
from autopar.passes.rules.registry import rule


def _along(eqn: JaxprEqn, dim: int, passes: list[Linear] | None = None) -> FactorRule:
    """All operands and results share their dimensions, but for ``dim``."""
    factors = Factors()
    dims = factors.dims(in_shapes(eqn)[0], keep=(dim,))
    return factors.rule([dims] * len(eqn.invars), [dims] * len(eqn.outvars), linear=passes or ())


@rule("sort")
def _sort(eqn: JaxprEqn) -> FactorRule:
    return _along(eqn, eqn.params["dimension"])


@rule("top_k")
def _top_k(eqn: JaxprEqn) -> FactorRule:
    return _along(eqn, eqn.params.get("axis", len(in_shapes(eqn)[0]) - 1))


@rule("approx_top_k")
def _approx_top_k(eqn: JaxprEqn) -> FactorRule:
    return _along(eqn, eqn.params["reduction_dimension"] % len(in_shapes(eqn)[0]))


_PASSES = {"cumsum": ("add",), "cummax": ("max",), "cummin": ("min",)}


@rule("cumsum", "cummax", "cummin", "cumprod", "cumlogsumexp")
def _cumulative(eqn: JaxprEqn) -> FactorRule:
    ops = _PASSES.get(eqn.primitive.name, ())
    return _along(eqn, eqn.params["axis"], linear(eqn, (0,), ops=ops))
