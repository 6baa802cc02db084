"""A `custom_partitioning` is cut as its own sharding rule says, by its own partition function."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.custom_partitioning import custom_partitioning

import autopar

CPU8 = autopar.Cluster.preset("cpu", 8)
W = jax.random.normal(jax.random.key(0), (16, 32)) / 4
X = jax.random.normal(jax.random.key(1), (64, 16))


def normalised(x: jax.Array, power: int) -> jax.Array:
    return x**power / jnp.sum(x**power, axis=-1, keepdims=True)


def partition(power: int, mesh: Any, args: Any, result: Any) -> Any:
    del result
    sharding = args[0].sharding
    return mesh, lambda x: normalised(x, power), sharding, (sharding,)


own = custom_partitioning(normalised, static_argnums=(1,))
own.def_partition(partition, sharding_rule="i j -> i j", need_replication_factors=("j",))


def step_of(function: Callable[..., Any]) -> Callable[..., Any]:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return function(jnp.exp(x), 2) @ w

    return step


def test_it_is_split_as_its_author_says() -> None:
    """Without a warning: all rows stay where they are, on both backends."""
    step = step_of(own)
    plan = autopar.plan(step, W, X, cluster=CPU8, donate=())
    assert plan.fallbacks == {}
    assert not plan.predicted.collectives
    assert plan.outputs[0].spec(plan.mesh)[0] is not None
    for backend in ("jit", "shard_map"):
        planned = autopar.apply(step, plan, backend=backend, donate=())
        np.testing.assert_allclose(planned(W, X), step_of(normalised)(W, X), rtol=1e-5, atol=1e-6)
        assert "all-gather" not in planned.compile(W, X).as_text()


@pytest.mark.parametrize("seed", range(4))
def test_whatever_plan_is_drawn_is_right(seed: int) -> None:
    step = step_of(own)
    plan = autopar.plan(
        step, W, X, cluster=CPU8, mesh=(4, 2), search="random", seed=seed, donate=()
    )
    for backend in ("jit", "shard_map"):
        got = autopar.apply(step, plan, backend=backend, donate=())(W, X)
        np.testing.assert_allclose(got, step_of(normalised)(W, X), rtol=1e-5, atol=1e-6)


def test_a_partition_function_that_contradicts_its_rule() -> None:
    def whole(mesh: Any, args: Any, result: Any) -> Any:
        del args, result
        everywhere = jax.NamedSharding(mesh, jax.P())
        return mesh, jnp.sin, everywhere, (everywhere,)

    sine = custom_partitioning(jnp.sin)
    sine.def_partition(whole, sharding_rule="i j -> i j")

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return sine(x) @ w

    plan = autopar.plan(step, W, X, cluster=CPU8, donate=())
    place = rf"{Path(__file__).name}:{step.__code__.co_firstlineno + 1}"
    with pytest.raises(autopar.AutoparError, match=f"{place}: .*answers P.*correct one"):
        autopar.apply(step, plan, backend="shard_map", donate=())(W, X)
