"""Multi-head attention, written plainly: the S x S scores exist, their softmax is f32."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from autopar.models.layers import TransformerConfig, dense, dropout, keepable, residual_std


class Attention(nn.Module):
    """Self-attention, or attention to another sequence.

    The projections are separate kernels, so that splitting one by heads is splitting its last
    dimension; or, as nanoGPT has it, one kernel, `qkv`, whose result is split in three.
    """

    config: TransformerConfig
    causal: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None, bias: jax.Array | None = None
    ) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], in the compute dtype.

        Args:
            x: what attends.
            memory: [B, T, D], what is attended to; `x` itself where `None`.
            bias: [heads, S, T], added to the scores (where each head has keys of its own).
        """
        c = self.config
        q, k, v = _project(c, x, memory)
        if c.rope_theta is not None:
            q, k = rotate(q, c.rope_theta), rotate(k, c.rope_theta)
        if c.heads != c.key_heads:
            q = q.reshape(*q.shape[:2], c.key_heads, -1, c.head_dim)
        core = nn.remat(Core, prevent_cse=not c.scan) if c.remat_attention else Core
        mixed = core(c, self.causal, name="core")(q, k, v, bias).reshape(*x.shape[:2], -1)
        mixed = keepable(c, "mixed", mixed)
        return keepable(c, "out", dense(c, c.d_model, "out", residual_std(c))(mixed))


class Core(nn.Module):
    """Attention without its parameters: scores, their softmax, and the mix of the values."""

    config: TransformerConfig
    causal: bool

    @nn.compact
    def __call__(
        self, q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array | None
    ) -> jax.Array:
        """Maps queries [B, S, (kv_heads,) heads, d], keys and values [B, T, kv_heads, d] to mixed
        values of the queries' shape; `bias` as in `Attention`.
        """
        c = self.config
        # The ellipsis is the query heads that share a key head, where there are several.
        scores = jnp.einsum("bqh...d,bkhd->bh...qk", q / math.sqrt(c.head_dim), k)
        scores = scores.astype(jnp.float32)
        if bias is not None:
            scores = scores + bias
        if self.causal:
            seen = jnp.tril(jnp.ones(scores.shape[-2:], dtype=bool))
            scores = jnp.where(seen, scores, jnp.finfo(jnp.float32).min)
        weights = dropout(self, c.dropout, nn.softmax(scores).astype(c.dtype))
        return jnp.einsum("bh...qk,bkhd->bqh...d", weights, v)


def _project(c: TransformerConfig, x: jax.Array, memory: jax.Array | None) -> list[jax.Array]:
    """Queries [B, S, heads, d] of `x`, keys and values [B, T, kv_heads, d] of `memory` or `x`."""
    widths = [heads * c.head_dim for heads in (c.heads, c.key_heads, c.key_heads)]
    if c.fused_qkv and memory is None:
        cuts = [widths[0], widths[0] + widths[1]]
        found = jnp.split(dense(c, sum(widths), "qkv")(x), cuts, axis=-1)
    else:
        other = x if memory is None else memory
        named = zip("qkv", (x, other, other), widths, strict=True)
        found = [keepable(c, name, dense(c, width, name)(of)) for name, of, width in named]
    return [y.reshape(*y.shape[:2], -1, c.head_dim) for y in found]


def rotate(x: jax.Array, theta: float) -> jax.Array:
    """Turns pairs of features by angles that grow with the position (RoPE), in f32.

    Args:
        x: [B, S, heads, d]; feature i is paired with i + d/2.
        theta: base of the wavelengths.
    """
    half = x.shape[-1] // 2
    frequencies = theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.arange(x.shape[1], dtype=jnp.float32)[:, None, None] * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
