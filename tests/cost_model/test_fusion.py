"""Fusion borders of small programs, by hand."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.extend.core import Jaxpr

from autopar.cost_model import FusionBorders, fusion_borders
from autopar.cost_model.fusion_graph import LONGEST_ROW
from autopar.cost_model.work import VECTOR_WEIGHTS
from autopar.passes.simplify import simplify


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def bf16(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.bfloat16)


def i32(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def analyse(fn: Callable[..., object], *args: jax.ShapeDtypeStruct) -> tuple[Jaxpr, FusionBorders]:
    jaxpr = simplify(jax.make_jaxpr(fn)(*args)).jaxpr
    return jaxpr, fusion_borders(jaxpr)


def written(fn: Callable[..., object], *args: jax.ShapeDtypeStruct) -> list[str]:
    """The primitives whose results are written, in program order."""
    jaxpr, borders = analyse(fn, *args)
    return [e.primitive.name for e in jaxpr.eqns if any(v in borders.writes for v in e.outvars)]


def reads(fn: Callable[..., object], *args: jax.ShapeDtypeStruct) -> dict[str, tuple[float, ...]]:
    """What the equations that read anything read."""
    jaxpr, borders = analyse(fn, *args)
    return {e.primitive.name: borders.reads_of(e) for e in jaxpr.eqns if any(borders.reads_of(e))}


def test_elementwise_chain_is_one_kernel() -> None:
    def fn(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.tanh(jnp.exp(x) * y)

    assert written(fn, f32(8, 8), f32(8, 8)) == ["tanh"]
    # The last equation pays for both inputs, on its one operand.
    assert reads(fn, f32(8, 8), f32(8, 8)) == {"tanh": (2.0,)}


def test_what_two_operands_share_is_read_once() -> None:
    assert reads(lambda x: jnp.exp(x) + jnp.sin(x), f32(8, 8)) == {"add": (1.0, 0.0)}


def test_a_reduction_joins_the_kernel_that_makes_what_it_reduces() -> None:
    def softmax(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        scores = x @ w
        return scores, jnp.exp(scores - scores.max(-1, keepdims=True)).sum(-1)

    found = reads(softmax, f32(64, 32), f32(32, 5000))
    assert "reduce_max" not in found
    assert found["reduce_sum"][0] > 0  # needs whole rows first: a pass of its own
    jaxpr, borders = analyse(softmax, f32(64, 32), f32(32, 5000))
    (total,) = [e for e in jaxpr.eqns if e.primitive.name == "reduce_sum"]
    weights = VECTOR_WEIGHTS["exp"] + 1  # and the subtraction
    assert borders.beside[total.outvars[0]] == weights


def test_an_update_reads_what_its_parts_share_once() -> None:
    def adam(p: jax.Array, m: jax.Array, n: jax.Array, g: jax.Array, count: jax.Array) -> object:
        count = count + 1
        m, n = 0.9 * m + g, 0.9 * n + g * g
        return p - m / (jnp.sqrt(n) + 1e-8) / (1 - 0.9**count), m, n, count

    jaxpr, borders = analyse(adam, *[f32(64, 32)] * 4, f32())
    whole = [e for e in jaxpr.eqns if e.outvars[0].aval.shape and e.outvars[0] in borders.writes]
    assert len(whole) == 3
    assert sum(sum(borders.reads_of(eqn)) for eqn in whole) == pytest.approx(
        4, rel=1e-3
    )  # p, m, n, g


def test_bias_and_activation_join_the_matmul() -> None:
    def fn(x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.tanh(x @ w + b)

    args = f32(64, 32), f32(32, 16), f32(16)
    assert written(fn, *args) == ["tanh"]
    jaxpr, borders = analyse(fn, *args)
    dot = jaxpr.eqns[0]
    assert borders.of(dot)[:2] == (
        (1.0, 1.0),
        (True,),
    )  # pays for its operands and the chain's result
    last = jaxpr.eqns[-1]
    assert borders.writes_of(last) == (False,)
    assert set(borders.sources[last.outvars[0]]) == set(jaxpr.invars)


def test_a_chain_stops_where_two_use_it() -> None:
    def fn(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = x @ w + 1.0
        return (jnp.exp(h) @ w).sum(), (jnp.sin(h) @ w).sum()

    names = written(fn, f32(64, 32), f32(32, 32))
    assert names == ["add", "dot_general", "reduce_sum", "dot_general", "reduce_sum"]


def test_a_chain_keeps_its_narrow_side() -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.nn.softmax((x @ w).astype(jnp.float32) * 2.0)

    long = 2 * LONGEST_ROW
    jaxpr, borders = analyse(fn, bf16(64, 32), bf16(32, long))
    assert jaxpr.eqns[0].outvars[0] in borders.writes  # bf16, not the f32 values that follow

    def back(x: jax.Array, w: jax.Array) -> jax.Array:
        return jnp.tanh((x @ w).astype(jnp.float32)).astype(jnp.bfloat16)

    assert written(back, bf16(64, 32), bf16(32, 32)) == ["convert_element_type"]


@pytest.mark.parametrize(
    ("scale", "first"), [(1.0, ["dot_general", "reduce_max"]), (2.0, ["reduce_max", "exp"])]
)
def test_a_chain_goes_through_a_softmax_of_rows_that_fit(scale: float, first: list[str]) -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        scores = (x @ w).astype(jnp.float32)
        return jax.nn.softmax(scores * scale if scale != 1 else scores).astype(jnp.bfloat16) @ w

    # Scores that are merely widened are written as they are: their maximum is that of bf16.
    assert written(fn, bf16(64, 32), bf16(32, 32)) == [*first, "reduce_sum", "dot_general"]


def test_a_look_up_of_one_entry_a_row_reads_what_its_row_is_made_of() -> None:
    def fn(x: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.take_along_axis(jnp.tanh(x), labels[:, None], axis=-1)

    names = written(fn, f32(64, 32), jax.ShapeDtypeStruct((64,), jnp.int32))
    assert "tanh" not in names
    assert "gather" in names


def test_two_matmuls_cannot_end_in_one_sum() -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w + x.T @ w

    assert written(fn, f32(32, 32), f32(32, 32)) == ["dot_general", "add"]


def test_views_are_their_root() -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        return (x @ w).reshape(8, 4, 16).transpose(1, 0, 2).sum(0)

    jaxpr, borders = analyse(fn, f32(32, 8), f32(8, 16))
    assert written(fn, f32(32, 8), f32(8, 16)) == ["dot_general", "reduce_sum"]
    views = [e for e in jaxpr.eqns if e.primitive.name in ("reshape", "transpose")]
    assert len(views) == 2
    assert {borders.root(e.outvars[0]) for e in views} == {jaxpr.eqns[0].outvars[0]}


def test_a_result_that_is_a_view_of_an_input_is_not_written() -> None:
    assert written(lambda x: x.T, f32(4, 8)) == []


def test_recomputed_or_kept() -> None:
    def one_source(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        h = x @ w
        e = jnp.exp(h)
        return e @ w, (e * h).sum(0)

    def three_sources(x: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
        a, b, c = x @ w, x.T @ w, jnp.sin(x) @ w
        mix = jnp.exp(a) * b * c
        return mix @ w, (mix * a * b * c).sum(0)

    args = f32(32, 32), f32(32, 32)
    assert "exp" not in written(one_source, *args)  # recomputed in both
    assert written(three_sources, *args).count("mul") == 1  # three sources behind one value


def _convolve(x: jax.Array, k: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("readers", [2, 3])
@pytest.mark.parametrize("grouped", [True, False])
def test_what_few_convolutions_read_is_recomputed(readers: int, grouped: bool) -> None:
    """Two read four values for it; that is less than to write one, read it twice, and its two."""

    def fn(x: jax.Array, y: jax.Array, k: jax.Array) -> list[jax.Array]:
        normed = jnp.tanh(lax.cumsum(x) * lax.cumsum(y))
        return [_convolve(normed, k + i) for i in range(readers)]

    jaxpr = simplify(jax.make_jaxpr(fn)(*[bf16(8, 4, 4, 16)] * 2, bf16(1, 1, 16, 16))).jaxpr
    borders = fusion_borders(jaxpr, grouped=grouped)
    (normed,) = [e.outvars[0] for e in jaxpr.eqns if e.primitive.name == "tanh"]
    assert (normed in borders.writes) == (readers > 2 or not grouped)


def test_a_convolutions_kernel_reads_what_goes_on_in_it() -> None:
    """The gradient of a norm and a rectifier: its mask and its sums are made in one kernel."""

    def fn(grad: jax.Array, k: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
        back = jnp.where(x > 0, _convolve(grad, k), 0)
        return back, back.sum((0, 1, 2)), (back * x).sum((0, 1, 2))

    found = reads(fn, f32(8, 4, 4, 16), f32(1, 1, 16, 16), f32(8, 4, 4, 16))
    assert found == {"conv_general_dilated": (2.0, 1.0)}  # the gradient, and ``x`` once
    jaxpr, borders = analyse(fn, f32(8, 4, 4, 16), f32(1, 1, 16, 16), f32(8, 4, 4, 16))
    kernels = [e.primitive.name for e in jaxpr.eqns if any(borders.writes_of(e))]
    assert kernels == ["conv_general_dilated"]


def test_lookups_need_their_table_written() -> None:
    def fn(t: jax.Array, i: jax.Array) -> jax.Array:
        return t.astype(jnp.bfloat16).at[i].get(mode="promise_in_bounds") * 2

    names = written(fn, f32(100, 16), i32(4))
    assert names[0] == "convert_element_type"
    assert "gather" in names


def test_one_hot_scatter_is_elementwise_and_an_embeddings_is_not() -> None:
    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jnp.take_along_axis(logits, labels[:, None], axis=-1).sum()

    def embed(table: jax.Array, ids: jax.Array) -> jax.Array:
        return table[ids].sum()

    assert (
        "scatter-add" not in written(jax.grad(lambda x, i: loss(x * 2, i)), f32(8, 32), i32(8))[:-1]
    )
    assert "scatter-add" in written(jax.grad(embed), f32(100, 16), i32(4))


def test_cheap_values_are_never_written() -> None:
    def fn(x: jax.Array) -> jax.Array:
        mask = lax.broadcasted_iota(jnp.int32, (8, 8), 0) > 3
        return lax.fori_loop(0, 3, lambda _, c: jnp.where(mask, c, 0.0), x)

    jaxpr, borders = analyse(fn, f32(8, 8))
    iota = [e for e in jaxpr.eqns if e.primitive.name in ("iota", "gt")]
    assert iota
    assert not any(v in borders.writes for e in iota for v in e.outvars)


def test_bodies_are_analysed_too() -> None:
    def fn(x: jax.Array, ws: jax.Array) -> jax.Array:
        return lax.scan(lambda c, w: (jnp.tanh(c @ w) + 1, None), x, ws)[0]

    jaxpr, borders = analyse(fn, f32(8, 8), f32(3, 8, 8))
    (scan,) = [e for e in jaxpr.eqns if e.primitive.name == "scan"]
    assert borders.of(scan) == ((0.0,) * len(scan.invars), (True,) * len(scan.outvars), 0.0)
    body = scan.params["jaxpr"].jaxpr
    assert [e.primitive.name for e in body.eqns if e.outvars[0] in borders.writes] == ["add"]


@pytest.mark.parametrize(("precision", "narrow"), [(None, True), ("highest", False)])
def test_f32_values_for_matmuls_only(precision: str | None, narrow: bool) -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        h = jnp.dot(x, w)
        return jnp.dot(h, w, precision=precision)

    jaxpr, borders = analyse(fn, f32(8, 8), f32(8, 8))
    assert (jaxpr.eqns[0].outvars[0] in borders.narrow) is narrow
    assert jaxpr.outvars[0] not in borders.narrow
