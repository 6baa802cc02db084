"""LLaMA: a decoder-only transformer with RMS norms, rotary positions, SwiGLU and shared key heads.

Shapes and constants as published (Touvron et al. 2023, arXiv:2307.09288; Grattafiori et al. 2024,
arXiv:2407.21783).
"""

import dataclasses
from typing import Literal

import jax
from flax import linen as nn

from autopar.models.family import Family, text
from autopar.models.layers import TransformerConfig, dropout, embed, head, norm
from autopar.models.training import cross_entropy
from autopar.models.transformer import apply_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaConfig(TransformerConfig):
    """A LLaMA's shape, its defaults those of LLaMA 3.

    Attributes:
        vocab: size of the vocabulary.
        seq: length of the sequences that it is trained on; any length can be computed.
    """

    vocab: int = 128256
    seq: int = 8192
    norm: Literal["layer", "rms"] = "rms"
    activation: Literal["gelu", "silu", "relu"] = "silu"
    gated: bool = True
    use_bias: bool = False
    rope_theta: float | None = 500_000.0

    def family(self) -> Family:
        """Next-token prediction."""
        example, batches = text(self.vocab, self.seq)
        keyed = self.dropout > 0
        return Family(Llama(self), ("tokens",), cross_entropy, example, self.seq, batches, keyed)


class Llama(nn.Module):
    """Predicts each next token.

    Parameters: `embed`, `block_{i}` (or `blocks`, see `apply_blocks`), `ln_out`, `lm_head`.
    """

    config: LlamaConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32 tokens [B, S] to logits [B, S, vocab], in the compute dtype."""
        c = self.config
        x = dropout(self, c.dropout, embed(c, c.vocab, "embed")(tokens))
        x = apply_blocks(c, x, causal=True)
        return head(c, c.vocab)(norm(c, "ln_out")(x))
