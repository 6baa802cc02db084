"""Small programs with everything that nests: name, function, arguments."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

TABLE = np.arange(12.0, dtype=np.float32).reshape(3, 4) / 10


@jax.jit
def _with_table(x: jax.Array) -> jax.Array:
    """A call with an array constant of its own."""
    return jnp.tanh(x @ TABLE)


@jax.custom_vjp
def _clipped(x: jax.Array) -> jax.Array:
    return jnp.clip(x, -1, 1)


_clipped.defvjp(lambda x: (_clipped(x), x), lambda x, g: (jnp.clip(g, -0.1, 0.1) * (x > 0),))


def calls(x: jax.Array) -> Any:
    twice = _with_table(_with_table(x)[:, :3])
    return jax.nn.gelu(twice), jax.nn.silu(_clipped(twice)), x, 1.0


def gradient(x: jax.Array) -> Any:
    def loss(x: jax.Array) -> jax.Array:
        y = jax.checkpoint(lambda y: jnp.sin(_with_table(y)) * TABLE[0])(x)
        return jax.nn.logsumexp(_clipped(jax.nn.relu(y)))

    return jax.value_and_grad(loss)(x)


def scanned(x: jax.Array) -> Any:
    def loss(x: jax.Array) -> jax.Array:
        def body(carry: Any, scale: jax.Array) -> Any:
            state, unused = carry
            state = jax.checkpoint(lambda s: _with_table(s)[:, :3] * scale)(state)
            return (state, unused + 1.0), (state.sum(), state)

        (state, _), (sums, _) = lax.scan(body, (x, x), jnp.arange(3.0))
        return state.sum() + sums[-1]

    return jax.value_and_grad(loss)(x)


def looped(x: jax.Array) -> Any:
    def body(carry: Any) -> Any:
        i, state, unused, needed = carry
        return i + 1, _with_table(state)[:, :3] + needed, unused * 2, needed + 1

    start = (0, x, x, jnp.float32(0))
    return lax.while_loop(lambda c: c[0] < 4, body, start)[1]


def branched(x: jax.Array) -> Any:
    def nested(y: jax.Array) -> jax.Array:
        return lax.cond(y[0, 0] > 0, lambda z: _with_table(z)[:, :3], lambda z: z * 2, y)

    return lax.switch(1, [nested, lambda y: y + jnp.asarray(TABLE[:2, :3]), nested], x)


def random(x: jax.Array) -> Any:
    key, other = jax.random.split(jax.random.key(x.astype(jnp.int32)[0, 0]))
    return jax.random.normal(key, (4,)) * jax.random.bernoulli(other, 0.5, (4,))


def solved(x: jax.Array) -> Any:
    a = x.T @ x + jnp.eye(3)
    return jax.value_and_grad(lambda a: jnp.linalg.solve(a, jnp.asarray(TABLE)).sum())(a)


def twice_the_same(x: jax.Array) -> Any:
    """Two equations that share one inner jaxpr."""
    step = jax.checkpoint(_with_table)
    return step(x) + step(x * 2)


X = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
PROGRAMS = [calls, gradient, scanned, looped, branched, random, solved, twice_the_same]
