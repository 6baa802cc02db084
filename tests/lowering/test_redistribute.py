"""Every layout change, step by step, on real devices."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.core.layout import B, Layout, Partial, Split
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster, Resharder
from autopar.passes.lowering.redistribute import Redistributor, all_reduce, identity

SPEC = MeshSpec.of((2, 2))
MESH = jax.make_mesh(
    (2, 2), SPEC.names, (jax.sharding.AxisType.Auto,) * 2, devices=jax.devices()[:4]
)
REDISTRIBUTE = Redistributor(Resharder(SPEC, Cluster.preset("cpu", shape=(4,)).axis_links(SPEC)))


def _manual(fn: Any, *args: Any) -> Any:
    mapped = jax.shard_map(fn, mesh=MESH, in_specs=jax.P(), out_specs=jax.P(), check_vma=False)
    return jax.jit(mapped)(*args)


def _layouts(op: str) -> list[Layout]:
    return list(itertools.product((B, Split(0), Split(1), Partial(op)), repeat=2))


@pytest.mark.parametrize("op", ["add", "max", "min", "mul", "and", "or"])
def test_there_and_back(op: str) -> None:
    """From the whole to any layout, on to a second one, and back: nothing is lost."""
    dtype = jnp.int32 if op in ("and", "or") else jnp.float32
    x = jnp.arange(1, 65, dtype=dtype).reshape(8, 8)
    whole = (B, B)
    pairs = list(itertools.product(_layouts(op), repeat=2))[::13]

    def run(x: Any) -> Any:
        found = []
        for first, second in pairs:
            here = REDISTRIBUTE(x, x.aval, whole, first)
            here = REDISTRIBUTE(here, x.aval, first, second)
            found.append(REDISTRIBUTE(here, x.aval, second, whole))
        return found

    for pair, y in zip(pairs, _manual(run, x), strict=True):
        np.testing.assert_array_equal(y, x, err_msg=str(pair))


def test_a_partial_sum_does_not_meet_another_reduction() -> None:
    """The masks of ``and`` must wait until the sum is done: -1 four times over is not -1."""
    x = jnp.asarray([5, 6], jnp.int32)
    source, target = (Partial("add"), B), (B, Partial("and"))

    def run(x: Any) -> Any:
        here = REDISTRIBUTE(x, x.aval, (B, B), source)
        here = REDISTRIBUTE(here, x.aval, source, target)
        return REDISTRIBUTE(here, x.aval, target, (B, B))

    np.testing.assert_array_equal(_manual(run, x), x)


@pytest.mark.parametrize(("shape", "dim"), [((4096,), 0), ((3, 8192), 1), ((4, 4, 512), 1)])
def test_parts_that_fill_no_tiles_are_scattered_in_place(shape: tuple[int, ...], dim: int) -> None:
    """They are folded to be scattered, and lie as before."""
    x = jnp.arange(float(np.prod(shape))).reshape(shape)
    source, target = (Partial("add"), B), (Split(dim), B)

    def run(x: Any) -> Any:
        here = REDISTRIBUTE(x, x.aval, (B, B), source)
        here = REDISTRIBUTE(here, x.aval, source, target)
        return REDISTRIBUTE(here, x.aval, target, (B, B))

    np.testing.assert_array_equal(_manual(run, x), x)


def test_keys_travel() -> None:
    keys = jax.random.split(jax.random.key(0), 4)

    def run(keys: Any) -> Any:
        here = REDISTRIBUTE(keys, keys.aval, (B, B), (Split(0), B))
        assert here.shape == (2,)
        return jax.random.key_data(REDISTRIBUTE(here, keys.aval, (Split(0), B), (B, B)))

    np.testing.assert_array_equal(_manual(run, keys), jax.random.key_data(keys))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_extrema_propagate_nan(dtype: str) -> None:
    """In JAX they do; in XLA's all-reduce, on CPU, they do not."""
    values = [[0.5, -3, jnp.inf, -0.0, jnp.nan, -jnp.inf], [1, -4, 2, 0, 1, jnp.nan]]
    x = jnp.asarray(values, dtype)

    def run(x: Any) -> Any:
        mine = x[jax.lax.axis_index("data")]
        return all_reduce(mine, "data", "max"), all_reduce(mine, "data", "min")

    most, least = _manual(run, x)
    for got, want in ((most, jnp.max(x, 0)), (least, jnp.min(x, 0))):
        np.testing.assert_array_equal(np.asarray(got, float), np.asarray(want, float))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "float32", "bfloat16", "bool"])
def test_identity(dtype: str) -> None:
    x = jnp.asarray([0, 1, 3, 127], dtype)
    ops = {"max": jnp.maximum, "min": jnp.minimum, "add": jnp.add, "mul": jnp.multiply}
    if not jnp.issubdtype(x.dtype, jnp.floating):
        ops |= {"and": jnp.bitwise_and, "or": jnp.bitwise_or}
    for op, function in ops.items():
        found = function(x, identity(op, x.dtype))
        np.testing.assert_array_equal(found, x, err_msg=op)
