"""An evaluation step that follows the plan of its training step."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import autopar
from autopar.core.errors import OptionError, PinError

OPTIMIZER = optax.adam(1e-2)
CLUSTER = autopar.Cluster.preset("cpu", 8)


def init(key: jax.Array) -> dict[str, Any]:
    up, down = jax.random.split(key)
    params = {
        "up": {"kernel": jax.random.normal(up, (16, 64))},
        "down": {"kernel": jax.random.normal(down, (64, 16))},
    }
    return {"params": params, "opt_state": OPTIMIZER.init(params)}


def predict(params: Any, x: jax.Array) -> jax.Array:
    return jnp.tanh(x @ params["up"]["kernel"]) @ params["down"]["kernel"]


def train(state: dict[str, Any], x: jax.Array) -> tuple[dict[str, Any], jax.Array]:
    loss, grads = jax.value_and_grad(lambda p: jnp.mean(predict(p, x) ** 2))(state["params"])
    updates, opt_state = OPTIMIZER.update(grads, state["opt_state"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt_state": opt_state}, loss


def evaluate(params: Any, x: jax.Array) -> jax.Array:
    return jnp.mean(predict(params, x) ** 2)


STATE = jax.eval_shape(init, jax.random.key(0))
BATCH = jax.ShapeDtypeStruct((32, 16), jnp.float32)


@pytest.fixture(scope="module")
def plan() -> autopar.Plan:
    return autopar.plan(train, STATE, BATCH, cluster=CLUSTER, mesh=(2, 4), search="random", seed=3)


def test_parameters_lie_as_in_training(plan: autopar.Plan) -> None:
    followed = autopar.plan(evaluate, STATE["params"], BATCH, cluster=CLUSTER, like=plan, donate=())
    assert followed.mesh == plan.mesh
    assert followed.in_specs[0] == plan.in_specs[0]["params"]
    assert followed.in_specs[1] == plan.in_specs[1]
    assert any(spec != jax.P() for spec in jax.tree.leaves(followed.in_specs[0]))


def test_state_goes_from_one_step_to_the_other_as_it_lies(plan: autopar.Plan) -> None:
    training = autopar.parallelize(plan=plan)(train)
    evaluation = autopar.parallelize(cluster=CLUSTER, like=plan, donate=())(evaluate)
    x = jax.random.normal(jax.random.key(1), BATCH.shape)
    state = training.init(init, jax.random.key(0), batch=x)
    loss = evaluation(state["params"], x)
    shardings, _ = evaluation.shardings(state["params"], x)
    for leaf, sharding in zip(
        jax.tree.leaves(state["params"]), jax.tree.leaves(shardings[0]), strict=True
    ):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    np.testing.assert_allclose(loss, evaluate(init(jax.random.key(0))["params"], x), rtol=1e-5)


def test_what_cannot_be_followed(plan: autopar.Plan) -> None:
    other = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(PinError, match="unlike those of this step"):
        autopar.plan(jnp.sin, other, cluster=CLUSTER, like=plan, donate=())
    args: Any = (evaluate, STATE["params"], BATCH)
    with pytest.raises(OptionError, match="is not the mesh of the plan to follow"):
        autopar.plan(*args, cluster=CLUSTER, like=plan, mesh=8, donate=())
    with pytest.raises(OptionError, match="is not a Plan"):
        autopar.plan(*args, cluster=CLUSTER, like="plan.json", donate=())  # type: ignore[arg-type]
