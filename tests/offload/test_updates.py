"""Which state of which optimiser may rest on the host, and how arrays are cut into pieces."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

from autopar.passes.offload import Pieces, pieces
from autopar.passes.trace import trace

WEIGHT = (16, 32)


def movable(optimizer: optax.GradientTransformation) -> list[str]:
    """Paths of the matrices that may rest on the host, without the step's own prefix."""

    def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        params, inner = state
        value, grads = jax.value_and_grad(lambda p: jnp.mean((x @ p["w"]) ** 2))(params)
        updates, inner = optimizer.update(grads, inner, params)
        return (optax.apply_updates(params, updates), inner), value

    params = {"w": jax.ShapeDtypeStruct(WEIGHT, jnp.float32)}
    state = (params, jax.eval_shape(optimizer.init, params))
    traced = trace(step, state, jax.ShapeDtypeStruct((8, 16), jnp.float32))
    found = [i for update in traced.updates for i in update.inputs]
    return sorted(traced.in_paths[i].split("/", 1)[1] for i in found)


@pytest.mark.parametrize(
    ("optimizer", "wanted"),
    [
        (optax.adamw(1e-3), ["1/0/mu/w", "1/0/nu/w"]),
        (optax.adamw(optax.linear_schedule(1.0, 0.0, 9)), ["1/0/mu/w", "1/0/nu/w"]),
        (optax.sgd(1e-3, momentum=0.9), ["1/0/trace/w"]),
        (optax.lion(1e-3), ["1/0/mu/w"]),
        (
            optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3, mu_dtype=jnp.bfloat16)),
            ["1/1/0/mu/w", "1/1/0/nu/w"],
        ),
        (optax.lamb(1e-3), []),  # a norm of the update is in the way
        (optax.adafactor(1e-3), []),
    ],
)
def test_elementwise_updates_are_found(optimizer: Any, wanted: list[str]) -> None:
    assert movable(optimizer) == wanted


def test_a_gradient_is_read_as_the_backward_pass_leaves_it() -> None:
    """In bf16, though the optimiser widens it; and no more than state, weight and gradient is."""

    def step(state: Any, x: jax.Array) -> Any:
        params, momentum = state
        loss = lambda p: jnp.mean((x @ p.astype(jnp.bfloat16)).astype(jnp.float32))  # noqa: E731
        grads = jax.grad(loss)(params)
        momentum = 0.9 * momentum + grads
        return params - jnp.where(jnp.isnan(momentum), 0.0, momentum), momentum

    weight = jax.ShapeDtypeStruct(WEIGHT, jnp.float32)
    traced = trace(step, (weight, weight), jax.ShapeDtypeStruct((8, 16), jnp.bfloat16))
    (update,) = traced.updates
    dtypes = sorted(str(var.aval.dtype) for var in update.operands)  # pyright: ignore
    assert dtypes == ["bfloat16", "float32", "float32"]


def test_pieces_are_whole_tiles_and_small() -> None:
    assert pieces((1024, 4096), 4) == Pieces((1024, 4096), 4, 256)
    assert pieces((8192, 4096), 4) == Pieces((8192, 4096), 16, 512)
    assert pieces((24, 4096, 4096), 4) == Pieces((24 * 4096, 4096), 192, 512)
    assert pieces((24, 4096, 4, 128), 4) == Pieces((24 * 4096, 4, 128), 24, 4096)
    assert pieces((50257, 1024), 4) is None
    assert pieces((512, 1000), 4) is None  # rests with its first dimension minor
    assert pieces((1000, 1000), 4) == Pieces((1000, 1000), 5, 200)
    assert pieces((7, 13), 4) is None
    assert pieces((), 4) is None
