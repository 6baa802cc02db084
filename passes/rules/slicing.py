"""Slices: a dimension that is taken whole passes; any other must be whole itself."""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, in_shapes, linear, out_shapes
from autopar.passes.rules.factors import Dims, FactorRule
from autopar.passes.rules.registry import rule


@rule("slice")
def _slice(eqn: JaxprEqn) -> FactorRule:
    shape = in_shapes(eqn)[0]
    strides = eqn.params["strides"] or (1,) * len(shape)
    backward = [d for d, stride in enumerate(strides) if stride != 1]
    return _windowed(eqn, shape, out_shapes(eqn)[0], backward)


@rule("dynamic_slice")
def _dynamic_slice(eqn: JaxprEqn) -> FactorRule:
    return _windowed(eqn, in_shapes(eqn)[0], out_shapes(eqn)[0])


def _windowed(
    eqn: JaxprEqn, shape: tuple[int, ...], window: tuple[int, ...], cut: list[int] | None = None
) -> FactorRule:
    factors = Factors()
    partly = [d for d, (n, m) in enumerate(zip(shape, window, strict=True)) if n != m]
    dims = factors.dims(shape, keep=(*partly, *(cut or ())))
    scalars: list[Dims] = [()] * (len(eqn.invars) - 1)
    return factors.rule([dims, *scalars], [dims], linear=linear(eqn, (0,)))


@rule("dynamic_update_slice")
def _dynamic_update_slice(eqn: JaxprEqn) -> FactorRule:
    shape, update, *starts = in_shapes(eqn)
    factors = Factors()
    partly = [d for d, (n, m) in enumerate(zip(shape, update, strict=True)) if n != m]
    dims = factors.dims(shape, keep=partly)
    scalars: list[Dims] = [()] * len(starts)
    return factors.rule([dims, dims, *scalars], [dims], linear=linear(eqn, (0, 1)))
