"""The memory of a program as XLA:TPU assigns it, read before the compiler generates code.

Assignment is done after some tens of seconds, code after minutes. The compilation runs in a child
process, which is ended once the assignment has been dumped. There are no cycles to be had so.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

POLL_S = 0.5

_ALLOCATION = re.compile(r"allocation \d+: size (\d+)(.*)")
_VALUE = re.compile(r"value: <\d+ (\S+?)(\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)")
_RANGE = re.compile(r"^\s+(\S+?\{[\d,]*\}):(\d+)-(\d+)", re.MULTILINE)


def early_peak(compile_it: Callable[[], int]) -> int:
    """Bytes of device memory: arguments, and the most temporaries that are live at once.

    Args:
      compile_it: a function that can be pickled and compiles one program, whose name has
        ``planned_step`` in it, and returns its peak: taken if nothing is dumped.

    Raises:
      RuntimeError: the child ended with neither.
    """
    with tempfile.TemporaryDirectory() as folder:
        receive, send = multiprocessing.Pipe(duplex=False)
        dump = Path(folder)
        child = multiprocessing.get_context("spawn").Process(
            target=_compile, args=(compile_it, folder, send)
        )
        child.start()
        try:
            while child.is_alive() or receive.poll():
                if receive.poll(POLL_S):
                    return receive.recv()
                if (name := _assigned(dump)) is not None:
                    return _peak(dump, name)
        except EOFError:
            pass
        finally:
            child.kill()
            child.join()
    raise RuntimeError("the compilation failed before memory was assigned; see above")


def _compile(compile_it: Callable[[], int], folder: str, send: object) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_dump_to={folder} --xla_dump_hlo_as_text"
    send.send(compile_it())  # pyright: ignore


def _assigned(dump: Path) -> str | None:
    """The name of the dumped module, once all that is read of it has been written."""
    ends = ("-buffer-assignment.txt", "-live-range.txt", "-memory-usage-report.txt")
    for report in dump.glob(f"*planned_step*optimizations{ends[-1]}"):
        name = report.name.removesuffix(ends[-1])
        files = [dump / (name + end) for end in ends]
        if all(file.exists() for file in files):
            before = [file.stat().st_size for file in files]
            time.sleep(2 * POLL_S)
            if 0 not in before and before == [file.stat().st_size for file in files]:
                return name
    return None


def _peak(dump: Path, name: str) -> int:
    """Values at one offset are one buffer; memories other than the device's have a colour."""
    text = (dump / f"{name}-live-range.txt").read_text()
    found = _RANGE.finditer(text.partition("Live ranges at")[0])
    ranges = {m[1]: (int(m[2]), int(m[3])) for m in found}
    instants = 1 + max(last for _, last in ranges.values())
    arguments, live = 0, defaultdict[int, np.ndarray](lambda: np.zeros(instants, np.int64))
    text = (dump / f"{name}-buffer-assignment.txt").read_text()
    for block in re.split(r"\n(?=allocation \d+:)", text):
        head = _ALLOCATION.match(block)
        if head is None or "color" in head[2] or "thread-local" in head[2]:
            continue
        if "parameter" in head[2]:
            arguments += int(head[1])
        elif "preallocated-temp" in head[2]:
            for m in _VALUE.finditer(block):
                first, last = ranges.get(m[1] + (m[2] or "{}"), (0, -1))
                part = live[int(m[4])][first : last + 1]
                np.maximum(part, int(m[3]), out=part)
    return arguments + int(max(sum(live.values(), np.zeros(instants, np.int64))))
