"""The constants of the cost model, measured on the devices of this process.

Every measurement runs on all devices at once, as a step does: what they share (the cores and the
memory of a machine that emulates them) is then in the constants of each. An operation is repeated
in a loop inside one program; the time of one is the slope between two numbers of repetitions, so
that dispatch is not in it. The curves fitted, with weights that make all errors relative::

    matmul       launch + 2 m n k / peak + (2 m n k / k) * half_k / peak
    copy         launch + bytes / bandwidth
    arithmetic   launch + instructions / vector rate
    collective   hops * latency + bytes * factor / bandwidth       (see ``collectives``)

Times are medians over rounds that take turns, so that a busy moment hits all alike.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from autopar.core.compat import Device
from autopar.cost_model.cluster import Cluster
from autopar.cost_model.collectives import CollectiveKind, collective_line
from autopar.cost_model.hardware import Chip, Level, Link
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
class Curve:
    """A fitted curve: the coefficient of each term, and the relative error at each sample."""

    name: str
    coefficients: tuple[float, ...]
    samples: tuple[Sample, ...]

    @property
    def residuals(self) -> tuple[float, ...]:
        """Predicted over measured, less one."""
        found: list[float] = []
        for sample in self.samples:
            guess = sum(c * x for c, x in zip(self.coefficients, sample.terms, strict=True))
            found.append(guess / sample.seconds - 1.0)
        return tuple(found)

    @property
    def error(self) -> float:
        """Median size of the residuals."""
        return statistics.median(map(abs, self.residuals))


@dataclass(frozen=True, slots=True)
class Calibration:
    """The cluster as measured, and the curves it was read off."""

    cluster: Cluster
    curves: tuple[Curve, ...]


def fit(name: str, samples: Sequence[Sample]) -> Curve:
    """Least squares of relative errors, no coefficient below zero."""
    terms = np.array([sample.terms for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    scaled = terms / seconds[:, None]
    kept = list(range(terms.shape[1]))
    while True:
        found, *_ = np.linalg.lstsq(scaled[:, kept], np.ones(len(samples)), rcond=None)
        if (found >= 0).all() or len(kept) == 1:
            break
        kept.remove(kept[int(np.argmin(found * np.abs(scaled[:, kept]).mean(axis=0)))])
    coefficients = [0.0] * terms.shape[1]
    for index, value in zip(kept, found, strict=True):
        coefficients[index] = max(0.0, float(value))
    return Curve(name, tuple(coefficients), tuple(samples))


def calibrate(
    devices: Sequence[Device] | None = None,
    rounds: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measures the devices of this process (all of them, if none are given).

    Raises:
      ClusterError: no preset says what is not measured (memory, host) of such devices.
    """
    used = tuple(devices or jax.devices())
    base = Cluster.detect()
    if base.device_count != len(used):
        base = dataclasses.replace(base, shape=(len(used),), levels=base.levels[-1:])
    bench = _Bench(used, rounds, 1 if used[0].platform == "cpu" else ON_ACCELERATOR)
    progress("matrix products")
    dtypes = ("float32", "bfloat16")
    products = {dtype: fit(f"matmul {dtype}", bench.matmuls(dtype)) for dtype in dtypes}
    progress("copies and arithmetic")
    copies = fit("copy", bench.copies())
    arithmetic = fit("arithmetic", bench.arithmetic())
    curves = [*products.values(), copies, arithmetic]
    levels: tuple[Level, ...] = ()
    if len(used) > 1:
        progress("collectives")
        links = fit("collectives", bench.collectives())
        curves.append(links)
        latency_s, per_byte = links.coefficients
        kept = base.levels[-1] if base.levels else None
        name = kept.name if kept else "network"
        levels = (Level(name, len(used), "switch", 1.0 / max(per_byte, 1e-15), latency_s),)
    chip = _chip(base.chip, products, copies, arithmetic)
    return Calibration(Cluster(f"{base.name}-measured", chip, (len(used),), levels), tuple(curves))


def _chip(base: Chip, products: dict[str, Curve], copies: Curve, arithmetic: Curve) -> Chip:
    """``base`` with what was measured. What was reached is taken for the peak: efficiencies are 1,
    and rates that were not measured (int8, fp8) keep their ratio to that of bf16.
    """

    def rate(curve: Curve, term: int) -> float:
        return 1.0 / max(curve.coefficients[term], 1e-18)

    bf16, f32 = rate(products["bfloat16"], 1), rate(products["float32"], 1)
    best = max(products.values(), key=lambda curve: rate(curve, 1))
    return dataclasses.replace(
        base,
        bf16_flops=bf16,
        f32_flops=f32,
        f32_highest_flops=f32 * base.f32_highest_flops / base.f32_flops,
        int8_flops=bf16 * base.int8_flops / base.bf16_flops,
        fp8_flops=bf16 * base.fp8_flops / base.bf16_flops,
        matmul_efficiency=1.0,
        matmul_half_k=round(best.coefficients[2] / max(best.coefficients[1], 1e-18)),
        matmul_tile=1,
        hbm_bandwidth=rate(copies, 1),
        hbm_efficiency=1.0,
        vector_flops=rate(arithmetic, 1),
        launch_s=statistics.median(
            curve.coefficients[0] for curve in (*products.values(), copies, arithmetic)
        ),
    )


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
class _Bench:
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
        """Seconds of one run of each body, by the slope between two lengths of its loop."""
        runners = [_Runner.of(case, self.devices) for case in cases]
        slopes: list[list[float]] = [[] for _ in cases]
        for _ in range(self.rounds):
            for found, runner in zip(slopes, runners, strict=True):
                found.append(runner.slope())
        return [
            Sample(case.name, case.terms, max(statistics.median(found), 1e-9))
            for case, found in zip(cases, slopes, strict=True)
        ]


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

    def slope(self) -> float:
        """Seconds of one repetition."""
        return (self.time(3 * self.runs) - self.time(self.runs)) / (2 * self.runs)


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
