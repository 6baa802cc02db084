"""A feed-forward layer of experts, of which each token sees a few (GShard, Switch Transformer)."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from autopar.models.layers import INIT_STD, TransformerConfig, residual_std


class Experts(nn.Module):
    """Sends each token to its `top_k` likeliest experts, as far as these have room.

    A sequence is a group of its own, of which an expert takes so many tokens, first come, first
    served; what finds no room adds nothing. Tokens travel by products with one-hot tensors
    [B, S, experts, room]. Routing is in f32. What keeps experts evenly used is sown into `losses`.

    Parameters: `router` and, as [experts, ..] each, the kernels of a feed-forward layer: `gate`
    (where gated), `up`, `down`.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, S, D] to [B, S, D], in the compute dtype."""
        c = self.config

        def kernel(name: str, std: float, *shape: int) -> jax.Array:
            init = nn.initializers.normal(std)
            return self.param(name, init, (c.experts, *shape), c.param_dtype).astype(c.dtype)

        router = nn.Dense(
            c.experts,
            use_bias=False,
            dtype=jnp.float32,
            param_dtype=c.param_dtype,
            kernel_init=nn.initializers.normal(INIT_STD),
            name="router",
        )
        likely = nn.softmax(router(x))
        self.sow("losses", "balance", c.balance * imbalance(likely))
        room = math.ceil(c.top_k * x.shape[1] * c.capacity / c.experts)
        combine = route(likely, c.top_k, room)
        taken = jnp.einsum("bsec,bsd->ebcd", (combine > 0).astype(c.dtype), x)
        up = jnp.einsum("ebcd,edf->ebcf", taken, kernel("up", INIT_STD, c.d_model, c.ff_dim))
        activation = getattr(nn, c.activation)
        if c.gated:
            gate = kernel("gate", INIT_STD, c.d_model, c.ff_dim)
            hidden = activation(jnp.einsum("ebcd,edf->ebcf", taken, gate)) * up
        else:
            hidden = activation(up)
        down = kernel("down", residual_std(c), c.ff_dim, c.d_model)
        made = jnp.einsum("ebcf,efd->ebcd", hidden, down)
        return jnp.einsum("bsec,ebcd->bsd", combine.astype(c.dtype), made)


def route(likely: jax.Array, top_k: int, room: int) -> jax.Array:
    """Which place at which expert each token takes, and how much of what it does there it keeps.

    Args:
        likely: f32 [B, S, E], each token's distribution over experts.
        top_k: experts a token may go to; of several, the shares are made to sum to 1.
        room: C, tokens of a sequence that an expert takes. All first choices go before second ones.

    Returns:
        f32 [B, S, E, C]; zeros where a token does not go, or finds no room.
    """
    experts = likely.shape[-1]
    choices, left = [], likely
    for _ in range(top_k):
        choices.append(jax.nn.one_hot(left.argmax(axis=-1), experts))
        left = left * (1 - choices[-1])
    total = (likely * sum(choices)).sum(axis=-1, keepdims=True) if top_k > 1 else 1.0
    combine = jnp.zeros((*likely.shape, room))
    before = jnp.zeros((likely.shape[0], 1, experts))
    for choice in choices:
        queue = before + jnp.cumsum(choice, axis=1) - choice
        place = (queue * choice).sum(axis=-1).astype(jnp.int32)
        share = choice * likely / total
        combine += share[..., None] * jax.nn.one_hot(place, room)[..., None, :]
        before = before + choice.sum(axis=1, keepdims=True)
    return combine


def imbalance(likely: jax.Array) -> jax.Array:
    """How unevenly experts are used: 1 if evenly, at most their number.

    Number of experts, times the sum over them of the share of tokens that like one best and its
    mean likelihood (Fedus et al. 2021, equation 4).

    Args:
        likely: f32 [B, S, E], each token's distribution over experts.
    """
    experts = likely.shape[-1]
    first = jax.nn.one_hot(likely.argmax(axis=-1), experts).mean(axis=(0, 1))
    return experts * (first * likely.mean(axis=(0, 1))).sum()
