"""A step on many devices beside the same step on one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from autopar.runtime import PlannedStep


@dataclass(frozen=True, slots=True)
class Numerics:
    """How far the results are apart.

    A difference is over the largest magnitude of its own result. State is told apart from metrics:
    an optimiser divides a gradient by its own size, so that of one that is zero but for rounding
    it makes a full update of either sign.

    Attributes:
      metrics_error: the largest of results that do not become the next step's state, a loss say.
      state_error: the largest of those that do; ``state``: its path.
      results: how many were compared.
    """

    metrics_error: float
    state_error: float
    state: str
    results: int


def compare(step: Callable[..., Any], bound: PlannedStep, args: tuple[Any, ...]) -> Numerics:
    """Runs ``step`` once on one device, and once as planned; ``args`` are arrays, and stay."""
    alone = jax.tree.leaves(jax.jit(step)(*args))
    own = jax.tree.map(np.array, args)  # the planned step may be given the memory of its arguments
    together = jax.tree.leaves(bound.call(*own))
    state = {position for position, _ in bound.step.ties}
    errors = list(map(_difference, alone, together))
    worst = max(state, key=lambda position: errors[position], default=None)
    return Numerics(
        metrics_error=max((e for i, e in enumerate(errors) if i not in state), default=0.0),
        state_error=0.0 if worst is None else errors[worst],
        state="none" if worst is None else bound.step.out_paths[worst],
        results=len(errors),
    )


def _difference(one: Any, other: Any) -> float:
    """The largest difference over the largest magnitude; infinite if only one is not finite."""
    left, right = _numbers(one), _numbers(other)
    finite = np.isfinite(left)
    if (finite != np.isfinite(right)).any():
        return float("inf")
    gap = np.abs(left[finite] - right[finite]).max(initial=0.0)
    scale = np.abs(left[finite]).max(initial=0.0)
    return float(gap / scale if scale else gap)


def _numbers(array: Any) -> NDArray[np.float64]:
    if jax.numpy.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return np.asarray(array).astype(np.float64)
