"""Plans compiled ahead of time for TPU slices that are not there, beside what was predicted.

    python benchmarks/verify.py [--only TEXT] [--quick] [--again] [--json FILE] [--programs FOLDER]

Needs libtpu (the extra ``tpu``), no TPU. Compiled programs are kept in FOLDER, and read from there
where the compiler would be given the same again: so a run may be cut off, and prices may change;
``--again`` compiles anew. ``--quick`` compiles only until memory and collectives
are settled, and says nothing of compute. Plans by a named strategy are asked for again with 0.8 of
the memory they are said to need, nothing recomputed: that must be refused. Every third case was
held out while the memory model was made to fit the others: it is marked, and summed up apart.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from _common import require_tpu_compiler, write_json
from _early import compile_early
from _programs import Program, kept, key_of
from rich.console import Console
from rich.table import Table

import autopar
from autopar.core.errors import InfeasibleError
from autopar.core.text import format_bytes
from autopar.cost_model import parse_cluster
from autopar.models import preset
from autopar.verification.check import lowered, report_of
from autopar.verification.confirm import peak_bytes
from autopar.verification.topology import topology_devices

AMPLE = 2**45
"""Memory enough that no plan is chosen for its memory."""

TIGHT = 0.8
"""Of what a plan is said to need: so much must be too little."""

BOUND = 0.5
"""A case is bound by products if so much of the compiler's cycles is in kernels that hold one."""

GPT = {"d_model": 1024, "heads": 16, "seq": 1024, "vocab": 32000}
LLAMA = {"d_model": 1024, "heads": 16, "kv_heads": 4, "d_ff": 2816, "vocab": 32000, "seq": 1024}
MOE = {"layers": 2, "d_model": 512, "heads": 8, "vocab": 32000, "seq": 512, "experts": 8}


@dataclass(frozen=True)
class Case:
    """One plan to compile.

    Attributes:
      lowering: ``jit`` or ``shard_map``.
      held_out: whether the memory model was made without it.
      overrides: of the preset's configuration.
    """

    name: str
    model: str
    batch: int
    cluster: str
    mesh: tuple[int, ...] | dict[str, int]
    search: str
    lowering: str = "jit"
    held_out: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)


def _gpt(layers: int = 2, **overrides: Any) -> dict[str, Any]:
    return {**GPT, "layers": layers, **overrides}


def _llama(layers: int = 2, remat: bool = False, **overrides: Any) -> dict[str, Any]:
    return {**LLAMA, "layers": layers, "remat": remat, **overrides}


