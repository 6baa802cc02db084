"""Attention in one kernel: what of it stays on the chip, and what is half void."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

from autopar.cost_model.attention import Charges, attention_kernels
from autopar.cost_model.fusion import fusion_borders
from autopar.cost_model.memory import liveness
from autopar.cost_model.work import aval_bytes
from autopar.passes.trace import trace

Q = jax.ShapeDtypeStruct((2, 4, 64, 8), jnp.bfloat16)


def attend(q: Any, k: Any, v: Any, causal: bool) -> Any:
    scores = jnp.einsum("bhqd,bhkd->bhqk", q, k)
    if causal:
        seen = jnp.tril(jnp.ones(scores.shape[-2:], dtype=bool))
        scores = jnp.where(seen, scores, -1e9)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores), v)


def charges(causal: bool) -> list[Charges]:
    """Of every matmul; nothing else may write or read a score."""
    jaxpr = trace(lambda q, k, v: attend(q, k, v, causal), Q, Q, Q).jaxpr.jaxpr
    kernels, borders = attention_kernels(jaxpr), fusion_borders(jaxpr)
    found: list[Charges] = []
    for eqn in jaxpr.eqns:
        reads, writes, beside, share = kernels.of(eqn, *borders.of(eqn))
        assert not any(w for v, w in zip(eqn.outvars, writes, strict=True) if v.aval.size > 2**12)
        if eqn.primitive.name == "dot_general":
            found.append((reads, writes, beside, share))
    return found


@pytest.mark.parametrize(("causal", "share"), [(False, 1.0), (True, 0.5)])
def test_scores_stay_on_the_chip(causal: bool, share: float) -> None:
    first, second = charges(causal)
    assert first == ((1.0, 1.0), (False,), 0.0, share)
    assert second[1:] == ((True,), 0.0, share)
    assert 0.0 in second[0]


def test_scores_are_never_in_memory() -> None:
    step = trace(lambda q, k, v: attend(q, k, v, True), Q, Q, Q)
    timeline = liveness(step.jaxpr, ("batch",) * 3, step.donated, step.ties)
    scores = attention_kernels(step.jaxpr.jaxpr).scores
    kept = timeline.scaled(dict.fromkeys(scores, 0.0))
    assert max(aval_bytes(buffer.var.aval) for buffer in timeline.buffers) > aval_bytes(Q)
    assert max(aval_bytes(buffer.var.aval) for buffer in kept.buffers) == aval_bytes(Q)


def test_scores_that_leave_are_written() -> None:
    def step(q: Any, k: Any) -> Any:
        return jnp.einsum("bhqd,bhkd->bhqk", q, k)

    kernels = attention_kernels(jax.make_jaxpr(step)(Q, Q).jaxpr)
    assert not kernels.scores


def test_a_matmul_without_batch_has_no_scores() -> None:
    long = jax.ShapeDtypeStruct((64, 8), jnp.bfloat16)
    kernels = attention_kernels(
        jax.make_jaxpr(lambda q, k: jnp.tanh(q @ k.T) @ k)(long, long).jaxpr
    )
    assert not kernels.scores
