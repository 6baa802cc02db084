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
from dataclasses import dataclass, field

from jax.extend.core import Jaxpr, JaxprEqn, Var

from autopar.passes.fingerprint import Signatures
from autopar.passes.refine.cuts import Cut, Dim, cuts, dim, extent
from autopar.passes.refine.equations import POINTWISE, has_refined_form
from autopar.passes.rules import Link, factor_rule, regions
from autopar.passes.rules.build import shape_of

MAX_BLOCKS = 64
"""A class cut into more pieces than this is left alone: it is a loop written out, not a fusion."""

LIFTED = frozenset(("scan", "while", "cond", "remat2", "checkpoint"))
"""Primitives whose regions are refined with what surrounds them."""


Place = tuple[int, int]
"""An operand or result of an equation, and a dimension of it."""


@dataclass(slots=True)
class _Classes:
    """A union-find over dimensions, by number, and what is known of their classes."""

    signatures: Signatures
    dims: list[Dim] = field(default_factory=list)
    parents: list[int] = field(default_factory=list)
    pieces: list[Cut] = field(default_factory=list)
    products: list[Dim] = field(default_factory=list)
    known: dict[str, tuple[tuple[Place, ...], ...]] = field(default_factory=dict)
    _starts: dict[Var, int] = field(default_factory=dict)

    def start(self, var: Var) -> int:
        """The number of the first dimension of ``var``; the others follow."""
        found = self._starts.get(var)
        if found is None:
            found = self._starts[var] = len(self.dims)
            for place in range(len(shape_of(var))):
                self.parents.append(len(self.dims))
                self.dims.append((var, place))
        return found

    def find(self, one: Dim) -> Dim:
        """The dimension that stands for the class of ``one``."""
        return self.dims[self._root(self.start(one[0]) + one[1])]

    def join(self, a: int, b: int) -> None:
        """Makes the classes of two dimensions, by number, one."""
        self.parents[self._root(a)] = self._root(b)

    def _root(self, number: int) -> int:
        parents = self.parents
        while (parent := parents[number]) != number:
            parents[number] = number = parents[parent]  # every other one on the way gets nearer
        return number


def find_blocks(jaxpr: Jaxpr, signatures: Signatures) -> dict[Var, tuple[int, ...]]:
    """The number of blocks of each dimension (1: not refined) of each value to be refined."""
    classes = _Classes(signatures)
    apart, final = _settling(jaxpr)
    _collect(classes, jaxpr, apart)
    counts = _counts(classes)
    wanted = _wanted(classes, counts, {*jaxpr.constvars, *jaxpr.invars, *final})
    blocks: dict[Var, list[int]] = {}
    for var, place in classes.dims:
        root = classes.find((var, place))
        if root in wanted:
            blocks.setdefault(var, [1] * len(shape_of(var)))[place] = counts[root]
    return {var: tuple(numbers) for var, numbers in blocks.items()}


def _collect(classes: _Classes, jaxpr: Jaxpr, apart: frozenset[int] = frozenset()) -> None:
    """Joins and cuts of every equation but those whose positions are in ``apart``."""
    for position, eqn in enumerate(jaxpr.eqns):
        if eqn.primitive.name in LIFTED:
            for region in regions(eqn) or ():
                _collect(classes, region.body)
                links = (*region.inputs, *region.outputs)
                for link in (*links, *(Link(out, into) for into, out in region.carries)):
                    _join_link(classes, link)
        elif has_refined_form(eqn) and position not in apart:
            _join_factors(classes, eqn)
            classes.pieces.extend(cuts(eqn))


def _join_link(classes: _Classes, link: Link) -> None:
    if isinstance(link.outer, Var) and isinstance(link.inner, Var):
        outer, inner = classes.start(link.outer) + int(link.stacked), classes.start(link.inner)
        for place in range(len(shape_of(link.inner))):
            classes.join(outer + place, inner + place)


