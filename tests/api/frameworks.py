"""Training steps of every framework and every kind of state, small enough to compile in a test."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import nnx

IN, HIDDEN, OUT = 16, 32, 8


class Program(NamedTuple):
    """A training step, what makes its state, and a batch."""

    step: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[Any], Any]
    batch: Any


def batch_of(size: int, seed: int = 0) -> dict[str, jax.Array]:
    x, y = jax.random.split(jax.random.key(seed))
    return {"x": jax.random.normal(x, (size, IN)), "y": jax.random.normal(y, (size, OUT))}


def drawn(shape: tuple[int, ...]) -> jax.Array:
    """Something like noise, which takes no time to compile."""
    return 0.2 * jnp.sin(jnp.arange(np.prod(shape), dtype=jnp.float32) ** 2).reshape(shape)


def squared_error(out: jax.Array, batch: Any) -> jax.Array:
    return jnp.mean((out - batch["y"]) ** 2)


def trained(apply: Callable[[Any, Any], Any], init: Any, optimizer: Any, size: int = 32) -> Program:
    """The usual step around ``apply(params, x)``."""

    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> jax.Array:
            return squared_error(apply(params, batch["x"]), batch)

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, loss

    def init_state(key: Any) -> Any:
        params = init(key)
        return {"params": params, "opt": optimizer.init(params)}

    return Program(step, init_state, batch_of(size))


def linen() -> Program:
    model = nn.Sequential([nn.Dense(HIDDEN), nn.gelu, nn.LayerNorm(), nn.Dense(OUT)])
    return trained(
        model.apply, lambda key: model.init(key, jnp.ones((1, IN))), optax.adamw(1e-2, eps=1e-4)
    )


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up, self.down = nnx.Linear(IN, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, OUT, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] += 1
        return self.down(nnx.relu(self.up(x)))


def flax_nnx() -> Program:
    """The model itself, split into a static graph and its state; it counts its calls."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    graph = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))[0]

    def step(state: Any, batch: Any) -> Any:
        model = nnx.merge(graph, state["model"])
        loss, grads = nnx.value_and_grad(lambda m: squared_error(m(batch["x"]), batch))(model)
        params = nnx.state(model, nnx.Param)
        updates, opt = optimizer.update(grads, state["opt"], params)
        nnx.update(model, optax.apply_updates(params, updates))
        return {"model": nnx.state(model), "opt": opt}, loss

    def init(key: Any) -> Any:
        model = Network(nnx.Rngs(key))
        return {"model": nnx.state(model), "opt": optimizer.init(nnx.state(model, nnx.Param))}

    return Program(step, init, batch_of(32))


def plain_pytrees() -> Program:
    """Tuples and lists, no framework, gradient descent by hand."""

    def step(state: Any, batch: Any) -> Any:
        def loss_of(layers: Any) -> jax.Array:
            x = batch["x"]
            for w, b in layers[:-1]:
                x = jnp.tanh(x @ w + b)
            return squared_error(x @ layers[-1][0] + layers[-1][1], batch)

        layers, count = state
        loss, grads = jax.value_and_grad(loss_of)(layers)
        rate = 0.1 / (1 + count)
        return (jax.tree.map(lambda w, g: w - rate * g, layers, grads), count + 1), loss

    def init(key: Any) -> Any:
        del key
        shapes = ((IN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, OUT))
        return [(drawn(shape), jnp.zeros(shape[1])) for shape in shapes], jnp.zeros((), jnp.int32)

    return Program(step, init, batch_of(32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """As Equinox has it: the layer is a pytree, its activation a static part of it."""

    weight: jax.Array
    bias: jax.Array
    activation: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(x @ self.weight + self.bias)


def identity(x: Any) -> Any:
    return x


def frozen_dataclasses() -> Program:
    def apply(layers: Any, x: Any) -> Any:
        for layer in layers:
            x = layer(x)
        return x

    def init(key: Any) -> Any:
        del key
        up = Linear(drawn((IN, HIDDEN)), jnp.zeros(HIDDEN), jnp.tanh)
        return up, Linear(drawn((HIDDEN, OUT)), jnp.zeros(OUT), identity)

    return trained(apply, init, optax.sgd(0.1))


def clipped_chain() -> Program:
    """A norm over all gradients, and a schedule that counts."""
    schedule = optax.cosine_decay_schedule(1e-2, 10)
    chain = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(schedule, eps=1e-4))
    model = nn.Dense(OUT)
    return trained(model.apply, lambda key: model.init(key, jnp.ones((1, IN))), chain)


def scan_over_layers() -> Program:
    def apply(params: Any, x: Any) -> Any:
        def layer(x: Any, params: Any) -> Any:
            return x + jnp.tanh(x @ params["up"]) @ params["down"], None

        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
        return x @ params["out"]

    def init(key: Any) -> Any:
        del key
        layers = {"up": drawn((4, IN, HIDDEN)), "down": drawn((4, HIDDEN, IN))}
        return {"layers": layers, "out": drawn((IN, OUT))}

    return trained(apply, init, optax.sgd(0.05))


def noisy() -> Program:
    """A random key in the state: dropout."""

    def step(state: Any, batch: Any) -> Any:
        params, key = state
        key, now = jax.random.split(key)

        def loss_of(w: Any) -> jax.Array:
            keep = jax.random.bernoulli(now, 0.9, batch["x"].shape)
            return squared_error(jnp.where(keep, batch["x"], 0) @ w, batch)

        loss, grads = jax.value_and_grad(loss_of)(params)
        return (params - 0.1 * grads, key), loss

    def init(key: Any) -> Any:
        return drawn((IN, OUT)), key

    return Program(step, init, batch_of(32))


PROGRAMS = (
    *(linen, flax_nnx, plain_pytrees, frozen_dataclasses),
    *(clipped_chain, scan_over_layers, noisy),
)
