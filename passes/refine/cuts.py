"""Where one equation takes a dimension apart, or puts one together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jax.extend.core import JaxprEqn, Var

from autopar.passes.rules import Atom
from autopar.passes.rules.build import Shape, in_shapes, shape_of

Dim = tuple[Var, int]
"""A dimension of a value."""


@dataclass(frozen=True, slots=True)
class Cut:
    """``part`` (``None``: a value without the dimension) is ``[start, stop)`` of ``whole``.

    One element of ``part`` is ``scale`` elements of ``whole``.
    """

    whole: Dim
    start: int
    stop: int
    part: Dim | None = None
    scale: int = 1


def dim(atom: Atom, place: int) -> Dim:
    """Dimension ``place`` of ``atom``: a variable, as literals are scalars."""
    assert isinstance(atom, Var)
    return atom, place


def cuts(eqn: JaxprEqn) -> Iterator[Cut]:
    """The cuts of ``eqn``; of what it takes or puts as a whole, none."""
    name, params = eqn.primitive.name, eqn.params
    if name == "split":
        yield from _consecutive(dim(eqn.invars[0], params["axis"]), eqn.outvars)
    elif name == "concatenate":
        yield from _consecutive(dim(eqn.outvars[0], params["dimension"]), eqn.invars)
    elif name in ("stack", "unstack"):
        whole = dim((*eqn.outvars, *eqn.invars)[0 if name == "stack" else -1], params["axis"])
        for place in range(extent(whole)):
            yield Cut(whole, place, place + 1)
    elif name == "slice":
        for d, (start, stop, size) in enumerate(windows(eqn)):
            if stop - start < size and stride(eqn, d) == 1:
                yield Cut(dim(eqn.invars[0], d), start, stop, dim(eqn.outvars[0], d))
    elif name == "pad":
        for d, (low, high, interior) in enumerate(params["padding_config"]):
            if min(low, high) >= 0 < low + high and not interior:
                stop = int(low) + shape_of(eqn.invars[0])[d]
                yield Cut((eqn.outvars[0], d), int(low), stop, dim(eqn.invars[0], d))
    elif name == "reshape" and params["dimensions"] is None:
        yield from _regrouped(eqn.invars[0], eqn.outvars[0])


def extent(dim: Dim) -> int:
    """Its extent."""
    var, place = dim
    return shape_of(var)[place]


def _consecutive(whole: Dim, parts: Sequence[Atom]) -> Iterator[Cut]:
    start = 0
    for part in (dim(part, whole[1]) for part in parts):
        yield Cut(whole, start, start + extent(part), part)
        start += extent(part)


def _regrouped(source: Atom, target: Atom) -> Iterator[Cut]:
    """A dimension that is divided or merged is cut as the major one of its group is."""
    for left, right in _groups(shape_of(source), shape_of(target)):
        for one, (d, *more), other, places in (
            (source, left, target, right),
            (target, right, source, left),
        ):
            if not more and len(places) > 1:
                whole, major = dim(one, d), dim(other, places[0])
                yield Cut(whole, 0, extent(whole), major, extent(whole) // extent(major))


def _groups(source: Shape, target: Shape) -> Iterator[tuple[list[int], list[int]]]:
    """The least groups of dimensions of equal extent on both sides; those of extent 1 left out."""
    lefts, rights = ([d for d, n in enumerate(s) if n != 1] for s in (source, target))
    while lefts and rights and 0 not in source:
        left, right = [lefts.pop(0)], [rights.pop(0)]
        a, b = source[left[0]], target[right[0]]
        while a != b:
            if a < b:
                left.append(lefts.pop(0))
                a *= source[left[-1]]
            else:
                right.append(rights.pop(0))
                b *= target[right[-1]]
        yield left, right


def windows(eqn: JaxprEqn) -> Iterator[tuple[int, int, int]]:
    """Of each dimension of a ``slice``: where it starts and stops, and the extent."""
    starts, stops = eqn.params["start_indices"], eqn.params["limit_indices"]
    yield from zip(map(int, starts), map(int, stops), in_shapes(eqn)[0], strict=True)


def stride(eqn: JaxprEqn, place: int) -> int:
    """Of dimension ``place`` of a ``slice``."""
    strides = eqn.params["strides"]
    return 1 if strides is None else strides[place]
