"""Where a sequence repeats itself."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from autopar.passes.fingerprint import IntArray

IN_A_ROW = (1, 8)
"""Lengths of what is looked for again: a layer may have nothing that is in it just once."""

TRIED = 256
"""Distances tried, the most frequent."""

MIXED = np.uint64(0x9E3779B97F4A7C15)

FEWEST = 6
"""Repetitions that are worth anything: some are kept."""


@dataclass(frozen=True, order=True, slots=True)
class Run:
    """``count`` repetitions of ``period`` places, from ``start`` on."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        return self.start + self.period * self.count


def find_runs(kinds: IntArray) -> list[Run]:
    """Runs of at least ``FEWEST`` repetitions that do not overlap, in order.

    The longest stretch is taken first, with its shortest period: layers, and not what repeats
    itself within them. A period is the distance of something to the next that is like it.
    """
    if len(kinds) < FEWEST:
        return []
    stretches: list[tuple[int, int, int]] = []
    for period in _periods(kinds):
        repeats = np.concatenate(([False], kinds[:-period] == kinds[period:], [False]))
        edges = np.flatnonzero(repeats[1:] != repeats[:-1]).reshape(-1, 2)
        for start, stop in edges[edges[:, 1] - edges[:, 0] >= (FEWEST - 1) * period].tolist():
            stretches.append((stop - start + period, -period, start))
    free = np.ones(len(kinds), np.bool_)
    runs: list[Run] = []
    for length, minus, start in sorted(stretches, reverse=True):
        kept = np.flatnonzero(free[start : start + length])
        if not len(kept) or kept[-1] - kept[0] + 1 != len(kept):
            continue  # another lies within
        first, length = start + int(kept[0]), len(kept)
        if length >= -minus * FEWEST:
            run = Run(first, -minus, length // -minus)
            free[run.start : run.stop] = False
            runs.append(run)
    return sorted(runs)


def _periods(kinds: IntArray) -> list[int]:
    """Distances at which something is repeated often enough, in order: one, or so many in a row."""
    found: list[IntArray] = []
    for length in (size for size in IN_A_ROW if size <= len(kinds)):
        rows = np.lib.stride_tricks.sliding_window_view(kinds.astype(np.uint64), length)
        words = rows @ (MIXED ** np.arange(length, dtype=np.uint64))  # by their hashes
        order = np.argsort(words, kind="stable")
        found.append(np.diff(order)[np.diff(words[order]) == 0])
    distances, counts = np.unique(np.concatenate(found), return_counts=True)
    often = np.flatnonzero((counts >= FEWEST - 1) & (distances * FEWEST <= len(kinds)))
    most = often[np.argsort(-counts[often], kind="stable")[:TRIED]]
    return sorted(distances[most].tolist())
