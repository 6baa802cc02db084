"""Small training steps whose backward passes read what their forward passes made."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

Params = dict[str, Any]

WIDTH = 16
LAYERS = 3


def batch() -> jax.Array:
    return jax.random.normal(jax.random.key(1), (8, WIDTH))


def init(stacked: bool) -> Params:
    """Weights and biases of ``LAYERS`` layers, and a key."""
    weights = jax.random.normal(jax.random.key(0), (LAYERS, WIDTH, WIDTH)) / WIDTH**0.5
    biases = jnp.full((LAYERS, WIDTH), 0.1)
    if stacked:
        return {"w": weights, "b": biases, "key": jax.random.key_data(jax.random.key(2))}
    return {
        "w": list(weights),
        "b": list(biases),
        "key": jax.random.key_data(jax.random.key(2)),
    }


def _layer(x: jax.Array, w: jax.Array, b: jax.Array, key: jax.Array) -> jax.Array:
    """Normalises, mixes, bends, drops out, adds."""
    scaled = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    hidden = jax.nn.gelu(scaled @ w + b)
    kept = jax.random.bernoulli(key, 0.9, hidden.shape)
    return checkpoint_name(x + jnp.where(kept, hidden / 0.9, 0.0) @ w.T, "stream")


def flat_loss(params: Params, x: jax.Array) -> jax.Array:
    keys = jax.random.split(jax.random.wrap_key_data(params["key"]), LAYERS)
    for w, b, key in zip(params["w"], params["b"], keys, strict=True):
        x = _layer(x, w, b, key)
    return jnp.mean(x**2)


def scan_loss(params: Params, x: jax.Array) -> jax.Array:
    keys = jax.random.split(jax.random.wrap_key_data(params["key"]), LAYERS)
    body = lambda x, ws: (_layer(x, *ws), None)  # noqa: E731
    x, _ = jax.lax.scan(body, x, (params["w"], params["b"], keys))
    return jnp.mean(x**2)


def checkpointed_loss(params: Params, x: jax.Array) -> jax.Array:
    """The author has rematerialised each layer himself."""
    keys = jax.random.split(jax.random.wrap_key_data(params["key"]), LAYERS)
    for w, b, key in zip(params["w"], params["b"], keys, strict=True):
        x = jax.checkpoint(_layer)(jnp.sin(x), w, b, key)
    return jnp.mean(x**2)


def step_of(loss: Any) -> Any:
    """One step of gradient descent on ``loss``."""

    def step(params: Params, x: jax.Array) -> tuple[Params, jax.Array]:
        trained = {k: params[k] for k in ("w", "b")}
        value, grads = jax.value_and_grad(lambda p: loss({**params, **p}, x))(trained)
        updated = jax.tree.map(lambda p, g: p - 0.1 * g, trained, grads)
        return {**params, **updated}, value

    return step
