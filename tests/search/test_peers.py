"""What peers' own tests expect of their search, of single operations and of plain networks.

Alpa's are those of tests/shard_parallel, with their numbers: four devices behind a switch with its
alpha-beta prices. Its plain planner knows no reduce-scatter: where it counts an all-reduce, a
reduce-scatter of the same payload (later gathered) is the same, as in its own variants with
reduce-scatter. Compilers combine collectives, so payloads are compared, not counts.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from peer_models import (
    SECONDS,
    cluster,
    dense,
    floats,
    mlp,
    pairs,
    parameter_bytes,
    payloads,
    reduced,
    squared,
    trained,
)
from reading import Reading, read

from autopar.core.layout import show
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster
from autopar.passes.rules import factor_rule
from autopar.search.domains import Domains

LAYERS = 6
GRADIENTS = 25_344  # bytes of all gradients of the MLP of width 32


def planned(batch: int, hidden: int, mesh: tuple[int, ...], **options: Any) -> Reading:
    on = options.pop("on", None) or cluster(*mesh)
    params = [dense(hidden, hidden)] * LAYERS
    return trained(squared(mlp), params, pairs(batch, hidden), on, **options)


def forward(reading: Reading) -> list[str]:
    """Strategies of the products of the forward pass, in order."""
    return [str(s) for s in reading.strategies("dot_general")[:LAYERS]]


def test_large_batch_is_data_parallel() -> None:
    """1: what is reduced is all gradients and nothing else."""
    reading = planned(256, 32, (4,))
    assert forward(reading) == ["S(0) B -> S(0)"] * LAYERS
    assert sum(reduced(reading)) == GRADIENTS
    assert "all-to-all" not in reading.counts()


def test_large_batch_has_its_optimizer_state_split() -> None:
    """4, 5: one reduce-scatter and at most one gather for each gradient."""
    reading = planned(256, 32, (4,))
    assert reading.counts() == {"reduce-scatter": 2 * LAYERS, "all-gather": 2 * LAYERS}
    assert reading.layouts(r"mu/\d/kernel") <= {"S(0)", "S(1)"}


def test_factored_optimizer_state() -> None:
    """6: beside the gradients, one reduction of a vector of statistics for each kernel."""
    reading = planned(256, 32, (4,), tx=optax.adafactor(1e-3, min_dim_size_to_factor=4))
    assert sum(payloads(reading, "reduce-scatter")) == GRADIENTS + LAYERS * 32 * 4
    assert sum(payloads(reading, "all-gather")) <= GRADIENTS + LAYERS * 32 * 4
    assert set(payloads(reading, "all-reduce", least=1)) <= {4}  # clipping, scalars


def test_small_batch_is_tensor_parallel() -> None:
    """2, 7: five reductions of an activation, each with its gather, and nothing else."""
    reading = planned(32, 256, (4,))
    assert {text.split()[1] for text in forward(reading)} <= {"S(0)", "S(1)"}  # no kernel whole
    assert {use.bytes for use in reading.collectives()} == {32_768}
    assert reading.counts() == {"reduce-scatter": 5, "all-gather": 5}


def test_unequal_axes() -> None:
    """3, 8: better than expected, by a quarter of the communication. Gradients are reduced over the
    cheap axis first, and what is left, half, over the dear one; Alpa is tensor parallel there.
    """
    on = cluster(2, 2, light=True, beta=(1, 0.1))
    reading = planned(256, 32, (2, 2), on=on)
    assert sum(payloads(reading, "all-reduce", "reduce-scatter")) == GRADIENTS * 3 // 2
    assert {use.bytes for use in reading.collectives() if use.axis == "data"} == {2048, 64}
    moments = [show(layout).split(",") for layout in reading.inputs(r"mu/\d/kernel").values()]
    assert all(part.startswith("S") for parts in moments for part in parts)
    activation = 256 * 32 * 4 // 2
    theirs = 5 * (1 + 0.1 * activation) + (1 + GRADIENTS / 2)  # their all-reduces, at their prices
    assert reading.plan.predicted.comm_s < 0.75 * theirs * SECONDS


@pytest.mark.parametrize("mesh", [(4,), (2, 2)])
def test_data_parallelism_may_be_forced(mesh: tuple[int, ...]) -> None:
    """9, 10: whatever it costs, over the flattened mesh."""
    names = ("data", "model")[: len(mesh)]
    pins = {"batch/.": jax.P(names), ".*(kernel|bias)": jax.P()}
    reading = planned(32, 256, mesh, pins=pins)
    assert reading.layouts("kernel") == {",".join("B" * len(mesh))}
    assert reading.layouts("batch") == {",".join(["S(0)"] * len(mesh))}


def test_save_and_load(tmp_path: Path) -> None:
    """30: the same objective, the same placements."""
    plan = planned(256, 32, (4,)).plan
    plan.save(tmp_path / "plan.json")
    again = type(plan).load(tmp_path / "plan.json")
    assert again.solver.objective_s == plan.solver.objective_s
    assert [v.layout for v in again.inputs] == [v.layout for v in plan.inputs]


def test_dropout_draws_its_bits_split() -> None:
    """26: under data parallelism nothing is reduced but the gradient (and the scalar loss)."""

    def dropped(w: jax.Array, x: jax.Array) -> Any:
        def loss(w: jax.Array) -> jax.Array:
            keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
            return jnp.mean(jnp.where(keep, x @ w, 0) ** 2)

        value, grad = jax.value_and_grad(loss)(w)
        return w - 0.1 * grad, value

    w, x = floats(32, 32), floats(1024, 32)
    reading = read(dropped, w, x, cluster=cluster(4), mesh=4, pins={"x": jax.P("data")})
    assert reading.plan.fallbacks == {}
    assert sum(reduced(reading)) == parameter_bytes(w)


def test_gather_reduces_the_gradient_of_its_table() -> None:
    """26."""

    def loss(table: Any, batch: Any) -> jax.Array:
        return jnp.mean((table[batch["ids"]] - batch["y"]) ** 2)

    table = floats(64, 32)
    batch = {"ids": jax.ShapeDtypeStruct((1024,), jnp.int32), "y": floats(1024, 32)}
    reading = trained(loss, table, batch, cluster(4), pins={"batch/.*": jax.P("data")})
    assert reduced(reading) == [parameter_bytes(table)]


def test_argmax_costs_nothing() -> None:
    """27: the input is split along the other dimension."""
    x = floats(144, 144)
    reading = read(lambda x: jnp.argmax(x, axis=0), x, cluster=cluster(4), mesh=4, donate=())
    assert reading.plan.predicted.collectives == ()
    assert reading.layouts("x") == {"S(1)"}


def test_reshape_costs_nothing() -> None:
    """28."""

    def folded(x: jax.Array) -> jax.Array:
        return jnp.sin(x).reshape(8, 18) * 2

    reading = read(folded, floats(144), cluster=cluster(4), mesh=4, donate=())
    assert reading.plan.predicted.collectives == ()
    assert reading.layouts("x") == {"S(0)"}


def test_matrix_of_a_product_is_split_over_both_axes() -> None:
    """29, on 2 x 2: every device holds a quarter of 128 x 256, and works on no more."""
    v, w = floats(128), floats(128, 256)
    reading = read(lambda v, w: v @ w, v, w, cluster=cluster(2, 2), mesh=(2, 2), donate=())
    (layout,) = reading.inputs("w").values()
    assert all(str(placement).startswith("S") for placement in layout)


def states(function: Any, primitive: str, *args: Any) -> set[str]:
    """What the search may do, on two axes, with the first equation of this primitive."""
    eqns = jax.make_jaxpr(function)(*args).eqns
    rule = factor_rule(next(eqn for eqn in eqns if eqn.primitive.name == primitive))
    assert rule is not None
    domain = Domains(MeshSpec.of((32, 8))).op(rule)
    return {
        f"{' '.join(map(show, state.operands))} -> {' '.join(map(show, state.results))}"
        for state in domain
    }


def test_reductions_of_two_axes() -> None:
    """Autoparallel: sums over split dimensions are partial, and a mean leaves them so."""
    x = floats(32, 8192, 4096)
    sums = states(lambda x: x.sum((0, 1)), "reduce_sum", x)
    assert sums >= {"S(0),S(1) -> P,P", "S(2),S(2) -> S(0),S(0)", "S(0),S(2) -> P,S(0)"}
    assert "P,P B,B -> P,P" in states(lambda x: x.mean((0, 1)), "div", x)


def test_products_of_two_axes() -> None:
    """Autoparallel's strategies of a transformer block: column, row, and both weight gradients."""
    x, up = floats(256, 6144), floats(6144, 24576)
    products = states(jnp.matmul, "dot_general", x, up)
    assert products >= {"S(0),B B,S(1) -> S(0),S(1)", "S(0),S(1) B,S(0) -> S(0),P"}
    assert products >= {"S(1),B S(0),S(1) -> P,S(1)", "S(1),S(0) S(0),B -> P,S(0)"}


