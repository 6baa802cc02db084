"""The runs of ``device.py``: one training step on one device, in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import jax

import autopar
from autopar.cost_model import Cluster, parse_cluster
from autopar.models import preset
from autopar.models.workload import Workload
from autopar.verification.confirm import peak_bytes

Way = Literal["as written", "planned", "nn.remat"]

AMPLE = 2**50
"""Memory enough that a step is planned as it is written."""

WARM_UP = 3
"""Steps before the first that is timed: the first compiles, and the next may still tune."""

_NO_ROOM = ("RESOURCE_EXHAUSTED", "Out of memory", "out of memory", "MemoryError")


@dataclass(frozen=True)
class Run:
    """One way to run one step.

    Attributes:
      overrides: of the preset's configuration. beyond: instead of ``batch``, the first power of two
        times it whose step as written is predicted to need so many times the budget; 0: ``batch``.
      cluster: as on the command line; empty: what JAX sees.
      share: the budget as a share of what the step as written is predicted to need; 0: the chip's.
    """

    model: str
    way: Way
    batch: int
    steps: int
    cluster: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    beyond: float = 0.0
    share: float = 0.0


@dataclass(frozen=True)
class Measured:
    """What came of a run: seconds are of one step, ``None`` where it did not get so far.

    Attributes:
      peak_from: ``device``, by its allocator's own count, or ``compiler``.
      failed: why there is no time: it ran out of memory, or there is no plan.
    """

    device: str = ""
    batch: int = 0
    predicted_s: float | None = None
    measured_s: float | None = None
    predicted_bytes: int | None = None
    measured_bytes: int | None = None
    peak_from: str = ""
    tokens_per_s: float | None = None
    failed: str = ""


def backend() -> str:
    """What JAX runs on, asked in another process: in this one it would take the device's memory."""
    asked = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()


def measure(run: Run) -> Measured:
    """Runs it in a process of its own: what happens there to the device's memory ends with it."""
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(folder) / "measured.json"
        command = [sys.executable, __file__, json.dumps(asdict(run)), str(kept)]
        child = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        found = Measured(**json.loads(kept.read_text())) if kept.exists() else Measured()
    if child.returncode == 0:
        return found
    if child.returncode == -9 or any(text in child.stderr for text in _NO_ROOM):
        return dataclasses.replace(found, failed="out of memory")
    raise RuntimeError(f"{run} failed:\n{child.stderr[-4000:]}")


def _child(run: Run, keep: Callable[[Measured], None]) -> None:
    """Predicts, keeps that, then runs: what fails for want of memory leaves the prediction."""
    cluster = _one_device(parse_cluster(run.cluster) if run.cluster else Cluster.detect())
    budget = cluster.chip.usable_bytes
    batch = _batch(run, cluster, budget)
    as_written = _plan(run, batch, cluster, AMPLE, "none")
    if run.share:
        budget = int(run.share * as_written.predicted.peak_bytes)
    found = Measured(device=jax.devices()[0].device_kind, batch=batch)
    try:
        plan = as_written if run.way != "planned" else _plan(run, batch, cluster, budget, "auto")
    except autopar.InfeasibleError as error:
        return keep(dataclasses.replace(found, failed=f"no plan: {error}"))
    found = dataclasses.replace(
        found,
        predicted_s=plan.predicted.step_s,
        predicted_bytes=plan.predicted.peak_bytes,
    )
    keep(found)
    return keep(_timed(run, plan, found))


def _timed(run: Run, plan: autopar.Plan, found: Measured) -> Measured:
    """Trains on one batch, over and over."""
    workload = _workload(run)
    data = next(workload.batches(seed=0, batch=found.batch))
    (device, *_) = jax.devices()
    state = jax.device_put(jax.jit(workload.init)(jax.random.key(0), data), device)
    batch = jax.device_put(data, device)
    step: Any = jax.jit(workload.train_step, donate_argnums=0)
    if run.way == "planned":
        step = autopar.apply(workload.train_step, plan, [device])
        state, batch = jax.device_put((state, batch), step.shardings(state, batch)[0])
    compiled = step.lower(state, batch).compile()
    times: list[float] = []
    for _ in range(WARM_UP + run.steps):
        began = time.perf_counter()
        state, _ = compiled(state, batch)
        jax.block_until_ready(state)
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[WARM_UP:])
    counted = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return dataclasses.replace(
        found,
        measured_s=seconds,
        measured_bytes=counted or peak_bytes(compiled.memory_analysis(), False),
        peak_from="device" if counted else "compiler",
        tokens_per_s=found.batch * workload.tokens_per_example / seconds,
    )


def _workload(run: Run) -> Workload:
    remat = {"remat": True} if run.way == "nn.remat" else {}
    return preset(run.model, **run.overrides, **remat)


def _plan(run: Run, batch: int, cluster: Cluster, memory: int, remat: str) -> autopar.Plan:
    workload = _workload(run)
    given = workload.abstract_batch(batch)
    return autopar.plan(
        workload.train_step,
        *(workload.abstract_state(given), given),
        cluster=cluster,
        mesh=(1,),
        memory=memory,
        remat=remat,
        offload="none",
    )


def _one_device(cluster: Cluster) -> Cluster:
    """A cluster of one such chip."""
    return dataclasses.replace(cluster, shape=(1,) * min(2, len(cluster.shape)), levels=())


def _batch(run: Run, cluster: Cluster, budget: int) -> int:
    batch, plain = run.batch, dataclasses.replace(run, way="as written")
    while run.beyond:
        if _plan(plain, batch, cluster, AMPLE, "none").predicted.peak_bytes > run.beyond * budget:
            break
        batch *= 2
    return batch


if __name__ == "__main__":
    kept = Path(sys.argv[2])
    _child(
        Run(**json.loads(sys.argv[1])),
        lambda found: kept.write_text(json.dumps(asdict(found))) and None,
    )
