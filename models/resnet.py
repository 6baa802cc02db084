"""ResNet with batch norm: convolutions that classify images (He et al. 2015, arXiv:1512.03385)."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from autopar.models.family import Family, images
from autopar.models.training import cross_entropy


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """A residual network's shape.

    Attributes:
        stages: blocks in each stage; every stage but the first halves the image.
        width: channels of the first stage's inner convolutions; every stage doubles them.
        image: height and width of the image.
        channels: channels of the image.
        classes: number of classes.
        dtype: type that is computed in.
        param_dtype: type that parameters are kept in.
    """

    stages: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    image: int = 224
    channels: int = 3
    classes: int = 1000
    dtype: DTypeLike = jnp.bfloat16
    param_dtype: DTypeLike = jnp.float32

    def family(self) -> Family:
        """Classification of images."""
        example, batches = images(self.image, self.channels, self.classes)
        return Family(ResNet(self), ("images",), cross_entropy, example, 1, batches)


class Bottleneck(nn.Module):
    """Convolutions of 1, 3 and 1, added to the input, which is projected where shapes differ."""

    config: ResNetConfig
    width: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, C] to [B, H / stride, W / stride, 4 * width], in the compute dtype."""
        y = _conv(self, "conv_0", self.width, 1)(x)
        y = _conv(self, "conv_1", self.width, 3, self.stride)(nn.relu(_norm(self, "norm_0")(y)))
        y = _conv(self, "conv_2", 4 * self.width, 1)(nn.relu(_norm(self, "norm_1")(y)))
        y = _norm(self, "norm_2")(y)
        if x.shape != y.shape:
            x = _conv(self, "conv_in", 4 * self.width, 1, self.stride)(x)
            x = _norm(self, "norm_in")(x)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Classifies images.

    Parameters: `conv`, `norm`, `stage_{i}_{j}`, `head`. Running means and variances are in the
    collection `batch_stats`; training may change it, and then norms use the batch's own.
    """

    config: ResNetConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, classes], in the compute dtype."""
        c = self.config
        x = nn.relu(_norm(self, "norm")(_conv(self, "conv", c.width, 7, 2)(images)))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding="SAME")
        for stage, blocks in enumerate(c.stages):
            for i in range(blocks):
                stride = 2 if stage and not i else 1
                x = Bottleneck(c, c.width << stage, stride, name=f"stage_{stage}_{i}")(x)
        pooled = x.mean(axis=(1, 2))
        return nn.Dense(c.classes, dtype=c.dtype, param_dtype=c.param_dtype, name="head")(pooled)


def _conv(
    module: Bottleneck | ResNet, name: str, features: int, size: int, stride: int = 1
) -> nn.Conv:
    """A square convolution without bias, as a norm follows."""
    return nn.Conv(
        features,
        kernel_size=(size, size),
        strides=(stride, stride),
        use_bias=False,
        dtype=module.config.dtype,
        param_dtype=module.config.param_dtype,
        name=name,
    )


def _norm(module: Bottleneck | ResNet, name: str) -> nn.BatchNorm:
    """A batch norm, by the batch's own statistics in training: while those kept may change."""
    return nn.BatchNorm(
        use_running_average=not module.is_mutable_collection("batch_stats"),
        momentum=0.9,
        dtype=module.config.dtype,
        param_dtype=module.config.param_dtype,
        name=name,
    )
