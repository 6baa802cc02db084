"""No framework: parameters in a dict, momentum by hand, and the plan as a thing to hold.

``autopar.plan`` decides, ``autopar.apply`` carries out; in between, the plan can be read, saved and
loaded again.
"""

import tempfile
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp

import autopar

jax.config.update("jax_num_cpu_devices", 8)

WIDTHS = (64, 512, 512, 8)


def init(key):
    """Parameters and their velocities."""
    params = {}
    for layer, (rows, columns) in enumerate(pairwise(WIDTHS)):
        key, of_layer = jax.random.split(key)
        weights = jax.random.normal(of_layer, (rows, columns)) / jnp.sqrt(rows)
        params[f"layer_{layer}"] = {"w": weights, "b": jnp.zeros(columns)}
    return {"params": params, "velocity": jax.tree.map(jnp.zeros_like, params)}


def predict(params, x):
    """A multi-layer perceptron."""
    for layer in range(len(WIDTHS) - 1):
        x = x @ params[f"layer_{layer}"]["w"] + params[f"layer_{layer}"]["b"]
        x = jnp.tanh(x) if layer < len(WIDTHS) - 2 else x
    return x


def train_step(state, batch):
    """Gradient descent with momentum, as it would be written for one device."""

    def loss_of(params):
        return jnp.mean((predict(params, batch["x"]) - batch["y"]) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(state["params"])
    velocity = jax.tree.map(lambda v, g: 0.9 * v + g, state["velocity"], grads)
    params = jax.tree.map(lambda p, v: p - 0.05 * v, state["params"], velocity)
    return {"params": params, "velocity": velocity}, loss


x = jax.random.normal(jax.random.key(1), (256, WIDTHS[0]))
batch = {"x": x, "y": jnp.sin(x[:, : WIDTHS[-1]])}
shapes = jax.eval_shape(init, jax.random.key(0)), jax.eval_shape(lambda: batch)

plan = autopar.plan(
    train_step,
    *shapes,
    mesh={"data": 4, "model": 2},
    pins={"layer_1/w": jax.P(None, "model")},  # by the end of its path: weights and velocity
)
with tempfile.TemporaryDirectory() as folder:
    plan.save(Path(folder, "plan.json"))
    plan = autopar.Plan.load(Path(folder, "plan.json"))
print(plan, end="\n\n")

sharded_step, plain_step = autopar.apply(train_step, plan), jax.jit(train_step)
sharded = plain = init(jax.random.key(0))
for step in range(21):
    sharded, loss = sharded_step(sharded, batch)
    plain, plain_loss = plain_step(plain, batch)
    if step % 5 == 0:
        print(f"step {step:2}  loss {loss:.6f}  on one device {plain_loss:.6f}")
