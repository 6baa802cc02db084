"""What the search is worth: its plans beside those that people write by hand, under the cost model.

    python benchmarks/baselines.py [--only TEXT] [--json FILE]

Every row plans one step for a cluster that need not be at hand, on every mesh that suits a
strategy. All are priced by the same machinery, and compared by what all minimise, computation and
communication together; exit code 1 if a baseline costs less than the search. Large models are cut
to a few layers, which changes little: layers repeat.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from _common import write_json
from rich.console import Console
from rich.table import Table

from autopar.core.errors import InfeasibleError
from autopar.core.plan import Plan
from autopar.cost_model import parse_cluster
from autopar.models import preset
from autopar.passes.trace import trace
from autopar.search.options import Options
from autopar.search.programs import search

BASELINES = ("data", "fsdp", "megatron", "fsdp+megatron", "redco")


@dataclass(frozen=True)
class Case:
    """One step on one cluster; ``overrides`` of the preset's configuration."""

    model: str
    batch: int
    cluster: str
    overrides: Mapping[str, object] = field(default_factory=dict)

    def __str__(self) -> str:
        more = "".join(f", {value} {name}" for name, value in self.overrides.items())
        return f"{self.model}{more}, batch {self.batch}, {self.cluster}"


FOUR = {"layers": 4}
CASES = (
    Case("mlp:wide", 4096, "tpu-v5e:4x4"),
    Case("gpt:125m", 64, "tpu-v5e:2x4", FOUR),
    Case("gpt:1.3b", 64, "tpu-v5e:4x4", FOUR),
    Case("gpt:6.7b", 16, "a100-80:2x8", FOUR),
    Case("gpt:6.7b", 128, "h100:2x8", FOUR),
    Case("llama3:8b", 64, "tpu-v5p:2x2x2", FOUR),
    Case("llama3:8b", 8, "h100:2x8", FOUR),
    Case("llama2:70b", 32, "tpu-v5p:2x2x4", FOUR),
    Case("moe:tiny", 64, "tpu-v5e:2x4"),
    Case("t5:large", 64, "tpu-v5e:4x4", FOUR),
    Case("vit:l16", 512, "h100:2x8", FOUR),
    Case("lstm:tiny", 64, "h100:1x8"),
)


def run(case: Case) -> dict[str, Plan | str]:
    """The plan of each strategy, or why it has none."""
    workload = preset(case.model, **case.overrides)
    step = trace(
        workload.train_step, workload.abstract_state(), workload.abstract_batch(case.batch)
    )
    cluster = parse_cluster(case.cluster)
    found: dict[str, Plan | str] = {}
    for name in ("optimal", *BASELINES):
        try:
            found[name] = search(step, cluster, Options(search=name))
        except InfeasibleError as error:
            found[name] = str(error)
    return found


def main() -> int:
    """Runs the cases, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the cases whose name has this in it")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/baselines.json"))
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table("case", "optimal", "mesh", *BASELINES)
    rows: list[dict[str, object]] = []
    worse = False
    for case in [case for case in CASES if options.only in str(case)]:
        found = run(case)
        best = found["optimal"]
        if isinstance(best, str):
            console.print(f"{case}: {best}")
            continue
        cost_s = best.solver.objective_s
        ratios = {
            name: plan.solver.objective_s / cost_s if isinstance(plan, Plan) else None
            for name, plan in found.items()
        }
        worse |= any(ratio is not None and ratio < 1 - 1e-6 for ratio in ratios.values())
        shown = ["-" if (ratio := ratios[name]) is None else f"{ratio:.2f} x" for name in BASELINES]
        table.add_row(str(case), f"{cost_s * 1e3:.4g} ms", str(best.mesh), *shown)
        rows.append({"case": str(case), "cost_s": cost_s, "mesh": str(best.mesh), **ratios})
        write_json(options.json, rows)
    console.print(table)
    return int(worse)


if __name__ == "__main__":
    sys.exit(main())
