"""Small training steps of every style a user may write, on plain arrays."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

Params = dict[str, Any]


def mlp_init(key: jax.Array, width: int = 32, layers: int = 2) -> Params:
    keys = jax.random.split(key, layers)
    return {
        f"layer_{i}": {
            "kernel": jax.random.normal(k, (width, width)) / width**0.5,
            "bias": jnp.zeros((width,)),
        }
        for i, k in enumerate(keys)
    }


def mlp_apply(params: Params, x: jax.Array) -> jax.Array:
    for layer in params.values():
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return x


def sgd_step(params: Params, batch: Params) -> tuple[Params, jax.Array]:
    """Plain pytrees, no optimiser library."""

    def loss(p: Params) -> jax.Array:
        return jnp.mean((mlp_apply(p, batch["x"]) - batch["y"]) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


TX = optax.chain(optax.clip_by_global_norm(0.1), optax.adamw(1e-2))


def adam_init(key: jax.Array, width: int = 32) -> Params:
    params = mlp_init(key, width)
    return {"params": params, "opt": TX.init(params)}


def adam_step(state: Params, batch: Params) -> tuple[Params, jax.Array]:
    """An optax chain with clipping by the global norm."""

    def loss(p: Params) -> jax.Array:
        return jnp.mean((mlp_apply(p, batch["x"]) - batch["y"]) ** 2)

    value, grads = jax.value_and_grad(loss)(state["params"])
    updates, opt = TX.update(grads, state["opt"], state["params"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, value


def batch_of(size: int = 16, width: int = 32, seed: int = 1) -> Params:
    x, y = jax.random.normal(jax.random.key(seed), (2, size, width))
    return {"x": x, "y": jnp.tanh(y)}


def shapes(tree: Any) -> Any:
    """Shapes and dtypes of arrays."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
