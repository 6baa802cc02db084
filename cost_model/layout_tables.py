"""Single steps between layouts, and the tables of their cheapest sequences (see ``reshard``).

Layouts partial by two reductions at once mean nothing, and no way between layouts that are not
partial gets cheaper by partial sums: so there is a table for each reduction. Prices depend on a
value's bytes and on which of its dimensions divide by what; values alike in that share a table.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
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
        found[rows < 0, :] = np.inf
        found[:, cols < 0] = np.inf
        return found

    def renamed(self, op: str) -> Table:
        """The same for another reduction."""
        layouts = tuple([_renamed(layout, op) for layout in self.layouts])
        index = {layout: i for i, layout in enumerate(layouts)}
        return dataclasses.replace(self, index=index, layouts=layouts)


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

    def of(
        self, shape: Sequence[int], itemsize: int, layouts: Iterable[Layout], coalesced: bool
    ) -> Table:
        """The table of a value in which to look for ``layouts``."""
        # An even split is one by a factor of the number of devices: no more matters of an extent.
        devices = math.prod(self.mesh.sizes)
        dims = tuple([math.gcd(extent, devices) if extent else 1 for extent in shape])
        ops = {p.op for layout in layouts for p in layout if isinstance(p, Partial)}
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
        """Numbers every layout in mixed radix, one digit an axis, and prices every step."""
        choices = self._choices(key.dims, op)
        radix, axes = len(choices), len(self.mesh.axes)
        codes = np.indices((radix,) * axes).reshape(axes, -1)
        local = self._local_bytes(key, choices, codes)
        legal = np.isfinite(local)
        steps = np.full((codes.shape[1],) * 2, np.inf)
        np.fill_diagonal(steps, 0.0)
        for axis in range(axes):
            stride = radix ** (axes - 1 - axis)
            later = [np.any(codes[axis + 1 :] == code, axis=0) for code in range(radix)]
            for old, new in itertools.permutations(range(radix), 2):
                if step_kind(choices[old], choices[new]) is None:
                    continue
                free = legal & (codes[axis] == old)
                for code in (old, new):  # no later axis may split what the step gathers or splits
                    if isinstance(choices[code], Split):
                        free &= ~later[code]
                rows = np.flatnonzero(free)
                cols = rows + (new - old) * stride
                cost = self._step_seconds(
                    axis, choices[old], choices[new], local[rows], key.coalesced
                )
                if cost is not None:
                    ok = legal[cols]
                    steps[rows[ok], cols[ok]] = cost[ok]
        keep = np.flatnonzero(legal)
        layouts = tuple(tuple(choices[code] for code in codes[:, i]) for i in keep)
        steps = np.ascontiguousarray(steps[np.ix_(keep, keep)])
        index = {layout: i for i, layout in enumerate(layouts)}
        return Table(index, layouts, local[keep], steps, _closure(steps))

    def _choices(self, dims: tuple[int, ...], op: str) -> tuple[Placement, ...]:
        """B, partial by ``op`` if there is one, and every dimension that some axis divides."""
        splits = [
            Split(dim)
            for dim, extent in enumerate(dims)
            if any(extent % axis.size == 0 for axis in self.mesh.axes)
        ]
        return (B, *((Partial(op),) if op else ()), *splits)

    def _local_bytes(
        self, key: _Key, choices: tuple[Placement, ...], codes: NDArray[np.intp]
    ) -> NDArray[np.float64]:
        """Bytes one device holds under each layout; ``inf`` where a split is uneven."""
        local = np.full(codes.shape[1], float(key.bytes))
        sizes = np.array(self.mesh.sizes)[:, None]
        for code, choice in enumerate(choices):
            if isinstance(choice, Split):
                ways = np.where(codes == code, sizes, 1).prod(axis=0)
                local = np.where(key.dims[choice.dim] % ways == 0, local / ways, np.inf)
        return local

    def _step_seconds(
        self,
        axis: int,
        old: Placement,
        new: Placement,
        local: NDArray[np.float64],
        coalesced: bool,
    ) -> NDArray[np.float64] | None:
        """Seconds of one step for each of ``local`` bytes, or ``None`` if there is no such step."""
        kind, size = step_kind(old, new), self.mesh.axes[axis].size
        if kind is None:
            return None
        if kind in ("slice", "mask") or size == 1:
            return np.full(local.shape, EPSILON_S)
        if self.mesh.axes[axis].kind == "time":
            return None
        latency, per_byte = collective_line(kind, self.links[axis], size)
        payload = local * size if kind == "all-gather" else local
        share = np.minimum(1.0, payload / self.coalesce_bytes) if coalesced else 1.0
        return np.maximum(EPSILON_S, latency * share + payload * per_byte)


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
    between = total[np.ix_(partial, partial)]
    for there, on in zip(total[partial][:, ~partial].T, total[~partial][:, partial], strict=True):
        np.minimum(between, there[:, None] + on, out=between)
    total[np.ix_(partial, partial)] = between
    return Table(index, layouts, local, steps, total)


def _closure(steps: Matrix) -> Matrix:
    """All-pairs shortest paths."""
    total = steps.copy()
    for k in range(len(total)):
        np.minimum(total, total[:, k, None] + total[None, k, :], out=total)
    return total
