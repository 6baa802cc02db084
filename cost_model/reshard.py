"""The price of changing a value's layout.

A layout changes by *steps*, each along one mesh axis; a price is the cheapest sequence of steps,
and so obeys the triangle inequality. For an axis of ``n`` positions::

    S(d) -> B       all-gather        payload n * local bytes
    P    -> B       all-reduce        payload local bytes
    P    -> S(d)    reduce-scatter    payload local bytes          (op "add" only)
    S(i) -> S(j)    all-to-all        payload local bytes
    B    -> S(d)    slice             free
    B    -> P(op)   mask              free: one position keeps the value, the others the identity
    P(op) -> P(op') and both at once impossible;  S -> P goes through B

where *local bytes* is what one device holds before the step, so steps along one axis are cheaper
while other axes still split the value. Free steps cost ``EPSILON_S`` so that ties prefer to do
nothing. All splits are even.

Axes that split the same dimension lie major to minor in mesh order, so only the *last* axis of a
dimension may be gathered, exchanged or added: gathering the major one alone would interleave the
pieces of the others. Other changes take several steps, which the closure finds.

Small collectives along one axis are merged by compilers (XLA's all-reduce combiner) up to a
threshold ``T``: ``k`` collectives of ``p`` bytes become ``k p / T``, so each pays ``p / T`` of a
latency. With ``coalesced=True`` (gradients and the like, many of which are ready together) the
latency is charged in that proportion; a collective that stands alone in a chain of dependent ones
pays it in full.

The closure may go through an axis that is B at both ends (slice, reduce the part, gather again:
the links of two axes share the work). ``Resharder.path`` says so, and what lowers it must follow.

The closure over all layouts is Floyd-Warshall in min-plus matrices: built in ``_closure``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autopar.core.errors import InfeasibleError
from autopar.core.layout import B, Layout, Partial, Placement, Split, show
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
class Collective:
    """One step of a layout change: ``layout`` is what holds after it, ``bytes`` the payload."""

    kind: StepKind
    axis: str
    bytes: int
    seconds: float
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Table:
    """All layouts of one kind of value, and what each change costs."""

    index: dict[Layout, int]
    layouts: tuple[Layout, ...]
    local_bytes: NDArray[np.float64]
    steps: Matrix
    total: Matrix


@dataclass(frozen=True)
class Resharder:
    """Prices layout changes on one mesh. Holds a cache; equal questions get equal answers.

    Attributes:
      mesh: its axes. links: the effective link of each axis (``Cluster.axis_links``).
      coalesce_bytes: the size to which small collectives are merged.
    """

    mesh: MeshSpec
    links: tuple[Link, ...]
    coalesce_bytes: int = COALESCE_BYTES
    _tables: dict[object, _Table] = field(
        default_factory=dict[object, _Table], repr=False, compare=False
    )

    def matrix(
        self,
        shape: Sequence[int],
        itemsize: int,
        src: Sequence[Layout],
        dst: Sequence[Layout],
        coalesced: bool = False,
    ) -> Matrix:
        """Seconds from each of ``src`` to each of ``dst``; ``inf`` where there is no way."""
        table = self._table(tuple(shape), itemsize, (*src, *dst), coalesced)
        rows = np.array([table.index.get(layout, -1) for layout in src], dtype=np.intp)
        cols = np.array([table.index.get(layout, -1) for layout in dst], dtype=np.intp)
        found = table.total[np.ix_(rows, cols)]
        found[rows < 0, :] = np.inf
        found[:, cols < 0] = np.inf
        return found

    def seconds(
        self,
        shape: Sequence[int],
        itemsize: int,
        src: Layout,
        dst: Layout,
        coalesced: bool = False,
    ) -> float:
        """Seconds of one layout change."""
        return float(self.matrix(shape, itemsize, (src,), (dst,), coalesced=coalesced)[0, 0])

    def path(
        self,
        shape: Sequence[int],
        itemsize: int,
        src: Layout,
        dst: Layout,
        coalesced: bool = False,
    ) -> tuple[Collective, ...]:
        """The cheapest steps from ``src`` to ``dst``; the first in layout order on ties.

        Raises:
          InfeasibleError: there is no way.
        """
        table = self._table(tuple(shape), itemsize, (src, dst), coalesced)
        here, goal = table.index.get(src, -1), table.index.get(dst, -1)
        if here < 0 or goal < 0 or not np.isfinite(table.total[here, goal]):
            raise InfeasibleError(
                f"a value of shape {tuple(shape)} cannot go from {show(src)} to {show(dst)} on "
                f"mesh {self.mesh}"
            )
        path: list[Collective] = []
        while here != goal:
            through = table.steps[here] + table.total[:, goal]
            through[here] = np.inf
            there = int(np.argmin(through))
            path.append(self._collective(table, here, there))
            here = there
        return tuple(path)

    def _collective(self, table: _Table, here: int, there: int) -> Collective:
        before, after = table.layouts[here], table.layouts[there]
        axis = next(i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y)
        kind = step_kind(before[axis], after[axis])
        assert kind is not None, "the closure only takes possible steps"
        factor = self.mesh.axes[axis].size if kind == "all-gather" else 1
        moved = 0 if kind in ("slice", "mask") else int(table.local_bytes[here]) * factor
        name = self.mesh.axes[axis].name
        return Collective(kind, name, moved, float(table.steps[here, there]), after)

    def _table(
        self, shape: tuple[int, ...], itemsize: int, layouts: Iterable[Layout], coalesced: bool
    ) -> _Table:
        ops = {p.op for layout in layouts for p in layout if isinstance(p, Partial)}
        key = (shape, itemsize, tuple(sorted(ops)), coalesced)
        if key not in self._tables:
            self._tables[key] = self._build(shape, itemsize, key[2], coalesced)
        return self._tables[key]

    def _build(
        self, shape: tuple[int, ...], itemsize: int, ops: tuple[str, ...], coalesced: bool
    ) -> _Table:
        """Numbers every layout in mixed radix, one digit an axis, and prices every step."""
        choices = self._choices(shape, ops)
        radix, axes = len(choices), len(self.mesh.axes)
        codes = np.indices((radix,) * axes).reshape(axes, -1)
        local = self._local_bytes(shape, itemsize, choices, codes)
        legal = np.isfinite(local) & ~_mixed(codes, choices)
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
                cost = self._step_seconds(axis, choices[old], choices[new], local[rows], coalesced)
                if cost is not None:
                    ok = legal[cols]
                    steps[rows[ok], cols[ok]] = cost[ok]
        keep = np.flatnonzero(legal)
        layouts = tuple(tuple(choices[code] for code in codes[:, i]) for i in keep)
        steps = np.ascontiguousarray(steps[np.ix_(keep, keep)])
        index = {layout: i for i, layout in enumerate(layouts)}
        return _Table(index, layouts, local[keep], steps, _closure(steps))

    def _choices(self, shape: tuple[int, ...], ops: tuple[str, ...]) -> tuple[Placement, ...]:
        """B, the partials asked for, and every dimension that some axis divides."""
        dims = [
            d
            for d, extent in enumerate(shape)
            if extent and any(extent % axis.size == 0 for axis in self.mesh.axes)
        ]
        return (B, *(Partial(op) for op in ops), *(Split(d) for d in dims))

    def _local_bytes(
        self,
        shape: tuple[int, ...],
        itemsize: int,
        choices: tuple[Placement, ...],
        codes: NDArray[np.intp],
    ) -> NDArray[np.float64]:
        """Bytes one device holds under each layout; ``inf`` where a split is uneven."""
        local = np.full(codes.shape[1], float(math.prod(shape) * itemsize))
        sizes = np.array(self.mesh.sizes)[:, None]
        for code, choice in enumerate(choices):
            if isinstance(choice, Split):
                ways = np.where(codes == code, sizes, 1).prod(axis=0)
                local = np.where(shape[choice.dim] % ways == 0, local / ways, np.inf)
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


def _mixed(codes: NDArray[np.intp], choices: tuple[Placement, ...]) -> NDArray[np.bool_]:
    """Layouts partial by two reductions at once, which do not commute: they mean nothing."""
    partials = [code for code, choice in enumerate(choices) if isinstance(choice, Partial)]
    return np.sum([np.any(codes == code, axis=0) for code in partials], axis=0) > 1


def _closure(steps: Matrix) -> Matrix:
    """All-pairs shortest paths."""
    total = steps.copy()
    for k in range(len(total)):
        np.minimum(total, total[:, k, None] + total[None, k, :], out=total)
    return total
