"""Whole training steps, small enough to compile in a test."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from autopar.models import make_workload, preset


class Program(NamedTuple):
    """A step ``step(state, batch) -> (state, metrics)`` and arguments for it."""

    step: Callable[..., Any]
    state: Any
    batch: Any


_SMALL = {"layers": 1, "d_model": 16, "heads": 4, "batch_size": 8}
_TEXT = {**_SMALL, "seq": 16}
_LOOP = {**_TEXT, "layers": 2}


SGD = optax.sgd(0.1, momentum=0.9)
ADAMW = optax.adamw(1e-2, eps=1e-3)


def model(name: str, optimizer: optax.GradientTransformation = SGD, **overrides: Any) -> Program:
    """A preset of ``autopar.models``, made small, trained by gradients with momentum.

    AdamW's steps divide a gradient by its size. Where that is all rounding (the bias of keys, which
    softmax cancels; a table's rows that no token names), so is the step, unless epsilon is larger.
    """
    work = preset(name, **overrides)
    work = make_workload(name, work.config, optimizer=optimizer, batch_size=work.batch_size)
    batch = jax.tree.map(jnp.asarray, next(work.batches()))
    return Program(work.train_step, _worn(jax.jit(work.init)(jax.random.key(0), batch)), batch)


def _worn(state: Any) -> Any:
    """The state with parameters that are nowhere 0, so that their scale says what is small."""
    leaves, structure = jax.tree.flatten(state.params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    leaves = [w + 0.1 * jax.random.normal(k, w.shape) for w, k in zip(leaves, keys, strict=True)]
    return dataclasses.replace(state, params=jax.tree.unflatten(structure, leaves))


def gpt_dropout(**overrides: Any) -> Program:
    """A GPT that drops, and tells what: its masks are among the metrics."""
    program = model("gpt:tiny", **_TEXT, dropout=0.2, **overrides)
    net = preset("gpt:tiny", **_TEXT, dropout=0.2, **overrides).model

    def step(state: Any, batch: Any) -> Any:
        after, metrics = program.step(state, batch)
        _, seen = net.apply(
            {"params": state.params},
            batch["tokens"],
            rngs={"dropout": jax.random.fold_in(state.key, state.step)},
            capture_intermediates=lambda module, _: isinstance(module, nn.Dropout),
            mutable=["intermediates"],
        )
        return after, {**metrics, "masks": [x == 0 for x in jax.tree.leaves(seen)]}

    return Program(step, program.state, program.batch)


def _descend(loss: Callable[..., Any]) -> Callable[..., Any]:
    def step(state: Any, batch: Any) -> Any:
        value, grads = jax.value_and_grad(loss)(state, batch)
        return jax.tree.map(lambda w, g: w - 0.1 * g, state, grads), value

    return step


def recurrence() -> Program:
    """An LSTM written by hand: ``lax.scan`` over time, gates split from one product."""

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


def equilibrium() -> Program:
    """A layer that is its own fixed point: ``while`` loops find it, and, backward, its gradient."""

    def cell(params: Any, x: Any, z: Any) -> Any:
        return jnp.tanh(z @ params["w"] + x @ params["u"] + params["b"])

    def settle(f: Callable[[Any], Any], z: Any) -> Any:
        def moves(carry: Any) -> Any:
            z, before, count = carry
            return (jnp.max(jnp.abs(z - before)) > 1e-5) & (count < 60)

        def again(carry: Any) -> Any:
            z, _, count = carry
            return f(z), z, count + 1

        return jax.lax.while_loop(moves, again, (f(z), z, 0))[0]

    @jax.custom_vjp
    def solve(params: Any, x: Any) -> Any:
        return settle(lambda z: cell(params, x, z), jnp.zeros((x.shape[0], 16)))

    def forward(params: Any, x: Any) -> Any:
        z = solve(params, x)
        return z, (params, x, z)

    def backward(kept: Any, cotangent: Any) -> Any:
        params, x, z = kept
        pull = jax.vjp(lambda z: cell(params, x, z), z)[1]
        total = settle(lambda u: pull(u)[0] + cotangent, cotangent)
        return jax.vjp(lambda p, x: cell(p, x, z), params, x)[1](total)

    solve.defvjp(forward, backward)

    def loss(params: Any, batch: Any) -> Any:
        x, y = batch
        return jnp.mean((solve(params, x) @ params["out"] - y) ** 2)

    keys = jax.random.split(jax.random.key(4), 6)
    params = {
        "w": jax.random.normal(keys[0], (16, 16)) * 0.1,
        "u": jax.random.normal(keys[1], (8, 16)) * 0.3,
        "b": jax.random.normal(keys[2], (16,)) * 0.1,
        "out": jax.random.normal(keys[3], (16, 4)),
    }
    batch = (jax.random.normal(keys[4], (8, 8)), jax.random.normal(keys[5], (8, 4)))
    return Program(_descend(loss), params, batch)


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
    "gpt": lambda: model("gpt:tiny", **_LOOP),
    "gpt-scan": lambda: model("gpt:tiny-scan", ADAMW, **_LOOP),
    "gpt-scan-remat": lambda: model("gpt:tiny-scan", **_LOOP, remat=True),
    "gpt-fused": lambda: model("gpt:tiny", **_TEXT, fused_qkv=True, tied=True),
    "gpt-dropout": gpt_dropout,
    "gpt-dropout-scan": lambda: model("gpt:tiny-scan", **_LOOP, dropout=0.2, remat=True),
    "llama": lambda: model("llama:tiny", **_TEXT, kv_heads=2, d_ff=32),
    "llama-scan": lambda: model("llama:tiny-scan", **_LOOP, kv_heads=2, d_ff=32),
    "vit": lambda: model("vit:tiny", **_SMALL, image=16),
    "moe": lambda: model("moe:tiny", **_TEXT, experts_every=1),
    "moe-scan": lambda: model("moe:tiny", **_LOOP, scan=True, experts_every=1, gated=True, top_k=1),
    "t5": lambda: model("t5:tiny", **_TEXT, d_ff=32, target_seq=8),
    "resnet": lambda: model("resnet:tiny", stages=(1,), width=8, image=16, batch_size=8),
    "lstm": lambda: model("lstm:tiny", layers=1, d_model=16, seq=8, batch_size=8),
    "recurrence": recurrence,
    "equilibrium": equilibrium,
    "loop": loop,
    "dropout": dropout,
}
