"""What the long runs share: a process that may die, a file of records, a bar that shows both."""

import json
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Record = dict[str, Any]
"""``id`` (unique), ``status``, and what else there is to say."""

PATIENCE = 900
"""Seconds after which a task is taken to hang."""


class Died(Exception):
    """The process died, or did not answer."""


class Worker:
    """A process with eight CPU devices. A task that kills it does not kill the run.

    What it writes to its standard error, XLA's last words among it, goes to ``log``.
    """

    def __init__(self, log: Path) -> None:
        self._log = log
        self._context = multiprocessing.get_context("spawn")
        self._start()

    def __call__(self, task: Callable[..., Any], *args: Any) -> Any:
        """What ``task`` returns there. Raises ``Died``, and goes on with a fresh process."""
        self._pipe.send((task, args))
        try:
            if self._pipe.poll(PATIENCE):
                return self._pipe.recv()
            self._process.kill()
            why = f"no answer in {PATIENCE} seconds"
        except (EOFError, ConnectionResetError):
            self._process.join()
            why = f"the process died with status {self._process.exitcode}"
        self._start()
        raise Died(why)

    def failures(self, task: Callable[..., dict[str, str]], *args: Any) -> dict[str, str]:
        """What fails in ``task``, or that it killed the process."""
        try:
            return self(task, *args)
        except Died as error:
            return {"process": str(error)}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()

    def _start(self) -> None:
        # In the environment, as the catalogue starts JAX when it is imported; and threads enough
        # for all devices to wait for each other in several collectives.
        os.environ.update(JAX_NUM_CPU_DEVICES="8", NPROC="32")
        # Without fused multiply-adds: XLA:CPU rounds a value once in one fusion and twice in
        # another, and then its largest element equals none (docs/limits.md).
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_max_isa=AVX"
        self._pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._log), daemon=True)
        self._process.start()
        theirs.close()


def _serve(pipe: Any, log: Path) -> None:
    with log.open("a") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to handle
    warnings.simplefilter("ignore")
    while True:
        task, args = pipe.recv()
        pipe.send(task(*args))
        jax.clear_caches()


class Run:
    """Records, kept in a file as they come, and the bar that counts them.

    A run that was interrupted goes on where it was; one that was finished begins again. With
    ``retry``, what failed is forgotten and tried once more.
    """

    def __init__(self, path: Path, total: int, title: str, retry: bool = False) -> None:
        lines = path.read_text().splitlines() if path.exists() else []
        found = {record["id"]: record for record in map(json.loads, lines)}
        if retry:
            found = {key: one for key, one in found.items() if one["status"] != "failed"}
        elif len(found) == total:
            found = {}
        self.total = total
        self.records: dict[str, Record] = found
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(one) + "\n" for one in found.values()))
        self._file = path.open("a")
        self.console = Console(highlight=False, soft_wrap=True)
        self._bar = Progress(
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._next_line = 0.0
        self._task = self._bar.add_task(title, counts="", completed=len(found), total=total)

    def __enter__(self) -> "Run":
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()
        self._file.close()

    def add(self, records: Iterable[Record]) -> None:
        for record in records:
            self.records[record["id"]] = record
            self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        done, counts = len(self.records), self.counts()
        self._bar.update(self._task, completed=done, counts=counts)
        if not self.console.is_terminal and time.monotonic() > self._next_line:
            self._next_line = time.monotonic() + 10
            self.console.print(f"{done}/{self.total} {counts}")

    def counts(self) -> str:
        counts = Counter(one["status"] for one in self.records.values())
        return ", ".join(f"{n} {status}" for status, n in sorted(counts.items()))

    def report(self) -> int:
        """Prints what failed, how to see it again, and what XLA refused; how many failed."""
        for status in ("xla", "failed"):
            for one in self._of(status):
                self.console.print(f"\n{status}: {one['id']}\n  {one['why']}", markup=False)
                self.console.print(f"  again: {one['again']}", markup=False)
        self.console.print(f"{len(self.records)} in all: {self.counts()}")
        return len(self._of("failed"))

    def _of(self, status: str) -> list[Record]:
        return [one for one in self.records.values() if one["status"] == status]
