"""Matrix products: batch, free and contracting dimensions.

``result = [batch..., lhs free..., rhs free...]``; contracting factors are summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, Shape, in_shapes, linear, out_shapes, reducible
from autopar.passes.rules.factors import Dims, FactorRule
from autopar.passes.rules.registry import rule

Pairs = tuple[tuple[Sequence[int], Sequence[int]], tuple[Sequence[int], Sequence[int]]]
"""``((lhs contracting, rhs contracting), (lhs batch, rhs batch))``, as JAX writes them."""


class _Product(NamedTuple):
    """The factors of a product: of its operands and its result, and those that are summed."""

    lhs: Dims
    rhs: Dims
    result: Dims
    summed: tuple[str | None, ...]

    def reduce(self, eqn: JaxprEqn) -> list[tuple[str | None, str]]:
        """The summed factors and how their parts combine: a product of booleans is an ``or``."""
        op = "add" if reducible("add", eqn.outvars[0].aval) else "or"
        return [(name, op) for name in self.summed]


def _product(
    factors: Factors,
    lhs_shape: Shape,
    rhs_shape: Shape,
    pairs: Pairs,
    lhs_keep: Sequence[int] = (),
    rhs_group: Sequence[int] = (),
) -> _Product:
    """Names the dimensions; those of ``lhs_keep`` stay whole, those of ``rhs_group`` drop out."""
    (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = pairs
    lhs: list[str | None] = [None] * len(lhs_shape)
    rhs: list[str | None] = [None] * len(rhs_shape)
    lhs_free = [d for d in range(len(lhs)) if d not in (*lhs_contract, *lhs_batch)]
    rhs_free = [d for d in range(len(rhs)) if d not in (*rhs_contract, *rhs_batch, *rhs_group)]
    for left, right in zip(lhs_batch, rhs_batch, strict=True):
        lhs[left] = rhs[right] = None if left in lhs_keep else factors.new(lhs_shape[left])
    for d in lhs_free:
        lhs[d] = None if d in lhs_keep else factors.new(lhs_shape[d])
    for d in rhs_free:
        rhs[d] = factors.new(rhs_shape[d])
    for left, right in zip(lhs_contract, rhs_contract, strict=True):
        lhs[left] = rhs[right] = None if left in lhs_keep else factors.new(lhs_shape[left])
    result = [lhs[d] for d in (*lhs_batch, *lhs_free)] + [rhs[d] for d in rhs_free]
    summed = tuple(lhs[d] for d in lhs_contract)
    return _Product(tuple(lhs), tuple(rhs), tuple(result), summed)


@rule("dot_general")
def _dot_general(eqn: JaxprEqn) -> FactorRule:
    factors = Factors()
    lhs_shape, rhs_shape = in_shapes(eqn)
    p = _product(factors, lhs_shape, rhs_shape, eqn.params["dimension_numbers"])
    return factors.rule(
        [p.lhs, p.rhs],
        [p.result],
        reduce=p.reduce(eqn),
        linear=linear(eqn, (0,), (1,)),
    )


@rule("ragged_dot_general")
def _ragged_dot_general(eqn: JaxprEqn) -> FactorRule:
    """Groups of rows of unequal length, each with a matrix of its own: rows and groups stay whole.

    If the ragged dimension is contracted, the groups are the first dimension of the result. Group
    sizes that differ over other dimensions pin those too.
    """
    numbers = eqn.params["ragged_dot_dimension_numbers"]
    lhs_shape, rhs_shape, group_shape = in_shapes(eqn)
    ragged = tuple(numbers.lhs_ragged_dimensions)
    keep = ragged if len(group_shape) == 1 else range(len(lhs_shape))
    factors = Factors()
    p = _product(
        factors,
        lhs_shape,
        rhs_shape,
        numbers.dot_dimension_numbers,
        lhs_keep=keep,
        rhs_group=tuple(numbers.rhs_group_dimensions),
    )
    groups = len(out_shapes(eqn)[0]) - len(p.result)
    return factors.rule(
        [p.lhs, p.rhs, (None,) * len(group_shape)],
        [(None,) * groups + p.result],
        reduce=p.reduce(eqn),
        linear=linear(eqn, (0,), (1,)),
    )


@rule("scaled_dot")
def _scaled_dot(eqn: JaxprEqn) -> FactorRule:
    """Both sides come with scales, one for each block of a contracting dimension.

    A contracting dimension is cut between blocks.
    """
    lhs_shape, rhs_shape, lhs_scale, rhs_scale = in_shapes(eqn)
    pairs: Pairs = eqn.params["dimension_numbers"]
    blocks = list(lhs_shape)
    for left, right in zip(*pairs[0], strict=True):
        blocks[left] = math.gcd(lhs_scale[left], rhs_scale[right])
    factors = Factors()
    p = _product(factors, tuple(blocks), rhs_shape, pairs)
    return factors.rule(
        [p.lhs, p.rhs, p.lhs, p.rhs],
        [p.result],
        reduce=p.reduce(eqn),
    )
