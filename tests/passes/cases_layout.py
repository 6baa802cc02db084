"""Cases of ``reshape.py``, ``slicing.py``, ``reduce.py``, ``sort_cumulative.py`` and the rest."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.extend.core.primitives as p
import jax.numpy as jnp
import numpy as np
from cases_elementwise import bools, floats, ints
from emulation import Case, Local, Shape
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning


def _reshape(local: Local, x: Any, dimensions: Shape | None = None) -> Any:
    return p.reshape_p.bind(x, new_sizes=local.shapes[0], dimensions=dimensions, sharding=None)


def _broadcast(dims: Shape) -> Callable[..., Any]:
    return lambda local, x: p.broadcast_in_dim_p.bind(
        x, shape=local.shapes[0], broadcast_dimensions=dims, sharding=None
    )


def _iota(dim: int) -> Callable[..., Any]:
    def make(local: Local) -> Any:
        made = p.iota_p.bind(
            dtype=np.dtype(np.int32), shape=local.shapes[0], dimension=dim, sharding=None
        )
        offset = local.result_offset(dim)
        return made + offset if offset else made

    return make


def _tile(local: Local, x: Any) -> Any:
    reps = (o // n for o, n in zip(local.shapes[0], x.shape, strict=True))
    return lax.tile(x, tuple(reps))


def _reshapes() -> Iterator[Case]:
    for label, source, target in (
        ("", (4, 6), (24,)),
        ("divide", (24,), (4, 6)),
        ("ones", (1, 4, 1, 6), (4, 6, 1)),
        ("keep", (4, 2, 6), (4, 12)),
        ("regroup", (4, 6), (6, 4)),
        ("heads", (2, 4, 12), (2, 4, 6, 2)),
        ("scalar", (1, 1), ()),
        ("empty", (0, 4), (4, 0)),
    ):
        yield Case("reshape", _reshape, [floats(*source)], label, local=True, shapes=(target,))
    yield Case("reshape", _reshape, [bools(4, 6)], "boolean", local=True, shapes=((24,),))
    turned = partial(_reshape, dimensions=(1, 2, 0))
    yield Case("reshape", turned, [floats(4, 6, 2)], "turned", local=True, shapes=((12, 4),))


def _custom(function: Callable[..., Any], rule: str, **special: Any) -> Callable[..., Any]:
    def partition(mesh: Any, args: Any, result: Any) -> Any:
        asked = jax.tree.map(lambda one: one.sharding, (args, result))
        return mesh, function, asked[1], asked[0]

    custom = custom_partitioning(function)
    custom.def_partition(partition, sharding_rule=rule, **special)
    return custom


def _customs() -> Iterator[Case]:
    x, w = floats(4, 2, 6), floats(6, 8)
    for label, custom, args in (
        ("", _custom(jnp.sin, "... -> ..."), [x]),
        (
            "product",
            _custom(lambda x, w: x @ w, "... k, k j -> ... j", reduction_factors=("k",)),
            [x, w],
        ),
        (
            "kept",
            _custom(lambda x: jnp.cumsum(x, 1), "i j -> i j", need_replication_factors=("j",)),
            [w],
        ),
        ("merged", _custom(jnp.sin, "(a b) j -> (a b) j", a=2, b=3), [w]),
        ("made", _custom(lambda x: (x, x[:, None] + jnp.ones(4)), "i -> i, i j"), [floats(6)]),
    ):
        yield Case("custom_partitioning", custom, args, label)


def _layout() -> Iterator[Case]:
    yield Case("transpose", lambda x: lax.transpose(x, (2, 0, 1)), [floats(4, 6, 2)])
    for label, shape, dims in (
        *(("", (4,), (1,)), ("repeat", (4, 1), (0, 1)), ("scalar", (), ())),
        ("move", (4, 1, 6), (0, 1, 2)),
    ):
        target = (6, 4) if not label else (4, 6) if shape != (4, 1, 6) else (4, 8, 6)
        yield Case(
            *("broadcast_in_dim", _broadcast(dims), [floats(*shape)], label),
            local=True,
            shapes=(target,),
        )
    yield Case("squeeze", lambda x: lax.squeeze(x, (1,)), [floats(4, 1, 6)])
    yield Case("rev", lambda x: lax.rev(x, (1,)), [floats(4, 6)])
    pair = [floats(4, 6), floats(4, 2)]
    yield Case("concatenate", lambda x, y: lax.concatenate((x, y), 1), pair)
    yield Case("split", lambda x: lax.split(x, (2, 4), axis=1), [floats(4, 6)])
    yield Case("stack", lambda x, y: lax.stack((x, y), axis=1), [floats(4, 6), floats(4, 6)])
    yield Case("unstack", lambda x: lax.unstack(x, axis=1), [floats(4, 6)])
    yield Case("tile", _tile, [floats(4, 6)], local=True, shapes=((4, 24),))
    pads = ((0, 0, 0), (1, 2, 0), (0, 0, 1))
    yield Case("pad", lambda x, v: lax.pad(x, v, pads), [floats(4, 6, 2), floats()])
    yield Case("iota", _iota(0), [], local=True, shapes=((4, 6),))
    yield Case("empty", _empty, [], local=True, shapes=((4, 6),))


def _empty(local: Local) -> Any:
    return lax.empty(local.shapes[0], jnp.float32)


def _slices() -> Iterator[Case]:
    yield Case("slice", lambda x: lax.slice(x, (0, 2), (x.shape[0], 6)), [floats(4, 8)])
    yield Case("slice", _strided, [floats(4, 8)], "strided")
    yield Case(
        "dynamic_slice",
        lambda x, i, j: lax.dynamic_slice_p.bind(x, i, j, slice_sizes=(x.shape[0], 3)),
        [floats(4, 8), jnp.int32(0), jnp.int32(2)],
    )
    yield Case(
        "dynamic_update_slice",
        lambda x, u, i, j: lax.dynamic_update_slice_p.bind(x, u, i, j),
        [floats(4, 8), floats(4, 2), jnp.int32(0), jnp.int32(3)],
    )


def _strided(x: Any) -> Any:
    return lax.slice(x, (0, 0), x.shape, (1, 2))


def _reductions() -> Iterator[Case]:
    for name, make in (
        *(("reduce_sum", floats), ("reduce_prod", floats), ("reduce_max", floats)),
        *(
            ("reduce_min", floats),
            ("reduce_xor", ints),
            ("reduce_and", bools),
            ("reduce_or", bools),
        ),
    ):
        yield Case(name, _reduce(name), [make(4, 6, 2)])
    yield Case("reduce_or", _reduce("reduce_or"), [ints(4, 6, 2)], "integer")
    for name in ("argmax", "argmin"):
        yield Case(name, _extremum(name), [floats(4, 6)])
    yield Case("reduce", _generic_reduce, [floats(4, 6), floats(4, 6), floats(), floats()])


def _reduce(name: str) -> Callable[..., Any]:
    primitive = getattr(p, f"{name}_p")
    params = {"out_sharding": None} if name in ("reduce_sum",) else {}
    return lambda x: primitive.bind(x, axes=(1, 2), **params)


def _extremum(name: str) -> Callable[..., Any]:
    return lambda x: getattr(lax, name)(x, 1, jnp.int32)


def _generic_reduce(x: Any, y: Any, a: Any, b: Any) -> Any:
    def combine(left: Any, right: Any) -> Any:
        return left[0] + right[0], left[1] * right[1]

    return lax.reduce((x, y), (a, b), combine, (1,))


def _sorts() -> Iterator[Case]:
    pair = [floats(4, 6), floats(4, 6)]
    yield Case("sort", lambda x, y: lax.sort((x, y), dimension=1, num_keys=1), pair)
    yield Case("top_k", lambda x: lax.top_k(x, 2), [floats(4, 6)])
    yield Case("approx_top_k", lambda x: lax.approx_max_k(x, 2), [floats(4, 6)])
    for name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
        yield Case(name, _cumulative(name), [floats(4, 6)])


def _cumulative(name: str) -> Callable[..., Any]:
    return lambda x: getattr(lax, name)(x, axis=1)


def _platform() -> Any:
    """JAX exports the function alone, which branches on the index."""
    jaxpr = jax.make_jaxpr(lambda: lax.platform_dependent(cpu=lambda: 1, default=lambda: 2))()
    index = next(e for e in jaxpr.eqns if e.primitive.name == "platform_index")
    return index.primitive.bind(**index.params)


def _control() -> Iterator[Case]:
    yield Case("platform_index", _platform, [])


CASES = [*_control(), *_customs(), *_reshapes(), *_layout(), *_slices(), *_reductions(), *_sorts()]
