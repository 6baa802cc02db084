"""Every case of the catalogue under random plans, with progress kept in a file.

    python tests/fuzz/sweep.py progress.jsonl [--only GROUP ...] [--cases NAME ...]

Run again with the same file it goes on where it was. One line a case: what it ran as, and how it
went: ``passed``, ``failed`` with the reason, ``unrunnable`` (JAX itself cannot run it), or ``xla``
(XLA cannot run its parts).
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    sys.path.insert(0, str(Path(__file__).parent))

from harnesses import MESHES, Case, cases, check, expected, reproducer, xla_fault

TOGETHER = 16
"""Cases that share a program."""


def sweep(group: Sequence[Case], seed: int = 0) -> Iterator[dict[str, Any]]:
    """One record a case. Together first; one by one if that fails."""
    mesh = MESHES[group[0].number % len(MESHES)]
    both = group[0].number // len(MESHES) % 3 == 0
    backends = ("shard_map", "jit") if both else ("shard_map",)
    able = [case for case in group if case.harness.filter("cpu")]
    yield from (_record(c, "unrunnable", why="as JAX says") for c in group if c not in able)
    try:
        want = expected(able)
    except Exception as error:
        if len(able) > 1:
            for case in able:
                yield from sweep((case,), seed)
        elif able:
            yield _record(able[0], "unrunnable", why=_short(error))
        return
    failures: dict[str, str] = {}
    for backend in backends:
        try:
            check(able, want, mesh, seed, backend)
        except Exception as error:
            failures[backend] = _short(error)
    if failures and len(able) > 1:
        for case in able:
            yield from sweep_one(case, mesh, seed, backends)
        return
    for case in able:
        yield _finished(case, mesh, seed, backends, failures)


def sweep_one(
    case: Case, mesh: tuple[int, ...], seed: int, backends: Sequence[str]
) -> Iterator[dict[str, Any]]:
    want = expected((case,))
    failures: dict[str, str] = {}
    for backend in backends:
        try:
            check((case,), want, mesh, seed, backend)
        except Exception as error:
            failures[backend] = _short(error)
    yield _finished(case, mesh, seed, backends, failures)


def _finished(
    case: Case,
    mesh: tuple[int, ...],
    seed: int,
    backends: Sequence[str],
    failures: dict[str, str],
) -> dict[str, Any]:
    faults = [xla_fault(Exception(why)) for why in failures.values()]
    status = "passed" if not failures else "xla" if all(faults) else "failed"
    again = reproducer(case, seed)
    return _record(
        case, status, mesh=mesh, seed=seed, backends=backends, failures=failures, again=again
    )


def _record(case: Case, status: str, **more: Any) -> dict[str, Any]:
    return {"case": case.name, "group": case.group, "status": status, **more}


def _short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + " | ".join(lines)[:600]


def chunks(todo: Sequence[Case]) -> Iterator[list[Case]]:
    for start in range(0, len(todo), TOGETHER):
        yield list(todo[start : start + TOGETHER])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("progress", type=Path)
    parser.add_argument("--only", nargs="*", default=())
    parser.add_argument("--skip", nargs="*", default=())
    parser.add_argument("--cases", nargs="*", default=())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    done: set[str] = set()
    if options.progress.exists():
        done = {json.loads(line)["case"] for line in options.progress.read_text().splitlines()}
    todo = [c for c in cases() if c.name not in done]
    if options.only:
        todo = [c for c in todo if c.group in options.only]
    if options.cases:
        todo = [c for c in todo if c.name in options.cases]
    todo = [c for c in todo if c.group not in options.skip][:: options.every]
    counts: Counter[str] = Counter()
    with options.progress.open("a") as file:
        for chunk in chunks(todo):
            for record in sweep(chunk, options.seed):
                counts[record["status"]] += 1
                file.write(json.dumps(record) + "\n")
                file.flush()
            jax.clear_caches()
            print(dict(counts), chunk[-1].group, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
