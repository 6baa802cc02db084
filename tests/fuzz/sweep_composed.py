"""Random programs, forward and with gradients, under random plans; ``make test-slow`` runs it.

    python tests/fuzz/sweep_composed.py progress.jsonl [--count N] [--first SEED]
    python tests/fuzz/sweep_composed.py --again "Composed(...), (2, 2), 17"

Each on one of the meshes, through both backends. Hypothesis draws the programs and shrinks those
that fail; from another first seed it draws others.
"""

import argparse
import os
import shlex
import sys
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import hypothesis
from composed import Composed, Instruction, programs
from harnesses import MESHES, differences, on_one_device, status
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky
from rich.console import Console
from running import Record, Run, Worker

BATCH = 25
"""Programs that Hypothesis draws from one seed."""

PLANS = st.tuples(st.sampled_from(MESHES), st.integers(0, 999))


def attempt(program: Composed, mesh: tuple[int, ...], seed: int) -> dict[str, str]:
    """Why a random plan of the program does not do what one device does, by backend."""
    step, args = program.__call__, program.args()
    want = on_one_device(step, *args)
    return differences(step, args, want, mesh, seed, ("shard_map", "jit"))


class Wrong(Exception):
    pass


class Batch:
    """Programs from one seed, until one fails and is shrunk."""

    def __init__(self, run: Run, worker: Worker) -> None:
        self.run, self.worker = run, worker
        self.before = frozenset(run.records)
        self.failed: Record | None = None

    def draw(self, number: int) -> None:
        @hypothesis.seed(number)
        @settings(
            max_examples=BATCH,
            deadline=None,
            database=None,
            report_multiple_bugs=False,
            verbosity=Verbosity.quiet,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        )
        @given(programs(), PLANS)
        def check(program: Composed, plan: tuple[tuple[int, ...], int]) -> None:
            self._check(program, *plan)

        try:
            check()
        except Wrong as error:
            assert self.failed is not None
            self.run.add([self.failed | {"again": str(error)}])
        except Flaky:  # it stays as it was drawn
            assert self.failed is not None

    def _check(self, program: Composed, mesh: tuple[int, ...], seed: int) -> None:
        name = f"{program!r}, {mesh}, {seed}"
        if name in self.before or (len(self.run.records) >= self.run.total and not self.failed):
            return
        failures = self.worker.failures(attempt, program, mesh, seed)
        record = {"id": name, "status": status(failures)}
        record |= {"mesh": mesh, "grad": program.differentiate}
        if failures:
            why = "; ".join(f"{backend}: {text}" for backend, text in failures.items())
            again = f"python tests/fuzz/sweep_composed.py --again {shlex.quote(name)}"
            record |= {"why": why, "again": again}
        if not self.failed:
            self.run.add([record])
        if record["status"] == "failed":
            self.failed = self.failed or record
            raise Wrong(again)


def _again(failure: str) -> int:
    program, mesh, seed = eval(failure, {"Composed": Composed, "Instruction": Instruction})
    with Worker(Path(os.devnull)) as worker:
        failures = worker.failures(attempt, program, mesh, seed)
    Console().print(failures or "passed", markup=False)
    return 1 if failures else 0


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("progress", type=Path, nargs="?")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with")
    parser.add_argument("--again", help="a failure's program, mesh and seed")
    parser.add_argument("--retry", action="store_true", help="what failed, once more")
    options = parser.parse_args()
    if options.again:
        return _again(options.again)
    if options.progress is None:
        parser.error("where to keep the progress?")
    run = Run(options.progress, options.count, "composed", options.retry)
    with Worker(options.progress.with_suffix(".log")) as worker, run:
        number = options.first
        while len(run.records) < options.count:
            Batch(run, worker).draw(number)
            number += 1
    kinds = Counter(
        ("gradients" if one["grad"] else "forward") + " on " + "x".join(map(str, one["mesh"]))
        for one in run.records.values()
    )
    run.console.print(", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    return 1 if run.report() else 0


if __name__ == "__main__":
    sys.exit(main())
