"""GPT: a pre-norm, decoder-only transformer with learned positions."""

import dataclasses

import jax
from flax import linen as nn

from autopar.models.family import Family, text
from autopar.models.layers import INIT_STD, TransformerConfig, dropout, embed, head, norm
from autopar.models.training import cross_entropy
from autopar.models.transformer import apply_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class GPTConfig(TransformerConfig):
    """A GPT's shape.

    Attributes:
        vocab: size of the vocabulary; the default is GPT-2's, padded for large meshes to divide.
        seq: the longest sequence: positions are learned.
        tied: whether the output layer is the embedding, transposed.
    """

    vocab: int = 51200
    seq: int = 2048
    tied: bool = False

    def family(self) -> Family:
        """Next-token prediction."""
        example, batches = text(self.vocab, self.seq)
        keyed = self.dropout > 0
        return Family(GPT(self), ("tokens",), cross_entropy, example, self.seq, batches, keyed)


class GPT(nn.Module):
    """Predicts each next token.

    Parameters: `embed`, `pos_embed`, `block_{i}` (or `blocks`, see `apply_blocks`), `ln_out`,
    `lm_head` (unless tied).
    """

    config: GPTConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32 tokens [B, S] to logits [B, S, vocab], in the compute dtype."""
        c = self.config
        seq = tokens.shape[-1]
        if seq > c.seq:
            raise ValueError(f"a sequence of {seq} tokens, where the model has {c.seq} positions")
        table = embed(c, c.vocab, "embed")
        init = nn.initializers.normal(INIT_STD)
        positions = self.param("pos_embed", init, (c.seq, c.d_model), c.param_dtype)
        x = table(tokens) + positions[:seq].astype(c.dtype)
        x = apply_blocks(c, dropout(self, c.dropout, x), causal=True)
        x = norm(c, "ln_out")(x)
        return table.attend(x) if c.tied else head(c, c.vocab)(x)
