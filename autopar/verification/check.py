"""Compiles a plan, and on emulated devices runs it, and says how the prediction fared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from autopar.core.errors import OptionError
from autopar.core.plan import Plan
from autopar.cost_model import Cluster
from autopar.passes.trace import trace
from autopar.runtime import PlannedStep
from autopar.verification.confirm import peak_bytes
from autopar.verification.hlo import read_program
from autopar.verification.numerics import Numerics, compare
from autopar.verification.report import Report, compiled_traffic, predicted_traffic
from autopar.verification.topology import clock_hz, compiler_environment, topology_devices

BACKENDS = ("cpu", "tpu")
"""What to compile for: devices of this process, or the plan's TPU slice."""


def check(
    step: Callable[..., Any],
    plan: Plan,
    args: tuple[Any, ...],
    *,
    backend: str,
    lowering: str,
    donate: Sequence[int],
) -> Report:
    """The report of ``autopar.verify``."""
    if backend not in BACKENDS:
        raise OptionError(f"backend={backend!r} is not offered; choose one of cpu, tpu")
    cluster = Cluster.from_dict(plan.cluster)
    bound = _bound(step, plan, args, donate, lowering, cluster if backend == "tpu" else None)
    with compiler_environment():
        compiled = bound.call.lower(*_abstract(args)).compile()
    concrete = all(isinstance(leaf, (jax.Array, np.ndarray)) for leaf in jax.tree.leaves(args))
    numerics = compare(step, bound, args) if concrete and backend == "cpu" else None
    return report_of(plan, cluster, compiled, backend, lowering, numerics)


def lowered(
    step: Callable[..., Any], plan: Plan, args: tuple[Any, ...], lowering: str
) -> jax.stages.Lowered:
    """What the compiler of the plan's own TPU slice is given."""
    bound = _bound(step, plan, args, (0,), lowering, Cluster.from_dict(plan.cluster))
    with compiler_environment():
        return bound.call.lower(*_abstract(args))


def _bound(
    step: Callable[..., Any],
    plan: Plan,
    args: tuple[Any, ...],
    donate: Sequence[int],
    lowering: str,
    tpu: Cluster | None,
) -> PlannedStep:
    """The step on the devices of a TPU slice, or of this process."""
    devices = None if tpu is None else topology_devices(tpu)
    return PlannedStep(trace(step, *args, donate=donate), plan, devices, lowering)


def _abstract(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same without values, and without the devices they lie on."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(np.shape(x), jax.dtypes.result_type(x)), args
    )


def report_of(
    plan: Plan,
    cluster: Cluster,
    compiled: Any,
    backend: str,
    lowering: str,
    numerics: Numerics | None,
) -> Report:
    """What ``plan`` predicts beside ``compiled``: ``jax.stages.Compiled``, or what reads as one."""
    program = read_program(compiled.as_text(), plan.mesh)

    def seconds(cycles: int | None) -> float | None:
        return None if cycles is None else cycles / clock_hz(cluster)

    return Report(
        target=str(cluster),
        mesh=str(plan.mesh),
        backend=backend,
        lowering=lowering,
        predicted_peak_bytes=(
            plan.predicted.peak_bytes if lowering == "jit" else plan.predicted.exact_peak_bytes
        ),
        compiled_peak_bytes=peak_bytes(
            compiled.memory_analysis(), backend == "tpu", plan.predicted.host_bytes
        ),
        available_bytes=cluster.chip.hbm_bytes,
        predicted=predicted_traffic(
            plan,
            scatters=(backend, lowering) != ("cpu", "jit"),
            tpu=lowering if backend == "tpu" else None,
        ),
        compiled=compiled_traffic(program.collectives),
        predicted_compute_s=plan.predicted.compute_s
        + (plan.predicted.windowed_s if (backend, lowering) == ("tpu", "jit") else 0.0),
        compiled_compute_s=seconds(program.cycles),
        compiled_products_s=seconds(program.product_cycles),
        numerics=numerics,
    )
