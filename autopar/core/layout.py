"""Layouts: how one value lies along each mesh axis (the SBP algebra of OneFlow).

A layout is one placement per mesh axis, in mesh order. Where several axes split the same
dimension, the earlier mesh axis is the major one, as in ``PartitionSpec((major, minor))``.

Placements are named tuples, unlike other values here: a search compares and hashes millions.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import jax

from autopar.core.mesh import MeshSpec


class Split(NamedTuple):
    """Each position of the axis holds an equal, contiguous part of dimension ``dim``."""

    dim: int

    def __str__(self) -> str:
        return f"S({self.dim})"


class Broadcast(NamedTuple):
    """Every position of the axis holds the same value."""

    def __str__(self) -> str:
        return "B"


class Partial(NamedTuple):
    """The value is the reduction by ``op`` of what the positions of the axis hold."""

    op: str = "add"

    def __str__(self) -> str:
        return "P" if self.op == "add" else f"P({self.op})"


Placement = Split | Broadcast | Partial
Layout = tuple[Placement, ...]

B = Broadcast()
P_ADD = Partial("add")


def replicated(mesh: MeshSpec) -> Layout:
    """The layout that is broadcast along every axis."""
    return (B,) * len(mesh.axes)


def is_partial(layout: Layout) -> bool:
    """Whether the layout is partial along some axis."""
    return any(isinstance(placement, Partial) for placement in layout)


def reduced_whole(layout: Layout) -> Layout:
    """``layout`` once all that is partial along an axis is reduced there."""
    return tuple([B if isinstance(placement, Partial) else placement for placement in layout])


def local_shape(shape: Sequence[int], layout: Layout, mesh: MeshSpec) -> tuple[int, ...]:
    """The shape one device holds of a value of global ``shape``. Assumes even division."""
    local = list(shape)
    for placement, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(placement, Split):
            local[placement.dim] //= axis.size
    return tuple(local)


def local_shapes(
    shapes: Iterable[Sequence[int]], layouts: Iterable[Layout], mesh: MeshSpec
) -> tuple[tuple[int, ...], ...]:
    """``local_shape`` of several values."""
    return tuple(local_shape(s, layout, mesh) for s, layout in zip(shapes, layouts, strict=True))


def shifted(layout: Layout, by: int) -> Layout:
    """``layout`` of a value with ``by`` more leading dimensions."""
    if not by:
        return layout
    return tuple(Split(p.dim + by) if isinstance(p, Split) else p for p in layout)


def divides(shape: Sequence[int], layout: Layout, mesh: MeshSpec) -> bool:
    """Whether every split of ``layout`` is even for a value of global ``shape``."""
    local = list(shape)
    for placement, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(placement, Split):
            if placement.dim >= len(local) or local[placement.dim] % axis.size:
                return False
            local[placement.dim] //= axis.size
    return True


def shards(layout: Layout, mesh: MeshSpec) -> int:
    """Into how many distinct pieces the layout cuts a value."""
    return math.prod(
        axis.size
        for placement, axis in zip(layout, mesh.axes, strict=True)
        if isinstance(placement, Split)
    )


def to_spec(layout: Layout, mesh: MeshSpec, rank: int) -> jax.P:
    """The ``PartitionSpec`` of a value of ``rank`` dimensions. Partial axes count as unsplit."""
    names: list[list[str]] = [[] for _ in range(rank)]
    for placement, axis in zip(layout, mesh.axes, strict=True):
        if isinstance(placement, Split):
            names[placement.dim].append(axis.name)
    entries = [tuple(n) if len(n) > 1 else (n[0] if n else None) for n in names]
    while entries and entries[-1] is None:
        entries.pop()
    return jax.P(*entries)


def from_spec(spec: Sequence[object], mesh: MeshSpec) -> Layout:
    """The layout a ``PartitionSpec`` means on ``mesh``.

    Raises:
      ValueError: an axis the mesh lacks or names twice, or axes of one dimension not in mesh order.
    """
    placements: dict[str, Placement] = {}
    for dim, entry in enumerate(spec):
        group = () if entry is None else (entry,) if isinstance(entry, str) else entry
        if not isinstance(group, tuple):
            raise ValueError(f"{entry!r} is not a mesh axis name, a tuple of them, or None")
        order = [mesh.names.index(name) if name in mesh.names else -1 for name in group]
        if -1 in order:
            raise ValueError(f"{entry!r} names no axis of the mesh {mesh}")
        if order != sorted(order):
            raise ValueError(f"{entry!r} must list its axes in mesh order {mesh.names}")
        for name in group:
            if name in placements:
                raise ValueError(f"mesh axis {name!r} is used twice")
            placements[name] = Split(dim)
    return tuple(placements.get(name, B) for name in mesh.names)


def layouts_of(
    spec: Iterable[object],
    shape: Sequence[int],
    mesh: MeshSpec,
    silent: frozenset[str] = frozenset(),
) -> tuple[Layout, ...]:
    """The layouts of a value of global ``shape`` that a spec allows, the one with the fewest splits
    first: ``P.UNCONSTRAINED`` leaves a dimension to any axis not named.

    Args:
      silent: axes that may split any dimension, unless the spec names them.

    Raises:
      ValueError: as of ``from_spec``.
    """
    entries = tuple(spec)
    left_open = [dim for dim, entry in enumerate(entries) if entry is jax.P.UNCONSTRAINED]
    named = [None if dim in left_open else entry for dim, entry in enumerate(entries)]
    choices: list[list[Placement]] = [
        [B, *map(Split, range(len(shape)) if name in silent else left_open)]
        if placement == B
        else [placement]
        for name, placement in zip(mesh.names, from_spec(named, mesh), strict=True)
    ]
    return tuple([one for one in itertools.product(*choices) if divides(shape, one, mesh)])


def show(layout: Layout) -> str:
    """Compact text, one placement per axis: ``S(0),B``."""
    return ",".join(str(placement) for placement in layout)


@lru_cache(maxsize=4096)
def parse(text: str) -> Layout:
    """The inverse of ``show``.

    Raises:
      ValueError: ``text`` is not a layout.
    """
    return tuple(_parse_placement(part) for part in text.split(",")) if text else ()


def _parse_placement(text: str) -> Placement:
    match = re.fullmatch(r"B|P(?:\((\w+)\))?|S\((\d+)\)", text)
    if match is None:
        raise ValueError(f"{text!r} is not a placement: expected B, P, P(op) or S(dim)")
    if text == "B":
        return B
    return Split(int(match[2])) if match[2] is not None else Partial(match[1] or "add")
