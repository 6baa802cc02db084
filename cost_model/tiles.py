"""What padding to tiles adds to the values of convolutions, as XLA:TPU lays them out.

A value lies in memory in tiles of 8 x 128 elements: its minor dimension is padded to 128, the
second one to 8 (to a power of two, if shorter). Most values have two dimensions that fill them. A
convolution wants its features and its batch there, in one order or the other, and what is computed
from its result follows it (measured, v5e: 16 x 56 x 56 x 64 takes twice its size, an image of three
colours up to ten times).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from jax.extend.core import Jaxpr, JaxprEqn, Var

from autopar.cost_model.work import Shape, shape_of

Minor = tuple[int, int]
"""The two dimensions that fill the tiles of a value."""


def convolved(bodies: Iterable[Jaxpr]) -> Mapping[Var, Minor]:
    """The minor dimensions of what convolutions read and make, and of all that has their shape."""
    found: dict[Var, Minor] = {}
    for body in bodies:
        convolutions = [e for e in body.eqns if e.primitive.name == "conv_general_dilated"]
        for eqn in convolutions:
            numbers = eqn.params["dimension_numbers"]
            specs = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
            for atom, spec in zip((*eqn.invars, *eqn.outvars), specs, strict=True):
                if isinstance(atom, Var):
                    found[atom] = (spec[0], spec[1])
        if not convolutions:
            continue
        for eqn in (*reversed(body.eqns), *body.eqns):
            _spread(eqn, found)
        for var in body.invars:
            found.pop(var, None)  # lies as its maker left it
    return found


def _spread(eqn: JaxprEqn, found: dict[Var, Minor]) -> None:
    """What has the shape of a neighbour lies as that does."""
    atoms = [atom for atom in (*eqn.invars, *eqn.outvars) if isinstance(atom, Var)]
    known = {shape_of(atom.aval): found[atom] for atom in atoms if atom in found}
    for atom in atoms:
        if atom not in found and shape_of(atom.aval) in known:
            found[atom] = known[shape_of(atom.aval)]


def tiled_elements(shape: Shape, minor: Minor | None) -> int:
    """Elements of a value with its padding; none is counted where ``minor`` is ``None``."""
    if minor is None:
        return math.prod(shape)
    first, second = (shape[dim] for dim in minor)
    rest = math.prod(shape) // max(1, first * second)
    return rest * min(_tile(first, second), _tile(second, first))


def _tile(lanes: int, rows: int) -> int:
    padded = -(-rows // 8) * 8 if rows > 4 else 1 << max(0, rows - 1).bit_length()
    return -(-lanes // 128) * 128 * padded
