"""Collectives of a compiled program, read from its text."""

from __future__ import annotations

import math
import re
from collections import Counter

_SIZES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
_LINE = re.compile(
    r"= (?P<type>\(?[^=]*?\)?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|"
    r"collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"(?P<dtype>[a-z]+[0-9]*)\[(?P<shape>[0-9,]*)\]")


def collectives(text: str) -> dict[str, int]:
    """Bytes of results by kind of collective, in the program text of ``compiled.as_text()``.

    Compilers combine collectives, so that bytes are what can be compared, not counts.
    """
    found: Counter[str] = Counter()
    for match in _LINE.finditer(re.sub(r"/\*.*?\*/", "", text)):
        arrays = _ARRAY.finditer(match["type"])
        found[match["kind"]] += sum(_bytes(one["dtype"], one["shape"]) for one in arrays)
    return dict(found)


def _bytes(dtype: str, shape: str) -> int:
    return _SIZES[dtype] * math.prod(int(n) for n in shape.split(",") if n)
