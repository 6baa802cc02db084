"""Primitives whose parameters are shapes: reshape, broadcast, slice, iota and their kin."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import lax

from autopar.passes.lowering.fences import guarded
from autopar.passes.lowering.local.site import Site, Values, local


@local("reshape")
def _reshape(site: Site, operands: Values) -> list[Any]:
    return site.bind(operands, new_sizes=site.result_shape(), sharding=None)


@local("broadcast_in_dim")
def _broadcast_in_dim(site: Site, operands: Values) -> list[Any]:
    return site.bind(operands, shape=site.result_shape(), sharding=None)


@local("tile")
def _tile(site: Site, operands: Values) -> list[Any]:
    """A device makes some of the copies, all whole."""
    sizes = zip(site.result_shape(), site.operand_shape(0), site.eqn.params["reps"], strict=True)
    return site.bind(operands, reps=tuple(n // m if m else r for n, m, r in sizes))


@local("slice")
def _slice(site: Site, operands: Values) -> list[Any]:
    """A dimension that is cut is taken whole: up to the local end."""
    params = site.eqn.params
    whole = site.whole_shape(0)
    limits = tuple(
        here if here != there else limit
        for here, there, limit in zip(
            site.operand_shape(0), whole, params["limit_indices"], strict=True
        )
    )
    return site.bind(operands, limit_indices=limits)


@local("dynamic_slice")
def _dynamic_slice(site: Site, operands: Values) -> list[Any]:
    """A dimension that is cut is taken whole, so that any start is clamped to 0, here as there."""
    starts_in_bounds = guarded(site.eqn, site.strategy, operands)
    return site.bind(starts_in_bounds, slice_sizes=site.result_shape())


@local("iota")
def _iota(site: Site, operands: Values) -> list[Any]:
    """Counts on from where this device's part begins. Floats are converted last, as XLA does."""
    params, shape = site.eqn.params, site.result_shape()
    dim, dtype = params["dimension"], params["dtype"]
    offset = site.offset(site.strategy.results[0], dim, shape[dim])
    if isinstance(offset, int):
        return site.bind(operands, shape=shape, sharding=None)
    counter = dtype if jnp.issubdtype(dtype, jnp.integer) else jnp.int32
    counts = lax.broadcasted_iota(counter, shape, dim) + offset.astype(counter)
    return [counts.astype(dtype)]


@local("empty")
def _empty(site: Site, operands: Values) -> list[Any]:
    return site.bind(operands, shape=site.result_shape())
