"""Single steps between layouts, and the tables of their cheapest sequences (see ``reshard``).

Layouts partial by two reductions at once mean nothing, and no way between layouts that are not
partial gets cheaper by partial sums: so there is a table for each reduction. Prices depend on a
value's bytes and on which of its dimensions divide by what; values alike in that share a table.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autopar.core.layout import B, Layout, Partial, Placement, Split, is_partial
from autopar.core.mesh import MeshSpec
from autopar.cost_model.collectives import CollectiveKind, collective_line
from autopar.cost_model.hardware import Link

EPSILON_S = 1e-9
"""Cost of a step that moves nothing."""

COALESCE_BYTES = 4 * 2**20
"""Below XLA's own thresholds (30 MiB on GPU), as what can be merged is rarely ready all at once."""

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
        found = self.total[np.ix_(rows, cols)]
        if (rows < 0).any() or (cols < 0).any():
            found[rows < 0, :] = np.inf
            found[:, cols < 0] = np.inf
        return found

    def renamed(self, op: str) -> Table:
        """The same for another reduction."""
        layouts = tuple([_renamed(layout, op) for layout in self.layouts])
        index = {layout: i for i, layout in enumerate(layouts)}
        return dataclasses.replace(self, index=index, layouts=layouts)


class _Line(NamedTuple):
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
      latency, per_byte, times: of each step (see ``_Line``).
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
        total, before, via = steps.copy(), np.empty_like(steps), np.empty_like(steps)
        while not np.array_equal(total, before):
            before[:] = total
            for there, cost in zip(onto, costly, strict=True):
                np.take(total, there, axis=0, out=via, mode="clip")
                via += cost
                np.minimum(total, via, out=total)
        return total


class _Key(NamedTuple):
    """What prices of a value depend on: its bytes, and of each dimension the greatest number that
    divides it and the number of devices.
    """

    dims: tuple[int, ...]
    bytes: int
    coalesced: bool


