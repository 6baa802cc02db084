"""The training step: its loss, its state, and that it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from autopar.models import MLP, MLPConfig, make_init, make_train_step, preset
from autopar.models.training import cross_entropy, mean_squared_error

SMALL = {"layers": 1, "batch_size": 4, "learning_rate": 3e-3}


@pytest.mark.parametrize("name", ["mlp:tiny", "gpt:tiny", "gpt:tiny-scan", "vit:tiny"])
def test_loss_falls(name):
    workload = preset(name, **SMALL)
    batch = next(workload.batches())
    state = jax.jit(workload.init)(jax.random.key(0), batch)
    step = jax.jit(workload.train_step)
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    if name.startswith("gpt"):  # an untrained one guesses evenly
        assert abs(losses[0] - np.log(256)) < 0.2
    assert int(state.step) == 8


def test_state_is_data_alone_and_keeps_its_types():
    workload = preset("gpt:tiny", layers=1, dtype="bfloat16")
    state = workload.abstract_state()
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(state))
    after, metrics = jax.eval_shape(workload.train_step, state, workload.abstract_batch())
    assert jax.tree.structure(after) == jax.tree.structure(state)
    typed = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state)
    assert all(jax.tree.leaves(typed))
    assert {name: (m.shape, m.dtype) for name, m in metrics.items()} == {"loss": ((), jnp.float32)}


def test_cross_entropy_is_minus_log_p_in_f32():
    logits = np.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    targets = np.array([2, 0])
    expected = np.mean([np.log(np.exp([1, 2, 3]).sum()) - 3, np.log(3)])
    got = cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(targets))
    assert got.dtype == jnp.float32
    assert np.isclose(got, expected, rtol=1e-6)


def test_mean_squared_error_is_over_all_elements():
    got = mean_squared_error(jnp.ones((2, 3), jnp.bfloat16), jnp.full((2, 3), 3.0))
    assert (float(got), got.dtype) == (4.0, jnp.float32)


def test_grad_norm_is_the_length_of_a_step_of_plain_descent():
    config = MLPConfig(layers=1, inputs=3, hidden=4, outputs=2, dtype=jnp.float32)
    model, tx = MLP(config), optax.sgd(1.0)
    batch = {"inputs": jnp.arange(6.0).reshape(2, 3), "targets": jnp.ones((2, 2))}
    state = make_init(model, tx, inputs="inputs")(jax.random.key(0), batch)
    step = make_train_step(model, tx, mean_squared_error, inputs="inputs", grad_norm=True)
    after, metrics = step(state, batch)
    moved = optax.tree.sub(after.params, state.params)
    assert np.isclose(metrics["grad_norm"], optax.tree.norm(moved), rtol=1e-5)
