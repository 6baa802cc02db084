"""Training steps of layers with fused projections, in plain JAX, and of the same layers unfused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

HEADS = 8

Tree = Any
Projection = Callable[[Tree, jax.Array], list[jax.Array]]


def _normal(key: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(key).normal(size=shape), jnp.float32)


def dense(key: int, *shape: int) -> Tree:
    return {"w": _normal(key, *shape) * shape[-2] ** -0.5, "b": 0.1 * _normal(key + 1, shape[-1])}


def apply(p: Tree, x: jax.Array) -> jax.Array:
    return x @ p["w"] + p["b"]


def by_split(p: Tree, x: jax.Array) -> list[jax.Array]:
    """As GPT-2 and nanoGPT have it."""
    return jnp.split(apply(p["qkv"], x), 3, axis=-1)


def by_slices(p: Tree, x: jax.Array) -> list[jax.Array]:
    h, d = apply(p["qkv"], x), x.shape[-1]
    return [h[..., :d], h[..., d : 2 * d], h[..., 2 * d :]]


def by_index(p: Tree, x: jax.Array) -> list[jax.Array]:
    h = apply(p["qkv"], x).reshape(*x.shape[:-1], 3, -1)
    return [h[..., i, :] for i in range(3)]


def by_unpacking(p: Tree, x: jax.Array) -> list[jax.Array]:
    h = apply(p["qkv"], x).reshape(*x.shape[:-1], 3, HEADS, -1)
    return [t.reshape(x.shape) for t in jnp.moveaxis(h, -3, 0)]


def in_two_goes(p: Tree, x: jax.Array) -> list[jax.Array]:
    q, kv = jnp.split(apply(p["qkv"], x), [x.shape[-1]], axis=-1)
    return [q, *jnp.split(kv, 2, axis=-1)]


def unfused(p: Tree, x: jax.Array) -> list[jax.Array]:
    return [apply(p[name], x) for name in "qkv"]


FUSED = (by_split, by_slices, by_index, by_unpacking, in_two_goes)


def _norm(x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)


def attention(project: Projection) -> Callable[[Tree, jax.Array], jax.Array]:
    """A residual block of causal attention."""

    def block(p: Tree, x: jax.Array) -> jax.Array:
        q, k, v = (t.reshape(*x.shape[:-1], HEADS, -1) for t in project(p, _norm(x)))
        scores = jnp.einsum("bshd,bthd->bhst", q, k) * q.shape[-1] ** -0.5
        seen = jnp.tril(jnp.ones(scores.shape[-2:], bool))
        weights = jax.nn.softmax(jnp.where(seen, scores, -1e9))
        mixed = jnp.einsum("bhst,bthd->bshd", weights, v)
        return x + apply(p["out"], mixed.reshape(x.shape))

    return block


def swiglu(p: Tree, x: jax.Array) -> jax.Array:
    gate, up = jnp.split(apply(p["gate_up"], x), 2, axis=-1)
    return x + apply(p["down"], jax.nn.silu(gate) * up)


def lstm(p: Tree, x: jax.Array) -> jax.Array:
    """Over the second dimension of ``x``; all four gates in one product."""

    def cell(carry: Any, x: jax.Array) -> Any:
        h, c = carry
        i, f, g, o = jnp.split(apply(p["gates"], jnp.concatenate([x, h], -1)), 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros((2, x.shape[0], x.shape[2]))
    _, out = jax.lax.scan(cell, (start[0], start[1]), jnp.swapaxes(x, 0, 1))
    return jnp.swapaxes(out, 0, 1)


def attention_params(d: int, fused: bool = True) -> Tree:
    parts = (
        {"qkv": dense(1, d, 3 * d)} if fused else {n: dense(i, d, d) for i, n in enumerate("qkv")}
    )
    return {**parts, "out": dense(7, d, d)}


def training_step(block: Any) -> Callable[[Tree, Tree], tuple[Tree, jax.Array]]:
    """Gradient descent with momentum on layers ``block`` one after another."""

    def step(state: Tree, batch: Tree) -> tuple[Tree, jax.Array]:
        def loss(params: Tree) -> jax.Array:
            x = batch["x"]
            for p in params:
                x = block(p, x)
            return jnp.mean((x - batch["y"]) ** 2)

        value, grads = jax.value_and_grad(loss)(state["params"])
        speed = jax.tree.map(lambda m, g: 0.9 * m + g, state["speed"], grads)
        params = jax.tree.map(lambda p, m: p - 0.1 * m, state["params"], speed)
        return {"params": params, "speed": speed}, value

    return step


def scanned_step(block: Any) -> Callable[[Tree, Tree], tuple[Tree, jax.Array]]:
    """The same with the layers' parameters stacked, and each layer computed again backwards."""

    def layers(stacked: Tree, x: jax.Array) -> jax.Array:
        again = jax.checkpoint(block)
        return jax.lax.scan(lambda x, p: (again(p, x), None), x, stacked)[0]

    return training_step(layers)


def state_of(*layers: Tree) -> Tree:
    return {"params": list(layers), "speed": jax.tree.map(jnp.zeros_like, list(layers))}


def stacked(*layers: Tree) -> Tree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)


def batch_of(batch: int, seq: int, d: int) -> Tree:
    return {"x": _normal(11, batch, seq, d), "y": _normal(12, batch, seq, d)}
