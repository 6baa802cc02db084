"""A program as XLA:TPU dumps it before it makes code of it: scheduled, its buffers assigned.

That is a fifth of the way, and memory and collectives are settled; only the cycles are not yet
known. The compiler cannot be told to stop there, so a process of its own compiles, and is ended.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from _programs import Program

from autopar.core.errors import AutoparError

_REPORT = "-memory-usage-report.txt"
_STEP = "*planned_step*"
_ALLOCATION = re.compile(r"^allocation \d+: size (\d+)(.*)")
_VALUE = re.compile(
    r"^ value: <\d+ (\S+?)(\{[\d,]*\})?(?: \(phi\))? @\d+> \(size=(\d+),offset=(\d+)\)"
)
_RANGE = re.compile(r"^\s+(\S+?)(\{[\d,]*\}):(\d+)-(\d+)", re.MULTILINE)


def compile_early(compile_: Callable[..., object], *args: object) -> Program:
    """What ``compile_(*args)``, run in a process of its own, dumps.

    Raises:
      AutoparError: the process ended and had dumped nothing.
    """
    with tempfile.TemporaryDirectory() as folder:
        _dump(compile_, args, Path(folder))
        found = next(Path(folder).glob(_STEP + _REPORT), None)
        if found is None:
            raise AutoparError("the compiler ended before it had assigned buffers")
        return _read(str(found).removesuffix(_REPORT))


def _dump(compile_: Callable[..., object], args: Sequence[object], folder: Path) -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_dump_to={folder} --xla_dump_hlo_as_text"
    try:
        child = multiprocessing.get_context("spawn").Process(target=compile_, args=args)
        child.start()
        while (alive := child.is_alive()) and not list(folder.glob(_STEP + _REPORT)):
            time.sleep(0.5)
        if alive:
            time.sleep(2)  # for the file to be whole; it is the last to be written
        child.kill()
        child.join()
    finally:
        os.environ["XLA_FLAGS"] = flags


def _read(stem: str) -> Program:
    assigned = Path(stem + "-buffer-assignment.txt").read_text()
    ranges = Path(stem + "-live-range.txt").read_text()
    return Program(Path(stem + ".txt").read_text(), peak_bytes(assigned, ranges))


def peak_bytes(assigned: str, ranges: str) -> int:
    """Arguments, and the most bytes of the heap live at once; on-chip and host memory aside."""
    live = {name + part: (int(a), int(b)) for name, part, a, b in _RANGE.findall(_lives(ranges))}
    arguments, values = 0, list[tuple[int, int, int, int]]()
    for head, body in _allocations(assigned):
        match = _ALLOCATION.match(head)
        if match is None or "thread-local" in match[2] or "color" in match[2]:
            continue
        if "parameter" in match[2]:
            arguments += int(match[1])
        elif "preallocated-temp" in match[2]:
            for value in filter(None, map(_VALUE.match, body)):
                span = live.get(value[1] + (value[2] or "{}"))
                if span is not None:
                    values.append((*span, int(value[4]), int(value[3])))
    return arguments + max((_live_at(begin, values) for begin, *_ in values), default=0)


def _lives(ranges: str) -> str:
    return ranges.split("BufferLiveRange:")[1].split("Live ranges at")[0]


def _allocations(assigned: str) -> Iterator[tuple[str, list[str]]]:
    for block in re.split(r"\n(?=allocation \d+:)", assigned):
        head, *body = block.split("\n")
        yield head, body


def _live_at(time_: int, values: list[tuple[int, int, int, int]]) -> int:
    """Bytes live; values that share a place at one time are one."""
    size: dict[int, int] = {}
    for begin, end, offset, bytes_ in values:
        if begin <= time_ <= end:
            size[offset] = max(size.get(offset, 0), bytes_)
    return sum(size.values())
