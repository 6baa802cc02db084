"""Gathers and scatters of one entry a row, as ``take_along_axis`` and its gradient are, written as
comparisons of every place with the index.

A gather's operand must lie in memory, the logits in f32 above all, and XLA may keep it there until
the loss is shown; a comparison is fused, and read where the logits are. XLA turns such scatters
into comparisons itself, but only of whole values: where the indexed dimension is cut, its
partitioner computes the whole on every device, or scatters into zeros that lie in memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import shape_of


def is_one_hot(eqn: JaxprEqn) -> bool:
    """Whether ``one_hot`` can carry out the equation."""
    numbers: Any = eqn.params.get("dimension_numbers")
    operand = eqn.invars[0].aval if eqn.invars else None
    if eqn.primitive.name == "gather":
        if not jnp.issubdtype(operand.dtype, jnp.floating):  # pyright: ignore
            return False
        indexed, taken = numbers.start_index_map, numbers.offset_dims
        shared = numbers.start_indices_batching_dims
    elif eqn.primitive.name in ("scatter", "scatter-add"):
        if eqn.primitive.name == "scatter" and eqn.params.get("update_jaxpr") is not None:
            return False
        indexed, taken = numbers.scatter_dims_to_operand_dims, numbers.update_window_dims
        shared = numbers.scatter_indices_batching_dims
    else:
        return False
    places = shape_of(eqn.invars[1])[:-1]
    return (
        len(indexed) == 1
        and not taken
        and len(numbers.operand_batching_dims) + 1 == len(shape_of(eqn.invars[0]))
        and all(extent == 1 for dim, extent in enumerate(places) if dim not in shared)
    )


def one_hot(eqn: JaxprEqn, operands: Sequence[Any], offset: Any = 0, first: Any = True) -> Any:
    """The result.

    Args:
      offset: where the indexed dimension of ``operands[0]`` begins in the whole.
      first: whether this device fills what lies out of bounds of the whole.
    """
    rows = _Rows(eqn, operands)
    here = rows.here(offset)
    operand = operands[0]
    if eqn.primitive.name != "gather":
        update = rows.beside(operands[2])
        added = update if eqn.primitive.name == "scatter" else operand + update
        return jnp.where(here, added, operand)
    found = jnp.where(here, operand, jnp.zeros((), operand.dtype)).sum(rows.dim, keepdims=True)
    if eqn.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP:
        given = eqn.params["fill_value"]
        fill = jnp.asarray(jnp.nan if given is None else given, operand.dtype)
        index = rows.beside(rows.index)
        outside = (index < 0) | (index >= rows.whole)
        found = jnp.where(outside & first, fill, found)
    return rows.back(found)


class _Rows:
    """How the indices, and updates or results, of one equation lie beside its operand."""

    def __init__(self, eqn: JaxprEqn, operands: Sequence[Any]) -> None:
        numbers, gathers = eqn.params["dimension_numbers"], eqn.primitive.name == "gather"
        operand, indices = operands[:2]
        (self.dim,) = numbers.start_index_map if gathers else numbers.scatter_dims_to_operand_dims
        shared = (
            numbers.start_indices_batching_dims
            if gathers
            else numbers.scatter_indices_batching_dims
        )
        place = dict(zip(numbers.operand_batching_dims, shared, strict=True))
        self.shape: tuple[int, ...] = operand.shape
        self.rows = [place[d] for d in range(operand.ndim) if d != self.dim]
        self.places: tuple[int, ...] = indices.shape[:-1]
        self.whole = shape_of(eqn.invars[0])[self.dim]
        index = indices[..., 0]
        if eqn.params["mode"] == lax.GatherScatterMode.CLIP:
            index = jnp.clip(index, 0, min(self.whole - 1, jnp.iinfo(index.dtype).max))
        self.index = index.astype(jnp.int64 if index.dtype.itemsize == 8 else jnp.int32)

    def here(self, offset: Any) -> Any:
        """At which places of the operand an index points."""
        places = lax.broadcasted_iota(self.index.dtype, self.shape, self.dim)
        return places == self.beside(self.index - offset)

    def beside(self, value: Any) -> Any:
        """A value for each row, with the indexed dimension of extent 1."""
        others = [d for d in range(value.ndim) if d not in self.rows]
        beside = [1 if d == self.dim else extent for d, extent in enumerate(self.shape)]
        return value.transpose(*self.rows, *others).reshape(beside)

    def back(self, value: Any) -> Any:
        """The inverse of ``beside``."""
        others = [d for d in range(len(self.places)) if d not in self.rows]
        order = [*self.rows, *others]
        shaped = value.reshape([self.places[d] for d in order])
        return shaped.transpose(*(order.index(d) for d in range(len(order))))
