"""Predicted beside measured, on one device of this machine: seconds of a step, peak memory.

    python benchmarks/device.py [--cluster NAME|FILE] [--steps N] [--only TEXT] [--tiny]
                                [--json FILE]

Made for a GPU; runs on any device that JAX sees. GPTs of 125 and 350 million parameters train as
they are written, beside what the preset of the device's kind predicts (or the cluster named: a
file of ``autopar calibrate``, say). Then a batch of the larger one that is predicted to need half
as much again as there is: as written, under the plan, and with ``nn.remat`` of every block. Each
run is a process of its own, so that one that runs out of memory spoils no other. Times are medians,
after warm-up; peaks are the device's own count where it keeps one, else the compiler's. ``--tiny``,
and where there is but a CPU: small models, and a plan for 0.6 of what the step needs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from _common import write_json
from _device_runs import Measured, Run, Way, backend, measure
from rich.console import Console
from rich.table import Table

from autopar.core.text import format_bytes

WAYS: tuple[Way, ...] = ("as written", "planned", "nn.remat")
SEQ = {"seq": 1024}
SMALL = {"seq": 64, "d_model": 64, "heads": 4}

Row = tuple[Run, Measured]


def runs(tiny: bool, steps: int, cluster: str) -> Iterator[Run]:
    """All of them: first those that should fit, then one step in three ways."""
    if tiny:
        yield Run("gpt:tiny", "as written", 4, steps, cluster, {**SMALL, "layers": 2})
        for way in WAYS:
            yield Run("gpt:tiny", way, 4, steps, cluster, {**SMALL, "layers": 4}, share=0.6)
        return
    for model in ("gpt:125m", "gpt:350m"):
        yield Run(model, "as written", 8, steps, cluster, SEQ)
    for way in WAYS:
        yield Run("gpt:350m", way, 8, steps, cluster, SEQ, beyond=1.5)


def table(rows: Iterable[Row]) -> Table:
    """One line a run; errors are predicted over measured, less one."""
    made = Table("model", "run", "batch", "step", "predicted", "error", box=None)
    for name in ("peak", "predicted", "error", "tokens/s"):
        made.add_column(name)
    for run, found in rows:
        shown = (run.model, run.way, str(found.batch or run.batch))
        if found.failed:
            need = "" if found.predicted_bytes is None else format_bytes(found.predicted_bytes)
            made.add_row(*shown, found.failed, "", "", "", need, "", "")
            continue
        made.add_row(
            *shown,
            *_pair(found.measured_s, found.predicted_s, lambda s: f"{s * 1e3:.1f} ms"),
            *_pair(found.measured_bytes, found.predicted_bytes, lambda b: format_bytes(int(b))),
            f"{found.tokens_per_s:.0f}" if found.tokens_per_s else "",
        )
    return made


def _pair(
    measured: float | None, predicted: float | None, show: Callable[[float], str]
) -> tuple[str, str, str]:
    if measured is None or predicted is None:
        return "", "", ""
    return show(measured), show(predicted), f"{predicted / measured - 1:+.1%}"


def main() -> None:
    """Runs them, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cluster", default="", help="as for autopar plan; default: detected")
    parser.add_argument("--steps", type=int, default=20, help="timed, of each run")
    parser.add_argument("--only", default="", help="the runs whose model or way has this in it")
    parser.add_argument("--tiny", action="store_true", help="small, to try the program")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/device.json"))
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    rows: list[Row] = []
    tiny = options.tiny or backend() == "cpu"
    for run in runs(tiny, options.steps, options.cluster):
        if options.only in f"{run.model} {run.way}":
            with console.status(f"{run.model}, {run.way}"):
                rows.append((run, measure(run)))
            write_json(options.json, [{"run": asdict(r), "measured": asdict(m)} for r, m in rows])
    devices = {found.device for _, found in rows if found.device}
    console.print(*sorted(devices))
    console.print(table(rows))


if __name__ == "__main__":
    main()
