"""What Alpa's own tests expect of transformers, mixtures of experts and convolutions.

See ``test_peers`` for how they are compared, and the table in its tests for the numbers. 25
(gradient accumulation) is not offered yet; 31 is tests/api/test_like.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from peer_models import (
    SECONDS,
    affine,
    batch_norm,
    bert,
    bert_layer,
    cluster,
    conv,
    floats,
    ids,
    masked_lm,
    masked_lm_params,
    moe_layer,
    pairs,
    parameter_bytes,
    payloads,
    reduced,
    squared,
    trained,
)
from reading import Reading

SMALL = [bert_layer(128)] * 2
TOKENS = pairs(8, 8, 128)
ACTIVATION = 32_768
COLUMN, ROW = r"0/\d/(attn/(query|key|value)|mlp/fc1)/kernel", r"0/\d/(attn/out|mlp/fc2)/kernel"
MEGATRON: Mapping[str, jax.P] = {COLUMN: jax.P(None, "model"), ROW: jax.P("model")}


def large(reading: Reading, *kinds: str) -> list[int]:
    """Payloads of the size of an activation; statistics of norms are a hundredth of it."""
    return payloads(reading, *kinds, least=ACTIVATION // 16)


def words(batch: int, length: int) -> dict[str, Any]:
    return {"ids": ids(batch, length), "labels": ids(batch, length)}


def test_bert_of_a_large_batch() -> None:
    """11: data parallel, every gradient reduced once and nothing else."""
    params = [bert_layer(32)] * 2
    reading = trained(squared(bert), params, pairs(64, 64, 32), cluster(4))
    assert sum(reduced(reading)) == parameter_bytes(params)
    assert "all-to-all" not in reading.counts()
    assert reading.layouts("batch") == {"S(0)"}


def test_bert_of_a_small_batch() -> None:
    """12: 4L - 1 reductions of an activation; columns, then rows."""
    reading = trained(squared(bert), SMALL, TOKENS, cluster(4, light=True))
    assert large(reading, "all-reduce", "reduce-scatter") == [ACTIVATION] * 7
    assert large(reading, "all-gather") == [ACTIVATION] * 7
    assert reading.layouts(COLUMN) == {"S(1)"}
    assert reading.layouts(r"0/\d/mlp/fc2/kernel") == {"S(0)"}


def test_bert_with_remat() -> None:
    """13: 6L - 1 reductions; two of them are never gathered."""
    loss = squared(lambda params, x: bert(params, x, remat=True))
    reading = trained(loss, SMALL, TOKENS, cluster(4, light=True))
    assert large(reading, "all-reduce", "reduce-scatter") == [ACTIVATION] * 11
    assert large(reading, "all-gather") == [ACTIVATION] * 9


@pytest.mark.slow
def test_bert_on_unequal_axes() -> None:
    """14: better than data by tensor parallelism, which is expected."""
    on = cluster(2, 2, light=True, alpha=(2, 2), beta=(1, 0.1))
    reading = trained(squared(bert), SMALL, TOKENS, on)
    # Seven all-reduces of an activation over the cheap axis, one of all gradients over the dear.
    theirs = 7 * (2 + 0.1 * ACTIVATION / 2) + (2 + parameter_bytes(SMALL) / 2)
    assert reading.plan.predicted.comm_s < 0.2 * theirs * SECONDS


def test_tied_embedding() -> None:
    """15: the table is split by words over both axes; nothing changes dimensions."""

    def loss(table: Any, batch: Any) -> jax.Array:
        return masked_lm({"embed": table, "layers": ()}, batch)

    reading = trained(loss, floats(1024, 8), words(8, 8), cluster(2, 2, light=True))
    assert "all-to-all" not in reading.counts()
    assert reading.layouts("state/0") == {"S(0),S(0)"}
    assert max(reduced(reading)) == 8 * 8 * 8 * 4  # of an activation, not of the table


@pytest.mark.slow
def test_masked_lm_of_a_large_batch() -> None:
    """16: data parallel; the two gradients of the tied table are added before they are reduced."""
    params = masked_lm_params(16, 128, 32)
    reading = trained(masked_lm, params, words(32, 32), cluster(4, light=True))
    assert sum(reduced(reading)) == parameter_bytes(params)
    assert reading.layouts("batch") == {"S(0)"}


@pytest.mark.slow
def test_masked_lm_on_unequal_axes() -> None:
    """17: the table split by words; better than data by tensor parallelism, which is expected."""
    on = cluster(2, 2, light=True, alpha=(2, 2), beta=(1, 0.1))
    params = masked_lm_params(512, 4096, 4)
    reading = trained(masked_lm, params, words(4, 4), on)
    assert reading.layouts("0/embed") == {"S(0),S(0)"}
    layers = {f".*{pattern[2:]}": spec for pattern, spec in MEGATRON.items()}
    pins = {"batch/.*": jax.P("data"), "0/embed": jax.P("model"), **layers}
    theirs = trained(masked_lm, params, words(4, 4), on, pins=pins)
    assert reading.plan.predicted.comm_s < 0.05 * theirs.plan.predicted.comm_s


MOE = [moe_layer(64, 16)]
TOKENS_OF_EXPERTS = 524_288
"""Bytes of what all experts take, whole."""


def test_mixture_of_experts() -> None:
    """18: four all-to-alls, and reductions of the gradients of what is not split by experts."""
    reading = trained(squared(bert), MOE, pairs(64, 16, 64), cluster(4))
    assert payloads(reading, "all-to-all") == [TOKENS_OF_EXPERTS // 4] * 4
    assert reading.layouts(r"0/0/moe/w[io]") == {"S(0)"}
    experts = {"wi": MOE[0]["moe"]["wi"], "wo": MOE[0]["moe"]["wo"]}
    assert sum(reduced(reading)) == parameter_bytes(MOE) - parameter_bytes(experts)


@pytest.mark.slow
def test_mixture_of_experts_on_two_axes() -> None:
    """19: all-to-alls, experts split four ways; no dearer than batch and experts so by hand."""
    reading = trained(squared(bert), MOE, pairs(64, 16, 64), cluster(2, 2))
    assert reading.counts()["all-to-all"] > 0
    assert reading.counts().get("all-reduce", 0) <= 2
    assert reading.layouts(r"0/0/moe/w[io]") == {"S(0),S(0)"}
    both = jax.P(("data", "model"))
    theirs = trained(
        squared(bert),
        MOE,
        pairs(64, 16, 64),
        cluster(2, 2),
        pins={"batch/.": both, "0/0/moe/w.": both},
    )
    assert reading.plan.predicted.step_s <= theirs.plan.predicted.step_s


@pytest.mark.slow
def test_mixture_of_experts_lm() -> None:
    """20: as above, with a dense layer, embeddings and Adafactor."""
    params = {"embed": floats(32, 64), "layers": [bert_layer(64), *MOE]}
    tx = optax.adafactor(1e-3, min_dim_size_to_factor=4)
    reading = trained(masked_lm, params, words(64, 16), cluster(4), tx=tx)
    assert payloads(reading, "all-to-all") == [TOKENS_OF_EXPERTS // 4] * 4
    assert reading.layouts(r"state/0/layers/1/moe/w[io]") == {"S(0)"}


def test_convolutions_with_batch_norm() -> None:
    """21: gradients, and for each norm two moments forward and two sums backward."""

    def model(params: Any, x: jax.Array) -> jax.Array:
        for layer in params:
            x = jax.nn.relu(batch_norm(layer["norm"], conv(layer["kernel"], x)))
        return x

    params = [{"kernel": floats(3, 3, 4, 4), "norm": affine(4)}] * 3
    reading = trained(squared(model), params, pairs(16, 16, 16, 4), cluster(4))
    assert sum(reduced(reading)) == parameter_bytes(params) + 3 * 4 * 4 * 4
    assert set(payloads(reading, "reduce-scatter", "all-gather", "all-reduce")) == {576, 16}


def test_wide_convolutions() -> None:
    """22: three reductions of an activation, as of column and row."""

    def model(params: Any, x: jax.Array) -> jax.Array:
        for kernel in params:
            x = jax.nn.relu(conv(kernel, x))
        return x

    batch, kernels = pairs(8, 16, 16, 256), [floats(3, 3, 256, 256)] * 4
    reading = trained(squared(model), kernels, batch, cluster(4, light=True), memory="64GiB")
    activation = 8 * 16 * 16 * 256 * 4
    assert reduced(reading) == [activation] * 3
    assert payloads(reading, "all-gather") == [activation] * 3


def test_depthwise_convolution() -> None:
    """23: data parallel, though its channels could be split for nothing."""

    def model(params: Any, x: jax.Array) -> jax.Array:
        return conv(params["point"], jax.nn.relu(conv(params["depth"], x, groups=256)))

    params = {"depth": floats(3, 3, 1, 256), "point": floats(1, 1, 256, 256)}
    reading = trained(squared(model), params, pairs(8, 16, 16, 256), cluster(4, light=True))
    assert sum(reduced(reading)) == parameter_bytes(params)


def test_experts_between_dense_layers() -> None:
    """24: what changes from tokens to experts and back is all-to-alls."""

    def model(params: Any, x: jax.Array) -> jax.Array:
        x = (x @ params["into"]).reshape(-1, 16, 64)
        return jnp.einsum("teh,ehk->tek", x, params["experts"]).reshape(-1, 64) @ params["out"]

    params = {"into": floats(64, 64), "experts": floats(16, 64, 64), "out": floats(64, 64)}
    reading = trained(squared(model), params, pairs(1024, 64), cluster(2, 2, light=True))
    assert reading.counts()["all-to-all"] > 0
    assert max(reduced(reading)) < parameter_bytes(params["experts"])
