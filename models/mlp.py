"""A multi-layer perceptron: the smallest model in which plans differ."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from autopar.models import data
from autopar.models.family import Family
from autopar.models.training import mean_squared_error


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

    def family(self) -> Family:
        """Regression."""

        def batches(seed: int, batch: int, start: int) -> Iterator[data.Arrays]:
            return data.regression_batches(seed, batch, self.inputs, self.outputs, start=start)

        example = {
            "inputs": jax.ShapeDtypeStruct((self.inputs,), jnp.float32),
            "targets": jax.ShapeDtypeStruct((self.outputs,), jnp.float32),
        }
        return Family(MLP(self), ("inputs",), mean_squared_error, example, 1, batches)


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
