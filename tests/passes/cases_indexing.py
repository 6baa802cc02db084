"""Cases of ``gather_scatter.py``.

A position subtracts the offset of its part of the operand from the indices; those that then lie
outside are dropped, or read as zero: that is a masked look-up.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from cases_elementwise import bools, floats, ints
from emulation import Case, Local
from jax import lax

_FILL = lax.GatherScatterMode.FILL_OR_DROP


def _shift(local: Local, operand: Any, indices: Any, dims: tuple[int, ...]) -> Any:
    """Indices relative to the part of the operand that is here."""
    offsets = [local.offset(0, d, operand.shape[d]) for d in dims]
    if not any(offsets):
        return indices
    # A negative index is out of bounds for the primitive, and so is dropped.
    return indices - jnp.asarray(offsets, indices.dtype)


def _gather(sizes: tuple[int | None, ...], **numbers: tuple[int, ...]) -> Callable[..., Any]:
    """``None`` in ``sizes`` stands for a whole dimension."""
    dimension_numbers = lax.GatherDimensionNumbers(**numbers)

    def fn(local: Local, operand: Any, indices: Any) -> Any:
        return lax.gather_p.bind(
            operand,
            _shift(local, operand, indices, dimension_numbers.start_index_map),
            dimension_numbers=dimension_numbers,
            slice_sizes=tuple(n or m for n, m in zip(sizes, operand.shape, strict=True)),
            indices_are_sorted=False,
            unique_indices=False,
            mode=_FILL,
            fill_value=0,
        )

    return fn


_ROWS = {"offset_dims": (2,), "collapsed_slice_dims": (0,), "start_index_map": (0,)}
_ALONG = {
    "offset_dims": (),
    "collapsed_slice_dims": (1,),
    "start_index_map": (1,),
    "operand_batching_dims": (0,),
    "start_indices_batching_dims": (0,),
}
_WINDOW = {"offset_dims": (1, 2), "collapsed_slice_dims": (1,), "start_index_map": (0, 1)}
_KEPT = {"offset_dims": (1, 2), "collapsed_slice_dims": (), "start_index_map": (0,)}


def _pairs() -> jax.Array:
    return jnp.stack([ints(2, low=0, high=5), ints(2, low=0, high=8)], axis=-1)


def _gathers() -> Iterator[Case]:
    tokens = ints(4, 2, 1, low=0, high=8)
    along = ints(4, 6, 1, low=0, high=8)
    for label, make in (("", floats), ("boolean", bools)):
        args = [make(8, 6), tokens]
        yield Case("gather", _gather((1, None), **_ROWS), args, label, local=True)
    yield Case("gather", _gather((1, 1), **_ALONG), [floats(4, 8), along], "along", local=True)
    one = ints(4, 1, 1, low=0, high=8)
    yield Case("gather", _gather((1, 1), **_ALONG), [floats(4, 8), one], "one", local=True)
    window = [floats(8, 8, 4), _pairs()]
    yield Case("gather", _gather((3, 1, None), **_WINDOW), window, "window", local=True)
    kept = [floats(8, 6), ints(4, 1, low=0, high=8)]
    yield Case("gather", _gather((1, None), **_KEPT), kept, "kept", local=True)


def _scatter(function: Callable[..., Any], **numbers: tuple[int, ...]) -> Callable[..., Any]:
    dimension_numbers = lax.ScatterDimensionNumbers(**numbers)

    def fn(local: Local, operand: Any, indices: Any, updates: Any) -> Any:
        dims = dimension_numbers.scatter_dims_to_operand_dims
        shifted = _shift(local, operand, indices, dims)
        return function(operand, shifted, updates, dimension_numbers, mode=_FILL)

    return fn


_UPDATE_ROWS = {
    "update_window_dims": (2,),
    "inserted_window_dims": (0,),
    "scatter_dims_to_operand_dims": (0,),
}
_UPDATE_ALONG = {
    "update_window_dims": (),
    "inserted_window_dims": (1,),
    "scatter_dims_to_operand_dims": (1,),
    "operand_batching_dims": (0,),
    "scatter_indices_batching_dims": (0,),
}
_UPDATE_WINDOW = {
    "update_window_dims": (1, 2),
    "inserted_window_dims": (1,),
    "scatter_dims_to_operand_dims": (0, 1),
}
_FUNCTIONS = {
    "scatter": lax.scatter,
    "scatter-add": lax.scatter_add,
    "scatter-sub": lax.scatter_sub,
    "scatter-mul": lax.scatter_mul,
    "scatter-min": lax.scatter_min,
    "scatter-max": lax.scatter_max,
}


def _scatters() -> Iterator[Case]:
    once = jnp.asarray([[[3], [0]], [[7], [1]], [[2], [5]], [[6], [4]]], jnp.int32)
    tokens = ints(4, 2, 1, low=0, high=8)
    for name, function in _FUNCTIONS.items():
        indices = once if name == "scatter" else tokens
        rows = [floats(8, 6), indices, floats(4, 2, 6)]
        yield Case(name, _scatter(function, **_UPDATE_ROWS), rows, local=True)
    add = lax.scatter_add
    along = [floats(4, 8), ints(4, 6, 1, low=0, high=8), floats(4, 6)]
    yield Case("scatter-add", _scatter(add, **_UPDATE_ALONG), along, "along", local=True)
    one = [floats(4, 8), ints(4, 1, 1, low=0, high=8), floats(4, 1)]
    for name in ("scatter", "scatter-add"):
        yield Case(name, _scatter(_FUNCTIONS[name], **_UPDATE_ALONG), one, "one", local=True)
    window = [floats(8, 8, 4), _pairs(), floats(2, 3, 4)]
    yield Case("scatter-add", _scatter(add, **_UPDATE_WINDOW), window, "window", local=True)


CASES = [*_gathers(), *_scatters()]
