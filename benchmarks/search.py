"""How long the search takes, beside JAX's own tracing of the same step in the same run.

    python benchmarks/search.py [--quick] [--json FILE]

Every row plans one step for a cluster that need not be at hand. Ratios to tracing time, and of the
deep model to the shallow one, are what to compare between machines; seconds are this machine's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import jax
from rich.console import Console
from rich.table import Table

from autopar.core.errors import InfeasibleError
from autopar.core.mesh import MeshSpec
from autopar.cost_model import parse_cluster
from autopar.models import preset
from autopar.passes.trace import trace
from autopar.search.options import Options
from autopar.search.planner import search


@dataclass(frozen=True)
class Case:
    """One step on one cluster. ``mesh`` is ``None`` where shapes are searched too."""

    name: str
    model: str
    overrides: dict[str, object]
    batch: int
    cluster: str
    mesh: tuple[int, ...] | None
    memory: int | None = None


AMPLE = 2**42
GPT = "gpt:6.7b"
CASES = (
    Case("6.7B, 8 layers, 8x8", GPT, {"layers": 8}, 128, "tpu-v5p:4x4x4", (8, 8), AMPLE),
    Case("6.7B, 32 layers, 8x8", GPT, {"layers": 32}, 128, "tpu-v5p:4x4x4", (8, 8), AMPLE),
    Case("6.7B, 32 layers, 4x16", GPT, {"layers": 32}, 32, "tpu-v5p:4x4x4", (4, 16), AMPLE),
    Case("6.7B, scan, remat", GPT, {"scan": True, "remat": True}, 128, "tpu-v5p:4x4x4", (8, 8)),
    Case("125M, every mesh of 16", "gpt:125m", {}, 64, "tpu-v5e:4x4", None, AMPLE),
    Case("ViT-L, 2x8", "vit:l16", {}, 512, "h100:2x8", (2, 8), AMPLE),
)


@dataclass(frozen=True)
class Row:
    """What one case took. Seconds, but for ``step_s``, which is the plan's prediction."""

    name: str
    trace_s: float
    search_s: float
    ratio: float
    nodes: int
    variables: int
    status: str
    gap: float
    step_s: float


def run(case: Case) -> Row:
    """Traces and plans one case."""
    workload = preset(case.model, **case.overrides)
    state, batch = workload.abstract_state(), workload.abstract_batch(case.batch)
    began = time.perf_counter()
    jax.make_jaxpr(workload.train_step)(state, batch)
    traced_s = time.perf_counter() - began
    step = trace(workload.train_step, state, batch)
    options = Options(
        mesh=None if case.mesh is None else MeshSpec.of(case.mesh), memory_bytes=case.memory
    )
    began = time.perf_counter()
    plan = search(step, parse_cluster(case.cluster), options)
    searched_s = time.perf_counter() - began
    report = plan.solver
    return Row(
        case.name,
        traced_s,
        searched_s,
        searched_s / traced_s,
        report.nodes,
        report.variables,
        report.status,
        report.gap,
        plan.predicted.step_s,
    )


def main() -> None:
    """Runs the cases, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first and last case only")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/search.json"))
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    table = Table("case", "trace", "search", "ratio", "nodes", "variables", "status", "gap", "step")
    rows: list[Row] = []
    for case in (CASES[0], CASES[-1]) if options.quick else CASES:
        with console.status(case.name):
            try:
                row = run(case)
            except InfeasibleError as error:
                console.print(f"{case.name}: {error}")
                continue
        rows.append(row)
        table.add_row(
            *(row.name, f"{row.trace_s:.1f} s", f"{row.search_s:.1f} s", f"{row.ratio:.2f}"),
            *(str(row.nodes), str(row.variables), row.status, f"{row.gap:.1e}"),
            f"{row.step_s * 1e3:.1f} ms",
        )
    console.print(table)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    console.print(f"written to {options.json}")


if __name__ == "__main__":
    main()
