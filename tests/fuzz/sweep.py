"""Every case of the catalogue under random plans on every mesh; ``make test-slow`` runs it.

    python tests/fuzz/sweep.py progress.jsonl [--only GROUP ...] [--cases NAME ...]

Through shard_map on all meshes, on one of them through jit as well. One record a case and mesh:
``passed``, ``failed``, ``unrunnable`` (JAX itself cannot run it), or ``xla`` (XLA cannot run its
parts, and says so).
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from harnesses import MESHES, Case, attempt, cases, reproducer, status, unrunnable
from running import Record, Run, Worker

TOGETHER = 16
"""Cases that share a program."""

Mesh = tuple[int, ...]
Attempt = Callable[..., dict[str, str]]


def chunks(selected: Sequence[Case]) -> Iterator[tuple[Case, ...]]:
    """Cases that run together: those through jit on the same mesh, all but the unrunnable."""
    alone = unrunnable()
    yield from ((case,) for case in selected if case.name in alone)
    for mesh in MESHES:
        alike = [c for c in selected if c.jit_mesh == mesh and c.name not in alone]
        for start in range(0, len(alike), TOGETHER):
            yield tuple(alike[start : start + TOGETHER])


def settle(attempt: Attempt, group: Sequence[Case], mesh: Mesh, seed: int) -> list[Record]:
    """One record a case. What fails is halved until it fails no more, or is one case."""
    if not group[0].harness.filter("cpu"):
        failures = {"jax": "not for the CPU, as it says itself"}
    else:
        backends = ("shard_map", "jit") if group[0].jit_mesh == mesh else ("shard_map",)
        failures = attempt(tuple(case.name for case in group), mesh, seed, backends)
    if failures and len(group) > 1:
        middle = len(group) // 2
        records = [
            *settle(attempt, group[:middle], mesh, seed),
            *settle(attempt, group[middle:], mesh, seed),
        ]
        if _status(failures) != "failed" or any(one["status"] == "failed" for one in records):
            return records
    return [_record(case, group, mesh, seed, failures) for case in group]


def _status(failures: dict[str, str]) -> str:
    return "unrunnable" if "jax" in failures else status(failures)


def identity(case: Case, mesh: Mesh) -> str:
    return f"{case.name} on {'x'.join(map(str, mesh))}"


def _record(
    case: Case, group: Sequence[Case], mesh: Mesh, seed: int, failures: dict[str, str]
) -> Record:
    record = {"id": identity(case, mesh), "case": case.name, "status": _status(failures)}
    if not failures:
        return record
    why = "; ".join(f"{backend}: {text}" for backend, text in failures.items())
    return record | {"why": why, "again": reproducer(group, seed)}


def _select(options: argparse.Namespace) -> list[Case]:
    found = [c for c in cases() if not options.only or c.group in options.only]
    return [c for c in found if not options.cases or c.name in options.cases]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("progress", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--cases", nargs="*", default=())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retry", action="store_true", help="what failed, once more")
    options = parser.parse_args()
    selected = _select(options)
    total = len(selected) * len(MESHES)
    run = Run(options.progress, total, "catalogue", options.retry)
    with Worker(options.progress.with_suffix(".log")) as worker, run:
        there = partial(worker.failures, attempt)
        for chunk in chunks(selected):
            for mesh in MESHES:
                rest = [case for case in chunk if identity(case, mesh) not in run.records]
                if rest:
                    run.add(settle(there, rest, mesh, options.seed))
    failed = run.report()
    unable = {one["case"] for one in run.records.values() if one["status"] == "unrunnable"}
    wrong = unable ^ (unrunnable() & {case.name for case in selected})
    run.console.print(f"{len(unable)} cases that JAX cannot run on a CPU: unrunnable.txt")
    if wrong:
        run.console.print(f"but unrunnable.txt is wrong about: {' '.join(sorted(wrong))}")
    return 1 if failed or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
