"""Pre-norm transformer blocks, as all transformers here share them."""

import dataclasses
import functools
from typing import Any

import jax
from flax import linen as nn

from autopar.models.attention import Attention
from autopar.models.experts import Experts
from autopar.models.layers import (
    TransformerConfig,
    dense,
    dropout,
    keepable,
    norm,
    residual_std,
)


class FeedForward(nn.Module):
    """Feed-forward layer."""

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], in the compute dtype."""
        c = self.config
        activation = getattr(nn, c.activation)
        if c.gated:
            gate = keepable(c, "gate", dense(c, c.ff_dim, "gate")(x))
            hidden = activation(gate) * keepable(c, "up", dense(c, c.ff_dim, "up")(x))
        else:
            hidden = activation(keepable(c, "up", dense(c, c.ff_dim, "up")(x)))
        return keepable(c, "down", dense(c, c.d_model, "down", residual_std(c))(hidden))


class Block(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each added to the residual stream.

    Where there is a `memory` (an encoder's result), attention to it comes between.
    """

    config: TransformerConfig
    causal: bool

    @nn.compact
    def __call__(
        self, x: jax.Array, memory: jax.Array | None = None, bias: jax.Array | None = None
    ) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], in the compute dtype.

        Args:
            x: what flows from block to block.
            memory: [B, T, D].
            bias: [heads, S, S], added to the scores of self-attention.
        """
        c = self.config
        attended = Attention(c, self.causal, name="attn")(norm(c, "ln_attn")(x), bias=bias)
        x = x + dropout(self, c.dropout, attended)
        if memory is not None:
            attended = Attention(c, causal=False, name="cross")(norm(c, "ln_cross")(x), memory)
            x = x + dropout(self, c.dropout, attended)
        feed_forward = (Experts if c.experts else FeedForward)(c, name="mlp")
        return x + dropout(self, c.dropout, feed_forward(norm(c, "ln_mlp")(x)))


def apply_blocks(
    config: TransformerConfig,
    x: jax.Array,
    *,
    causal: bool,
    memory: jax.Array | None = None,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Runs the stack of blocks on [B, S, D]; to be called in a compact method.

    Parameters are named `block_0`, `block_1`, ...; under `scan`, `blocks`, with a leading dimension
    of `layers` on each. Every block gets `memory` and `bias`.
    """
    # Within a loop nothing can be merged across iterations, so no barrier is needed against it.
    keep = jax.checkpoint_policies.save_only_these_names(*config.kept) if config.kept else None
    again = functools.partial(nn.remat, prevent_cse=not config.scan, policy=keep)
    block: Any = again(Block) if config.remat else Block
    if not config.scan:
        plain = dataclasses.replace(config, experts=0)
        for i in range(config.layers):
            routed = i % config.experts_every == config.experts_every - 1
            x = block(config if routed else plain, causal, name=f"block_{i}")(x, memory, bias)
        return x

    def body(layer: Any, carry: jax.Array, _: None) -> tuple[jax.Array, None]:
        return layer(carry, memory, bias), None

    loop = nn.scan(
        body,
        variable_axes={"params": 0, "losses": 0},
        split_rngs={"params": True, "dropout": True},
        length=config.layers,
    )
    return loop(block(config, causal, name="blocks"), x, None)[0]
