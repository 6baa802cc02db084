"""Factorisations, solves and transforms: batches of independent problems.

XLA runs many of these as library calls, which it does not partition by itself.
"""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, in_shapes, linear, out_shapes
from autopar.passes.rules.factors import Dims, FactorRule, Linear
from autopar.passes.rules.registry import rule


def _batched(eqn: JaxprEqn, core: int, passes: list[Linear] | None = None) -> FactorRule:
    """The first operand's last ``core`` dimensions are one problem; all else is a batch."""
    factors = Factors()
    shapes = in_shapes(eqn)
    batch = factors.dims(shapes[0][: len(shapes[0]) - core])

    def lead(shape: tuple[int, ...]) -> Dims:
        return (*batch, *(None,) * (len(shape) - len(batch)))

    return factors.rule(map(lead, shapes), map(lead, out_shapes(eqn)), linear=passes or ())


@rule(
    *("cholesky", "cholesky_update", "eig", "eigh", "geqp3", "geqrf", "hessenberg"),
    *("householder_product", "lu", "ormqr", "qr", "schur", "svd", "symmetric_product"),
    "tridiagonal",
)
def _factorisation(eqn: JaxprEqn) -> FactorRule:
    return _batched(eqn, 2)


@rule("lu_pivots_to_permutation")
def _pivots(eqn: JaxprEqn) -> FactorRule:
    return _batched(eqn, 1)


@rule("fft")
def _fft(eqn: JaxprEqn) -> FactorRule:
    return _batched(eqn, len(eqn.params["fft_lengths"]), linear(eqn, (0,)))


@rule("triangular_solve", "tridiagonal_solve")
def _solve(eqn: JaxprEqn) -> FactorRule:
    """Linear in the right-hand sides, the last operand, which are independent of each other."""
    *systems, sides = in_shapes(eqn)
    factors = Factors()
    batch = factors.dims(sides[:-2])
    free = len(sides) - (1 if eqn.params.get("left_side", True) else 2)
    dims: list[str | None] = [*batch, None, None]
    dims[free] = factors.new(sides[free])
    operands: list[Dims] = [(*batch, *(None,) * (len(s) - len(batch))) for s in systems]
    return factors.rule(
        [*operands, tuple(dims)], [tuple(dims)], linear=linear(eqn, (len(systems),))
    )
