"""A language model of LSTM layers, each a loop over time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from autopar.models.family import Family, text
from autopar.models.training import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class LSTMConfig:
    """A recurrent language model's shape.

    Attributes:
        layers: number of LSTM layers.
        d_model: width of embeddings, cells and hidden states.
        vocab: size of the vocabulary.
        seq: length of the sequences that it is trained on.
        dtype: type that is computed in.
        param_dtype: type that parameters are kept in.
    """

    layers: int
    d_model: int
    vocab: int
    seq: int
    dtype: DTypeLike = jnp.bfloat16
    param_dtype: DTypeLike = jnp.float32

    def family(self) -> Family:
        """Next-token prediction."""
        example, batches = text(self.vocab, self.seq)
        return Family(LSTM(self), ("tokens",), cross_entropy, example, self.seq, batches)


class LSTM(nn.Module):
    """Predicts each next token. Parameters: `embed`, `lstm_{i}`, `lm_head`."""

    config: LSTMConfig

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Maps int32 tokens [B, S] to logits [B, S, vocab], in the compute dtype."""
        c = self.config
        x: Any = nn.Embed(
            c.vocab, c.d_model, dtype=c.dtype, param_dtype=c.param_dtype, name="embed"
        )(tokens)
        for i in range(c.layers):
            cell = nn.OptimizedLSTMCell(
                c.d_model, dtype=c.dtype, param_dtype=c.param_dtype, name=f"lstm_{i}"
            )
            x = nn.RNN(cell)(x)
        return nn.Dense(
            c.vocab, use_bias=False, dtype=c.dtype, param_dtype=c.param_dtype, name="lm_head"
        )(x)
