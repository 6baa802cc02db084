"""The training step: its loss, its state, and that it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from autopar.models import MLP, MLPConfig, make_init, make_train_step, preset
from autopar.models.training import cross_entropy, mean_squared_error

SMALL = {"layers": 1, "batch_size": 4, "learning_rate": 3e-3}
LARGER = {
    "moe:tiny": {**SMALL, "experts_every": 1},
    "t5:tiny": SMALL,
    "lstm:tiny": SMALL,
    "resnet:tiny": {"stages": (1,), "batch_size": 4, "learning_rate": 3e-3},
}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *((n, SMALL) for n in ("mlp:tiny", "gpt:tiny", "gpt:tiny-scan", "vit:tiny", "llama:tiny")),
        *(pytest.param(n, options, marks=pytest.mark.slow) for n, options in LARGER.items()),
    ],
)
def test_loss_falls(name, options):
    workload = preset(name, **options)
    batch = next(workload.batches())
    state = jax.jit(workload.init)(jax.random.key(0), batch)
    step = jax.jit(workload.train_step)
    losses = []
    for _ in range(8):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[-1] < 0.8 * losses[0]
    if name.startswith(("gpt", "llama")):  # an untrained one guesses evenly
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


class Everything(nn.Module):
    """A layer with statistics, random numbers and a loss of its own."""

    own: float

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8)(x)
        self.sow("losses", "own", jnp.full(2, self.own))
        training = self.is_mutable_collection("batch_stats")
        x = nn.BatchNorm(use_running_average=not training)(x)
        return nn.Dropout(0.5, deterministic=not self.has_rng("dropout"))(x)


def test_statistics_keys_and_layers_own_losses_are_part_of_training():
    batch = {"x": jnp.arange(12.0).reshape(4, 3), "targets": jnp.ones((4, 8))}
    tx = optax.sgd(0.1)
    state = make_init(Everything(0.0), tx, inputs="x", keyed=True)(jax.random.key(0), batch)
    assert set(state.variables) == {"batch_stats"}

    def train(state, own=0.0):
        return make_train_step(Everything(own), tx, mean_squared_error, inputs=("x",))(state, batch)

    (after, told), (_, again), (_, more) = train(state), train(state), train(state, own=3.0)
    assert float(told["loss"]) == float(again["loss"])
    assert np.isclose(more["loss"] - told["loss"], 6.0, atol=1e-5)
    mean = [s.variables["batch_stats"]["BatchNorm_0"]["mean"] for s in (state, after)]
    assert not np.array_equal(*mean)
    later = state.replace(step=state.step + 1)
    assert float(train(later)[1]["loss"]) != float(told["loss"])
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_dropout_takes_a_key_and_keeps_quiet_without():
    assert preset("gpt:tiny").abstract_state().key is None
    assert preset("gpt:tiny", dropout=0.1).abstract_state().key is not None
