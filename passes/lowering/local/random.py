"""Random bits: each device draws its part of what the serial program would have drawn."""

from __future__ import annotations

from typing import Any

from jax import lax

from autopar.passes.lowering.local.site import Site, Values, local


@local("random_bits", "random_split")
def _drawn(site: Site, operands: Values) -> list[Any]:
    """Draws for its keys in full, and keeps its part.

    The result is ``[keys..., drawn...]``, and only the number of keys is local before the cut.
    """
    (whole,) = site.bind(operands)
    return [_own_draws(site, whole, len(site.operand_shape(0)))]


def _own_draws(site: Site, whole: Any, keys: int) -> Any:
    """``site.own_part`` of the dimensions after the keys'."""
    sizes = site.result_shape()
    if tuple(whole.shape) == sizes:
        return whole
    layout = site.strategy.results[0]
    for d in range(keys, len(sizes)):
        if whole.shape[d] != sizes[d]:
            start = site.offset(layout, d, sizes[d])
            whole = lax.dynamic_slice_in_dim(whole, start, sizes[d], d)
    return whole