def feed_forward(params: Any, x: jax.Array) -> jax.Array:
    return jax.nn.relu(x @ params["up"]) @ params["down"]


@pytest.mark.parametrize(
    ("mesh", "width", "tokens", "products"),
    [
        (
            (256,),
            1024,
            2048 * 256,
            ["S(0) B -> S(0)"] * 2 + ["S(0) S(0) -> P", "S(0) B -> S(0)", "S(0) S(0) -> P"],
        ),
        (
            (32, 8),
            6144,
            8 * 32 * 256,
            [
                *("S(0),B B,S(1) -> S(0),S(1)", "S(0),S(1) B,S(0) -> S(0),P"),
                *("S(0),B S(0),S(1) -> P,S(1)", "S(0),B B,S(0) -> S(0),S(1)"),
                "S(0),S(1) S(0),B -> P,S(0)",
            ],
        ),
    ],
)
def test_feed_forward_of_many_ranks(
    mesh: tuple[int, ...], width: int, tokens: int, products: list[str]
) -> None:
    """Autoparallel's plans of a feed-forward layer on 256 devices, batch given: on one axis data
    parallel, on two column and row; weight gradients are left partial.
    """
    params = {"up": floats(width, 4 * width), "down": floats(4 * width, width)}
    pins = {"batch/.": jax.P("data")}
    loss, on = squared(feed_forward), Cluster.preset("h100", (32, 8))
    reading = trained(loss, params, pairs(tokens, width), on, mesh=mesh, pins=pins)
    assert [str(strategy) for strategy in reading.strategies(".*dot_general.*")] == products
    assert set(reading.counts()) == {"reduce-scatter", "all-gather"}


