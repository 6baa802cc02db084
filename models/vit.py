"""ViT: a transformer over image patches, for classification."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from autopar.models.family import Family, images
from autopar.models.layers import INIT_STD, TransformerConfig, dense, dropout, norm
from autopar.models.training import cross_entropy
from autopar.models.transformer import apply_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(TransformerConfig):
    """A vision transformer's shape.

    Attributes:
        image: height and width of the image, a multiple of `patch`.
        patch: height and width of a patch.
        channels: channels of the image.
        classes: number of classes.
        pool: what the classifier reads: the mean over patches, or one extra token, as first
            published. The mean keeps the sequence a round number, which divides over a mesh.
    """

    image: int = 224
    patch: int = 16
    channels: int = 3
    classes: int = 1000
    pool: Literal["mean", "cls"] = "mean"

    def __post_init__(self) -> None:
        """Checks that patches divide the image."""
        super().__post_init__()
        if self.image % self.patch:
            raise ValueError(f"image={self.image} is not a multiple of patch={self.patch}")

    @property
    def tokens(self) -> int:
        """Length of the sequence that the blocks see."""
        return (self.image // self.patch) ** 2 + (self.pool == "cls")

    def family(self) -> Family:
        """Classification of images."""
        example, batches = images(self.image, self.channels, self.classes)
        keyed = self.dropout > 0
        return Family(ViT(self), ("images",), cross_entropy, example, self.tokens, batches, keyed)


class ViT(nn.Module):
    """Classifies images.

    Parameters: `patch_embed`, `cls` (where pooled so), `pos_embed`, `block_{i}` (or `blocks`, see
    `apply_blocks`), `ln_out`, `head`.
    """

    config: ViTConfig

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps images [B, H, W, C] to logits [B, classes], in the compute dtype."""
        c = self.config
        init = nn.initializers.normal(INIT_STD)
        patches = nn.Conv(
            c.d_model,
            kernel_size=(c.patch, c.patch),
            strides=(c.patch, c.patch),
            padding="VALID",
            use_bias=c.use_bias,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            name="patch_embed",
        )(images)
        x = patches.reshape(patches.shape[0], -1, c.d_model)
        if c.pool == "cls":
            cls = self.param("cls", init, (1, 1, c.d_model), c.param_dtype).astype(c.dtype)
            x = jnp.concatenate([jnp.broadcast_to(cls, (x.shape[0], 1, c.d_model)), x], axis=1)
        positions = self.param("pos_embed", init, (c.tokens, c.d_model), c.param_dtype)
        x = dropout(self, c.dropout, x + positions.astype(c.dtype))
        x = apply_blocks(c, x, causal=False)
        x = norm(c, "ln_out")(x)
        pooled = x[:, 0] if c.pool == "cls" else x.mean(axis=1)
        return dense(c, c.classes, "head")(pooled)
