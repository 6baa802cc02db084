"""The machine and the models of Alpa's tests: shapes of parameters, and losses, in plain JAX."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from reading import Reading, read

from autopar.cost_model import Cluster
from autopar.cost_model.hardware import Level

HEADS = 8
SECONDS = 1e-6  # of Alpa's unit of cost


def cluster(
    *sizes: int,
    light: bool = False,
    alpha: Sequence[float] = (1, 1),
    beta: Sequence[float] = (1, 1),
) -> Cluster:
    """Alpa's device mesh: one level of links per axis, with its prices of a message and a byte.

    Matrix products are dear, so that splitting them is always right. With ``light`` nothing else
    costs anything, as there.
    """
    rates = (1e12, 1e12) if light else (1e4, 1e6)
    chip = dataclasses.replace(
        Cluster.preset("cpu", 1).chip,
        f32_flops=1e4,
        vector_flops=rates[0],
        hbm_bandwidth=rates[1],
        launch_s=0.0,
        matmul_tile=1,
        matmul_half_k=0,
    )
    levels = tuple(
        Level(f"axis{i}", size, "switch", 1 / (SECONDS * beta[i]), SECONDS * alpha[i])
        for i, size in enumerate(sizes)
    )
    return Cluster("alpa", chip, sizes, levels)


def trained(
    loss: Callable[[Any, Any], jax.Array],
    params: Any,
    batch: Any,
    on: Cluster,
    tx: Any = None,
    **options: Any,
) -> Reading:
    """The plan of a training step, for a mesh of the shape of the cluster ``on``."""
    tx = tx or optax.adam(1e-3)

    def step(state: Any, batch: Any) -> Any:
        params, opt = state
        updates, opt = tx.update(jax.grad(loss)(params, batch), opt, params)
        return optax.apply_updates(params, updates), opt

    state = (params, jax.eval_shape(tx.init, params))
    return read(step, state, batch, cluster=on, **{"mesh": on.shape, **options})


def squared(model: Callable[..., jax.Array]) -> Callable[[Any, Any], jax.Array]:
    """The loss of a model whose batch is inputs and what they should become."""
    return lambda params, batch: jnp.mean((model(params, batch["x"]) - batch["y"]) ** 2)


def pairs(*shape: int) -> dict[str, Any]:
    return {"x": floats(*shape), "y": floats(*shape)}


def payloads(reading: Reading, *kinds: str, least: int = 5) -> list[int]:
    """Bytes of every collective of these kinds, largest first, scalars aside."""
    return sorted(
        (
            use.bytes
            for use in reading.collectives(least_bytes=least)
            if use.kind in kinds
            for _ in range(use.count)
        ),
        reverse=True,
    )


def reduced(reading: Reading) -> list[int]:
    """Payloads of every reduction to more than a scalar."""
    return payloads(reading, "all-reduce", "reduce-scatter")


def parameter_bytes(params: Any) -> int:
    return sum(4 * leaf.size for leaf in jax.tree.leaves(params))


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def ids(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def dense(fan_in: int, fan_out: int) -> dict[str, Any]:
    return {"kernel": floats(fan_in, fan_out), "bias": floats(fan_out)}


def affine(width: int) -> dict[str, Any]:
    return {"scale": floats(width), "bias": floats(width)}


def attention(width: int) -> dict[str, Any]:
    names = ("query", "key", "value", "out")
    return {**{name: dense(width, width) for name in names}, "ln": affine(width)}


def bert_layer(width: int) -> dict[str, Any]:
    mlp = {"fc1": dense(width, 4 * width), "fc2": dense(4 * width, width), "ln": affine(width)}
    return {"attn": attention(width), "mlp": mlp}


def moe_layer(width: int, experts: int) -> dict[str, Any]:
    moe = {
        "gate": floats(width, experts),
        "wi": floats(experts, width, 4 * width),
        "wo": floats(experts, 4 * width, width),
        "ln": affine(width),
    }
    return {"attn": attention(width), "moe": moe}


def mlp(params: Any, x: jax.Array) -> jax.Array:
    for layer in params:
        x = jnp.maximum(_dense(layer, x), 0)
    return x


def bert(params: Any, x: jax.Array, remat: bool = False) -> jax.Array:
    block = jax.checkpoint(_layer) if remat else _layer
    for layer in params:
        x = block(layer, x)
    return x


def masked_lm(params: Any, batch: Any) -> jax.Array:
    """Tied embedding, positions, layers, a transform before the logits; mean cross-entropy."""
    x = params["embed"][batch["ids"]]
    if "pos" in params:
        x = _norm(params["ln"], x + params["pos"][jnp.arange(x.shape[1])])
    x = bert(params["layers"], x)
    if "head" in params:
        x = _norm(params["head_ln"], jax.nn.gelu(_dense(params["head"], x)))
    logits = x @ params["embed"].T
    hot = jax.nn.one_hot(batch["labels"], logits.shape[-1])
    return -jnp.mean((hot * jax.nn.log_softmax(logits)).sum(-1))


def masked_lm_params(width: int, vocab: int, length: int) -> dict[str, Any]:
    return {
        "embed": floats(vocab, width),
        "pos": floats(length, width),
        "ln": affine(width),
        "layers": [bert_layer(width)] * 2,
        "head": dense(width, width),
        "head_ln": affine(width),
    }


def batch_norm(params: Any, x: jax.Array) -> jax.Array:
    """Over batch and space; both moments in one pass."""
    mean = x.mean((0, 1, 2))
    variance = (x * x).mean((0, 1, 2)) - mean * mean
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * params["scale"] + params["bias"]


def conv(kernel: jax.Array, x: jax.Array, groups: int = 1) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout, feature_group_count=groups
    )


def _dense(params: Any, x: jax.Array) -> jax.Array:
    return x @ params["kernel"] + params["bias"]


def _norm(params: Any, x: jax.Array) -> jax.Array:
    x = x - x.mean(-1, keepdims=True)
    scale = jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    return x * scale * params["scale"] + params["bias"]


def _layer(params: Any, x: jax.Array) -> jax.Array:
    x = _norm(params["attn"]["ln"], x + _attend(params["attn"], x))
    if "moe" in params:
        return _norm(params["moe"]["ln"], x + _experts(params["moe"], x))
    mlp = params["mlp"]
    return _norm(mlp["ln"], x + _dense(mlp["fc2"], jax.nn.gelu(_dense(mlp["fc1"], x))))


def _attend(params: Any, x: jax.Array) -> jax.Array:
    batch, length, width = x.shape
    q, k, v = (
        _dense(params[name], x).reshape(batch, length, HEADS, width // HEADS)
        for name in ("query", "key", "value")
    )
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / (width // HEADS) ** 0.5
    mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores), v)
    return _dense(params["out"], mixed.reshape(batch, length, width))


def _experts(params: Any, x: jax.Array, group: int = 32) -> jax.Array:
    """Einsum dispatch of groups of tokens to two experts each, with a capacity (GShard)."""
    experts = params["wi"].shape[0]
    tokens = x.reshape(-1, group, x.shape[-1])
    combine = _top_two(jax.nn.softmax(tokens @ params["gate"]), 2 * group // experts)
    dispatch = (combine > 0).astype(x.dtype)
    inner = jnp.einsum("gsec,gsm->egcm", dispatch, tokens)
    inner = jax.nn.gelu(jnp.einsum("egcm,emh->egch", inner, params["wi"]))
    inner = jnp.einsum("egch,ehm->egcm", inner, params["wo"])
    return jnp.einsum("gsec,egcm->gsm", combine, inner).reshape(x.shape)


def _top_two(gates: jax.Array, capacity: int) -> jax.Array:
    """Weights of group, token, expert and place among the expert's tokens."""
    experts = gates.shape[-1]
    first = jax.nn.one_hot(jnp.argmax(gates, -1), experts)
    second = jax.nn.one_hot(jnp.argmax(gates * (1 - first), -1), experts)
    before = jnp.cumsum(first, 1) - first
    after = jnp.cumsum(second, 1) - second + first.sum(1, keepdims=True)
    combine: Any = 0.0
    for mask, place in ((first, before), (second, after)):
        kept = mask * (place < capacity)
        slot = jax.nn.one_hot((place * kept).sum(-1).astype(jnp.int32), capacity)
        combine += (gates * kept)[..., None] * slot[:, :, None, :]
    return combine
