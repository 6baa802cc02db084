"""Plans of one model, predicted with this machine's own constants and then run.

    python benchmarks/calibrated.py [--rounds N] [--devices N] [--json FILE]

Measures the machine (``autopar calibrate``), plans an MLP on its devices (eight emulated ones,
where there is no accelerator) by eight strategies, runs all of them in turns, and compares the
predicted order with the measured one: Spearman's rank correlation. Times are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from _common import write_json
from rich.console import Console
from rich.table import Table

import autopar
from autopar.cost_model.calibration import calibrate
from autopar.models import preset

STRATEGIES: tuple[tuple[str, dict[str, Any]], ...] = (
    ("optimal", {"search": "optimal"}),
    ("data", {"search": "data"}),
    ("fsdp", {"search": "fsdp"}),
    ("megatron", {"search": "megatron"}),
    ("fsdp+megatron, 4 x 2", {"search": "fsdp+megatron", "mesh": {"data": 4, "model": 2}}),
    ("fsdp+megatron, 2 x 4", {"search": "fsdp+megatron", "mesh": {"data": 2, "model": 4}}),
    ("optimal, 2 x 4", {"search": "optimal", "mesh": {"data": 2, "model": 4}}),
    ("replicated", {"search": "replicated"}),
)
BATCH = 256
SHAPE = {"layers": 4, "inputs": 512, "hidden": 1024, "outputs": 512, "use_bias": False}


@dataclass(frozen=True)
class Row:
    """Seconds of one step, predicted and measured."""

    name: str
    mesh: str
    predicted_s: float
    measured_s: float


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Correlation of ranks, for values without ties."""
    ranks = [[sorted(values).index(value) for value in values] for values in (list(a), list(b))]
    n = len(a)
    return 1 - 6 * sum((x - y) ** 2 for x, y in zip(*ranks, strict=True)) / (n * (n * n - 1))


def run(rounds: int) -> list[Row]:
    """Measures the machine, then the plans."""
    cluster = calibrate().cluster
    workload = preset("mlp:tiny", **SHAPE)
    batch = next(workload.batches(seed=0, batch=BATCH))
    state = workload.init(jax.random.key(0), batch)
    plans, steps = [], []
    for name, options in STRATEGIES:
        plan = autopar.plan(workload.train_step, state, batch, cluster=cluster, **options)
        step = autopar.apply(workload.train_step, plan)
        places, _ = step.shardings(state, batch)
        held = jax.device_put(jax.tree.map(jnp.copy, state), places[0])
        steps.append([step, held, jax.device_put(batch, places[1])])
        plans.append((name, plan))
    times: list[list[float]] = [[] for _ in steps]
    for number in range(rounds + 1):
        for entry, found in zip(steps, times, strict=True):
            began = time.perf_counter()
            entry[1], _ = entry[0](entry[1], entry[2])
            jax.block_until_ready(entry[1])
            if number:  # the first call compiles
                found.append(time.perf_counter() - began)
    return [
        Row(name, str(plan.mesh), plan.predicted.step_s, statistics.median(found))
        for (name, plan), found in zip(plans, times, strict=True)
    ]


def main() -> None:
    """Prints the plans, fastest first, and the rank correlation."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--devices", type=int, default=8, help="emulated, without an accelerator")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/calibrated.json"))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", options.devices)
    rows = sorted(run(options.rounds), key=lambda row: row.measured_s)
    table = Table("plan", "mesh", "measured", "predicted", "ratio")
    for row in rows:
        seconds = (f"{row.measured_s * 1e3:.1f} ms", f"{row.predicted_s * 1e3:.1f} ms")
        table.add_row(row.name, row.mesh, *seconds, f"{row.predicted_s / row.measured_s:.2f}")
    rho = spearman([row.measured_s for row in rows], [row.predicted_s for row in rows])
    console = Console()
    console.print(table)
    console.print(f"Spearman's rank correlation: {rho:.3f}")
    write_json(options.json, {"spearman": rho, "rows": [asdict(row) for row in rows]})


if __name__ == "__main__":
    main()
