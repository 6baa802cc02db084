"""FLOPs and bytes of equations, by hand; seconds by the roofline."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import JaxprEqn

from autopar.cost_model import Cluster, equation_seconds, flops, work
from autopar.cost_model.compute import Load
from autopar.cost_model.work import CONVOLVED, aval_bytes, shape_of
from autopar.passes.simplify import simplify

V5E = Cluster.preset("tpu-v5e").chip


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def bf16(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def eqn_of(primitive: str, fn: Callable[..., object], *args: jax.ShapeDtypeStruct) -> JaxprEqn:
    """The one equation of a function that has this primitive."""
    closed = simplify(jax.make_jaxpr(fn)(*args))
    (found,) = [e for e in closed.eqns if e.primitive.name == primitive]
    return found


def _conv(**options: object) -> Callable[..., jax.Array]:
    numbers = ("NHWC", "HWIO", "NHWC")
    return lambda x, k: lax.conv_general_dilated(
        x,
        k,
        **{"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": numbers, **options},
    )


@pytest.mark.parametrize(
    ("fn", "args", "expected"),
    [
        (jnp.dot, (f32(4, 16), f32(16, 8)), 2 * 4 * 16 * 8),
        (jnp.matmul, (f32(3, 4, 16), f32(3, 16, 8)), 2 * 3 * 4 * 16 * 8),
        (
            lambda a, b: jnp.einsum("bshd,bthd->bhst", a, b),
            (f32(2, 5, 3, 7), f32(2, 6, 3, 7)),
            2 * 2 * 3 * 5 * 6 * 7,
        ),
        (lambda a, b: jnp.einsum("ij,ij->", a, b), (f32(4, 5), f32(4, 5)), 2 * 20),
        (_conv(), (f32(2, 8, 8, 3), f32(5, 5, 3, 16)), 2 * (2 * 8 * 8 * 16) * (5 * 5 * 3)),
        (
            _conv(window_strides=(2, 2)),
            (f32(2, 8, 8, 3), f32(3, 3, 3, 16)),
            2 * (2 * 4 * 4 * 16) * 27,
        ),
        (
            _conv(feature_group_count=4),
            (f32(2, 8, 8, 4), f32(3, 3, 1, 4)),
            2 * (2 * 8 * 8 * 4) * 9,
        ),
        (
            _conv(lhs_dilation=(2, 2), padding=((0, 1), (0, 1))),
            (f32(2, 8, 8, 3), f32(2, 2, 3, 8)),
            2 * (2 * 15 * 15 // 4) * 8 * 12,
        ),
        (
            lambda a, b: lax.ragged_dot(a, b, jnp.array([3, 5])),
            (f32(8, 16), f32(2, 16, 4)),
            2 * 8 * 16 * 4,
        ),
        (jnp.exp, (f32(4, 4),), 0),
    ],
)
def test_flops(
    fn: Callable[..., object], args: tuple[jax.ShapeDtypeStruct, ...], expected: int
) -> None:
    assert sum(flops(eqn) for eqn in jax.make_jaxpr(fn)(*args).eqns) == expected


def test_backward_costs_twice_the_forward() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return (x @ w).sum()

    args = f32(16, 8), f32(4, 16)
    forward = sum(map(flops, jax.make_jaxpr(loss)(*args).eqns))
    both = sum(map(flops, jax.make_jaxpr(jax.value_and_grad(loss, (0, 1)))(*args).eqns))
    assert both == 3 * forward


def test_local_shapes_cut_flops() -> None:
    eqn = eqn_of("dot_general", jnp.dot, f32(4, 16), f32(16, 8))
    total = work(eqn)
    assert total.matmul_flops(((4, 4), (4, 8)), ((4, 8),)) == flops(eqn) // 4  # k cut
    assert total.matmul_flops(((2, 16), (16, 8)), ((2, 8),)) == flops(eqn) // 2  # m cut


@pytest.mark.parametrize(
    ("dtype", "precision", "expected"),
    [
        (jnp.bfloat16, None, "bf16"),
        (jnp.float16, None, "bf16"),
        (jnp.float32, None, "f32"),
        (jnp.float32, "highest", "f32_highest"),
        (jnp.int8, None, "int8"),
        (jnp.float8_e4m3fn, None, "fp8"),
    ],
)
def test_dtype_classes(dtype: jnp.dtype, precision: str | None, expected: str) -> None:
    arg = jax.ShapeDtypeStruct((8, 8), dtype)
    eqn = eqn_of("dot_general", lambda a, b: lax.dot(a, b, precision=precision), arg, arg)
    assert work(eqn).dtype_class == expected
    assert V5E.peak(work(eqn).dtype_class) > 0


def _bytes(eqn: JaxprEqn) -> tuple[list[int], list[int]]:
    ins = tuple(shape_of(atom.aval) for atom in eqn.invars)
    outs = tuple(shape_of(var.aval) for var in eqn.outvars)
    w = work(eqn)
    reads = [w.operand_bytes(i, ins, outs) for i in range(len(ins))]
    return reads, [w.result_bytes(i, ins, outs) for i in range(len(outs))]


def test_a_lookup_reads_rows_not_the_table() -> None:
    eqn = eqn_of(
        "gather", lambda t, i: t.at[i].get(mode="promise_in_bounds"), f32(1000, 16), i32(4)
    )
    reads, writes = _bytes(eqn)
    assert reads == [4 * 16 * 4, 4 * 4]
    assert writes == [4 * 16 * 4]


def test_updates_are_in_place() -> None:
    scatter = eqn_of(
        "scatter-add",
        lambda t, i, u: t.at[i].add(u, mode="drop"),
        f32(1000, 16),
        i32(4),
        f32(4, 16),
    )
    reads, writes = _bytes(scatter)
    assert (reads[0], reads[2], writes) == (0, 256, [512])
    slices = eqn_of(
        "dynamic_update_slice",
        lambda t, u, i: lax.dynamic_update_slice(t, u, (i, i)),
        *(f32(1000, 16), f32(1, 16), i32()),
    )
    reads, writes = _bytes(slices)
    assert (reads[:2], writes) == ([0, 64], [64])


def test_keys_and_scalars_have_bytes() -> None:
    closed = jax.make_jaxpr(jax.random.key)(0)
    assert aval_bytes(closed.out_avals[0]) == 8
    assert aval_bytes(closed.in_avals[0]) == 4


def _seconds(eqn: JaxprEqn, chip: object = V5E) -> float:
    ins = tuple(shape_of(atom.aval) for atom in eqn.invars)
    outs = tuple(shape_of(var.aval) for var in eqn.outvars)
    return equation_seconds(work(eqn), ins, outs, V5E, (1.0,) * len(ins), (True,) * len(outs))


def test_roofline_of_a_matmul() -> None:
    large = eqn_of("dot_general", jnp.dot, bf16(8192, 8192), bf16(8192, 8192))
    ideal = 2 * 8192**3 / 197e12
    reached = ideal / V5E.matmul_efficiency * (8192 + 64) / 8192
    assert _seconds(large) == pytest.approx(reached + V5E.launch_s)
    thin = eqn_of("dot_general", jnp.dot, bf16(8, 8192), bf16(8192, 8192))
    moved = 2 * (8192 * 8192 + 2 * 8 * 8192)
    assert _seconds(thin) == pytest.approx(moved / (819e9 * V5E.hbm_efficiency) + V5E.launch_s)


def test_short_contractions_reach_what_was_measured() -> None:
    # The design: at K = 512, 0.55 to 0.76 of peak.
    eqn = eqn_of("dot_general", jnp.dot, bf16(8192, 512), bf16(512, 8192))
    share = flops(eqn) / 197e12 / (_seconds(eqn) - V5E.launch_s)
    assert 0.55 < share < 0.76


def test_dimensions_round_up_to_tiles() -> None:
    def at(m: int) -> float:
        return _seconds(eqn_of("dot_general", jnp.dot, bf16(m, 4096), bf16(4096, 16384)))

    assert at(1025) == pytest.approx(at(1152), rel=0.01)
    assert at(1025) > 1.1 * at(1024)


def test_a_convolution_handles_its_result_after_the_products() -> None:
    eqn = eqn_of("conv_general_dilated", _conv(), bf16(8, 32, 32, 128), bf16(1, 1, 128, 64))
    wide = eqn_of("conv_general_dilated", _conv(), bf16(8, 32, 32, 128), bf16(1, 1, 128, 128))
    assert _seconds(eqn) == _seconds(wide)  # 64 features fill half of the lanes
    product = Load(matmul=(1, 8 * 32 * 32, 128, 128)).seconds(V5E)
    handled = CONVOLVED * 8 * 32 * 32 * 128 / V5E.vector_flops
    assert _seconds(wide) == pytest.approx(product + handled + V5E.launch_s)


def test_a_convolution_reads_what_has_no_room_on_the_chip() -> None:
    def at(batch: int, times: float) -> float:
        x, k = bf16(batch, 32, 32, 128), bf16(1, 1, 128, 128)
        eqn = eqn_of("conv_general_dilated", _conv(), x, k)
        return equation_seconds(work(eqn), (x.shape, k.shape), (x.shape,), V5E, (times, 0), (True,))

    assert at(8, 1.0) == at(8, 2.0)
    assert at(256, 2.0) - at(256, 1.0) == pytest.approx(
        2 * 256 * 32 * 32 * 128 / (819e9 * V5E.hbm_efficiency)
    )


def test_elementwise_is_bound_by_memory() -> None:
    eqn = eqn_of("add", jnp.add, f32(4096, 4096), f32(4096, 4096))
    moved = 3 * 4 * 4096**2
    assert _seconds(eqn) == pytest.approx(moved / (819e9 * V5E.hbm_efficiency) + V5E.launch_s)


def test_inside_a_fusion_little_shows_but_never_nothing() -> None:
    eqn = eqn_of("add", jnp.add, f32(4096, 4096), f32(4096, 4096))
    shape = (4096, 4096)
    inside = equation_seconds(work(eqn), (shape, shape), (shape,), V5E, (0, 0), (False,))
    assert 0 < inside < _seconds(eqn) / 10
    half = (2048, 4096)
    cut = equation_seconds(work(eqn), (half, half), (half,), V5E, (0, 0), (False,))
    assert cut == pytest.approx(inside / 2)


def test_loops_cost_what_their_bodies_cost() -> None:
    eqn = eqn_of("scan", lambda x: lax.scan(lambda c, _: (c @ c, None), x, length=3), f32(8, 8))
    assert _seconds(eqn) == 0.0


def test_unknown_operations_are_read_and_written() -> None:
    eqn = eqn_of("cholesky", jnp.linalg.cholesky, f32(256, 256))
    assert _seconds(eqn) > 2 * 256**3 / V5E.vector_flops
    assert math.isfinite(_seconds(eqn))
