"""What padding to tiles adds to values, as XLA:TPU lays them out.

A value lies in memory in tiles of 8 x 128 elements: its minor dimension is padded to 128, the
second one to 8 (to a power of two, if shorter). Most values have two dimensions that fill them. A
convolution wants its features and its batch there, in one order or the other, and what is computed
from its result follows it (measured, v5e: 16 x 56 x 56 x 64 takes twice its size, an image of three
colours up to ten times). A batched matmul, as of attention, wants the two dimensions there that are
no batch: scores of 196 x 196 take 200 x 256 (measured, v5e).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.cost_model.work import LANES, ROWS, Shape, shape_of

Minor = tuple[int, int]
"""The two dimensions that fill the tiles of a value."""


def convolved(bodies: Iterable[Jaxpr]) -> Mapping[Var, Minor]:
    """The minor dimensions of what convolutions, and batched matmuls that do not fill their tiles,
    read and make, and of all that has their shape.
    """
    found: dict[Var, Minor] = {}
    for body in bodies:
        known = len(found)
        for eqn in body.eqns:
            found |= _wanted(eqn)
        if len(found) == known:
            continue
        for eqn in (*reversed(body.eqns), *body.eqns):
            _spread(eqn, found)
        for var in body.invars:
            found.pop(var, None)  # lies as its maker left it
    return found


def _wanted(eqn: JaxprEqn) -> dict[Var, Minor]:
    """Where one equation wants its operands and results."""
    if eqn.primitive.name == "conv_general_dilated":
        numbers = eqn.params["dimension_numbers"]
        specs = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
        minors = [(spec[0], spec[1]) for spec in specs]
    elif eqn.primitive.name == "dot_general" and eqn.params["dimension_numbers"][1][0]:
        batches = eqn.params["dimension_numbers"][1]
        minors = [_others(atom, batch) for atom, batch in zip(eqn.invars, batches, strict=True)]
        minors.append(_others(eqn.outvars[0], range(len(batches[0]))))
    else:
        return {}
    return {
        atom: minor
        for atom, minor in zip((*eqn.invars, *eqn.outvars), minors, strict=True)
        if isinstance(atom, Var) and minor is not None
    }


def _others(atom: Var | Literal, batch: Collection[int]) -> Minor | None:
    """The two dimensions that are no batch, if there are two, and they leave tiles unfilled."""
    shape = shape_of(atom.aval)
    rest = [dim for dim in range(len(shape)) if dim not in batch]
    if len(rest) != 2 or tiled_elements(shape, (rest[0], rest[1])) == math.prod(shape):
        return None
    return rest[0], rest[1]


def _spread(eqn: JaxprEqn, found: dict[Var, Minor]) -> None:
    """What has the shape of a neighbour lies as that does."""
    atoms = [atom for atom in (*eqn.invars, *eqn.outvars) if isinstance(atom, Var)]
    known = {shape_of(atom.aval): found[atom] for atom in atoms if atom in found}
    for atom in atoms:
        if atom not in found and shape_of(atom.aval) in known:
            found[atom] = known[shape_of(atom.aval)]


def padding(minors: Mapping[Var, Minor], roots: Mapping[Var, Var]) -> Mapping[Var, float]:
    """By how much what ``minors`` leaves out is larger, because a view of it is padded.

    ``roots``: every view and the value it is a view of.
    """
    found: dict[Var, float] = {}
    for view, minor in minors.items():
        root, shape = roots.get(view, view), shape_of(view.aval)
        if root not in minors:
            times = tiled_elements(shape, minor) / max(1, math.prod(shape))
            found[root] = max(found.get(root, 1.0), times)
    return found


def tiled_elements(shape: Shape, minor: Minor | None) -> int:
    """Elements of a value with its padding; none is counted where ``minor`` is ``None``."""
    if minor is None:
        return math.prod(shape)
    first, second = (shape[dim] for dim in minor)
    rest = math.prod(shape) // max(1, first * second)
    return rest * min(_tile(first, second), _tile(second, first))


def _tile(lanes: int, rows: int) -> int:
    padded = -(-rows // ROWS) * ROWS if rows > 4 else 1 << max(0, rows - 1).bit_length()
    return -(-lanes // LANES) * LANES * padded
