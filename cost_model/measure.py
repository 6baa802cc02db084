"""Operations timed on all devices at once; what ``calibration`` fits its curves to.

An operation is repeated in a loop inside one program, and the time of one is the slope between two
numbers of repetitions, so that dispatch is not in it. Of the times of all rounds, which take turns,
the least count: what else the machine does can only add to them.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from autopar.core.compat import Device
from autopar.core.errors import ClusterError
from autopar.cost_model.collectives import CollectiveKind, collective_line
from autopar.cost_model.hardware import Link
from autopar.cost_model.work import VECTOR_WEIGHTS

AXIS = "all"
MATMULS = ((128, 128, 128), (256, 256, 256), (512, 512, 512), (256, 256, 32), (512, 512, 64))
"""``m, n, k`` on an emulated device; an accelerator's are ``ON_ACCELERATOR`` times as large."""

BYTES = (2**16, 2**18, 2**20, 2**22)
ON_ACCELERATOR = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """One operation: what it asks for in the units of its curve, and its time."""

    name: str
    terms: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class _Case:
    """One operation to time: ``body(x, weight)`` gives a value of the shape of ``x``."""

    name: str
    terms: tuple[float, ...]
    body: Callable[[jax.Array, jax.Array], jax.Array]
    shape: tuple[int, ...]
    dtype: str = "float32"
    weight: tuple[int, ...] = ()


@dataclass(slots=True)
class Bench:
    """Times loops of one operation on all devices at once."""

    devices: tuple[Device, ...]
    rounds: int
    scale: int

    def matmuls(self, dtype: str) -> list[Sample]:
        """Products ``[m, k] @ [k, n]``, cut to ``[m, k]`` for the next."""
        cases: list[_Case] = []
        for case in MATMULS:
            m, n, k = (extent * self.scale for extent in case)
            flops = 2.0 * m * n * k
            terms = (1.0, flops, flops / k)
            cases.append(_Case(f"{m}x{n}x{k}", terms, _product, (m, k), dtype, (k, n)))
        return self._times(cases)

    def copies(self) -> list[Sample]:
        """A sum with a constant: every byte read once and written once."""
        sizes = [count * self.scale for count in BYTES]
        return self._times(
            [_Case(f"{size >> 10} KiB", (1.0, 2.0 * size), _add, (size // 4,)) for size in sizes]
        )

    def arithmetic(self) -> list[Sample]:
        """The hyperbolic tangent, which is all arithmetic."""
        counts = [count * self.scale // 4 for count in BYTES]
        weight = VECTOR_WEIGHTS["tanh"]
        return self._times([_Case(f"tanh of {n}", (1.0, weight * n), _tanh, (n,)) for n in counts])

    def collectives(self) -> list[Sample]:
        """Every kind over all devices; terms are those of a link of bandwidth and latency one."""
        count = len(self.devices)
        unit = Link("unit", 1.0, 1.0, hops=1.0, exchange_bandwidth=count / (count - 1))
        cases: list[_Case] = []
        for kind, body in COLLECTIVES.items():
            latency, per_byte = collective_line(kind, unit, count)
            for size in BYTES:
                elements = max(size // 4 // count**2, 1) * count**2
                held = elements // count if kind == "all-gather" else elements
                terms = (latency, per_byte * 4.0 * elements)
                cases.append(_Case(f"{kind} {size >> 10} KiB", terms, body, (held,)))
        return self._times(cases)

    def _times(self, cases: Sequence[_Case]) -> list[Sample]:
        """Seconds of one run of each body, by the slope between two lengths of its loop.

        Raises:
          ClusterError: next to no body takes longer in the longer loop.
        """
        runners = [_Runner.of(case, self.devices) for case in cases]
        least = [(math.inf, math.inf)] * len(cases)
        for _ in range(self.rounds):
            for index, runner in enumerate(runners):
                short, long = least[index]
                short = min(short, runner.time(runner.runs))
                least[index] = short, min(long, runner.time(3 * runner.runs))
        found = [
            Sample(case.name, case.terms, (long - short) / (2 * runner.runs))
            for case, runner, (short, long) in zip(cases, runners, least, strict=True)
            if long > short
        ]
        if len(found) < len(cases[0].terms):
            raise ClusterError(
                f"of {len(cases)} measurements ({cases[0].name} ...) only {len(found)} came out of "
                "the noise: the machine is too busy; stop other work, or measure more --rounds"
            )
        return found


@dataclass(frozen=True, slots=True)
class _Runner:
    """A compiled loop and its arguments; ``runs`` repetitions take some 20 ms."""

    program: Callable[..., Any]
    arguments: tuple[jax.Array, ...]
    runs: int

    @classmethod
    def of(cls, case: _Case, devices: Sequence[Device]) -> _Runner:
        mesh = jax.sharding.Mesh(np.array(devices), (AXIS,))
        split, whole = jax.P(AXIS), jax.P()

        def local(x: jax.Array, weight: jax.Array, runs: jax.Array) -> jax.Array:
            return lax.fori_loop(0, runs, lambda _, value: case.body(value, weight), x)

        specs = (split, whole, whole)
        mapped = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=split, check_vma=False)
        shape = (case.shape[0] * len(devices), *case.shape[1:])
        fill = 1.0 / case.weight[0] if case.weight else 1.0
        arguments = (
            jax.device_put(np.full(shape, 0.5, case.dtype), jax.NamedSharding(mesh, split)),
            jax.device_put(np.full(case.weight, fill, case.dtype), jax.NamedSharding(mesh, whole)),
        )
        runner = cls(jax.jit(mapped), arguments, 0)
        runner.time(1)  # compiles
        runs = math.ceil(0.02 / max(runner.time(4) / 4, 1e-6))
        return dataclasses.replace(runner, runs=max(2, min(200, runs)))

    def time(self, runs: int) -> float:
        """Seconds of a call."""
        began = time.perf_counter()
        jax.block_until_ready(self.program(*self.arguments, jnp.int32(runs)))
        return time.perf_counter() - began


def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    return (x @ weight)[:, : x.shape[1]]


def _add(x: jax.Array, weight: jax.Array) -> jax.Array:
    return x + weight


def _tanh(x: jax.Array, weight: jax.Array) -> jax.Array:
    del weight
    return jnp.tanh(x)


def _all_reduce(x: jax.Array, weight: jax.Array) -> jax.Array:
    del weight
    return lax.psum(x, AXIS) * 0.1


def _all_gather(x: jax.Array, weight: jax.Array) -> jax.Array:
    del weight
    return lax.all_gather(x, AXIS, tiled=True)[: x.shape[0]]


def _reduce_scatter(x: jax.Array, weight: jax.Array) -> jax.Array:
    del weight
    part = lax.psum_scatter(x, AXIS, tiled=True)
    return lax.dynamic_update_slice(x, part * 0.1, (0,))


def _all_to_all(x: jax.Array, weight: jax.Array) -> jax.Array:
    del weight
    return lax.all_to_all(x, AXIS, 0, 0, tiled=True)


COLLECTIVES: dict[CollectiveKind, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "all-reduce": _all_reduce,
    "all-gather": _all_gather,
    "reduce-scatter": _reduce_scatter,
    "all-to-all": _all_to_all,
}
"""Each with what brings its result back to the shape it had."""
