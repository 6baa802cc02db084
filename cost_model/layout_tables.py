"""The tables of the cheapest changes of layout (see ``reshard``), for every value of a mesh.

Layouts partial by two reductions at once mean nothing, and no way between layouts that are not
partial gets cheaper by partial sums: so there is a table for each reduction. Prices depend on a
value's bytes and on which of its dimensions divide by what; values alike in that share a table.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autopar.core.layout import B, Layout, Partial, Placement, Split, is_partial, reduced_whole
from autopar.core.mesh import MeshSpec
from autopar.cost_model.collectives import collective_line
from autopar.cost_model.hardware import Link
from autopar.cost_model.layout_steps import EPSILON_S, Line, Steps, Table, step_kind

COALESCE_BYTES = 4 * 2**20
"""Below XLA's own thresholds (30 MiB on GPU), as what can be merged is rarely ready all at once."""


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
        parts: list[tuple[NDArray[np.intp], NDArray[np.intp], Line]] = []
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

    def _line(self, axis: int, old: Placement, new: Placement) -> Line | None:
        """The price of one step, or ``None`` if there is no such step."""
        kind, size = step_kind(old, new), self.mesh.axes[axis].size
        if kind is None:
            return None
        if kind in ("slice", "mask") or size == 1:
            return Line(0.0, 0.0, 1.0)
        if self.mesh.axes[axis].kind == "time":
            return None
        latency, per_byte = collective_line(kind, self.links[axis], size)
        return Line(latency, per_byte, float(size) if kind == "all-gather" else 1.0)


@functools.lru_cache(maxsize=4096)  # few ends of many edges
def _reductions(layouts: tuple[Layout, ...]) -> frozenset[str]:
    return frozenset(p.op for layout in layouts for p in layout if isinstance(p, Partial))


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
    whole = [reduced_whole(layout) for layout in layouts]
    before = np.array([index[layout] for layout in whole], np.intp)
    for rows, cols in itertools.permutations([at[partial[at]] for at in places], 2):
        # Masks are free and may come last; before them nothing is partial.
        reached = total[np.ix_(rows, before[cols])]
        total[np.ix_(rows, cols)] = reached + EPSILON_S * masked[cols]
    return Table(index, layouts, local, steps, total)
