"""Convolutions and windowed reductions: batch and features are cut, space is not."""

from __future__ import annotations

from collections.abc import Sequence

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, in_shapes, linear, out_shapes, whole
from autopar.passes.rules.factors import FactorRule
from autopar.passes.rules.registry import rule

Named = list[str | None]


@rule("conv_general_dilated")
def _conv(eqn: JaxprEqn) -> FactorRule:
    """Without groups: batch, output features, and input features (summed).

    With ``g`` groups the features of all three, or the batch of the left side in place of its
    features, are ``[g, rest]`` with the group major: the group is one more factor, and then the
    features within a group, being minor, cannot be cut.
    """
    numbers = eqn.params["dimension_numbers"]
    lhs_shape, rhs_shape = in_shapes(eqn)
    lhs: Named = [None] * len(lhs_shape)
    rhs: Named = [None] * len(rhs_shape)
    out: Named = [None] * len(out_shapes(eqn)[0])
    (lhs_n, lhs_c), (rhs_o, rhs_i), (out_n, out_c) = (
        spec[:2] for spec in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    )
    factors = Factors()
    groups, batch_groups = eqn.params["feature_group_count"], eqn.params["batch_group_count"]
    if batch_groups == 1:
        lhs[lhs_n] = out[out_n] = factors.new(lhs_shape[lhs_n])
    if groups > 1:
        lhs[lhs_c] = rhs[rhs_o] = out[out_c] = factors.new(groups)
    elif batch_groups > 1:
        lhs[lhs_n] = rhs[rhs_o] = out[out_c] = factors.new(batch_groups)
    else:
        rhs[rhs_o] = out[out_c] = factors.new(rhs_shape[rhs_o])
    if groups == 1:
        lhs[lhs_c] = rhs[rhs_i] = factors.new(lhs_shape[lhs_c])
    return factors.rule(
        [tuple(lhs), tuple(rhs)],
        [tuple(out)],
        reduce=[(rhs[rhs_i], "add")],
        linear=linear(eqn, (0,), (1,)),
    )


_WINDOW_OPS = {
    "reduce_window_sum": "add",
    "reduce_window_max": "max",
    "reduce_window_min": "min",
}


@rule("reduce_window", *_WINDOW_OPS)
def _reduce_window(eqn: JaxprEqn) -> FactorRule:
    """A generic reduction has its initial values, scalars, behind its operands."""
    op = _WINDOW_OPS.get(eqn.primitive.name)
    shapes = in_shapes(eqn)
    factors = Factors()
    dims = factors.dims(shapes[0], keep=_windowed(eqn, len(shapes[0])))
    operands = [dims if len(shape) == len(dims) else whole(shape) for shape in shapes]
    passes = linear(eqn, (0,), ops=(op,)) if op else ()
    return factors.rule(operands, [dims] * len(eqn.outvars), linear=passes)


@rule("select_and_scatter_add", "select_and_gather_add")
def _select_and_move(eqn: JaxprEqn) -> FactorRule:
    """The first operand moves to, or from, where the second has the extremum of its window."""
    first, _ = in_shapes(eqn)
    factors = Factors()
    dims = factors.dims(first, keep=_windowed(eqn, len(first)))
    return factors.rule([dims, dims], [dims], linear=linear(eqn, (0,)))


def _windowed(eqn: JaxprEqn, rank: int) -> list[int]:
    """The dimensions along which a window sees more than one element, or steps over some."""
    params = eqn.params
    ones: Sequence[int] = (1,) * rank
    return [
        d
        for d in range(rank)
        if params["window_dimensions"][d] != 1
        or params["window_strides"][d] != 1
        or tuple(params["padding"][d]) != (0, 0)
        or params.get("base_dilation", ones)[d] != 1
        or params.get("window_dilation", ones)[d] != 1
    ]
