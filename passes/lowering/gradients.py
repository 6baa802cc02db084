"""Gradients of matrices, kept in the order in memory in which the matrices lie.

Differentiation makes the gradient of ``W`` in ``x @ W`` as a transposed product. XLA may leave it
in the product's order, and then copies ``W`` and its moments into that order, long before they are
needed, and the new ones back (measured, v5e: an eighth of the peak of a small GPT). The order is
fixed of local parts: XLA's partitioner would gather what has its order fixed as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from jax.experimental.layout import Layout, with_layout_constraint
from jax.extend.core import Jaxpr, Var

from autopar.passes.rules import regions
from autopar.passes.rules.build import shape_of


def transposed_products(jaxpr: Jaxpr) -> frozenset[Var]:
    """Transposed matrix products of the shape of an input, or, in a loop, of a slice of one."""
    shapes = {shape_of(var) for var in jaxpr.invars}
    shapes |= {shape[1:] for shape in shapes}
    found: set[Var] = set()
    for body in _bodies(jaxpr):
        products = {
            var for eqn in body.eqns if eqn.primitive.name == "dot_general" for var in eqn.outvars
        }
        found.update(
            eqn.outvars[0]
            for eqn in body.eqns
            if (eqn.primitive.name == "transpose" and eqn.invars[0] in products)
            or eqn.primitive.name == "scatter-add"
            if shape_of(eqn.outvars[0]) in shapes
        )
    return frozenset(found)


def in_order(value: Any) -> Any:
    """A local part of such a product, major dimension first in memory.

    Where the other order of the last two dimensions needs less padding, the matrix itself rests in
    that, and the compiler is left to choose.
    """
    part = value.shape
    if len(part) < 2 or _padded(*part[-2:]) > _padded(part[-1], part[-2]):
        return value
    return with_layout_constraint(value, Layout(tuple(range(value.ndim))))


def _padded(rows: int, columns: int) -> int:
    """Elements of a matrix in whole tiles of the vector registers, 8 x 128."""
    return -(-rows // 8) * 8 * -(-columns // 128) * 128


def _bodies(jaxpr: Jaxpr) -> Iterator[Jaxpr]:
    yield jaxpr
    for eqn in jaxpr.eqns:
        for region in regions(eqn) or ():
            yield from _bodies(region.body)
