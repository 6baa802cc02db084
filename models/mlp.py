"""A multi-layer perceptron: the smallest model in which plans differ."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLPConfig:
    """A perceptron's shape.

    Attributes:
        layers: number of linear layers.
        inputs: features of an input.
        hidden: features between layers.
        outputs: features of an output.
        use_bias: whether layers have a bias.
        dtype: type that is computed in.
        param_dtype: type that parameters are kept in.
    """

    layers: int
    inputs: int
    hidden: int
    outputs: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.bfloat16
    param_dtype: DTypeLike = jnp.float32


class MLP(nn.Module):
    """Linear layers with GELU between them. Parameters: `dense_0`, `dense_1`, ..."""

    config: MLPConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, inputs] to [B, outputs], in the compute dtype."""
        c = self.config
        widths = [c.hidden] * (c.layers - 1) + [c.outputs]
        for i, width in enumerate(widths):
            if i:
                x = nn.gelu(x)
            x = nn.Dense(
                width,
                use_bias=c.use_bias,
                dtype=c.dtype,
                param_dtype=c.param_dtype,
                name=f"dense_{i}",
            )(x)
        return x