@dataclass(frozen=True)
class Tables:
    """The tables of one mesh, made when first asked for.

    Attributes: see ``reshard.Resharder``.
    """

    mesh: MeshSpec
    links: tuple[Link, ...]
    coalesce_bytes: int = COALESCE_BYTES
    _made: dict[tuple[_Key, tuple[str, ...]], Table] = field(
        default_factory=dict[tuple[_Key, tuple[str, ...]], Table], repr=False, compare=False
    )
    _steps: dict[tuple[tuple[int, ...], str], Steps] = field(
        default_factory=dict[tuple[tuple[int, ...], str], Steps], repr=False, compare=False
    )

    def of(
        self,
        shape: Sequence[int],
        itemsize: int,
        src: Sequence[Layout],
        dst: Sequence[Layout],
        coalesced: bool,
    ) -> Table:
        """The table of a value in which to look for these layouts."""
        # An even split is one by a factor of the number of devices: no more matters of an extent.
        devices = math.prod(self.mesh.sizes)
        dims = tuple([math.gcd(extent, devices) if extent else 1 for extent in shape])
        ops = _reductions(tuple(src)) | _reductions(tuple(dst))
        key = _Key(dims, math.prod(shape) * itemsize, coalesced)
        return self._table(key, tuple(sorted(ops)))

    def _table(self, key: _Key, ops: tuple[str, ...]) -> Table:
        if (key, ops) not in self._made:
            if len(ops) > 1:
                found = _joined([self._table(key, (op,)) for op in ops])
            elif ops in ((), ("add",), ("max",)):
                found = self._build(key, *ops)
            else:  # but for sums, which scatter, one reduction is as another
                found = self._table(key, ("max",)).renamed(*ops)
            self._made[key, ops] = found
        return self._made[key, ops]

    def _build(self, key: _Key, op: str = "") -> Table:
        if (key.dims, op) not in self._steps:
            self._steps[key.dims, op] = self._every_step(key.dims, op)
        made = self._steps[key.dims, op]
        return made.table(key.bytes, self.coalesce_bytes if key.coalesced else None)

    def _every_step(self, dims: tuple[int, ...], op: str) -> Steps:
        """Numbers every layout in mixed radix, one digit an axis, and finds every step."""
        choices = self._choices(dims, op)
        radix, axes = len(choices), len(self.mesh.axes)
        codes = np.indices((radix,) * axes).reshape(axes, -1)
        ways, legal = self._ways(dims, choices, codes)
        place = np.cumsum(legal) - 1
        parts: list[tuple[NDArray[np.intp], NDArray[np.intp], _Line]] = []
        for axis in range(axes):
            stride = radix ** (axes - 1 - axis)
            later = [np.any(codes[axis + 1 :] == code, axis=0) for code in range(radix)]
            for old, new in itertools.permutations(range(radix), 2):
                line = self._line(axis, choices[old], choices[new])
                if line is None:
                    continue
                free = legal & (codes[axis] == old)
                for code in (old, new):  # no later axis may split what the step gathers or splits
                    if isinstance(choices[code], Split):
                        free &= ~later[code]
                rows = np.flatnonzero(free)
                rows = rows[legal[rows + (new - old) * stride]]
                parts.append((place[rows], place[rows + (new - old) * stride], line))
        counts = [len(rows) for rows, _, _ in parts]
        lines = np.repeat(np.array([line for _, _, line in parts]).reshape(-1, 3), counts, axis=0)
        layouts = tuple([tuple([choices[c] for c in code]) for code in codes[:, legal].T.tolist()])
        none = np.zeros(0, np.intp)
        return Steps(
            {layout: i for i, layout in enumerate(layouts)},
            *(layouts, ways[legal]),
            np.concatenate([none, *(rows for rows, _, _ in parts)]),
            np.concatenate([none, *(cols for _, cols, _ in parts)]),
            *lines.T,
        )

    def _choices(self, dims: tuple[int, ...], op: str) -> tuple[Placement, ...]:
        """B, partial by ``op`` if there is one, and every dimension that some axis divides."""
        splits = [
            Split(dim)
            for dim, extent in enumerate(dims)
            if any(extent % axis.size == 0 for axis in self.mesh.axes)
        ]
        return (B, *((Partial(op),) if op else ()), *splits)

    def _ways(
        self, dims: tuple[int, ...], choices: tuple[Placement, ...], codes: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Into how many parts each layout cuts a value, and whether all its splits are even."""
        total = np.ones(codes.shape[1])
        legal = np.ones(codes.shape[1], np.bool_)
        sizes = np.array(self.mesh.sizes)[:, None]
        for code, choice in enumerate(choices):
            if isinstance(choice, Split):
                ways = np.where(codes == code, sizes, 1).prod(axis=0)
                legal &= dims[choice.dim] % ways == 0
                total *= ways
        return total, legal

    def _line(self, axis: int, old: Placement, new: Placement) -> _Line | None:
        """The price of one step, or ``None`` if there is no such step."""
        kind, size = step_kind(old, new), self.mesh.axes[axis].size
        if kind is None:
            return None
        if kind in ("slice", "mask") or size == 1:
            return _Line(0.0, 0.0, 1.0)
        if self.mesh.axes[axis].kind == "time":
            return None
        latency, per_byte = collective_line(kind, self.links[axis], size)
        return _Line(latency, per_byte, float(size) if kind == "all-gather" else 1.0)


@functools.lru_cache(maxsize=4096)  # few ends of many edges
def _reductions(layouts: tuple[Layout, ...]) -> frozenset[str]:
    return frozenset(p.op for layout in layouts for p in layout if isinstance(p, Partial))


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


def _joined(parts: Sequence[Table]) -> Table:
    """The tables of several reductions as one: from one to another by what is not partial."""
    layouts = tuple(dict.fromkeys(layout for part in parts for layout in part.layouts))
    index = {layout: i for i, layout in enumerate(layouts)}
    local = np.empty(len(layouts))
    steps, total = np.full((2, len(layouts), len(layouts)), np.inf)
    places = [np.array([index[layout] for layout in part.layouts]) for part in parts]
    for part, at in zip(parts, places, strict=True):
        local[at] = part.local_bytes
        steps[np.ix_(at, at)], total[np.ix_(at, at)] = part.steps, part.total
    partial = np.array([is_partial(layout) for layout in layouts])
    masked = np.array([sum(isinstance(p, Partial) for p in layout) for layout in layouts])
    whole = [tuple([B if isinstance(p, Partial) else p for p in layout]) for layout in layouts]
    before = np.array([index[layout] for layout in whole], np.intp)
    for rows, cols in itertools.permutations([at[partial[at]] for at in places], 2):
        # Masks are free and may come last; before them nothing is partial.
        reached = total[np.ix_(rows, before[cols])]
        total[np.ix_(rows, cols)] = reached + EPSILON_S * masked[cols]
    return Table(index, layouts, local, steps, total)
