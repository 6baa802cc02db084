"""Random numbers: each position draws its part of what the serial program would have drawn.

Threefry is a function of key and counter, so any part can be drawn anywhere. What a stateful or
hardware generator gives depends on the shape drawn, so it is not cut.
"""

from __future__ import annotations

from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, in_shapes, out_shapes, whole
from autopar.passes.rules.elementwise import pointwise
from autopar.passes.rules.factors import FactorRule
from autopar.passes.rules.registry import rule


@rule("random_seed", "random_fold_in", "random_clone", "threefry2x32")
def _per_key(eqn: JaxprEqn) -> FactorRule:
    return pointwise(eqn)


@rule("random_gamma")
def _per_key_in_order(eqn: JaxprEqn) -> FactorRule:
    """A key is divided among the dimensions that it lacks, in order: those stay whole."""
    (keys, shape) = in_shapes(eqn)
    factors = Factors()
    dims = factors.dims(shape, keep=range(len(keys), len(shape)))
    return factors.rule([dims[: len(keys)], dims], [dims])


@rule("random_bits", "random_split", "random_wrap", "random_unwrap")
def _per_key_and_draw(eqn: JaxprEqn) -> FactorRule:
    """Dimensions of keys are shared. What is drawn per key is a factor of the result alone.

    The words of a key (``random_wrap``, ``random_unwrap``) stay together.
    """
    (source,), (target,) = in_shapes(eqn), out_shapes(eqn)
    factors = Factors()
    shared = min(len(source), len(target))
    words = range(shared, len(target)) if eqn.primitive.name == "random_unwrap" else ()
    result = factors.dims(target, keep=words)
    operand = (*result[:shared], *whole(source[shared:]))
    return factors.rule([operand], [result])


@rule("rng_bit_generator", "rng_uniform")
def _stateful(eqn: JaxprEqn) -> FactorRule:
    return Factors().rule(map(whole, in_shapes(eqn)), map(whole, out_shapes(eqn)))
