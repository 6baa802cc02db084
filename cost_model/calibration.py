"""The constants of the cost model, measured on the devices of this process.

Every measurement runs on all devices at once, as a step does: what they share (the cores and the
memory of a machine that emulates them) is then in the constants of each (``measure``). The curves
fitted, with weights that make all errors relative::

    matmul       launch + 2 m n k / peak + (2 m n k / k) * half_k / peak
    copy         launch + bytes / bandwidth
    arithmetic   launch + instructions / vector rate
    collective   hops * latency + bytes * factor / bandwidth       (see ``collectives``)
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from autopar.core.compat import Device
from autopar.cost_model.cluster import Cluster
from autopar.cost_model.hardware import Chip, Level
from autopar.cost_model.measure import ON_ACCELERATOR, Bench, Sample


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


def product_curve(name: str, samples: Sequence[Sample]) -> Curve:
    """The curve of matrix products: without the length at which half the rate is reached, where
    noise puts that beyond the longest contraction measured and leaves next to no rate.
    """
    curve = fit(name, samples)
    longest = max(flops / faces for _, flops, faces in (one.terms for one in samples))
    if curve.coefficients[2] < longest * curve.coefficients[1]:
        return curve
    plain = [dataclasses.replace(one, terms=(*one.terms[:2], 0.0)) for one in samples]
    return fit(name, plain)


def calibrate(
    devices: Sequence[Device] | None = None,
    rounds: int = 5,
    progress: Callable[[str], None] = lambda _: None,
) -> Calibration:
    """Measures the devices of this process (all of them, if none are given).

    Raises:
      ClusterError: no preset says what is not measured (memory, host) of such devices, or the
        machine is too busy.
    """
    used = tuple(devices or jax.devices())
    base = Cluster.detect()
    if base.device_count != len(used):
        base = dataclasses.replace(base, shape=(len(used),), levels=base.levels[-1:])
    bench = Bench(used, rounds, 1 if used[0].platform == "cpu" else ON_ACCELERATOR)
    progress("matrix products")
    dtypes = ("float32", "bfloat16")
    products = {d: product_curve(f"matmul {d}", bench.matmuls(d)) for d in dtypes}
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
    half_k = min(c.coefficients[2] / max(c.coefficients[1], 1e-18) for c in products.values())
    return dataclasses.replace(
        base,
        bf16_flops=bf16,
        f32_flops=f32,
        f32_highest_flops=f32 * base.f32_highest_flops / base.f32_flops,
        int8_flops=bf16 * base.int8_flops / base.bf16_flops,
        fp8_flops=bf16 * base.fp8_flops / base.bf16_flops,
        matmul_efficiency=1.0,
        matmul_half_k=round(half_k),
        matmul_tile=1,
        hbm_bandwidth=rate(copies, 1),
        hbm_efficiency=1.0,
        vector_flops=rate(arithmetic, 1),
        launch_s=statistics.median(
            curve.coefficients[0] for curve in (*products.values(), copies, arithmetic)
        ),
    )
