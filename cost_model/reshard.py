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

The closure over all layouts (``layout_steps``) is one of each reduction (``layout_tables``). What
goes from one reduction to another does so by layouts that are not partial.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.extend.core import JaxprEqn

from autopar.core.errors import InfeasibleError
from autopar.core.layout import Layout, is_partial, show
from autopar.core.mesh import MeshSpec
from autopar.cost_model.hardware import Link
from autopar.cost_model.layout_steps import Matrix, StepKind, Table, step_kind
from autopar.cost_model.layout_tables import COALESCE_BYTES, Tables
from autopar.cost_model.work import itemsize


@dataclass(frozen=True, slots=True)
class Collective:
    """One step of a layout change: ``layout`` is what holds after it, ``bytes`` the payload."""

    kind: StepKind
    axis: str
    bytes: int
    seconds: float
    layout: Layout


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

    @functools.cached_property
    def _tables(self) -> Tables:
        return Tables(self.mesh, self.links, self.coalesce_bytes)

    @functools.cached_property
    def _paths(self) -> dict[object, tuple[Collective, ...]]:
        return {}

    def matrix(
        self,
        shape: Sequence[int],
        itemsize: int,
        src: Sequence[Layout],
        dst: Sequence[Layout],
        coalesced: bool = False,
    ) -> Matrix:
        """Seconds from each of ``src`` to each of ``dst``; ``inf`` where there is no way."""
        return self._tables.of(shape, itemsize, src, dst, coalesced).between(src, dst)

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
        asked = (tuple(shape), itemsize, src, dst, coalesced)
        if asked not in self._paths:
            self._paths[asked] = () if src == dst else self._cheapest(*asked)
        return self._paths[asked]

    def _cheapest(
        self, shape: tuple[int, ...], itemsize: int, src: Layout, dst: Layout, coalesced: bool
    ) -> tuple[Collective, ...]:
        table = self._tables.of(shape, itemsize, (src,), (dst,), coalesced)
        if not np.isfinite(table.between((src,), (dst,))).all():
            raise InfeasibleError(
                f"a value of shape {tuple(shape)} cannot go from {show(src)} to {show(dst)} on "
                f"mesh {self.mesh}"
            )
        here, goal = table.index[src], table.index[dst]
        path: list[Collective] = []
        while here != goal:
            through = table.steps[here] + table.total[:, goal]
            through[here] = np.inf
            there = int(np.argmin(through))
            path.append(self._collective(table, here, there))
            here = there
        return tuple(path)

    def _collective(self, table: Table, here: int, there: int) -> Collective:
        before, after = table.layouts[here], table.layouts[there]
        axis = next(i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y)
        kind = step_kind(before[axis], after[axis])
        assert kind is not None, "the closure only takes possible steps"
        factor = self.mesh.axes[axis].size if kind == "all-gather" else 1
        moved = 0 if kind in ("slice", "mask") else int(table.local_bytes[here]) * factor
        name = self.mesh.axes[axis].name
        return Collective(kind, name, moved, float(table.steps[here, there]), after)


def casts_first(
    eqn: JaxprEqn, operands: Sequence[Layout], results: Sequence[Layout], left: Layout
) -> bool:
    """Whether an equation in these layouts is a cast that is done before its operand, which lies as
    ``left``, is moved: to fewer bytes, so that less is. Summands are not rounded.
    """
    return (
        eqn.primitive.name == "convert_element_type"
        and itemsize(eqn.outvars[0].aval) < itemsize(eqn.invars[0].aval)
        and operands == results
        and not is_partial(left)
    )
