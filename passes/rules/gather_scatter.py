"""Gather and scatter: look-ups and updates at computed places.

A dimension that is taken one entry at a time and cut is a *masked* look-up: each position serves
the indices that fall in its part, and gives zeros for the others, so the result is a partial sum.
An update works likewise: each position applies the updates that fall in its part.
"""

from __future__ import annotations

from collections.abc import Iterable

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, in_shapes, linear, out_shapes, reducible
from autopar.passes.rules.factors import FactorRule, Linear
from autopar.passes.rules.registry import rule

Named = list[str | None]


@rule("gather")
def _gather(eqn: JaxprEqn) -> FactorRule:
    """``result[b..., w...] = operand[indices[b...] + w...]``.

    Factors: index dimensions (batch), whole window dimensions, batching dimensions shared by
    operand and indices, and dimensions looked up one entry at a time (reduced).
    """
    numbers = eqn.params["dimension_numbers"]
    sizes = eqn.params["slice_sizes"]
    operand_shape, index_shape = in_shapes(eqn)
    (result_shape,) = out_shapes(eqn)
    factors = Factors()
    index: Named = [*factors.dims(index_shape[:-1]), None]
    operand: Named = [None] * len(operand_shape)
    result: Named = [None] * len(result_shape)
    for place, name in zip(_others(len(result), numbers.offset_dims), index, strict=False):
        result[place] = name
    for d, b in zip(
        numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True
    ):
        operand[d] = index[b]
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    windows = _others(len(operand), dropped)
    for d, place in zip(windows, numbers.offset_dims, strict=True):
        if sizes[d] == operand_shape[d]:
            operand[d] = result[place] = factors.new(sizes[d])
    summed = _entries(eqn, numbers.start_index_map, sizes)
    for d in summed:
        operand[d] = operand[d] or factors.new(operand_shape[d])
    op = "add" if reducible("add", eqn.outvars[0].aval) else "or"
    return factors.rule(
        [tuple(operand), tuple(index)],
        [tuple(result)],
        reduce=[(operand[d], op) for d in summed],
        linear=linear(eqn, (0,)),
    )


def _entries(eqn: JaxprEqn, indexed: Iterable[int], sizes: Iterable[int]) -> list[int]:
    """The operand dimensions that are taken one entry at a time, if pieces can be combined."""
    aval = eqn.outvars[0].aval
    if not (reducible("add", aval) or reducible("or", aval)):
        return []
    shape, extents = in_shapes(eqn)[0], tuple(sizes)
    return [d for d in indexed if extents[d] == 1 and shape[d] > 1]


_COMBINE = {
    "scatter-add": "add",
    "scatter-sub": "add",
    "scatter-mul": "mul",
    "scatter-min": "min",
    "scatter-max": "max",
}


@rule("scatter", *_COMBINE)
def _scatter(eqn: JaxprEqn) -> FactorRule:
    """``result = operand; result[indices[b...] + w...] op= updates[b..., w...]``.

    Factors: whole window dimensions; batching dimensions; updated dimensions written one entry at
    a time; and, if updates combine in any order, the dimensions of the updates, which leave the
    result partial and demand the same of the operand (``joins``).
    """
    numbers = eqn.params["dimension_numbers"]
    operand_shape, index_shape, update_shape = in_shapes(eqn)
    op = _COMBINE.get(eqn.primitive.name)
    factors = Factors()
    operand: Named = [None] * len(operand_shape)
    updates: Named = [None] * len(update_shape)
    index: Named = [None] * len(index_shape)
    batches = _others(len(updates), numbers.update_window_dims)
    shared = numbers.scatter_indices_batching_dims
    for d, b in zip(numbers.operand_batching_dims, shared, strict=True):
        operand[d] = index[b] = updates[batches[b]] = factors.new(operand_shape[d])
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    extents = [1] * len(operand)
    for d, place in zip(_others(len(operand), dropped), numbers.update_window_dims, strict=True):
        extents[d] = update_shape[place]
        if extents[d] == operand_shape[d]:
            operand[d] = updates[place] = factors.new(operand_shape[d])
    for d in numbers.scatter_dims_to_operand_dims:
        if extents[d] == 1 and operand[d] is None:
            operand[d] = factors.new(operand_shape[d])
    reduced: Named = []
    for b, place in enumerate(batches):
        if op and b not in shared and reducible(op, eqn.outvars[0].aval):
            index[b] = updates[place] = factors.new(update_shape[place])
            reduced.append(updates[place])
    return factors.rule(
        [tuple(operand), tuple(index), tuple(updates)],
        [tuple(operand)],
        reduce=[(name, op or "add") for name in reduced],
        joins=[(name, 0) for name in reduced],
        linear=_scatter_linear(eqn, op),
    )


def _scatter_linear(eqn: JaxprEqn, op: str | None) -> list[Linear]:
    """A plain ``scatter`` with a function of its own (``x.at[i].apply``) is not linear."""
    if op is None and eqn.params.get("update_jaxpr") is not None:
        return []
    if op == "mul":
        return linear(eqn, (0,))
    return linear(eqn, (0, 2), ops=(op or "add",))


def _others(rank: int, dims: Iterable[int]) -> list[int]:
    """The dimensions of a value of ``rank`` that are not among ``dims``, in order."""
    taken = set(dims)
    return [d for d in range(rank) if d not in taken]
