"""Memory and time of plans that recompute, beside what is written by hand, judged by the compiler.

    python benchmarks/memory.py [--only TEXT] [--budgets 100,80,60,40,30,20] [--early] [--json FILE]

Every row is one program, compiled ahead of time for one TPU v5e with libtpu (no TPU is needed): its
peak memory, and the compiler's own estimate of its cycles. Written by hand: as it is; ``nn.remat``
of every block, where the model has blocks; and JAX's policies over the whole model. Planned: for
budgets in percent of the peak of the program as it is (of the chip's memory, if it does not fit).
A plan whose program is compiled to more than its budget is made again for as much less, as
``confirm=`` does. Rows in the file are not done again; it may be stopped at any time. A compilation
takes minutes (programs that are alike are compiled once); with ``--early`` tens of seconds: it is
stopped once memory is assigned, so there are no cycles. ``time`` is cycles at the chip's clock, and
what crosses the link to the host; beside a plan, that of the best way by hand in its budget.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from _common import require_tpu_compiler, write_json
from _memory_programs import CHIP, POLICIES, Case, Row, by_hand, planned
from rich.console import Console
from rich.table import Table

from autopar.core.errors import InfeasibleError
from autopar.cost_model import format_bytes

GPT = {"d_model": 1024, "heads": 16, "vocab": 8192, "seq": 1024, "batch_size": 16}
SMALL = {"d_model": 512, "heads": 8, "vocab": 8192, "seq": 1024, "batch_size": 8}
LOOP = {"layers": 4, "scan": True}
CASES = (
    Case("GPT, 4 layers", "gpt:125m", {**GPT, "layers": 4}),
    Case("GPT, 3 layers", "gpt:125m", {**GPT, "layers": 3}),
    Case("GPT, 6 layers", "gpt:125m", {**GPT, "layers": 6}),
    Case("GPT, scan of 8", "gpt:125m", {**GPT, "layers": 8, "scan": True}),
    Case(
        "LLaMA-like, 3 layers",
        "llama3:8b",
        {**GPT, "layers": 3, "kv_heads": 4, "d_ff": 2816, "remat": False},
    ),
    Case("ViT-B, 3 layers", "vit:b16", {"layers": 3, "batch_size": 64}),
    Case("MoE, 2 layers", "moe:27b", {**GPT, "layers": 2, "experts": 8, "batch_size": 8}),
    Case("ResNet-50", "resnet:50", {"batch_size": 64}),
    # Small enough to be compiled whole, for each budget, in a minute or two.
    Case("small GPT", "gpt:125m", {**SMALL, "layers": 2}),
    Case("small GPT, scan of 2", "gpt:125m", {**SMALL, "layers": 2, "scan": True}),
    Case("small ResNet", "resnet:50", {"stages": (1, 1), "batch_size": 64}),
    Case(
        "small LLaMA-like",
        "llama3:8b",
        {**SMALL, **LOOP, "kv_heads": 4, "d_ff": 1408, "remat": False},
    ),
    Case("small ViT", "vit:b16", {**LOOP, "d_model": 512, "heads": 8, "batch_size": 64}),
    Case("small MoE", "moe:27b", {**SMALL, **LOOP, "experts": 8, "experts_every": 1}),
)


def rows(
    case: Case, shares: list[int], known: dict[tuple[str, str], Row], early: bool
) -> Iterator[Row]:
    """The rows of a case that are not known yet."""
    for variant in POLICIES:
        if (case.name, variant) not in known:
            row = by_hand(case, variant, early)
            if row is not None:
                known[case.name, variant] = row
                yield row
    whole = CHIP.chip.usable_bytes
    if (case.name, "as it is") in known:
        whole = known[case.name, "as it is"].peak_bytes
    for share in shares:
        variant = f"planned, {share} %"
        if (case.name, variant) in known:
            continue
        measured = {
            row.program: (row.peak_bytes, row.cycles)
            for (name, _), row in known.items()
            if name == case.name and row.program
        }
        try:
            row = planned(case, whole * share // 100, variant, early, measured)
            known[case.name, variant] = row
            yield row
        except InfeasibleError as error:
            Console(stderr=True).print(f"{case.name}, {variant}: {error}")


def main() -> None:
    """Runs what is missing, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the cases whose name has this in it")
    parser.add_argument("--budgets", default="100,80,60,40,30,20", help="percent")
    parser.add_argument("--early", action="store_true", help="no cycles, but soon")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/memory.json"))
    options = parser.parse_args()
    require_tpu_compiler()
    found = _read(options.json)
    shares = [int(share) for share in options.budgets.split(",")] if options.budgets else []
    for case in (case for case in CASES if options.only in case.name):
        for row in rows(case, shares, {(r.case, r.variant): r for r in found}, options.early):
            found.append(row)
            write_json(options.json, [asdict(r) for r in found])
    Console(width=120).print(_table(found))


def _read(path: Path) -> list[Row]:
    return [Row(**one) for one in json.loads(path.read_text())] if path.exists() else []


def _table(found: list[Row]) -> Table:
    table = Table("step", "variant", "budget", "first", "peak", "predicted")
    for name in ("Mcycles", "recomputed", "link", "time", "by hand"):
        table.add_column(name)
    for row in sorted(found, key=lambda row: row.case):
        budget = format_bytes(row.budget_bytes) if row.budget_bytes else ""
        first = format_bytes(row.first_bytes) if row.first_bytes else ""
        table.add_row(
            *(row.case, row.variant, budget, first),
            *map(format_bytes, (row.peak_bytes, row.predicted_bytes)),
            *(f"{row.cycles / 1e6:.1f}", str(row.recomputed), f"{row.link_s * 1e3:.0f} ms"),
            *(f"{row.seconds * 1e3:.1f} ms", _best_by_hand(row, found)),
        )
    return table


def _best_by_hand(row: Row, found: list[Row]) -> str:
    """The least time of what was written by hand for the case and fits the row's budget."""
    ways = [one for one in found if one.case == row.case and not one.budget_bytes]
    times = [one.seconds for one in ways if one.peak_bytes <= row.budget_bytes]
    return f"{min(times) * 1e3:.1f} ms" if times else ""


if __name__ == "__main__":
    main()
