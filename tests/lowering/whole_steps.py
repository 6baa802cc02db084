"""Whole training steps, small enough to compile in a test."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from autopar.models.presets import preset


class Program(NamedTuple):
    """A step ``step(state, batch) -> (state, metrics)`` and arguments for it."""

    step: Callable[..., Any]
    state: Any
    batch: Any


_SMALL = {"layers": 2, "d_model": 16, "heads": 4, "batch_size": 8}


def model(name: str, **overrides: Any) -> Program:
    """A preset of ``autopar.models``, made small."""
    work = preset(name, **{**_SMALL, **overrides})
    batch = jax.tree.map(jnp.asarray, next(work.batches()))
    # A state that is a few steps old: from the first, Adam divides noise by noise.
    return Program(work.train_step, work.init(jax.random.key(0), batch), batch)


def _descend(loss: Callable[..., Any]) -> Callable[..., Any]:
    def step(state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(state, batch)
        return jax.tree.map(lambda w, g: w - 0.1 * g, state, grads), value

    return step


def lstm() -> Program:
    """A recurrent network by ``lax.scan`` over time."""

    def loss(params: Any, batch: Any) -> Any:
        x, y = batch

        def cell(carry: Any, now: Any) -> Any:
            h, c = carry
            gates = now @ params["w"] + h @ params["u"] + params["b"]
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zero = jnp.zeros((x.shape[1], 8))
        _, hs = jax.lax.scan(cell, (zero, zero), x)
        return jnp.mean((hs @ params["out"] - y) ** 2)

    keys = jax.random.split(jax.random.key(1), 6)
    params = {
        "w": jax.random.normal(keys[0], (4, 32)) * 0.5,
        "u": jax.random.normal(keys[1], (8, 32)) * 0.5,
        "b": jnp.zeros(32),
        "out": jax.random.normal(keys[2], (8, 4)),
    }
    batch = (jax.random.normal(keys[3], (6, 8, 4)), jax.random.normal(keys[4], (6, 8, 4)))
    return Program(_descend(loss), params, batch)


def loop() -> Program:
    """A ``while`` loop whose condition is a sum over what is cut, and a branch after it."""

    def step(state: Any, batch: Any) -> Any:
        def unfinished(carry: Any) -> Any:
            x, count = carry
            return (jnp.sum(x * batch) > 1.0) & (count < 50)

        def halve(carry: Any) -> Any:
            x, count = carry
            return x * 0.5 + 0.01 * jnp.tanh(x @ state["w"]) * jnp.max(batch), count + 1

        x, count = jax.lax.while_loop(unfinished, halve, (state["x"], 0))
        y = jax.lax.cond(count > 3, lambda a: a @ state["w"], lambda a: jnp.cumsum(a, 0), x)
        z = jax.lax.switch(
            count % 3, [lambda a: a.sum(0), lambda a: a.max(0), lambda a: a.prod(0)], y
        )
        return {"x": y, "w": state["w"] + z}, {"count": count, "z": z}

    keys = jax.random.split(jax.random.key(2), 3)
    state = {
        "x": jax.random.normal(keys[0], (8, 16)) + 2,
        "w": jax.random.normal(keys[1], (16, 16)) * 0.2,
    }
    return Program(step, state, jax.random.uniform(keys[2], (8, 16)))


def dropout() -> Program:
    """Random masks, also inside a rematerialised block; the key is part of the state."""

    def loss(params: Any, key: Any, x: Any) -> tuple[Any, Any]:
        @jax.checkpoint
        def block(w: Any, key: Any, h: Any) -> Any:
            h = jax.nn.relu(h @ w)
            return jnp.where(jax.random.bernoulli(key, 0.5, h.shape), h * 2, 0.0)

        first, second = jax.random.split(key)
        h = block(params["a"], first, x)
        mask = jax.random.bernoulli(second, 0.8, h.shape)
        return jnp.mean((jnp.where(mask, h, 0.0) @ params["b"]) ** 2), mask

    def step(state: Any, x: Any) -> Any:
        params, key = state
        key, now = jax.random.split(key)
        (value, mask), grads = jax.value_and_grad(loss, has_aux=True)(params, now, x)
        params = jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)
        return (params, key), {"loss": value, "mask": mask, "noise": jax.random.normal(now, (8, 4))}

    keys = jax.random.split(jax.random.key(3), 3)
    params = {
        "a": jax.random.normal(keys[0], (8, 16)),
        "b": jax.random.normal(keys[1], (16, 4)),
    }
    return Program(step, (params, jax.random.key(7)), jax.random.normal(keys[2], (16, 8)))


PROGRAMS: dict[str, Callable[[], Program]] = {
    "gpt": lambda: model("gpt:tiny", seq=16, vocab=256),
    "gpt-scan": lambda: model("gpt:tiny-scan", seq=16, vocab=256),
    "gpt-scan-remat": lambda: model("gpt:tiny-scan", seq=16, vocab=256, remat=True),
    "vit": lambda: model("vit:tiny", image=16),
    "lstm": lstm,
    "loop": loop,
    "dropout": dropout,
}
