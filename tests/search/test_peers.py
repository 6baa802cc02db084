"""What Alpa's own tests expect of its search (tests/shard_parallel), found here too.

Four devices behind a switch with Alpa's alpha-beta prices. Alpa prices no work and so has to forbid
replicating it; here work is made dear instead, so that splitting it is always right. Its plain
planner knows no reduce-scatter: where it counts an all-reduce, a reduce-scatter of the same payload
(later gathered) is the same, as in its own variants with reduce-scatter. Numbers are those of the
table in its tests: payload bytes of collectives.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from reading import Reading, read

from autopar.cost_model import Cluster
from autopar.cost_model.hardware import Level

LAYERS = 6
SECONDS = 1e-6  # of Alpa's unit of cost
TX = optax.adam(1e-3)


def cluster(*sizes: int) -> Cluster:
    """Alpa's device mesh: one level of links per axis, alpha = beta = 1."""
    chip = dataclasses.replace(
        Cluster.preset("cpu", 1).chip,
        f32_flops=1e4,
        vector_flops=1e4,
        hbm_bandwidth=1e6,
        launch_s=0.0,
        matmul_tile=1,
        matmul_half_k=0,
    )
    levels = tuple(
        Level(f"axis{i}", size, "switch", 1 / SECONDS, SECONDS) for i, size in enumerate(sizes)
    )
    return Cluster("alpa", chip, sizes, levels)


def step(state: Any, batch: Any) -> Any:
    def loss(params: Any) -> jax.Array:
        x = batch["x"]
        for layer in params:
            x = jnp.maximum(x @ layer["kernel"] + layer["bias"], 0)
        return jnp.mean((x - batch["y"]) ** 2)

    params, opt = state
    updates, opt = TX.update(jax.grad(loss)(params), opt)
    return optax.apply_updates(params, updates), opt


def mlp(batch: int, hidden: int, mesh: tuple[int, ...], **options: Any) -> Reading:
    x = jax.ShapeDtypeStruct((batch, hidden), jnp.float32)
    kernel = jax.ShapeDtypeStruct((hidden, hidden), jnp.float32)
    bias = jax.ShapeDtypeStruct((hidden,), jnp.float32)
    params = [{"kernel": kernel, "bias": bias}] * LAYERS
    state = (params, jax.eval_shape(TX.init, params))
    return read(step, state, {"x": x, "y": x}, cluster=cluster(*mesh), mesh=mesh, **options)


def forward(reading: Reading) -> list[str]:
    """Strategies of the products of the forward pass, in order."""
    return [str(s) for s in reading.strategies("dot_general")[:LAYERS]]


def reduced(reading: Reading) -> list[int]:
    """Payloads of every reduction to more than a scalar."""
    return [
        use.bytes
        for use in reading.collectives(least_bytes=5)
        if use.kind in ("all-reduce", "reduce-scatter")
        for _ in range(use.count)
    ]


def test_large_batch_is_data_parallel() -> None:
    """1: what is reduced is all gradients and nothing else, 25,344 bytes."""
    reading = mlp(256, 32, (4,))
    assert forward(reading) == ["S(0) B -> S(0)"] * LAYERS
    assert sum(reduced(reading)) == 25_344
    assert "all-to-all" not in reading.counts()


def test_large_batch_has_its_optimizer_state_split() -> None:
    """4, 5: one reduce-scatter and at most one gather for each gradient."""
    reading = mlp(256, 32, (4,))
    assert reading.counts() == {"reduce-scatter": 2 * LAYERS, "all-gather": 2 * LAYERS}
    assert reading.layouts(r"mu/\d/kernel") <= {"S(0)", "S(1)"}


def test_small_batch_is_tensor_parallel() -> None:
    """2, 7: five reductions of an activation, each with its gather, and nothing else."""
    reading = mlp(32, 256, (4,))
    assert {text.split()[1] for text in forward(reading)} <= {"S(0)", "S(1)"}  # no kernel whole
    assert {use.bytes for use in reading.collectives()} == {32_768}
    assert reading.counts() == {"reduce-scatter": 5, "all-gather": 5}


@pytest.mark.parametrize("mesh", [(4,), (2, 2)])
def test_data_parallelism_may_be_forced(mesh: tuple[int, ...]) -> None:
    """9, 10: whatever it costs, over the flattened mesh."""
    names = ("data", "model")[: len(mesh)]
    pins = {"batch/.": jax.P(names), ".*(kernel|bias)": jax.P()}
    reading = mlp(32, 256, mesh, pins=pins)
    assert reading.layouts("kernel") == {",".join("B" * len(mesh))}
    assert reading.layouts("batch") == {",".join(["S(0)"] * len(mesh))}


def test_save_and_load(tmp_path: Path) -> None:
    """30: the same objective, the same placements."""
    plan = mlp(256, 32, (4,)).plan
    plan.save(tmp_path / "plan.json")
    again = type(plan).load(tmp_path / "plan.json")
    assert again.solver.objective_s == plan.solver.objective_s
    assert [v.layout for v in again.inputs] == [v.layout for v in plan.inputs]


def test_argmax_costs_nothing() -> None:
    """27: the input is split along the other dimension."""
    x = jax.ShapeDtypeStruct((144, 144), jnp.float32)
    reading = read(lambda x: jnp.argmax(x, axis=0), x, cluster=cluster(4), mesh=4, donate=())
    assert reading.plan.predicted.collectives == ()
    assert reading.layouts("x") == {"S(1)"}


def test_reshape_costs_nothing() -> None:
    """28."""
    x = jax.ShapeDtypeStruct((144,), jnp.float32)
    reading = read(
        lambda x: jnp.sin(x).reshape(8, 18) * 2, x, cluster=cluster(4), mesh=4, donate=()
    )
    assert reading.plan.predicted.collectives == ()
    assert reading.layouts("x") == {"S(0)"}


def test_matrix_of_a_product_is_split_over_both_axes() -> None:
    """29, on 2 x 2: every device holds a quarter of 128 x 256, and works on no more."""
    v = jax.ShapeDtypeStruct((128,), jnp.float32)
    w = jax.ShapeDtypeStruct((128, 256), jnp.float32)
    reading = read(lambda v, w: v @ w, v, w, cluster=cluster(2, 2), mesh=(2, 2), donate=())
    (layout,) = reading.inputs("w").values()
    assert all(str(placement).startswith("S") for placement in layout)


def test_dropout_draws_its_bits_split() -> None:
    """26: under data parallelism nothing is reduced but the gradient (and the scalar loss)."""

    def dropped(w: jax.Array, x: jax.Array) -> Any:
        def loss(w: jax.Array) -> jax.Array:
            keep = jax.random.bernoulli(jax.random.key(0), 0.5, x.shape)
            return jnp.mean(jnp.where(keep, x @ w, 0) ** 2)

        value, grad = jax.value_and_grad(loss)(w)
        return w - 0.1 * grad, value

    w = jax.ShapeDtypeStruct((32, 32), jnp.float32)
    x = jax.ShapeDtypeStruct((1024, 32), jnp.float32)
    reading = read(dropped, w, x, cluster=cluster(4), mesh=4, pins={"x": jax.P("data")})
    assert reading.plan.fallbacks == {}
    assert sum(reduced(reading)) == 32 * 32 * 4
