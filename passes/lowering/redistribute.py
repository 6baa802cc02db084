"""Layout changes inside a manual region: explicit collectives on local values.

A change follows the same one-axis steps that the cost model priced (``cost_model.reshard``)::

    S(d) -> B       all_gather            P -> S(d)     psum_scatter
    P    -> B       psum, pmax, ...       S(i) -> S(j)  all_to_all
    B    -> S(d)    slice by position     B -> P(op)    all but position 0 hold the identity

Where collectives know no ``op`` (``mul``, ``and``, ``or``), the pieces are gathered and reduced by
everyone. Keys travel as their words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from autopar.core.layout import Layout, Partial, Placement, Split, local_shape
from autopar.core.mesh import MeshAxis
from autopar.cost_model.layout_steps import step_kind
from autopar.cost_model.reshard import Resharder
from autopar.cost_model.whole import folded

GATHERED: dict[str, Callable[[Any], Any]] = {
    "mul": lambda pieces: jnp.prod(pieces, axis=0, dtype=pieces.dtype),
    "and": lambda pieces: jnp.bitwise_and.reduce(pieces, axis=0),
    "or": lambda pieces: jnp.bitwise_or.reduce(pieces, axis=0),
}
"""How pieces, stacked along a new first dimension, become the value they are partial of."""


@dataclass(frozen=True, slots=True)
class Redistributor:
    """Changes layouts on the mesh of ``resharder``, inside a manual region over it."""

    resharder: Resharder

    def __call__(self, value: Any, aval: Any, src: Layout, dst: Layout) -> Any:
        """``value``, the local part in layout ``src`` of a value of type ``aval``, in ``dst``."""
        if src == dst:
            return value
        if jnp.issubdtype(aval.dtype, jax.dtypes.prng_key):
            words = self._follow(jax.random.key_data(value), aval, src, dst)
            return jax.random.wrap_key_data(words, impl=jax.random.key_impl(value))
        return self._follow(jnp.asarray(value, aval.dtype), aval, src, dst)

    def _follow(self, value: Any, aval: Any, src: Layout, dst: Layout) -> Any:
        if value.size == 0:  # XLA's reduce-scatter of nothing has the wrong shape
            words = value.shape[len(aval.shape) :]
            return jnp.zeros(
                (*local_shape(aval.shape, dst, self.resharder.mesh), *words), value.dtype
            )
        axes = {axis.name: (i, axis) for i, axis in enumerate(self.resharder.mesh.axes)}
        here = src
        for step in self.resharder.path(tuple(aval.shape), aval.dtype.itemsize, src, dst):
            position, axis = axes[step.axis]
            value = _change(value, axis, here[position], step.layout[position])
            here = step.layout
        return value


def _change(value: Any, axis: MeshAxis, old: Placement, new: Placement) -> Any:
    """One step of the cost model's table, along one axis."""
    kind = step_kind(old, new)
    if kind == "all-gather" and isinstance(old, Split):
        return lax.all_gather(value, axis.name, axis=old.dim, tiled=True)
    if kind == "all-to-all" and isinstance(old, Split) and isinstance(new, Split):
        return lax.all_to_all(value, axis.name, new.dim, old.dim, tiled=True)
    if kind == "all-reduce" and isinstance(old, Partial):
        return all_reduce(value, axis.name, old.op)
    if kind == "reduce-scatter" and isinstance(new, Split):
        return _reduce_scatter(value, axis, new.dim)
    if kind == "slice" and isinstance(new, Split):
        return own_part(value, new.dim, lax.axis_index(axis.name), axis.size)
    if kind == "mask" and isinstance(new, Partial):
        keep = lax.axis_index(axis.name) == 0
        return jnp.where(keep, value, identity(new.op, value.dtype))
    raise AssertionError(f"{old} to {new} is not one step")


def _reduce_scatter(value: Any, axis: MeshAxis, dim: int) -> Any:
    """The device's part along ``dim`` of the sum.

    The parts are made a dimension of their own, the first: where XLA:TPU lays the scattered one
    out along its lanes, it reduces the whole and throws most of it away. So it does with parts that
    fill no tiles: those are folded.
    """
    shape = (*value.shape[:dim], axis.size, value.shape[dim] // axis.size, *value.shape[dim + 1 :])
    parts = jnp.moveaxis(value.reshape(shape), dim, 0)
    own = parts.shape[1:]
    scattered = lax.psum_scatter(
        parts.reshape(axis.size, *folded(own)), axis.name, scatter_dimension=0
    )
    return scattered.reshape(own)


def own_part(value: Any, dim: int, position: Any, parts: int) -> Any:
    """Part ``position`` of ``parts`` equal parts of dimension ``dim``."""
    size = value.shape[dim] // parts
    return lax.dynamic_slice_in_dim(value, position * size, size, dim)


def all_reduce(value: Any, axis: str, op: str) -> Any:
    """The reduction by ``op`` of what the positions of ``axis`` hold, on all of them."""
    if op == "add":
        return lax.psum(value, axis)
    if op in GATHERED:
        pieces = lax.all_gather(_byte_wide(value), axis)
        return GATHERED[op](pieces).astype(value.dtype)
    if jnp.issubdtype(value.dtype, jnp.floating):
        return _extremum(value, axis, op)
    found = lax.pmax(value, axis) if op == "max" else lax.pmin(value, axis)
    return found.astype(value.dtype)


def _byte_wide(value: Any) -> Any:
    """Integers of a few bits as whole bytes, which everything knows."""
    narrow = jnp.issubdtype(value.dtype, jnp.integer) and jnp.iinfo(value.dtype).bits < 8
    return value.astype(jnp.int32) if narrow else value


def _extremum(value: Any, axis: str, op: str) -> Any:
    """Maximum or minimum of floats, NaN if any is: what JAX means, and XLA's all-reduce may not.

    As integers: two's complement of the bits below the sign orders floats, and a NaN of the right
    sign lies beyond them all.
    """
    wide = value if value.dtype.itemsize >= 4 else value.astype(jnp.float32)
    integers = jnp.int64 if wide.dtype.itemsize == 8 else jnp.int32
    last = jnp.iinfo(integers).max

    def flip(bits: Any) -> Any:
        return jnp.where(bits < 0, bits ^ last, bits)

    nan = last if op == "max" else ~last
    keys = jnp.where(jnp.isnan(wide), nan, flip(lax.bitcast_convert_type(wide, integers)))
    found = lax.pmax(keys, axis) if op == "max" else lax.pmin(keys, axis)
    return lax.bitcast_convert_type(flip(found), wide.dtype).astype(value.dtype)


def identity(op: str, dtype: Any) -> Any:
    """The value ``e`` of ``dtype`` for which ``op(e, x)`` is ``x``."""
    if op in ("add", "or"):
        return jnp.zeros((), dtype)
    if op == "mul":
        return jnp.ones((), dtype)
    if dtype == jnp.bool_:
        return jnp.asarray(op in ("and", "min"))
    if op == "and":
        return jnp.bitwise_not(jnp.zeros((), dtype))
    if jnp.issubdtype(dtype, jnp.integer):
        info = jnp.iinfo(dtype)
        return jnp.asarray(info.min if op == "max" else info.max, dtype)
    if jnp.finfo(dtype).bits < 16:  # some have no infinity
        return jnp.finfo(dtype).min if op == "max" else jnp.finfo(dtype).max
    return jnp.asarray(-jnp.inf if op == "max" else jnp.inf, dtype)
