"""Many paths in few words: ``block_0/mlp/up`` and ``block_1/mlp/up`` become ``block_*/mlp/up``.

A pattern is a path whose components are *sets* of names, and stands for their product. Two patterns
that differ in one component are the same as one with the union there, so merging them, one position
after another, never adds or loses a path.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Numbers = Mapping[str, frozenset[int]]
"""For each prefix of numbered components (``block_``), the numbers there are."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """The product of sets of path components."""

    parts: tuple[frozenset[str], ...]

    @property
    def count(self) -> int:
        """How many paths this stands for."""
        count = 1
        for names in self.parts:
            count *= len(names)
        return count

    def holds(self, path: str) -> bool:
        """Whether this stands for ``path`` too."""
        parts = path.split("/")
        return len(parts) == len(self.parts) and all(map(frozenset.__contains__, self.parts, parts))

    def show(self, known: Numbers) -> str:
        """``block_*/{k,q}/kernel``; a star only where it stands for every number ``known``."""
        return "/".join(_show_part(names, known) for names in self.parts)


def fold(paths: Iterable[str]) -> tuple[Pattern, ...]:
    """Patterns that stand for exactly these paths, each path once, in order of first appearance."""
    patterns = [tuple(frozenset((part,)) for part in path.split("/")) for path in paths]
    for position in range(max(map(len, patterns), default=0)):
        merged: dict[object, tuple[frozenset[str], ...]] = {}
        for parts in patterns:
            head, tail = parts[:position], parts[position + 1 :]
            if len(parts) <= position:
                merged.setdefault(parts, parts)
                continue
            before = merged.get((head, tail), parts)
            merged[head, tail] = (*head, before[position] | parts[position], *tail)
        patterns = list(merged.values())
    return tuple(map(Pattern, patterns))


def numbers(paths: Iterable[str]) -> Numbers:
    """The numbers that occur in these paths, for ``Pattern.show``."""
    found: dict[str, set[int]] = defaultdict(set)
    for path in paths:
        for part in path.split("/"):
            prefix, number = _split_number(part)
            if number is not None:
                found[prefix].add(number)
    return {prefix: frozenset(values) for prefix, values in found.items()}


def common_folder(paths: Iterable[str]) -> str:
    """The longest folder that holds all of ``paths``, ending in ``/``; empty if there is none."""
    folders = [path.split("/")[:-1] for path in paths]
    shared: list[str] = []
    for parts in zip(*folders, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(f"{part}/" for part in shared)


def _show_part(names: frozenset[str], known: Numbers) -> str:
    if len(names) == 1:
        return next(iter(names))
    split = [_split_number(name) for name in names]
    prefixes = {prefix for prefix, _ in split}
    found = sorted(number for _, number in split if number is not None)
    if len(prefixes) > 1 or len(found) < len(split):
        return "{" + ",".join(sorted(names)) + "}"
    prefix = prefixes.pop()
    if known.get(prefix) == frozenset(found):
        return prefix + "*"
    if found == list(range(found[0], found[-1] + 1)) and len(found) > 2:
        return f"{prefix}{{{found[0]}..{found[-1]}}}"
    return f"{prefix}{{{','.join(map(str, found))}}}"


def _split_number(part: str) -> tuple[str, int | None]:
    """``block_12`` to ``("block_", 12)``; no number if it is written with leading zeros."""
    match = re.fullmatch(r"(.*?)(0|[1-9][0-9]*)", part)
    return (match[1], int(match[2])) if match else (part, None)
