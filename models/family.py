"""What a model's config must say of it for a workload to be made."""

from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias

import jax
import jax.numpy as jnp
from flax import linen as nn

from autopar.models import data
from autopar.models.training import Loss

AbstractBatch: TypeAlias = dict[str, jax.ShapeDtypeStruct]
MakeBatches: TypeAlias = Callable[[int, int, int], Iterator[data.Arrays]]


class Family(NamedTuple):
    """What differs between kinds of model.

    Attributes:
        model: the Flax module.
        inputs: the batch's entries that the model is given, in order.
        loss: compares the model's outputs with `batch["targets"]`.
        example: shape and dtype of each of the batch's entries, without the batch dimension.
        tokens: positions that one example is priced by.
        make_batches: `make_batches(seed, batch, start)`: endless batches from step `start`.
        keyed: whether training draws random numbers.
    """

    model: nn.Module
    inputs: tuple[str, ...]
    loss: Loss
    example: AbstractBatch
    tokens: int
    make_batches: MakeBatches
    keyed: bool = False


class Config(Protocol):
    """A frozen dataclass that holds a model's shape."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def family(self) -> Family:
        """The model of this shape, and what trains it."""
        ...


def text(vocab: int, seq: int) -> tuple[AbstractBatch, MakeBatches]:
    """`tokens` and the `targets` that follow, int32 [B, seq]: one example, and real ones."""

    def make_batches(seed: int, batch: int, start: int) -> Iterator[data.Arrays]:
        _check_vocabulary(vocab)
        return data.batches(seed, batch, seq, start=start)

    window = jax.ShapeDtypeStruct((seq,), jnp.int32)
    return {"tokens": window, "targets": window}, make_batches


def continuations(vocab: int, seq: int, target_seq: int) -> tuple[AbstractBatch, MakeBatches]:
    """`tokens`, int32 [B, seq], and how they go on: `targets` and what is `previous` to each, int32
    [B, target_seq]. One example, and real ones.
    """

    def make_batches(seed: int, batch: int, start: int) -> Iterator[data.Arrays]:
        _check_vocabulary(vocab)
        return data.continuations(seed, batch, seq, target_seq, start=start)

    given = jax.ShapeDtypeStruct((seq,), jnp.int32)
    target = jax.ShapeDtypeStruct((target_seq,), jnp.int32)
    return {"tokens": given, "previous": target, "targets": target}, make_batches


def _check_vocabulary(vocab: int) -> None:
    if vocab < data.VOCAB:
        raise ValueError(f"the text has {data.VOCAB} tokens, the model's vocabulary {vocab}")


def images(size: int, channels: int, classes: int) -> tuple[AbstractBatch, MakeBatches]:
    """`images`, f32 [B, size, size, channels], and their `targets`, int32 [B]."""

    def make_batches(seed: int, batch: int, start: int) -> Iterator[data.Arrays]:
        return data.image_batches(seed, batch, size, channels, classes, start=start)

    example = {
        "images": jax.ShapeDtypeStruct((size, size, channels), jnp.float32),
        "targets": jax.ShapeDtypeStruct((), jnp.int32),
    }
    return example, make_batches