EXACT = "shard_map"
V5E = "tpu-v5e:"
CASES = (
    Case("GPT, one chip", "gpt:125m", 4, V5E + "1x1", (1,), "optimal", overrides=_gpt()),
    Case("GPT, data 4", "gpt:125m", 16, V5E + "2x2", (4,), "data", overrides=_gpt()),
    Case("GPT, fsdp 16", "gpt:125m", 64, V5E + "4x4", (16,), "fsdp", overrides=_gpt()),
    Case("GPT, fsdp 8, exact", "gpt:125m", 32, V5E + "2x4", (8,), "fsdp", EXACT, overrides=_gpt()),
    Case(
        *("GPT, megatron 8", "gpt:125m", 8, V5E + "2x4", {"model": 8}, "megatron"),
        overrides=_gpt(),
    ),
    Case(
        *("GPT, megatron 8, exact", "gpt:125m", 8, V5E + "2x4", {"model": 8}, "megatron", EXACT),
        overrides=_gpt(),
    ),
    Case(
        *("GPT, fsdp+megatron 4x4", "gpt:125m", 32, V5E + "4x4", (4, 4), "fsdp+megatron"),
        overrides=_gpt(),
    ),
    Case("GPT, optimal 4x4", "gpt:125m", 32, V5E + "4x4", (4, 4), "optimal", overrides=_gpt()),
    Case(
        *("GPT, remat, data 8", "gpt:125m", 32, V5E + "2x4", (8,), "data"),
        overrides=_gpt(remat=True),
    ),
    Case(
        *("GPT, scan, fsdp 8", "gpt:125m", 32, V5E + "2x4", (8,), "fsdp"),
        overrides=_gpt(4, scan=True),
    ),
    Case(
        *("GPT, scan, remat, fsdp 64", "gpt:125m", 256, V5E + "8x8", (64,), "fsdp"),
        overrides=_gpt(4, scan=True, remat=True),
    ),
    Case(
        *("LLaMA, optimal 4x4", "llama3:8b", 32, V5E + "4x4", (4, 4), "optimal"),
        held_out=True,
        overrides=_llama(),
    ),
    Case(
        *("LLaMA, fsdp 256", "llama3:8b", 512, V5E + "16x16", (256,), "fsdp"),
        held_out=True,
        overrides=_llama(remat=True),
    ),
    Case(
        *("LLaMA, scan, fsdp+megatron 16x4", "llama3:8b", 64, V5E + "8x8", (16, 4)),
        *("fsdp+megatron",),
        held_out=True,
        overrides=_llama(4, remat=True, scan=True),
    ),
    Case(
        *("LLaMA, megatron 4, exact", "llama3:8b", 4, V5E + "2x2", {"model": 4}, "megatron", EXACT),
        held_out=True,
        overrides=_llama(),
    ),
    Case("ViT, data 16", "vit:b16", 512, V5E + "4x4", (16,), "data", overrides={"layers": 3}),
    Case(
        *("ViT, optimal 8", "vit:b16", 256, V5E + "2x4", (8,), "optimal"),
        held_out=True,
        overrides={"layers": 3},
    ),
    Case("MoE, fsdp 8", "moe:27b", 16, V5E + "2x4", (8,), "fsdp", overrides=MOE),
    Case(
        *("MoE, optimal 4x4", "moe:27b", 32, V5E + "4x4", (4, 4), "optimal"),
        held_out=True,
        overrides=MOE,
    ),
    Case("ResNet-50, data 16", "resnet:50", 256, V5E + "4x4", (16,), "data"),
    Case("ResNet-50, fsdp 4", "resnet:50", 64, V5E + "2x2", (4,), "fsdp", held_out=True),
)


def planned(
    case: Case, memory: int = AMPLE, **options: Any
) -> tuple[Any, tuple[Any, ...], autopar.Plan]:
    """The step of a case, its arguments, its plan."""
    workload = preset(case.model, **case.overrides)
    batch = workload.abstract_batch(case.batch)
    args = (workload.abstract_state(batch), batch)
    plan = autopar.plan(
        workload.train_step,
        *args,
        cluster=parse_cluster(case.cluster),
        mesh=case.mesh,
        search=case.search,
        memory=memory,
        **options,
    )
    return workload.train_step, args, plan


def compiled(case: Case) -> Program:
    """The whole program that the compiler makes of a case."""
    step, args, plan = planned(case)
    made = lowered(step, plan, args, case.lowering).compile()
    return Program(made.as_text(), peak_bytes(made.memory_analysis(), True))


def program(case: Case, folder: Path, quick: bool, again: bool) -> tuple[autopar.Plan, Program]:
    """A case's plan, and what the compiler makes of it or ``folder`` has of that."""
    step, args, plan = planned(case)
    given = lowered(step, plan, args, case.lowering)
    (device, *_) = topology_devices(parse_cluster(case.cluster))
    key = key_of(given, case.cluster, device.client.platform_version, "early" if quick else "")
    make = partial(compile_early, compiled, case) if quick else partial(compiled, case)
    return plan, kept(folder, key, again, make)


def is_refused(case: Case, memory: int) -> bool | None:
    """Whether a plan by a named strategy is called infeasible; ``None`` for what is searched."""
    if case.search == "optimal":
        return None
    try:
        planned(case, memory, remat="none", offload="none")
    except InfeasibleError:
        return True
    return False


