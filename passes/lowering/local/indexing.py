"""Gather and scatter where the dimension indexed is cut: masked look-ups and updates.

Indices speak of the whole operand. A device subtracts where its part begins and serves the indices
that then fall inside it. What JAX says of indices out of bounds of the *whole* is decided first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from autopar.core.layout import Partial, Split, is_partial
from autopar.passes.lowering.fences import guarded
from autopar.passes.lowering.local.site import Site, Values, local
from autopar.passes.lowering.one_hot import is_one_hot, one_hot
from autopar.passes.lowering.redistribute import identity

Mode = lax.GatherScatterMode


class _Window(NamedTuple):
    """An indexed dimension of the operand: its extents, the window's, where its part begins."""

    dim: int
    whole: int
    part: int
    window: int
    offset: Any


@local("gather")
def _gather(site: Site, operands: Values) -> list[Any]:
    """``slice_sizes`` are local where a whole dimension is taken; see ``_masked_gather``."""
    if is_one_hot(site.eqn):
        dim = site.eqn.params["dimension_numbers"].start_index_map[0]
        offset = site.offset(site.strategy.operands[0], dim, site.operand_shape(0)[dim])
        return [one_hot(site.eqn, operands, offset, site.first(site.strategy.results[0]))]
    operands = guarded(site.eqn, site.strategy, operands)
    params = site.eqn.params
    whole = site.whole_shape(0)
    part = site.operand_shape(0)
    sizes = tuple(
        here if size == there else size
        for size, here, there in zip(params["slice_sizes"], part, whole, strict=True)
    )
    if not is_partial(site.strategy.results[0]):
        return site.bind(operands, slice_sizes=sizes)
    return [_masked_gather(site, operands, sizes)]


def _masked_gather(site: Site, operands: Values, sizes: tuple[int, ...]) -> Any:
    """Looks up clipped indices, then replaces what is another device's to give by the identity.

    What lies out of bounds of the whole is, in ``FILL_OR_DROP`` mode, for the first device to fill.
    """
    operand, indices = operands
    numbers = site.eqn.params["dimension_numbers"]
    windows = _windows(site, numbers.start_index_map, site.eqn.params["slice_sizes"])
    starts = _wide(indices)
    fill = site.eqn.params["mode"] == Mode.FILL_OR_DROP
    inside = _inside(starts, windows)
    clipped = _clipped(starts, windows)
    local_starts, here = _relative(clipped, windows)
    (found,) = site.bind(
        (operand, local_starts),
        slice_sizes=sizes,
        mode=Mode.CLIP,
        indices_are_sorted=False,
        unique_indices=False,
    )
    op = next(p.op for p in site.strategy.results[0] if isinstance(p, Partial))
    nothing = identity(op, found.dtype)
    batch = [d for d in range(found.ndim) if d not in numbers.offset_dims]
    mine = _spread(here & inside if fill else here, batch, found.shape)
    result = jnp.where(mine, found, nothing)
    if fill:
        outside = _spread(~inside, batch, found.shape) & site.first(site.strategy.results[0])
        result = jnp.where(outside, _fill_value(site, found.dtype), result)
    return result


def _fill_value(site: Site, dtype: Any) -> Any:
    """What ``FILL_OR_DROP`` gives out of bounds, as JAX has it."""
    given = site.eqn.params["fill_value"]
    if given is not None:
        return jnp.asarray(given, dtype)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(jnp.nan, dtype)
    if jnp.issubdtype(dtype, jnp.signedinteger):
        return jnp.asarray(jnp.iinfo(dtype).min, dtype)
    if jnp.issubdtype(dtype, jnp.unsignedinteger):
        return jnp.asarray(jnp.iinfo(dtype).max, dtype)
    return jnp.asarray(True, dtype)


