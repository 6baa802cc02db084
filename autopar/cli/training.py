"""Training loops: one that runs a planned step, one that repeats it on a single device."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import jax

from autopar.cli.workloads import Trainable
from autopar.core.errors import OptionError
from autopar.parallelized import Parallelized

WARM_UP = 3
"""Steps left out of the measured time: the first compiles."""

Done = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Run:
    """What a training run was like, step by step. ``tokens`` is those of one batch."""

    losses: tuple[float, ...]
    seconds: tuple[float, ...]
    tokens: int

    @property
    def step_s(self) -> float:
        """The median time of a step, after warming up if there were steps enough."""
        return statistics.median(self.seconds[min(WARM_UP, len(self.seconds) - 1) :])

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.step_s

    @property
    def fell(self) -> bool:
        """Whether the mean loss of the last fifth is below that of the first; of one step, yes."""
        count = max(1, len(self.losses) // 5)
        first, last = self.losses[:count], self.losses[-count:]
        return len(self.losses) == 1 or statistics.fmean(last) < statistics.fmean(first)

    def difference(self, other: Run) -> float:
        """The largest difference of losses over the steps that both have; NaN if one is."""
        pairs = zip(self.losses, other.losses, strict=False)
        differences = [abs(a - b) for a, b in pairs]
        return max(differences, key=lambda d: (d != d, d))


@dataclass(frozen=True, slots=True)
class Trainer:
    """A workload, and the seed and size of its batches."""

    workload: Trainable
    batch_size: int
    seed: int

    def many_devices(self, step: Parallelized[Any, Any], steps: int, done: Done) -> Run:
        """Trains with a planned step; the state is born in the plan's layout."""

        def init(batch: Any) -> Any:
            key = jax.random.key(self.seed)
            return step.init(self.workload.init, key, batch, batch=batch)

        return self._run(init, step, steps, done)

    def one_device(self, steps: int, done: Done) -> Run:
        """Trains as anyone would without autopar: the same seed, the same data, plain ``jit``."""
        with jax.default_device(jax.local_devices()[0]):
            key = jax.random.key(self.seed)
            init = jax.jit(self.workload.init)
            step = jax.jit(self.workload.train_step, donate_argnums=0)
            return self._run(lambda batch: init(key, batch), step, steps, done)

    def _run(
        self,
        init: Callable[[Any], Any],
        step: Callable[[Any, Any], tuple[Any, Any]],
        steps: int,
        done: Done,
    ) -> Run:
        tokens = self.batch_size * self.workload.tokens_per_example
        losses: list[float] = []
        seconds: list[float] = []
        state = None
        for batch in self._batches(steps):
            state = init(batch) if state is None else state
            began = time.perf_counter()
            state, metrics = step(state, batch)
            jax.block_until_ready((state, metrics))
            seconds.append(time.perf_counter() - began)
            losses.append(_loss(metrics))
            done(f"loss {losses[-1]:.4f}, {tokens / seconds[-1]:,.0f} tokens/s")
        return Run(tuple(losses), tuple(seconds), tokens)

    def _batches(self, steps: int) -> Iterable[Any]:
        return itertools.islice(self.workload.batches(self.seed, batch=self.batch_size), steps)


def _loss(metrics: Any) -> float:
    if "loss" not in metrics:
        raise OptionError(
            f"the step's metrics are {sorted(metrics)}; training reports metrics['loss'], a scalar"
        )
    return float(metrics["loss"])
