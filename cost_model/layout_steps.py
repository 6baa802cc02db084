"""Single steps between the layouts of a value, and what a change of several steps costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autopar.core.layout import B, Layout, Partial, Placement, Split
from autopar.cost_model.collectives import CollectiveKind

EPSILON_S = 1e-9
"""Cost of a step that moves nothing."""

StepKind = CollectiveKind | Literal["mask"]
Matrix = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Table:
    """Layouts partial by at most one reduction, and what each change costs.

    Attributes:
      index: the place of each of ``layouts``. local_bytes: what one device holds.
      steps: seconds of a single step; total: of the cheapest sequence.
    """

    index: dict[Layout, int]
    layouts: tuple[Layout, ...]
    local_bytes: NDArray[np.float64]
    steps: Matrix
    total: Matrix

    def between(self, src: Sequence[Layout], dst: Sequence[Layout]) -> Matrix:
        """Seconds from each of ``src`` to each of ``dst``; ``inf`` where there is no way."""
        rows = np.array([self.index.get(layout, -1) for layout in src], dtype=np.intp)
        cols = np.array([self.index.get(layout, -1) for layout in dst], dtype=np.intp)
        found = self.total.take(rows, axis=0).take(cols, axis=1)  # faster than ``np.ix_``
        if (rows < 0).any() or (cols < 0).any():
            found[rows < 0, :] = np.inf
            found[:, cols < 0] = np.inf
        return found

    def renamed(self, op: str) -> Table:
        """The same for another reduction."""
        layouts = tuple([_renamed(layout, op) for layout in self.layouts])
        index = {layout: i for i, layout in enumerate(layouts)}
        return dataclasses.replace(self, index=index, layouts=layouts)


class Line(NamedTuple):
    """The price of a step: seconds, seconds a byte of what it moves, and how many times what a
    device holds before it that is.
    """

    latency: float
    per_byte: float
    times: float


@dataclass(frozen=True, slots=True)
class Steps:
    """The single steps between the layouts of a value, whatever its bytes.

    Attributes:
      index: the place of each of ``layouts``. ways: into how many parts each cuts the value.
      rows, cols: the layout before and after each step.
      latency, per_byte, times: of each step (see ``Line``).
    """

    index: dict[Layout, int]
    layouts: tuple[Layout, ...]
    ways: NDArray[np.float64]
    rows: NDArray[np.intp]
    cols: NDArray[np.intp]
    latency: NDArray[np.float64]
    per_byte: NDArray[np.float64]
    times: NDArray[np.float64]

    def table(self, size: int, coalesce_bytes: int | None) -> Table:
        """What each change of layout costs.

        Args:
          size: bytes of the value.
          coalesce_bytes: what small collectives are merged to, if they are.
        """
        local = size / self.ways
        payload = local[self.rows] * self.times
        share = 1.0 if coalesce_bytes is None else np.minimum(1.0, payload / coalesce_bytes)
        costs = np.maximum(EPSILON_S, self.latency * share + payload * self.per_byte)
        steps = np.full((len(local),) * 2, np.inf)
        np.fill_diagonal(steps, 0.0)
        steps[self.rows, self.cols] = costs
        return Table(self.index, self.layouts, local, steps, self._closure(steps, costs))

    def _closure(self, steps: Matrix, costs: NDArray[np.float64]) -> Matrix:
        """All-pairs shortest paths: a step more at their beginning until none gets cheaper.

        There are few steps from each layout and few on any path (Bellman 1958), so that this takes
        a fraction of what it takes to go through every layout on the way.
        """
        order = np.argsort(self.rows, kind="stable")
        counts = np.bincount(self.rows, minlength=len(steps))
        slots = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        width = int(counts.max(initial=0))
        onto = np.tile(np.arange(len(steps)), (width, 1))  # a layout without a step stays
        costly = np.zeros((width, len(steps), 1))
        onto[slots, self.rows[order]] = self.cols[order]
        costly[slots, self.rows[order], 0] = costs[order]
        total, before, via = steps.copy(), np.full_like(steps, np.nan), np.empty_like(steps)
        while not np.array_equal(total, before):
            before[:] = total
            for there, cost in zip(onto, costly, strict=True):
                np.take(total, there, axis=0, out=via, mode="clip")
                via += cost
                np.minimum(total, via, out=total)
        return total


def step_kind(old: Placement, new: Placement) -> StepKind | None:
    """The collective that takes one axis from ``old`` to ``new``, if a single one does."""
    match old, new:
        case Split(), Split():
            return "all-to-all"
        case Split(), b if b == B:
            return "all-gather"
        case Partial(), b if b == B:
            return "all-reduce"
        case Partial("add"), Split():
            return "reduce-scatter"
        case b, Split() if b == B:
            return "slice"
        case b, Partial() if b == B:
            return "mask"
        case _:
            return None


def _renamed(layout: Layout, op: str) -> Layout:
    return tuple([Partial(op) if isinstance(p, Partial) else p for p in layout])
