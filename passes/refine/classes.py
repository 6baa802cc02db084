"""Classes of dimensions: which are one loop seen in many values, and where they are cut in blocks.

Two dimensions are in one class if an equation runs over both with one factor of its rule, or if one
is the other across the border of a region. A class is *cut* at the offsets where a ``split``,
``slice``, ``concatenate``, ``pad`` or ``reshape`` takes it apart or puts it together. It is refined
into ``n`` blocks if

* the cuts are exactly the multiples of ``extent / n``;
* a product runs over it as a free or contracting dimension;
* it, or a piece of it, is a dimension of a matrix that the step is given, or makes for its results.

So is what is cut likewise, and is a part or whole of such a class. Linear in the number of
equations, but for nested cuts.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from autopar.passes.fingerprint import PerSignature, Signatures
from autopar.passes.refine.cuts import Cut, Dim, cuts
from autopar.passes.refine.equations import POINTWISE, has_refined_form
from autopar.passes.rules import Link, factor_rule, regions
from autopar.passes.rules.build import shape_of
from autopar.passes.rules.control_flow import BODIES

MAX_BLOCKS = 64
"""A class cut into more pieces than this is left alone: it is a loop written out, not a fusion."""

LIFTED = frozenset(("scan", "while", "cond", "remat2", "checkpoint"))
"""Primitives whose regions are refined with what surrounds them."""


Place = tuple[int, int]
"""An operand or result of an equation, and a dimension of it."""

Pair = tuple[Place, Place]
"""Two dimensions of one equation that are one."""


@dataclass(frozen=True, slots=True, eq=False)
class _Alike:
    """Of equations of one signature: the dimensions that are one, those that are free or contracted
    in a product, and whether any is cut.
    """

    pairs: tuple[Pair, ...]
    products: tuple[Place, ...]
    cut: bool


@dataclass(slots=True)
class _Joins:
    """The dimensions of all values, by number, and what equations say of them.

    Attributes:
      alike: of an equation; ``None`` if it has no refined form.
      starts: the number of the first dimension of each value; the others follow.
      extents: of each dimension.
      rows: of each kind of equation, the ``starts`` of the operands and results of every one.
      links: pairs of dimensions that are one across the border of a region.
    """

    alike: Callable[[JaxprEqn], _Alike | None]
    starts: dict[Var, int] = field(default_factory=dict)
    extents: list[int] = field(default_factory=list)
    rows: dict[_Alike, list[list[int]]] = field(default_factory=lambda: defaultdict(list))
    links: list[tuple[int, int]] = field(default_factory=list)
    pieces: list[Cut] = field(default_factory=list)

    def start(self, var: Var) -> int:
        """The number of the first dimension of ``var``."""
        found = self.starts.get(var)
        if found is None:
            found = self.starts[var] = len(self.extents)
            self.extents.extend(shape_of(var))
        return found

    def collect(self, jaxpr: Jaxpr, apart: frozenset[int] = frozenset()) -> None:
        """Joins and cuts of every equation but those whose positions are in ``apart``."""
        for position, eqn in enumerate(jaxpr.eqns):
            if position in apart:
                continue
            if eqn.primitive.name in LIFTED:
                for region in regions(eqn) or ():
                    self.collect(region.body)
                    links = (*region.inputs, *region.outputs)
                    for link in (*links, *(Link(out, into) for into, out in region.carries)):
                        self._link(link)
            elif (alike := self.alike(eqn)) is not None:
                atoms = (*eqn.invars, *eqn.outvars)
                row = [self.start(atom) if isinstance(atom, Var) else 0 for atom in atoms]
                self.rows[alike].append(row)
                if alike.cut:
                    self.pieces.extend(cuts(eqn))

    def _link(self, link: Link) -> None:
        if isinstance(link.outer, Var) and isinstance(link.inner, Var):
            outer, inner = self.start(link.outer) + int(link.stacked), self.start(link.inner)
            places = range(len(shape_of(link.inner)))
            self.links.extend([(outer + place, inner + place) for place in places])


@dataclass(frozen=True, slots=True)
class _Classes:
    """Which dimensions are one.

    Attributes:
      starts: the number of the first dimension of each value.
      labels: of each dimension, the class. extents: of each class.
      pieces: cuts, and the classes of whole and part. products: the classes that products run over.
    """

    starts: Mapping[Var, int]
    labels: NDArray[np.intp]
    extents: Sequence[int]
    pieces: Sequence[tuple[Cut, int, int | None]]
    products: frozenset[int]

    @classmethod
    def of(cls, joins: _Joins) -> _Classes:
        """Joins what is one."""
        ends = [np.array(joins.links, np.intp).reshape(-1, 2)]
        products: set[int] = set()
        for alike, rows in joins.rows.items():
            starts = np.array(rows, np.intp)
            for (a, place), (b, other) in alike.pairs:
                ends.append(np.stack((starts[:, a] + place, starts[:, b] + other), axis=1))
            for index, place in alike.products:
                products.update((starts[:, index] + place).tolist())
        pairs = np.concatenate(ends)
        count = max(1, len(joins.extents))
        entries = np.ones(len(pairs), np.bool_), (pairs[:, 0], pairs[:, 1])
        classes, labels = connected_components(coo_array(entries, shape=(count, count)))
        extents = np.zeros(classes, np.intp)
        extents[labels[: len(joins.extents)]] = joins.extents
        of = labels.tolist()

        def find(one: Dim) -> int:
            return of[joins.starts[one[0]] + one[1]]

        pieces = [
            (piece, find(piece.whole), None if piece.part is None else find(piece.part))
            for piece in joins.pieces
        ]
        known = frozenset([of[number] for number in products])
        return cls(joins.starts, labels, extents.tolist(), pieces, known)

    def find(self, var: Var, place: int) -> int:
        """The class of a dimension."""
        return int(self.labels[self.starts[var] + place])


def find_blocks(jaxpr: Jaxpr, signatures: Signatures) -> dict[Var, tuple[int, ...]]:
    """The number of blocks of each dimension (1: not refined) of each value to be refined."""
    joins = _Joins(PerSignature(signatures, _alike))
    apart, final = _settling(jaxpr)
    joins.collect(jaxpr, apart)
    border = {*jaxpr.constvars, *jaxpr.invars, *final}
    for var in border:
        joins.start(var)
    classes = _Classes.of(joins)
    counts = _counts(classes)
    wanted = _wanted(classes, counts, border) if counts else {}
    blocks: dict[Var, tuple[int, ...]] = {}
    for var in classes.starts if wanted else ():
        found = [classes.find(var, place) for place in range(len(shape_of(var)))]
        if not wanted.keys().isdisjoint(found):
            blocks[var] = tuple([wanted.get(one, 1) for one in found])
    return blocks


def _alike(eqn: JaxprEqn) -> _Alike | None:
    if not has_refined_form(eqn):
        return None
    groups = _groups(eqn)
    pairs = tuple((first, other) for first, *rest in groups for other in rest)
    products: list[Place] = []
    if eqn.primitive.name == "dot_general":
        _, batch = eqn.params["dimension_numbers"]
        for index, (atom, batched) in enumerate(zip(eqn.invars, batch, strict=True)):
            products += [(index, d) for d in range(len(shape_of(atom))) if d not in batched]
    return _Alike(pairs, tuple(products), any(True for _ in cuts(eqn)))


def _groups(eqn: JaxprEqn) -> tuple[tuple[Place, ...], ...]:
    """For each factor, the operands and results (in one count) and dimensions that it drives, where
    they have its whole extent.
    """
    rule = factor_rule(eqn)
    assert rule is not None
    seen: dict[str, list[Place]] = defaultdict(list)
    atoms = (*eqn.invars, *eqn.outvars)
    for index, dims in enumerate((*rule.operands, *rule.results)):
        for place, name in enumerate(dims):
            if name and shape_of(atoms[index])[place] == rule.size(name):
                seen[name].append((index, place))
    return tuple(map(tuple, seen.values()))


def _settling(jaxpr: Jaxpr) -> tuple[frozenset[int], set[Var]]:
    """Pointwise equations that only make results of the step, by position, and what they read.

    They are the optimiser's: what they make becomes results, and reaches no product and no loop.
    Results have flat shapes, so there is nothing to gain from refining the way to them.
    """
    final = {atom for atom in jaxpr.outvars if isinstance(atom, Var)}
    busy: set[Var] = set()
    found: list[int] = []
    for position in range(len(jaxpr.eqns) - 1, -1, -1):
        eqn = jaxpr.eqns[position]
        name, outs = eqn.primitive.name, eqn.outvars
        if name == "dot_general" or name in BODIES or not busy.isdisjoint(outs):
            busy.update([atom for atom in eqn.invars if isinstance(atom, Var)])
        elif name in POINTWISE and not final.isdisjoint(outs):
            final.update([atom for atom in eqn.invars if isinstance(atom, Var)])
            found.append(position)
    return frozenset(found), final


def _counts(classes: _Classes) -> dict[int, int]:
    """The classes that are cut into equal blocks, and into how many."""
    counts: dict[int, int] = {}
    for one, offsets in _points(classes).items():
        whole = classes.extents[one]
        inner = {offset for offset in offsets if 0 < offset < whole}
        block = math.gcd(whole, *inner)
        if block > 1 and 0 < len(inner) == whole // block - 1 < MAX_BLOCKS:
            counts[one] = whole // block
    return counts


def _points(classes: _Classes) -> dict[int, set[int]]:
    """Where each class is cut: at the ends of its pieces, and where these are cut themselves."""
    points: dict[int, set[int]] = defaultdict(set)
    changed = True
    while changed:
        changed = False
        for piece, whole, part in classes.pieces:
            found = points[whole]
            before = len(found)
            if before > MAX_BLOCKS:
                continue  # left alone
            found.update((piece.start, piece.stop))
            if part is not None:
                inner = points.get(part, ())
                found.update([piece.start + piece.scale * offset for offset in inner])
            changed |= len(found) > before
    return points


def _wanted(classes: _Classes, counts: Mapping[int, int], border: set[Var]) -> dict[int, int]:
    """The classes worth refining, and those cut likewise that are their parts or wholes, with the
    number of blocks of each.
    """
    matrices = {
        classes.find(var, place)
        for var in border
        if len(shape_of(var)) > 1
        for place in range(len(shape_of(var)))
    }
    relations = {
        (whole, part)
        for piece, whole, part in classes.pieces
        if part is not None and piece.scale == 1
    }
    block = {one: classes.extents[one] // count for one, count in counts.items()}
    matrices |= {whole for whole, part in relations if part in matrices}
    wanted = matrices & classes.products & counts.keys()
    alike = [(a, b) for a, b in relations if block.get(a, 0) == block.get(b, 0) > 0]
    alike += [(b, a) for a, b in alike]
    while grown := {b for a, b in alike if a in wanted and b not in wanted}:
        wanted |= grown
    return {one: counts[one] for one in wanted}
