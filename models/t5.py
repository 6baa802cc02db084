"""T5 1.1: an encoder, and a decoder that attends to it (Raffel et al. 2019, arXiv:1910.10683).

Attention keeps the usual scale, which T5 leaves to the initialisation.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from autopar.models.family import Family, continuations
from autopar.models.layers import INIT_STD, TransformerConfig, dropout, embed, head, norm
from autopar.models.training import cross_entropy
from autopar.models.transformer import apply_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class T5Config(TransformerConfig):
    """A T5's shape; `layers` are those of the encoder, and as many again of the decoder.

    Attributes:
        vocab: size of the vocabulary; the default is the published one, padded.
        seq: length of the texts that are encoded.
        target_seq: length of the texts that are predicted.
        buckets: how many distances between tokens are told apart.
        furthest: distance from which they are not.
    """

    vocab: int = 32128
    seq: int = 512
    target_seq: int = 128
    buckets: int = 32
    furthest: int = 128
    norm: Literal["layer", "rms"] = "rms"
    gated: bool = True
    use_bias: bool = False

    def family(self) -> Family:
        """Prediction of how a text goes on."""
        example, batches = continuations(self.vocab, self.seq, self.target_seq)
        tokens, keyed = self.seq + self.target_seq, self.dropout > 0
        inputs = ("tokens", "previous")
        return Family(T5(self), inputs, cross_entropy, example, tokens, batches, keyed)


class T5(nn.Module):
    """Predicts each next token of a text, given another.

    Parameters: `embed`, `encoder`, `decoder`, `lm_head`.
    """

    config: T5Config

    @nn.compact
    def __call__(self, tokens: jax.Array, previous: jax.Array) -> jax.Array:
        """Maps tokens [B, S] and [B, T] to logits [B, T, vocab], in the compute dtype."""
        c = self.config
        table = embed(c, c.vocab, "embed")
        memory = Stack(c, causal=False, name="encoder")(table(tokens))
        x = Stack(c, causal=True, name="decoder")(table(previous), memory)
        return head(c, c.vocab)(x)


class Stack(nn.Module):
    """Blocks that know how far tokens are apart.

    Parameters: `distances`, `block_{i}` (or `blocks`, see `apply_blocks`), `ln_out`.
    """

    config: T5Config
    causal: bool

    @nn.compact
    def __call__(self, x: jax.Array, memory: jax.Array | None = None) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], in the compute dtype."""
        c = self.config
        init = nn.initializers.normal(INIT_STD)
        weights = self.param("distances", init, (c.buckets, c.heads), c.param_dtype)
        near = bucket(x.shape[1], c.buckets, c.furthest, causal=self.causal)
        bias = weights[near].transpose(2, 0, 1).astype(jnp.float32)
        x = dropout(self, c.dropout, x)
        x = apply_blocks(c, x, causal=self.causal, memory=memory, bias=bias)
        return dropout(self, c.dropout, norm(c, "ln_out")(x))


def bucket(seq: int, buckets: int, furthest: int, *, causal: bool) -> jax.Array:
    """The bucket of the distance from each token to each: int32 [seq, seq] in [0, buckets).

    Half of the buckets hold one distance each, the others ever wider ranges of them, up to
    `furthest`. Unless `causal`, each direction has half of all.
    """
    ahead = jnp.arange(seq)[None, :] - jnp.arange(seq)[:, None]
    side = jnp.zeros_like(ahead)
    if not causal:
        buckets //= 2
        side = jnp.where(ahead > 0, buckets, 0)
    distance = jnp.maximum(-ahead, 0) if causal else jnp.abs(ahead)
    exact = buckets // 2
    ratio = jnp.maximum(distance, exact).astype(jnp.float32) / exact
    wide = jnp.log(ratio) / math.log(furthest / exact) * (buckets - exact)
    far = jnp.minimum(exact + wide.astype(jnp.int32), buckets - 1)
    return side + jnp.where(distance < exact, distance, far)