def run(case: Case, folder: Path, quick: bool, again: bool) -> dict[str, Any]:
    """Plans and compiles one case."""
    began = time.perf_counter()
    plan, made = program(case, folder, quick, again)
    report = report_of(plan, parse_cluster(case.cluster), made, "tpu", case.lowering, None)
    return {
        "case": asdict(case),
        "report": report.to_dict(),
        "refused": is_refused(case, int(TIGHT * report.predicted_peak_bytes)),
        "seconds": round(time.perf_counter() - began, 1),
    }


def table(rows: Iterable[Mapping[str, Any]]) -> Table:
    """One line a case. Errors: predicted over compiled, less one. Exactly: kinds of collectives."""
    heads = ("case", "peak, compiled", "predicted", "error", "sent, compiled", "predicted", "error")
    made = Table(*heads, "exactly", "compute", "products", "took", box=None)
    for row in rows:
        report, case = row["report"], row["case"]
        sent = [sum(t["wire_bytes"] for t in report[side]) for side in ("compiled", "predicted")]
        made.add_row(
            case["name"] + (" *" if case["held_out"] else ""),
            format_bytes(report["compiled_peak_bytes"]),
            format_bytes(report["predicted_peak_bytes"]),
            _percent(report["peak_error"]),
            *map(format_bytes, sent),
            _percent(report["wire_error"]),
            "{} of {}".format(sum(report["exact"].values()), len(report["exact"])),
            _percent(report["compute_error"]),
            "" if report["products_share"] is None else f"{report['products_share']:.0%}",
            f"{row['seconds']:.0f} s",
        )
    return made


def summary(rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """Median and worst errors, of all cases and of those held out."""
    bound = [r for r in rows if (r["report"]["products_share"] or 0) >= BOUND]
    groups = {"all": rows, "held out (*)": [r for r in rows if r["case"]["held_out"]]}
    for name, group in groups.items():
        for what in ("peak", "wire", "compute"):
            yield from _errors(name, what, group)
    yield from _errors("bound by products", "compute", bound)


def _errors(name: str, what: str, rows: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    known = [e for e in (row["report"][f"{what}_error"] for row in rows) if e is not None]
    sizes = sorted(map(abs, known))
    if sizes:
        yield (
            f"{name}, {what}: median {statistics.median(sizes):.1%}, worst {sizes[-1]:.1%}, "
            f"lowest {min(known):+.1%} ({len(sizes)} cases)"
        )


def feasibility(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whether what was called infeasible is, and what was called feasible too."""
    fixed = [row for row in rows if row["refused"] is not None]
    refused = [row["report"] for row in fixed if row["refused"]]
    need = [r["compiled_peak_bytes"] > TIGHT * r["predicted_peak_bytes"] for r in refused]
    fits = sum(row["report"]["fits"] for row in rows)
    return (
        f"given {TIGHT} of what they are said to need: {len(refused)} of {len(fixed)} refused, "
        f"{sum(need)} of these compile to more; within the chip's memory: {fits} of {len(rows)}"
    )


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"


def main() -> None:
    """Compiles what is not kept, prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the cases whose name has this in it")
    parser.add_argument("--quick", action="store_true", help="memory and collectives only")
    parser.add_argument("--again", action="store_true", help="compile what is kept too")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--programs", type=Path, default=Path("build/benchmarks/programs"))
    options = parser.parse_args()
    path = options.json or Path(f"build/benchmarks/verify{'_quick' if options.quick else ''}.json")
    console = Console(width=None if sys.stdout.isatty() else 170)
    require_tpu_compiler()
    done: dict[str, Any] = {}
    for case in [case for case in CASES if options.only in case.name]:
        with console.status(case.name):
            try:
                done[case.name] = run(case, options.programs, options.quick, options.again)
            except autopar.AutoparError as error:
                console.print(f"{case.name}: {error}")
                continue
        write_json(path, done)
    console.print(table(done.values()))
    for line in (*summary([*done.values()]), feasibility([*done.values()])):
        console.print(line)


if __name__ == "__main__":
    main()
