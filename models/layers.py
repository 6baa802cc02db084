"""What transformers are built of: their shape, linear layers, norms, dropout."""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

INIT_STD = 0.02


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """What a stack of blocks needs to know.

    Attributes:
        layers: number of blocks.
        d_model: width of the residual stream.
        heads: attention heads (of queries).
        kv_heads: heads of keys and values, each shared by as many query heads; divides `heads`,
            and is as many where `None`.
        d_head: width of one head; `d_model / heads` where `None`.
        d_ff: width of the feed-forward layer; `4 * d_model` where `None`.
        norm: layer norm, or division by the root mean square.
        activation: of the feed-forward layer.
        gated: a second projection multiplies the activated one (with `silu`: SwiGLU).
        use_bias: whether linear layers and layer norms have a bias.
        fused_qkv: queries, keys and values come of one projection, split in three.
        rope_theta: base of rotary positions; none where `None`.
        experts: experts of a routed feed-forward layer (see `Experts`); none where 0.
        experts_every: one block in so many is routed, the last of them.
        top_k: experts that a token is sent to.
        capacity: room for tokens, as a multiple of what even use would need.
        balance: weight of the loss that keeps experts evenly used.
        dropout: share of activations that training drops: of attention weights, of what blocks add
            to the residual stream, and of embeddings.
        dtype: type that is computed in.
        param_dtype: type that parameters are kept in.
        scan: one loop over stacked layers, in place of one copy of the block a layer.
        remat: recompute each block in the backward pass (`jax.checkpoint`).
        kept: under `remat`, linear layers whose results are kept, by name: of attention `q`, `k`,
            `v` and `out`, of the feed-forward layer `gate`, `up` and `down`; `mixed` is what
            attention makes of the values, before `out`.
        remat_attention: recompute scores and softmax in the backward pass, whatever `remat` says.
    """

    layers: int
    d_model: int
    heads: int
    kv_heads: int | None = None
    d_head: int | None = None
    d_ff: int | None = None
    norm: Literal["layer", "rms"] = "layer"
    activation: Literal["gelu", "silu", "relu"] = "gelu"
    gated: bool = False
    use_bias: bool = True
    fused_qkv: bool = False
    rope_theta: float | None = None
    experts: int = 0
    experts_every: int = 1
    top_k: int = 2
    capacity: float = 1.25
    balance: float = 0.01
    dropout: float = 0.0
    dtype: DTypeLike = jnp.bfloat16
    param_dtype: DTypeLike = jnp.float32
    scan: bool = False
    remat: bool = False
    kept: tuple[str, ...] = ()
    remat_attention: bool = False

    def __post_init__(self) -> None:
        """Checks that heads divide what they share."""
        if self.d_head is None and self.d_model % self.heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of heads={self.heads}")
        if self.heads % self.key_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        if self.rope_theta is not None and self.head_dim % 2:
            raise ValueError(f"rotary positions turn pairs, and a head is {self.head_dim} wide")
        if self.scan and self.experts and self.experts_every > 1:
            raise ValueError("a loop over layers needs them alike: scan with experts_every=1")
        if self.experts and not 0 < self.top_k <= self.experts:
            raise ValueError(f"top_k={self.top_k} of experts={self.experts}")

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.d_head or self.d_model // self.heads

    @property
    def key_heads(self) -> int:
        """Heads of keys and of values."""
        return self.kv_heads or self.heads

    @property
    def ff_dim(self) -> int:
        """Width of the feed-forward layer."""
        return self.d_ff or 4 * self.d_model


def dense(config: TransformerConfig, features: int, name: str, std: float = INIT_STD) -> nn.Dense:
    """A linear layer, initialised as GPT-2's are."""
    return nn.Dense(
        features,
        use_bias=config.use_bias,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        kernel_init=nn.initializers.normal(std),
        name=name,
    )


def norm(config: TransformerConfig, name: str) -> nn.Module:
    """The norm of this config: statistics in f32, result in the compute dtype."""
    c = config
    if c.norm == "rms":
        return nn.RMSNorm(epsilon=1e-5, dtype=c.dtype, param_dtype=c.param_dtype, name=name)
    return nn.LayerNorm(use_bias=c.use_bias, dtype=c.dtype, param_dtype=c.param_dtype, name=name)


def embed(config: TransformerConfig, vocab: int, name: str) -> nn.Embed:
    """An embedding table [vocab, D]."""
    return nn.Embed(
        vocab,
        config.d_model,
        dtype=config.dtype,
        param_dtype=config.param_dtype,
        embedding_init=nn.initializers.normal(INIT_STD),
        name=name,
    )


def head(config: TransformerConfig, vocab: int) -> nn.Dense:
    """The output layer, without bias: [.., D] to logits [.., vocab]."""
    return dense(dataclasses.replace(config, use_bias=False), vocab, "lm_head")


def dropout(module: nn.Module, rate: float, x: jax.Array) -> jax.Array:
    """Drops some of `x` in training, which is when the running `module` has a key `dropout`."""
    return nn.Dropout(rate, deterministic=not module.has_rng("dropout"))(x)


def keepable(config: TransformerConfig, name: str, x: jax.Array) -> jax.Array:
    """`x` under the name by which `config.kept` speaks of it; `x` itself where nothing is kept."""
    return checkpoint_name(x, name) if config.kept else x


def residual_std(config: TransformerConfig) -> float:
    """Initial scale of layers that write to the residual stream, as in GPT-2."""
    return INIT_STD / math.sqrt(2 * config.layers)