def _join_factors(classes: _Classes, eqn: JaxprEqn) -> None:
    """Dimensions of one factor, where they have its whole extent, are one."""
    key = classes.signatures.of(eqn)
    if key not in classes.known:
        classes.known[key] = _groups(eqn)
    atoms = (*eqn.invars, *eqn.outvars)
    starts = [classes.start(atom) if isinstance(atom, Var) else 0 for atom in atoms]
    for first, *rest in classes.known[key]:
        one = starts[first[0]] + first[1]
        for index, place in rest:
            classes.join(one, starts[index] + place)
    if eqn.primitive.name == "dot_general":
        _, batch = eqn.params["dimension_numbers"]
        for atom, batched in zip(eqn.invars, batch, strict=True):
            rank = len(shape_of(atom))
            classes.products.extend(dim(atom, d) for d in range(rank) if d not in batched)


def _groups(eqn: JaxprEqn) -> tuple[tuple[Place, ...], ...]:
    """For each factor, the operands and results (in one count) and dimensions that it drives."""
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
    for position, eqn in reversed(tuple(enumerate(jaxpr.eqns))):
        works = eqn.primitive.name == "dot_general" or regions(eqn) is not None
        if works or any(var in busy for var in eqn.outvars):
            busy.update(atom for atom in eqn.invars if isinstance(atom, Var))
        elif eqn.primitive.name in POINTWISE and any(var in final for var in eqn.outvars):
            final.update(atom for atom in eqn.invars if isinstance(atom, Var))
            found.append(position)
    return frozenset(found), final


def _counts(classes: _Classes) -> dict[Dim, int]:
    """The classes that are cut into equal blocks, and into how many."""
    points = _points(classes)
    counts: dict[Dim, int] = {}
    for root, offsets in points.items():
        whole = extent(root)
        inner = {offset for offset in offsets if 0 < offset < whole}
        block = math.gcd(whole, *inner)
        if block > 1 and 0 < len(inner) == whole // block - 1 < MAX_BLOCKS:
            counts[root] = whole // block
    return counts


def _points(classes: _Classes) -> dict[Dim, set[int]]:
    """Where each class is cut: at the ends of its pieces, and where these are cut themselves."""
    points: dict[Dim, set[int]] = defaultdict(set)
    changed = True
    while changed:
        changed = False
        for piece in classes.pieces:
            found = points[classes.find(piece.whole)]
            before = len(found)
            if before > MAX_BLOCKS:
                continue  # left alone
            found.update((piece.start, piece.stop))
            if piece.part is not None:
                inner = points.get(classes.find(piece.part), ())
                found.update(tuple(piece.start + piece.scale * offset for offset in inner))
            changed |= len(found) > before
    return points


def _wanted(classes: _Classes, counts: dict[Dim, int], border: set[Var]) -> set[Dim]:
    """The classes worth refining, and those cut likewise that are their parts or wholes."""
    matrices = {
        classes.find((var, place))
        for var in border
        if len(shape_of(var)) > 1
        for place in range(len(shape_of(var)))
    }
    matrices |= {whole for whole, part in _relations(classes) if part in matrices}
    wanted = matrices & set(map(classes.find, classes.products)) & set(counts)
    alike = [(a, b) for a, b in _relations(classes) if _block(a, counts) == _block(b, counts) > 0]
    alike += [(b, a) for a, b in alike]
    while grown := {b for a, b in alike if a in wanted and b not in wanted}:
        wanted |= grown
    return wanted


def _relations(classes: _Classes) -> set[tuple[Dim, Dim]]:
    """Which class is a whole of which."""
    return {
        (classes.find(piece.whole), classes.find(piece.part))
        for piece in classes.pieces
        if piece.part is not None and piece.scale == 1
    }


def _block(root: Dim, counts: dict[Dim, int]) -> int:
    """The extent of one block; 0 if the class is not cut into equal ones."""
    return extent(root) // counts[root] if root in counts else 0
