"""Pre-norm transformer blocks, as GPT and the vision transformer share them."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

INIT_STD = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a stack of blocks needs to know.

    Attributes:
        layers: number of blocks.
        d_model: width of the residual stream.
        heads: attention heads; divides `d_model`.
        ffn_mult: width of the feed-forward layer, in multiples of `d_model`.
        dtype: type that is computed in.
        param_dtype: type that parameters are kept in.
        scan: one loop over stacked layers, in place of one copy of the block a layer.
        remat: recompute each block in the backward pass (`jax.checkpoint`).
    """

    layers: int
    d_model: int
    heads: int
    ffn_mult: int = 4
    dtype: DTypeLike = jnp.bfloat16
    param_dtype: DTypeLike = jnp.float32
    scan: bool = False
    remat: bool = False

    def __post_init__(self) -> None:
        """Checks that the heads divide the width."""
        if self.d_model % self.heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_model // self.heads


def dense(config: TransformerConfig, features: int, name: str, std: float = INIT_STD) -> nn.Dense:
    """A linear layer with bias, initialised as GPT-2's are."""
    return nn.Dense(
        features,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=nn.initializers.normal(std),
        name=name,
    )


def layer_norm(config: TransformerConfig, name: str) -> nn.LayerNorm:
    """A layer norm: statistics in f32, result in the compute dtype."""
    return nn.LayerNorm(dtype=config.dtype, param_dtype=config.param_dtype, name=name)


def residual_std(config: TransformerConfig) -> float:
    """Initial scale of layers that write to the residual stream, as in GPT-2."""
    return INIT_STD / math.sqrt(2 * config.layers)


class Attention(nn.Module):
    """Multi-head self-attention, written plainly: the S x S scores exist, their softmax is f32.

    The three projections are separate [D, D] kernels, so that splitting one by heads is splitting
    its last dimension.
    """

    config: TransformerConfig
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], in the compute dtype."""
        c = self.config
        by_head = (*x.shape[:-1], c.heads, c.head_dim)
        q = dense(c, c.d_model, "q")(x).reshape(by_head)
        k = dense(c, c.d_model, "k")(x).reshape(by_head)
        v = dense(c, c.d_model, "v")(x).reshape(by_head)
        scores = jnp.einsum("bqhd,bkhd->bhqk", q / math.sqrt(c.head_dim), k).astype(jnp.float32)
        if self.causal:
            seen = jnp.tril(jnp.ones(scores.shape[-2:], dtype=bool))
            scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        weights = nn.softmax(scores).astype(c.dtype)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape)
        return dense(c, c.d_model, "out", residual_std(c))(mixed)


class FeedForward(nn.Module):
    """GELU feed-forward layer."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], in the compute dtype."""
        c = self.config
        hidden = nn.gelu(dense(c, c.ffn_mult * c.d_model, "up")(x))
        return dense(c, c.d_model, "down", residual_std(c))(hidden)


class Block(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each added to the residual stream."""

    config: TransformerConfig
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], in the compute dtype."""
        c = self.config
        x = x + Attention(c, self.causal, name="attn")(layer_norm(c, "ln_attn")(x))
        return x + FeedForward(c, name="mlp")(layer_norm(c, "ln_mlp")(x))


def apply_blocks(config: TransformerConfig, x: jax.Array, *, causal: bool) -> jax.Array:
    """Runs the stack of blocks on [B, S, D]; to be called in a compact method.

    Parameters are named `block_0`, `block_1`, ...; under `scan`, `blocks`, with a leading dimension
    of `layers` on each.
    """
    # Within a loop nothing can be merged across iterations, so no barrier is needed against it.
    block: Any = nn.remat(Block, prevent_cse=not config.scan) if config.remat else Block
    if not config.scan:
        for i in range(config.layers):
            x = block(config, causal, name=f"block_{i}")(x)
        return x

    def body(layer: Any, carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        return layer(carry), None

    loop = nn.scan(
        body, variable_axes={"params": 0}, split_rngs={"params": True}, length=config.layers
    )
    return loop(block(config, causal, name="blocks"), x, None)[0]