@local("scatter", "scatter-add", "scatter-sub", "scatter-mul", "scatter-min", "scatter-max")
def _scatter(site: Site, operands: Values) -> list[Any]:
    """Updates that fall outside this device's part are dropped.

    Updates that are cut, or summands of an operand, need nothing: the pieces combine.
    """
    numbers = site.eqn.params["dimension_numbers"]
    if is_one_hot(site.eqn):
        (dim,) = numbers.scatter_dims_to_operand_dims
        offset = site.offset(site.strategy.operands[0], dim, site.operand_shape(0)[dim])
        return [one_hot(site.eqn, operands, offset)]
    operand, indices, updates = guarded(site.eqn, site.strategy, operands)
    indexed = numbers.scatter_dims_to_operand_dims
    extents = _update_extents(site)
    cut = [d for d in indexed if Split(d) in site.strategy.operands[0]]
    whole = site.whole_shape(0)
    if all(extents[d] == whole[d] and whole[d] != 1 for d in cut):
        return site.bind(operands)
    windows = _windows(site, indexed, extents)
    starts = _wide(indices)
    if site.eqn.params["mode"] == Mode.CLIP:
        starts = _clipped(starts, windows)
    local_starts, here = _relative(starts, windows)
    local_starts = jnp.where((here & _inside(starts, windows))[..., None], local_starts, _NOWHERE)
    return site.bind(
        (operand, local_starts, updates),
        mode=Mode.FILL_OR_DROP,
        indices_are_sorted=False,
        unique_indices=False,
    )


_NOWHERE = -(2**30)
"""An index out of bounds of every operand: what is scattered there is dropped."""


def _update_extents(site: Site) -> list[int]:
    """The window of one update along each dimension of the operand."""
    numbers = site.eqn.params["dimension_numbers"]
    shape = site.whole_shape(0)
    updates = site.whole_shape(2)
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    extents = [1] * len(shape)
    kept = [d for d in range(len(shape)) if d not in dropped]
    for d, place in zip(kept, numbers.update_window_dims, strict=True):
        extents[d] = updates[place]
    return extents


def _windows(site: Site, dims: Sequence[int], sizes: Sequence[int]) -> list[_Window]:
    whole, part = site.whole_shape(0), site.operand_shape(0)
    layout = site.strategy.operands[0]
    return [_Window(d, whole[d], part[d], sizes[d], site.offset(layout, d, part[d])) for d in dims]


def _wide(indices: Any) -> Any:
    """Indices that can be negative, and can hold the extent of any part."""
    wide = jnp.int64 if indices.dtype.itemsize == 8 else jnp.int32
    if jnp.issubdtype(indices.dtype, jnp.unsignedinteger):
        indices = jnp.minimum(indices, jnp.iinfo(wide).max)
    return indices.astype(wide)


def _inside(starts: Any, windows: Sequence[_Window]) -> Any:
    """Whether each window lies within the whole operand."""
    last = jnp.asarray([w.whole - w.window for w in windows], starts.dtype)
    return jnp.all((starts >= 0) & (starts <= last), axis=-1)


def _clipped(starts: Any, windows: Sequence[_Window]) -> Any:
    last = jnp.asarray([w.whole - w.window for w in windows], starts.dtype)
    return jnp.clip(starts, 0, last)


def _relative(starts: Any, windows: Sequence[_Window]) -> tuple[Any, Any]:
    """Indices into this device's part, and whether they fall inside it.

    A dimension that is taken whole begins at 0 everywhere, whether it is cut or not.
    """
    columns: list[Any] = []
    here: Any = jnp.ones(starts.shape[:-1], bool)
    for column, w in enumerate(windows):
        start = starts[..., column]
        if w.whole != w.part and w.window != w.whole:
            start = start - jnp.asarray(w.offset, start.dtype)
            here &= (start >= 0) & (start < w.part)
        columns.append(start)
    if not columns:
        return starts, here
    return jnp.stack(columns, axis=-1), here


def _spread(mask: Any, batch: Sequence[int], shape: tuple[int, ...]) -> Any:
    """``mask`` over the batch dimensions of a result of ``shape``, for all of each window."""
    return lax.broadcast_in_dim(mask, shape, tuple(batch))
