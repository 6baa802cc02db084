"""A workload: all that is needed to train one model, built from the model's config."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from autopar.models import data
from autopar.models.gpt import GPT, GPTConfig
from autopar.models.mlp import MLP, MLPConfig
from autopar.models.training import (
    Batch,
    InitFn,
    Loss,
    TrainState,
    TrainStep,
    cross_entropy,
    make_init,
    make_train_step,
    mean_squared_error,
)
from autopar.models.vit import ViT, ViTConfig

Config: TypeAlias = GPTConfig | MLPConfig | ViTConfig
AbstractBatch: TypeAlias = dict[str, jax.ShapeDtypeStruct]
MakeBatches: TypeAlias = Callable[[int, int, int], Iterator[data.Arrays]]


@dataclasses.dataclass(frozen=True)
class Workload:
    """All that is needed to train one model, none of it an array.

    Attributes:
        name: the preset's name.
        config: the model's shape.
        model: the Flax module.
        optimizer: the optax transformation.
        init: `init(key, batch) -> TrainState`; of the batch only shapes matter.
        train_step: `train_step(state, batch) -> (state, metrics)`.
        example: shape and dtype of each of the batch's entries, without the batch dimension.
        batch_size: global batch where none is asked for.
        tokens_per_example: positions that one example is priced by: 1 for an MLP.
        make_batches: `make_batches(seed, batch, start)`, see `batches`.
    """

    name: str
    config: Config
    model: nn.Module
    optimizer: optax.GradientTransformation
    init: InitFn
    train_step: TrainStep
    example: Mapping[str, jax.ShapeDtypeStruct]
    batch_size: int
    tokens_per_example: int
    make_batches: MakeBatches

    @property
    def tokens_per_batch(self) -> int:
        """Tokens in a batch of the default size."""
        return self.batch_size * self.tokens_per_example

    def abstract_batch(self, global_batch: int | None = None) -> AbstractBatch:
        """Shapes and dtypes of a batch, of the default size if none is given."""
        size = self.batch_size if global_batch is None else global_batch
        return {
            name: jax.ShapeDtypeStruct((size, *leaf.shape), leaf.dtype)
            for name, leaf in self.example.items()
        }

    def abstract_state(self, batch: Batch | AbstractBatch | None = None) -> TrainState:
        """Shapes and dtypes of the training state: a `TrainState` of `jax.ShapeDtypeStruct`s."""
        key = jax.eval_shape(jax.random.key, 0)
        return jax.eval_shape(self.init, key, self.abstract_batch(1) if batch is None else batch)

    def parameter_count(self) -> int:
        """Number of trained scalars; traces `init`, computes nothing."""
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.abstract_state().params))

    def batches(
        self, seed: int = 0, *, batch: int | None = None, start: int = 0
    ) -> Iterator[data.Arrays]:
        """Endless numpy batches as `abstract_batch` describes them, a function of (seed, step)."""
        return self.make_batches(seed, self.batch_size if batch is None else batch, start)


def make_workload(
    name: str, config: Config, *, optimizer: optax.GradientTransformation, batch_size: int
) -> Workload:
    """The workload of this model; `batch_size` is its default."""
    family = _family(config)
    return Workload(
        name=name,
        config=config,
        model=family.model,
        optimizer=optimizer,
        init=make_init(family.model, optimizer, inputs=family.inputs),
        train_step=make_train_step(family.model, optimizer, family.loss, inputs=family.inputs),
        example=family.example,
        batch_size=batch_size,
        tokens_per_example=family.tokens,
        make_batches=family.make_batches,
    )


class _Family(NamedTuple):
    """What differs between kinds of model; fields as in `Workload` and `make_train_step`."""

    model: nn.Module
    inputs: str
    loss: Loss
    example: AbstractBatch
    tokens: int
    make_batches: MakeBatches


def _family(config: Config) -> _Family:
    match config:
        case GPTConfig():
            return _gpt(config)
        case ViTConfig():
            return _vit(config)
        case MLPConfig():
            return _mlp(config)


def _gpt(c: GPTConfig) -> _Family:
    def make_batches(seed: int, batch: int, start: int) -> Iterator[data.Arrays]:
        if c.vocab < data.VOCAB:
            raise ValueError(f"the text has {data.VOCAB} tokens, the model's vocabulary {c.vocab}")
        return data.batches(seed, batch, c.seq, start=start)

    text = jax.ShapeDtypeStruct((c.seq,), jnp.int32)
    example = {"tokens": text, "targets": text}
    return _Family(GPT(c), "tokens", cross_entropy, example, c.seq, make_batches)


def _vit(c: ViTConfig) -> _Family:
    def make_batches(seed: int, batch: int, start: int) -> Iterator[data.Arrays]:
        return data.image_batches(seed, batch, c.image, c.channels, c.classes, start=start)

    example = {
        "images": jax.ShapeDtypeStruct((c.image, c.image, c.channels), jnp.float32),
        "targets": jax.ShapeDtypeStruct((), jnp.int32),
    }
    return _Family(ViT(c), "images", cross_entropy, example, c.tokens, make_batches)


def _mlp(c: MLPConfig) -> _Family:
    def make_batches(seed: int, batch: int, start: int) -> Iterator[data.Arrays]:
        return data.regression_batches(seed, batch, c.inputs, c.outputs, start=start)

    example = {
        "inputs": jax.ShapeDtypeStruct((c.inputs,), jnp.float32),
        "targets": jax.ShapeDtypeStruct((c.outputs,), jnp.float32),
    }
    return _Family(MLP(c), "inputs", mean_squared_error, example, 1, make_batches)
