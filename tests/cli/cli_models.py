"""Models that the command line is pointed at."""

import dataclasses

import jax
import jax.numpy as jnp

from autopar.models import preset

SIZE = {"layers": 1, "inputs": 8, "outputs": 8, "use_bias": False, "batch_size": 16}

not_a_function = 5


def workload():
    """A workload small enough to be planned in a second."""
    return preset("mlp:tiny", **SIZE)


def step(state, batch):
    def loss_of(w):
        return jnp.mean((batch @ w) ** 2)

    loss, grad = jax.value_and_grad(loss_of)(state["w"])
    return {"w": state["w"] - 0.1 * grad}, {"loss": loss}


def pair():
    state = {"w": jax.ShapeDtypeStruct((16, 8), "float32")}
    return step, (state, jax.ShapeDtypeStruct((32, 16), "float32"))


def triple():
    return (*pair(), 3)


def number():
    return 3


def without_loss():
    """A workload whose step reports no loss."""
    whole = workload()

    def train_step(state, batch):
        return whole.train_step(state, batch)[0], {"accuracy": jnp.zeros(())}

    return dataclasses.replace(whole, train_step=train_step)


def rising():
    """A workload that climbs its loss."""
    return preset("mlp:tiny", **SIZE, learning_rate=-0.05)
