"""How long the search takes, beside JAX's own tracing of the same step in the same run.

    python benchmarks/search.py [--quick] [--only TEXT] [--json FILE]

Every row plans one step for a cluster that need not be at hand, in a process that plans no other
step: as users do, and a heap that dozens of steps have been through is slower by a third. Ratios to
tracing time, and of the deep model to the shallow one, are what to compare between machines;
seconds are this machine's, as are the targets (two idle cores). CPU seconds are what to compare
where others work on it too.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import multiprocessing
import resource
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax
from _common import write_json
from rich.console import Console
from rich.table import Table

from autopar.core.errors import InfeasibleError
from autopar.core.garbage import uncollected
from autopar.core.mesh import MeshSpec
from autopar.cost_model import format_bytes, parse_cluster
from autopar.models import preset
from autopar.passes.fingerprint import Signatures
from autopar.passes.simplify import simplify
from autopar.passes.trace import Step, trace
from autopar.search.options import Options
from autopar.search.programs import search


@dataclass(frozen=True)
class Case:
    """One step on one cluster.

    Attributes:
      mesh: ``None`` where shapes are searched too.
      target_s: seconds of search to aim at.
      share: of the peak of the plan without a limit, the memory it may have; ``None``: no limit.
      overrides: of the preset's configuration.
    """

    name: str
    model: str
    batch: int
    cluster: str
    mesh: tuple[int, ...] | None
    target_s: float
    share: float | None = None
    overrides: Mapping[str, object] = field(default_factory=dict)


AMPLE = 2**45
POD, PODS = "tpu-v5p:4x4x4", "tpu-v5p:8x8x8"
GPT = "gpt:6.7b"
DEEP = {"layers": 32, "d_model": 1024, "heads": 16, "vocab": 8192, "seq": 1024}
CASES = (
    Case("GPT 6.7B, 8 layers, 8x8", GPT, 128, POD, (8, 8), 2, overrides={"layers": 8}),
    Case("GPT 6.7B, 32 layers, 8x8", GPT, 128, POD, (8, 8), 2),
    Case("LLaMA-3 8B, 8 layers, 8x8", "llama3:8b", 64, POD, (8, 8), 1.5, overrides={"layers": 8}),
    Case("LLaMA-3 8B, 80 layers, 8x8", "llama3:8b", 64, POD, (8, 8), 2, overrides={"layers": 80}),
    Case("GPT 125M, every mesh of 16", "gpt:125m", 64, "tpu-v5e:4x4", None, 15),
    Case("GPT 1.3B, every mesh of 16, 90 %", "gpt:1.3b", 64, "tpu-v5e:4x4", None, 5, 0.9),
    Case("LLaMA tiny, every mesh of 8, 90 %", "llama:tiny", 16, "tpu-v5e:2x4", None, 10, 0.9),
    Case("LLaMA-3 8B, 8x8", "llama3:8b", 64, POD, (8, 8), 1.5),
    Case("LLaMA-3 8B, 4x16", "llama3:8b", 64, POD, (4, 16), 1.5),
    Case("LLaMA-3 8B, 30 % below its peak", "llama3:8b", 64, POD, (8, 8), 5, 0.7),
    Case("LLaMA-3 8B, every mesh of 64", "llama3:8b", 64, POD, None, 15),
    Case("LLaMA-3 8B, 2x4x8", "llama3:8b", 64, POD, (2, 4, 8), 4),
    Case("LLaMA-3 8B, 4x4x4", "llama3:8b", 64, POD, (4, 4, 4), 8),
    Case("LLaMA-3 8B, scan", "llama3:8b", 64, POD, (8, 8), 5, overrides={"scan": True}),
    Case("LLaMA-3 70B, 16x32", "llama3:70b", 512, PODS, (16, 32), 2),
    Case("LLaMA-3 70B, 4x8x16", "llama3:70b", 512, PODS, (4, 8, 16), 6),
    Case("LLaMA-3 405B, 16x32", "llama3:405b", 512, PODS, (16, 32), 2.4),
    Case("MoE 27B, 64 experts, 8x8", "moe:27b", 256, POD, (8, 8), 5),
    Case("T5 11B, 8x8", "t5:11b", 512, POD, (8, 8), 5),
    Case("ViT 22B, 8x8", "vit:22b", 1024, POD, (8, 8), 5),
    Case("ViT-L, 2x8", "vit:l16", 512, "h100:2x8", (2, 8), 5),
    *(
        Case(f"storage, {name}, {share:.0%}", "gpt:125m", batch, cluster, mesh, target, share, DEEP)
        for name, batch, cluster, mesh, target in (
            ("one device", 16, "tpu-v5e:1x1", (1,), 1),
            ("8", 128, "tpu-v5e:2x4", (8,), 10),
            ("2x4", 128, "tpu-v5e:2x4", (2, 4), 60),
        )
        for share in (0.8, 0.5, 0.3)
    ),
)


@dataclass(frozen=True)
class Traced:
    """A step, seconds of its tracing by JAX, and CPU seconds of simplifying and folding it."""

    step: Step
    trace_s: float
    prepare_cpu_s: float


@dataclass(frozen=True)
class Row:
    """What one case took.

    Attributes:
      trace_s, search_s, target_s: seconds.
      prepare_cpu_s: CPU seconds of what autopar does to the traced program before the search, once
        for all clusters, meshes and budgets: it simplifies, reads and folds it.
      search_cpu_s: CPU seconds of the search.
      step_s: the plan's prediction.
      resident_bytes: the most memory this process had by then.
    """

    name: str
    trace_s: float
    search_s: float
    prepare_cpu_s: float
    search_cpu_s: float
    target_s: float
    ratio: float
    nodes: int
    variables: int
    status: str
    gap: float
    step_s: float
    resident_bytes: int


@functools.lru_cache(maxsize=1)
def traced(model: str, batch: int, overrides: tuple[tuple[str, object], ...]) -> Traced:
    """A step, for all cases in a row that plan it."""
    workload = preset(model, **dict(overrides))
    state, examples = workload.abstract_state(), workload.abstract_batch(batch)
    began = time.perf_counter()
    closed = jax.make_jaxpr(workload.train_step)(state, examples)
    traced_s = time.perf_counter() - began
    step = trace(workload.train_step, state, examples)
    with uncollected():
        began = time.process_time()
        _anew(dataclasses.replace(step, jaxpr=simplify(closed)))
        prepared_cpu_s = time.process_time() - began
    return Traced(step, traced_s, prepared_cpu_s)


def _anew(step: Step) -> Step:
    """The step as traced, of which nothing is known from a search before."""
    found = dataclasses.replace(step, signatures=Signatures())
    with uncollected():
        _ = found.fold
    return found


def run(case: Case) -> Row:
    """Traces and plans one case."""
    found = traced(case.model, case.batch, tuple(case.overrides.items()))
    step = _anew(found.step)
    mesh = None if case.mesh is None else MeshSpec.of(case.mesh)
    cluster = parse_cluster(case.cluster)
    budget = AMPLE
    if case.share is not None:
        free = search(step, cluster, Options(mesh=mesh, memory_bytes=AMPLE))
        budget = int(case.share * free.predicted.peak_bytes)
        step = _anew(step)
    began, began_cpu = time.perf_counter(), time.process_time()
    plan = search(step, cluster, Options(mesh=mesh, memory_bytes=budget))
    searched_s = time.perf_counter() - began
    searched_cpu_s = time.process_time() - began_cpu
    report = plan.solver
    return Row(
        name=case.name,
        trace_s=found.trace_s,
        search_s=searched_s,
        prepare_cpu_s=found.prepare_cpu_s,
        search_cpu_s=searched_cpu_s,
        target_s=case.target_s,
        ratio=searched_s / found.trace_s,
        nodes=report.nodes,
        variables=report.variables,
        status=report.status,
        gap=report.gap,
        step_s=plan.predicted.step_s,
        resident_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _each(cases: Sequence[Case], console: Console) -> Iterator[Row]:
    """The rows of all cases, those of one step after another in one process."""
    spawn = multiprocessing.get_context("spawn")
    for _, group in itertools.groupby(cases, lambda case: (case.model, case.batch, case.overrides)):
        with ProcessPoolExecutor(1, spawn) as process:
            for case in group:
                with console.status(case.name):
                    try:
                        row = process.submit(run, case).result()
                    except InfeasibleError as error:
                        console.print(f"{case.name}: {error}")
                        continue
                yield row


def main() -> None:
    """Runs the cases, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first and last case only")
    parser.add_argument("--only", default="", help="the cases whose name has this in it")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/search.json"))
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    columns = (
        "case",
        "trace",
        "simplify, fold",
        "search",
        "CPU",
        "target",
        "ratio",
        "nodes",
        "variables",
        "status",
        "gap",
    )
    table = Table(*columns, "step", "memory")
    rows: list[Row] = []
    chosen = (CASES[0], CASES[-1]) if options.quick else CASES
    for row in _each([case for case in chosen if options.only in case.name], console):
        rows.append(row)
        table.add_row(
            *(row.name, f"{row.trace_s:.1f} s", f"{row.prepare_cpu_s:.2f} s"),
            *(f"{row.search_s:.2f} s", f"{row.search_cpu_s:.2f} s", f"{row.target_s:g} s"),
            f"{row.ratio:.2f}",
            *(str(row.nodes), str(row.variables), row.status, f"{row.gap:.1e}"),
            f"{row.step_s * 1e3:.1f} ms",
            format_bytes(row.resident_bytes),
        )
        write_json(options.json, [asdict(row) for row in rows])
    console.print(table)
    console.print(f"written to {options.json}")


if __name__ == "__main__":
    main()
