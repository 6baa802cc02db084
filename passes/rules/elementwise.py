"""Elementwise operations: every dimension is a factor that all full-size operands share.

A scalar operand has no dimensions, and a dimension of 1 against a larger one is broadcast: neither
is cut. Where the operation is linear in an operand, partial sums of it pass through.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, dtype_of, in_shapes, linear, out_shapes
from autopar.passes.rules.factors import Dims, FactorRule, Linear
from autopar.passes.rules.registry import rule

ORDER = ("max", "min")
LOGIC = ("and", "or")


def pointwise(eqn: JaxprEqn, passes: list[Linear] | None = None) -> FactorRule:
    """The rule of an elementwise equation that lets ``passes`` through."""
    factors = Factors()
    outs = out_shapes(eqn)
    rank = max(map(len, outs), default=0)
    shape = next((s for s in outs if len(s) == rank), ())
    dims = factors.dims(shape)

    def align(operand: tuple[int, ...]) -> Dims:
        if len(operand) != rank:
            return (None,) * len(operand)
        return tuple(d if n == m else None for d, n, m in zip(dims, operand, shape, strict=True))

    return factors.rule(map(align, in_shapes(eqn)), map(align, outs), linear=passes or ())


@rule(
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e"),
    *("bessel_i1e", "cbrt", "ceil", "clamp", "clz", "cos", "cosh", "digamma", "eq", "eq_to"),
    *("erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma"),
    *("igamma_grad_a", "igammac", "is_finite", "le", "le_to", "lgamma", "log", "log1p"),
    *("logistic", "lt", "lt_to", "mulhi", "ne", "nextafter", "not", "polygamma"),
    *("population_count", "pow", "reduce_precision", "regularized_incomplete_beta", "rem"),
    *("round", "rsqrt", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign"),
    *("sin", "sinh", "sqrt", "square", "tan", "tanh", "xor", "zeta"),
)
def _plain(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn)


@rule("add", "add_any", "sub", "complex")
def _sums(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0, 1)))


@rule("neg", "real", "imag", "conj")
def _unary_linear(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0,)))


@rule("copy", "name", "sharding_constraint", "layout_constraint", "reshard", "stop_gradient")
def _identity(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0,), ops=("add", *ORDER, *LOGIC)))


@rule("mul")
def _mul(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0,), (1,)))


@rule("div")
def _div(eqn: JaxprEqn) -> FactorRule:
    """Linear in the numerator, but for integers, where it rounds."""
    inexact = jnp.issubdtype(dtype_of(eqn.outvars[0]), jnp.inexact)
    return pointwise(eqn, linear(eqn, (0,)) if inexact else None)


@rule("max")
def _max(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0, 1), ops=("max",)))


@rule("min")
def _min(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0, 1), ops=("min",)))


@rule("and")
def _and(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0, 1), ops=("and",)))


@rule("or")
def _or(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0, 1), ops=("or",)))


@rule("integer_pow")
def _integer_pow(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn, linear(eqn, (0,)) if eqn.params["y"] == 1 else None)


@rule("select_n")
def _select_n(eqn: JaxprEqn) -> FactorRule:
    """A predicate that is whole chooses among partial cases piece by piece."""
    return pointwise(eqn, linear(eqn, range(1, len(eqn.invars)), ops=("add", *ORDER, *LOGIC)))


@rule("convert_element_type")
def _convert(eqn: JaxprEqn) -> FactorRule:
    """Lets sums pass where conversion commutes with them, and extrema where it keeps the order.

    Between inexact types it does, up to rounding (narrowing rounds each piece instead of the sum).
    Integers wrap: narrower is exact; wider is not, for pieces whose sum wraps before.
    """
    source, target = dtype_of(eqn.invars[0]), dtype_of(eqn.outvars[0])
    inexact = all(jnp.issubdtype(dtype, jnp.inexact) for dtype in (source, target))
    integer = all(jnp.issubdtype(dtype, jnp.integer) for dtype in (source, target))
    ops: list[str] = []
    if inexact or (integer and target.itemsize <= source.itemsize):
        ops.append("add")
    if jnp.issubdtype(source, jnp.number) and _has_infinity(target):
        ops.extend(ORDER)
    return pointwise(eqn, linear(eqn, (0,), ops=ops))


def _has_infinity(dtype: Any) -> bool:
    """Of floats, whether what is too large stays in order: some 8-bit ones make it NaN."""
    with np.errstate(all="ignore"):
        infinite = np.isinf(np.full((), np.inf).astype(dtype))
    return jnp.issubdtype(dtype, jnp.floating) and bool(infinite)


@rule("bitcast_convert_type")
def _bitcast(eqn: JaxprEqn) -> FactorRule:
    """Between widths the last dimension of the narrower side is made or consumed whole."""
    (source,), (target,) = in_shapes(eqn), out_shapes(eqn)
    factors = Factors()
    shared = min(len(source), len(target))
    dims = factors.dims(target[:shared])
    pad = (None,)
    return factors.rule(
        [dims + pad * (len(source) - shared)], [dims + pad * (len(target) - shared)]
    )


@rule("optimization_barrier", "device_put")
def _parallel_identities(eqn: JaxprEqn) -> FactorRule:
    """Each operand becomes its result, whatever the others do; all may be partial together."""
    factors = Factors()
    dims = [factors.dims(shape) for shape in in_shapes(eqn)]
    return factors.rule(dims, dims, linear=linear(eqn, range(len(eqn.invars))))