def test_memory_decides_how_parameters_rest() -> None:
    """Autoparallel, 256 devices on one axis: with memory free parameters may rest whole, with
    memory tight they are split; products are data parallel in both.
    """
    layers = [{"up": floats(1024, 4096), "down": floats(4096, 1024)}] * 8
    args = (
        squared(lambda params, x: functools.reduce(lambda x, p: feed_forward(p, x), params, x)),
        *(layers, pairs(512 * 256, 1024), Cluster.preset("h100", (32, 8))),
    )
    options = {"mesh": (256,), "pins": {"batch/.": jax.P("data")}, "remat": "none"}
    free = trained(*args, **options)
    tight = trained(*args, **options, memory=free.plan.predicted.peak_bytes // 2)
    data = trained(*args, **options, search="data")
    assert tight.written("dot_general") == free.written("dot_general") == {"S(0) B -> S(0)"}
    whole = [list(map(show, one.inputs("state/0/").values())).count("B") for one in (free, tight)]
    assert whole[0] >= 8  # half of the kernels
    assert whole[1] <= 1  # that of the first layer's second product: nothing is live beside it
    # Theirs rest whole in the free case, moments too, for the same collectives' bytes.
    assert free.plan.predicted.peak_bytes < 0.6 * data.plan.predicted.peak_bytes
    assert free.plan.predicted.comm_s <= data.plan.predicted.comm_s


def attention_block(params: Any, x: jax.Array) -> jax.Array:
    heads = (*x.shape[:2], 48, -1)
    q, k, v = ((x @ params[name]).reshape(heads) for name in ("query", "key", "value"))
    scores = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5)
    mixed = jnp.einsum("bhqk,bkhd->bqhd", scores, v)
    x = x + mixed.reshape(x.shape) @ params["out"]
    return x + feed_forward(params, x)


def test_transformer_block_of_many_ranks() -> None:
    """Autoparallel's block of width 6144 on 32 x 8: columns, heads, rows; gradients partial."""
    width, square = 6144, floats(6144, 6144)
    ups = {"up": floats(width, 4 * width), "down": floats(4 * width, width)}
    params = {**dict.fromkeys(("query", "key", "value", "out"), square), **ups}
    loss, on = squared(attention_block), Cluster.preset("h100", (32, 8))
    pins = {"batch/.": jax.P("data")}
    reading = trained(loss, params, pairs(8 * 32, 256, width), on, mesh=(32, 8), pins=pins)
    column, row = "S(0),B B,S(1) -> S(0),S(2)", "S(0),S(2) B,S(0) -> S(0),P"
    assert [str(s) for s in reading.strategies("dot_general")] == [column] * 3 + [
        row,
        column,
        row,
    ]
    heads = {"S(0),S(1)", "S(0),S(2)"}  # of batch, heads, and batch, length, heads
    inner = reading.strategies("b.*dot_general.*")
    assert {show(layout) for one in inner for layout in one.operands} == heads
    gradients = reading.written(r"dot_general \(grad\)")
    assert {"S(0),B S(0),S(2) -> P,S(1)", "S(0),S(2) S(0),B -> P,S(0)"} < gradients
    assert set(reading.counts()) == {"reduce-scatter", "all-gather"}


def test_two_products_move_nothing() -> None:
    """XLA's auto-sharding makes these column then row, and reduces; rows need no collective."""
    args = floats(64, 64), floats(64, 128), floats(128, 64)
    on = cluster(2, 2, beta=(0.01, 1))
    reading = read(lambda x, a, b: x @ a @ b, *args, cluster=on, mesh=(2, 2), donate=())
    assert reading.written("dot_general") == {"S(0),S(0) B,B -> S(0),S(0)"}
    assert reading.counts() == {}


def test_values_smaller_than_the_mesh() -> None:
    """Autoparallel: a bias of 280 on 256 devices stays whole, and the rest is split."""

    def loss(params: Any, batch: Any) -> jax.Array:
        return jnp.mean((batch @ params["kernel"] + params["bias"]) ** 2)

    reading = trained(loss, dense(256, 280), floats(1024, 256), cluster(256))
    assert reading.layouts("0/bias") == {"B"}
    assert reading.layouts("batch") == {"S(0)"}
