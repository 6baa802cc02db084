"""Compiled programs, kept by what the compiler was given: what is unchanged is compiled once."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import jax


@dataclass(frozen=True)
class Program:
    """What is asked of a ``jax.stages.Compiled``: its text and its peak, in device memory."""

    text: str
    peak_bytes: int

    def as_text(self) -> str:
        """The scheduled program."""
        return self.text

    def memory_analysis(self) -> SimpleNamespace:
        """The peak."""
        return SimpleNamespace(
            peak_memory_in_bytes=self.peak_bytes,
            host_argument_size_in_bytes=0,
            host_temp_size_in_bytes=0,
        )


def kept(folder: Path, key: str, again: bool, compile_: Callable[[], Program]) -> Program:
    """What ``folder`` has under ``key``; if it has nothing, or ``again``, compiles and keeps it."""
    path = folder / f"{key}.json.gz"
    if path.exists() and not again:
        return Program(**json.loads(gzip.decompress(path.read_bytes())))
    program = compile_()
    folder.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json.dumps(asdict(program)).encode()))
    return program


def key_of(given: jax.stages.Lowered, *more: str) -> str:
    """Of what the compiler is given, and of what else decides what it makes of it."""
    text = "\n".join((given.as_text(), jax.__version__, *more))
    return hashlib.sha256(text.encode()).hexdigest()[:24]
