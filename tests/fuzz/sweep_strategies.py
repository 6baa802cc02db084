"""Single equations under all or many of their joint strategies; ``make test-slow`` runs it.

    python tests/fuzz/sweep_strategies.py progress.jsonl [--only NAME ...] [--count N]

Each equation on every mesh through jit, with ``--count`` of its trials, several in one program;
what fails is tried again alone. With ``--count 0`` all are tried: 34,000, which takes two hours.
"""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from harnesses import status
from running import Record, Run, Worker
from strategies import CASES, MESHES, Group, attempt, equations, trials

TOGETHER = 12
"""Trials that share a program."""

Attempt = Callable[[str, int, tuple[int, ...], Group], dict[str, str]]


def settle(
    attempt: Attempt, name: str, index: int, mesh: tuple[int, ...], group: Group
) -> list[Record]:
    """One record a trial. Where one fails, each is tried alone."""
    failures = attempt(name, index, mesh, group)
    if failures and len(group) > 1:
        return [one for t in group for one in settle(attempt, name, index, mesh, (t,))]
    title = f"{name}/{index} on {'x'.join(map(str, mesh))}: "
    record = {"status": status(failures)}
    if failures:
        again = f"python tests/fuzz/sweep_strategies.py /tmp/again.jsonl --only {name}"
        record |= {"why": "; ".join(failures.values()), "again": again}
    return [{"id": title + str(trial), **record} for trial in group]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("progress", type=Path)
    parser.add_argument("--only", nargs="*", default=tuple(CASES), choices=tuple(CASES))
    parser.add_argument("--count", type=int, default=36)
    options = parser.parse_args()
    work = [
        (name, index, mesh, trials(eqn, mesh)[: options.count or None])
        for name in options.only
        for index, eqn in enumerate(equations(name))
        for mesh in MESHES
    ]
    groups = [
        (name, index, mesh, tuple(found[start : start + TOGETHER]))
        for name, index, mesh, found in work
        for start in range(0, len(found), TOGETHER)
    ]
    run = Run(options.progress, sum(len(group) for *_, group in groups), "strategies")
    with Worker(options.progress.with_suffix(".log")) as worker, run:
        there = partial(worker.failures, attempt)
        for name, index, mesh, group in groups:
            title = f"{name}/{index} on {'x'.join(map(str, mesh))}: "
            rest = tuple(t for t in group if title + str(t) not in run.records)
            if rest:
                run.add(settle(there, name, index, mesh, rest))
    return 1 if run.report() else 0


if __name__ == "__main__":
    sys.exit(main())
