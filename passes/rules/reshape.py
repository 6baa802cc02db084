"""Reshape, transpose, broadcast and their kin: the same elements in another arrangement."""

from __future__ import annotations

import math

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, in_shapes, linear, out_shapes, whole
from autopar.passes.rules.elementwise import LOGIC, ORDER
from autopar.passes.rules.factors import Dims, FactorRule
from autopar.passes.rules.registry import rule

_ALL = ("add", *ORDER, *LOGIC)


@rule("reshape")
def _reshape(eqn: JaxprEqn) -> FactorRule:
    """Only the major part of a merged or divided dimension can be cut.

    The shapes fall into least groups of equal extent, ``[6, 4] -> [24]``. Elements are in row-major
    order, so that an equal part of the group is an equal part of its first dimension on both sides
    whenever the number of parts divides both: their common divisor is the factor. Where the
    equation has ``dimensions``, it transposes the operand by them first.
    """
    shape, target = in_shapes(eqn)[0], out_shapes(eqn)[0]
    order = eqn.params["dimensions"] or range(len(shape))
    source = tuple(shape[d] for d in order)
    factors = Factors()
    ins: list[str | None] = [None] * len(source)
    outs: list[str | None] = [None] * len(target)
    if 0 not in source:
        for left, right in _groups(source, target):
            ins[order[left]] = outs[right] = factors.new(math.gcd(source[left], target[right]))
    extra = [whole(shape) for shape in in_shapes(eqn)[1:]]
    return factors.rule([tuple(ins), *extra], [tuple(outs)], linear=linear(eqn, (0,), ops=_ALL))


def _groups(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, int]]:
    """The first dimension, on either side, of each group of dimensions of equal extent."""
    left = [d for d, size in enumerate(source) if size != 1]
    right = [d for d, size in enumerate(target) if size != 1]
    heads: list[tuple[int, int]] = []
    i = j = 0
    while i < len(left) and j < len(right):
        heads.append((left[i], right[j]))
        a, b = source[left[i]], target[right[j]]
        i, j = i + 1, j + 1
        while a != b:
            if a < b:
                a, i = a * source[left[i]], i + 1
            else:
                b, j = b * target[right[j]], j + 1
    return heads


@rule("transpose")
def _transpose(eqn: JaxprEqn) -> FactorRule:
    factors = Factors()
    dims = factors.dims(in_shapes(eqn)[0])
    result = tuple(dims[d] for d in eqn.params["permutation"])
    return factors.rule([dims], [result], linear=linear(eqn, (0,), ops=_ALL))


@rule("broadcast_in_dim")
def _broadcast_in_dim(eqn: JaxprEqn) -> FactorRule:
    """A new or repeated dimension is a factor of the result alone."""
    (source, *sizes), target = in_shapes(eqn), out_shapes(eqn)[0]
    factors = Factors()
    result = factors.dims(target)
    places = eqn.params["broadcast_dimensions"]
    operand = tuple(
        result[place] if size == target[place] else None
        for size, place in zip(source, places, strict=True)
    )
    return factors.rule([operand, *map(whole, sizes)], [result], linear=linear(eqn, (0,), ops=_ALL))


@rule("squeeze")
def _squeeze(eqn: JaxprEqn) -> FactorRule:
    factors = Factors()
    dims = factors.dims(in_shapes(eqn)[0])
    result = tuple(dim for d, dim in enumerate(dims) if d not in eqn.params["dimensions"])
    return factors.rule([dims], [result], linear=linear(eqn, (0,), ops=_ALL))


@rule("rev")
def _rev(eqn: JaxprEqn) -> FactorRule:
    factors = Factors()
    dims = factors.dims(in_shapes(eqn)[0], keep=eqn.params["dimensions"])
    return factors.rule([dims], [dims], linear=linear(eqn, (0,)))


@rule("concatenate")
def _concatenate(eqn: JaxprEqn) -> FactorRule:
    factors = Factors()
    dims = factors.dims(out_shapes(eqn)[0], keep=(eqn.params["dimension"],))
    operands = [dims] * len(eqn.invars)
    return factors.rule(operands, [dims], linear=linear(eqn, range(len(eqn.invars))))


@rule("split")
def _split(eqn: JaxprEqn) -> FactorRule:
    factors = Factors()
    dims = factors.dims(in_shapes(eqn)[0], keep=(eqn.params["axis"],))
    return factors.rule([dims], [dims] * len(eqn.outvars), linear=linear(eqn, (0,)))


@rule("stack")
def _stack(eqn: JaxprEqn) -> FactorRule:
    factors = Factors()
    axis = eqn.params["axis"]
    dims = factors.dims(in_shapes(eqn)[0])
    result: Dims = (*dims[:axis], None, *dims[axis:])
    n = len(eqn.invars)
    return factors.rule([dims] * n, [result], linear=linear(eqn, range(n)))


@rule("unstack")
def _unstack(eqn: JaxprEqn) -> FactorRule:
    factors = Factors()
    axis = eqn.params["axis"]
    dims = factors.dims(in_shapes(eqn)[0], keep=(axis,))
    result = dims[:axis] + dims[axis + 1 :]
    return factors.rule([dims], [result] * len(eqn.outvars), linear=linear(eqn, (0,)))


@rule("tile")
def _tile(eqn: JaxprEqn) -> FactorRule:
    """The copies are the major part of a repeated dimension: a factor of the result alone."""
    factors = Factors()
    shape, reps = in_shapes(eqn)[0], eqn.params["reps"]
    result = tuple(factors.new(r if r > 1 else n) for n, r in zip(shape, reps, strict=True))
    operand = tuple(dim if r == 1 else None for dim, r in zip(result, reps, strict=True))
    return factors.rule([operand], [result], linear=linear(eqn, (0,)))


@rule("pad")
def _pad(eqn: JaxprEqn) -> FactorRule:
    """Unpadded dimensions pass. The value padded with must be partial together with the operand."""
    factors = Factors()
    shape = in_shapes(eqn)[0]
    padded = [d for d, config in enumerate(eqn.params["padding_config"]) if any(config)]
    dims = factors.dims(shape, keep=padded)
    return factors.rule([dims, ()], [dims], linear=linear(eqn, (0, 1)))


@rule("iota", "empty")
def _created(eqn: JaxprEqn) -> FactorRule:
    """Made from nothing: each position can make its own part."""
    factors = Factors()
    return factors.rule(map(whole, in_shapes(eqn)), [factors.dims(out_shapes(eqn)[0])])
