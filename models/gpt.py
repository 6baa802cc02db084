"""GPT: a pre-norm, decoder-only transformer with learned positions and an untied output layer."""

import dataclasses

import jax
from flax import linen as nn

from autopar.models.transformer import (
    INIT_STD,
    TransformerConfig,
    apply_blocks,
    layer_norm,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(TransformerConfig):
    """A GPT's shape.

    Attributes:
        vocab: size of the vocabulary; the default is GPT-2's, padded for large meshes to divide.
        seq: the longest sequence: positions are learned.
    """

    vocab: int = 51200
    seq: int = 2048


class GPT(nn.Module):
    """Predicts each next token.

    Parameters: `embed`, `pos_embed`, `block_{i}` (or `blocks`, see `apply_blocks`), `ln_out`,
    `lm_head`.
    """

    config: GPTConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32 tokens [B, S] to logits [B, S, vocab], in the compute dtype."""
        c = self.config
        seq = tokens.shape[-1]
        if seq > c.seq:
            raise ValueError(f"a sequence of {seq} tokens, where the model has {c.seq} positions")
        init = nn.initializers.normal(INIT_STD)
        embed = nn.Embed(
            c.vocab,
            c.d_model,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=init,
            name="embed",
        )
        positions = self.param("pos_embed", init, (c.seq, c.d_model), c.param_dtype)
        x = embed(tokens) + positions[:seq].astype(c.dtype)
        x = apply_blocks(c, x, causal=True)
        x = layer_norm(c, "ln_out")(x)
        return nn.Dense(
            c.vocab,
            use_bias=False,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            kernel_init=init,
            name="lm_head",
        )(x)
