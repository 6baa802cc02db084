"""One training step, from a model, an optimiser and a loss: plain functions of plain pytrees."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.typing import ArrayLike

Batch: TypeAlias = Mapping[str, ArrayLike]
"""Arrays by name, each with a leading batch dimension; "targets" is what the loss compares with."""

Metrics: TypeAlias = dict[str, jax.Array]
"""Scalars by name."""

Loss: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""From the model's outputs and the batch's targets to an f32 scalar."""


@struct.dataclass
class TrainState:
    """All that training changes: a pytree of arrays, with no function in it.

    Attributes:
        step: int32 scalar, the number of steps taken.
        params: the model's parameters.
        opt_state: the optimiser's state.
        variables: what else the model keeps, by collection (`batch_stats`); often nothing.
        key: what random layers draw from, with the step; `None` where there are none.
    """

    step: jax.Array
    params: Any
    opt_state: optax.OptState
    variables: Any = struct.field(default_factory=dict)
    key: jax.Array | None = None


InitFn: TypeAlias = Callable[[jax.Array, Batch], TrainState]
TrainStep: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]

LOSSES = "losses"
"""The collection into which layers sow losses of their own, which are added to the model's."""


def default_optimizer(learning_rate: float = 3e-4) -> optax.GradientTransformation:
    """AdamW at a constant rate, with GPT-3's betas and weight decay."""
    return optax.adamw(learning_rate, b1=0.9, b2=0.95, weight_decay=0.1)


def cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over all targets of -log p(target), in f32.

    Args:
        logits: [..., classes], any float type.
        targets: int32 [...].

    Returns:
        f32 scalar.
    """
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return -jnp.take_along_axis(log_p, targets[..., None], axis=-1).mean()


def mean_squared_error(outputs: jax.Array, targets: jax.Array) -> jax.Array:
    """Mean over all elements of the squared difference, in f32; both of one shape."""
    return jnp.square(outputs.astype(jnp.float32) - targets).mean()


def make_init(
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    inputs: str | Sequence[str] = "tokens",
    keyed: bool = False,
) -> InitFn:
    """Returns `init(key, batch) -> TrainState`.

    Args:
        model: maps the batch's `inputs` to what the loss takes.
        tx: the optimiser.
        inputs: the batch's entries that the model is given; only their shapes matter here.
        keyed: whether training draws random numbers, so that the state must hold a key.
    """

    def init(key: jax.Array, batch: Batch) -> TrainState:
        variables = dict(model.init(key, *_entries(batch, inputs)))
        params = variables.pop("params")
        variables.pop(LOSSES, None)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=tx.init(params),
            variables=variables,
            key=jax.random.fold_in(key, 1) if keyed else None,
        )

    return init


def make_train_step(
    model: nn.Module,
    tx: optax.GradientTransformation,
    loss: Loss = cross_entropy,
    *,
    inputs: str | Sequence[str] = "tokens",
    grad_norm: bool = False,
) -> TrainStep:
    """Returns `train_step(state, batch) -> (state, metrics)`.

    Metrics are `loss`, to which the layers' own losses are added, and, if asked for, `grad_norm`
    (the global L2 norm), both f32 scalars.

    Args:
        model: maps the batch's `inputs` to what `loss` takes.
        tx: the optimiser.
        loss: compares the model's outputs with `batch["targets"]`.
        inputs: the batch's entries that the model is given, in order.
        grad_norm: whether to report the gradients' norm.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        keys = {} if state.key is None else {"dropout": jax.random.fold_in(state.key, state.step)}

        def loss_of(params: Any) -> tuple[jax.Array, Any]:
            outputs, kept = model.apply(
                {"params": params, **state.variables},
                *_entries(batch, inputs),
                rngs=keys,
                mutable=[*state.variables, LOSSES],
            )
            kept = dict(kept)
            own = map(jnp.sum, jax.tree.leaves(kept.pop(LOSSES, {})))
            return sum(own, loss(outputs, jnp.asarray(batch["targets"]))), kept

        (value, variables), grads = jax.value_and_grad(loss_of, has_aux=True)(state.params)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        metrics = {"loss": value}
        if grad_norm:
            metrics["grad_norm"] = optax.tree.norm(grads)
        after = dataclasses.replace(
            state, step=state.step + 1, params=params, opt_state=opt_state, variables=variables
        )
        return after, metrics

    return train_step


def _entries(batch: Batch, inputs: str | Sequence[str]) -> list[ArrayLike]:
    """The batch's entries of these names."""
    return [batch[name] for name in ((inputs,) if isinstance(inputs, str) else inputs)]
