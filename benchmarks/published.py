"""The time model against what others measured and published.

    python benchmarks/published.py [--rows FILE] [--groups FILE] [--only TEXT] [--all] [--json FILE]

Every row's program is built from ``models/``, its strategy imposed on the search, and the step it
amounts to timed by the cost model: nothing is read from the row but what was run and, to compare,
what was measured. Rows that cannot be expressed are listed with the reason. Groups are plans of one
model on one machine, which are to be ranked as measured; ``null`` is a plan that ran out of memory.
What a row's pricing found is kept in ``build/``, by a hash of the row and of autopar's source.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import pickle
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from _common import write_json
from _published_pricing import Priced, price
from _published_rows import Case, Unpriced, parse
from rich.console import Console
from rich.table import Table

from autopar.core.mesh import MeshSpec
from autopar.cost_model.overlap import step_time
from autopar.search.cache import source_hash

DATA = Path(__file__).parent / "data"
KEPT = Path("build/benchmarks/published")


@dataclass(frozen=True)
class Result:
    """A row's prediction, per device. Seconds and bytes; ``error`` is relative, signed."""

    id: str
    source: str
    cluster: str
    mesh: str
    step_s: float
    compute_s: float
    comm_s: float
    peak_bytes: int
    fits: bool
    fitted: bool
    measured_s: float | None
    error: float | None


def run(case: Case) -> Result:
    """Prices one row."""
    found = _kept(case)
    mesh = MeshSpec.of(case.mesh)
    cluster = case.cluster
    time = step_time(found.tasks, cluster.chip, cluster.axis_links(mesh))
    measured = case.measured_s
    return Result(
        id=case.id,
        source=case.source,
        cluster=str(cluster),
        mesh=str(mesh),
        step_s=time.step_s,
        compute_s=time.compute_s,
        comm_s=time.comm_s,
        peak_bytes=found.peak_bytes,
        fits=found.peak_bytes <= cluster.chip.hbm_bytes,
        fitted=case.fitted,
        measured_s=measured,
        error=time.step_s / measured - 1.0 if measured else None,
    )


def _kept(case: Case) -> Priced:
    """The row's tasks, priced anew only if the row or autopar has changed."""
    here = b"".join(
        path.read_bytes() for path in sorted(Path(__file__).parent.glob("*published*.py"))
    )
    question = repr((case, source_hash())).encode() + here
    path = KEPT / f"{hashlib.sha256(question).hexdigest()}.pickle"
    if path.exists():
        return pickle.loads(path.read_bytes())
    found = price(case)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(found))
    return found


def timed_rows(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those that are a whole training step."""
    kinds = ("throughput", "throughput+memory", "planner_baseline")
    return [row for row in rows if row.get("kind") in kinds and row.get("model")]


def summary(errors: Sequence[float]) -> tuple[float, float, float]:
    """Median of the signed errors; median and 90th percentile of their sizes."""
    sizes = sorted(map(abs, errors))
    ninth = statistics.quantiles(sizes, n=10, method="inclusive")[8] if len(sizes) > 1 else sizes[0]
    return statistics.median(errors), statistics.median(sizes), ninth


def rank_groups(
    groups: Sequence[Mapping[str, Any]], rows: Mapping[str, Mapping[str, Any]], console: Console
) -> None:
    """Prints, for each group, whether the plans that can be expressed are ranked as measured."""
    table = Table("group", "plans", "priced", "ranked as measured", "best first")
    for group in groups:
        members: list[Member] = []
        for entry in group["ranking"]:
            try:
                result = run(parse(rows[entry["id"]]))
            except (Unpriced, KeyError):
                continue
            value = -math.inf if entry["value"] is None else float(entry["value"])
            speed = 1 / result.step_s if result.fits else -math.inf
            members.append(Member(entry["id"], value, speed))
        verdict = "-" if len(members) < 2 else "yes" if ranked_alike(members) else "no"
        order = sorted(members, key=lambda member: -member.predicted)
        short = ", ".join(one.id.removeprefix("dlperf_") for one in order)
        count = f"{len(members)}"
        table.add_row(group["group"], str(len(group["ranking"])), count, verdict, short)
    console.print(table)


class Member(NamedTuple):
    """A plan of a group: the higher, the better; out of memory is minus infinity."""

    id: str
    measured: float
    predicted: float


def ranked_alike(members: Sequence[Member]) -> bool:
    """Whether of any two plans the same one is better, or neither, as measured and as predicted,
    and the same plans run out of memory.
    """
    return all(math.isinf(one.measured) == math.isinf(one.predicted) for one in members) and all(
        (a.measured > b.measured) == (a.predicted > b.predicted)
        for a, b in itertools.permutations(members, 2)
    )


def main() -> None:
    """Prices the rows, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=Path, default=DATA / "published.json")
    parser.add_argument("--groups", type=Path, default=DATA / "ranking_groups.json")
    parser.add_argument("--only", default="", help="the rows whose id has this in it")
    parser.add_argument("--all", action="store_true", help="print every row")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/published.json"))
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    rows = json.loads(options.rows.read_text())
    reasons: Counter[str] = Counter()
    results: list[Result] = []
    for row in [row for row in timed_rows(rows) if options.only in row["id"]]:
        with console.status(row["id"]):
            try:
                case = parse(row)
                if case.measured_s is None:
                    raise Unpriced("nothing measured from which a step's time follows")
                results.append(run(case))
            except Unpriced as reason:
                reasons[str(reason)] += 1
    _print(results, reasons, options.all, console)
    if not options.only and options.groups.exists():
        groups = json.loads(options.groups.read_text())
        rank_groups(groups, {row["id"]: row for row in rows}, console)
    write_json(options.json, [asdict(result) for result in results])
    console.print(f"written to {options.json}")


def _print(results: Sequence[Result], reasons: Counter[str], every: bool, console: Console) -> None:
    if every:
        table = Table("row", "cluster", "mesh", "measured", "predicted", "error", "communication")
        for one in sorted(results, key=lambda result: result.id):
            if one.error is not None:
                seconds = (f"{one.measured_s:.3f} s", f"{one.step_s:.3f} s", f"{one.error:+.1%}")
                table.add_row(one.id, one.cluster, one.mesh, *seconds, f"{one.comm_s:.3f} s")
        console.print(table)
    by_source: dict[str, list[float]] = defaultdict(list)
    for one in results:
        if one.error is not None:
            preset = one.cluster.partition(":")[0]
            by_source[f"{one.source[:52]}, {preset}"].append(one.error)
    table = Table("source, accelerator", "rows", "signed median", "median", "90th percentile")
    for name, errors in sorted(by_source.items()):
        table.add_row(name, str(len(errors)), *(f"{x:.1%}" for x in summary(errors)))
    known = [one for one in results if one.error is not None]
    for name, rows in (
        ("constants fitted to them", [one for one in known if one.fitted]),
        ("held out", [one for one in known if not one.fitted]),
        ("all", known),
    ):
        if errors := [one.error for one in rows if one.error is not None]:
            table.add_row(name, str(len(errors)), *(f"{x:.1%}" for x in summary(errors)))
    console.print(table)
    for reason, count in reasons.most_common():
        console.print(f"not priced, {count:3}: {reason}")


if __name__ == "__main__":
    main()
