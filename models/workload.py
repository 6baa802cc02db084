"""A workload: all that is needed to train one model, built from the model's config."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax
import optax
from flax import linen as nn

from autopar.models import data
from autopar.models.family import AbstractBatch, Config, MakeBatches
from autopar.models.training import (
    Batch,
    InitFn,
    TrainState,
    TrainStep,
    make_init,
    make_train_step,
)


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
    family = config.family()
    model, inputs = family.model, family.inputs
    return Workload(
        name=name,
        config=config,
        model=model,
        optimizer=optimizer,
        init=make_init(model, optimizer, inputs=inputs, keyed=family.keyed),
        train_step=make_train_step(model, optimizer, family.loss, inputs=inputs),
        example=family.example,
        batch_size=batch_size,
        tokens_per_example=family.tokens,
        make_batches=family.make_batches,
    )
