"""One mesh axis of two positions, emulated on one device.

A case is an operation written as a function of its operands and of the shapes its results are to
have, so that it can be called on a part as on the whole. ``check`` cuts the operands as a strategy
says, calls the function once per position, puts the results together and compares.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from autopar.core.layout import Partial, Placement, Split
from autopar.passes.rules import AxisStrategy, FactorRule, axis_strategies, factor_rule

PARTS = 2
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Local:
    """What a position of the axis knows: which one it is, and the shapes it is to make."""

    shapes: tuple[Shape, ...]
    whole_shapes: tuple[Shape, ...]
    strategy: AxisStrategy | None = None
    position: int = 0

    def offset(self, operand: int, dim: int, size: int) -> int:
        """Where its part of ``dim`` of an operand begins; ``size`` is the extent of the part."""
        cut = self.strategy is not None and self.strategy.operands[operand] == Split(dim)
        return self.position * size if cut else 0

    def result_offset(self, dim: int) -> int:
        """Where its part of ``dim`` of the first result begins."""
        cut = self.strategy is not None and self.strategy.results[0] == Split(dim)
        return self.position * self.shapes[0][dim] if cut else 0

    def own_part(self, result: Any) -> Any:
        """Its part of a result that was made whole."""
        starts = [self.result_offset(d) for d in range(result.ndim)]
        return result[tuple(slice(s, s + n) for s, n in zip(starts, self.shapes[0], strict=True))]


@dataclass(frozen=True)
class Case:
    """One equation of ``primitive``.

    ``fn`` takes the operands, after a ``Local`` if ``local``. It must trace to that equation alone.
    """

    primitive: str
    fn: Callable[..., Any]
    args: Sequence[Any]
    label: str = ""
    local: bool = False
    rtol: float = 2e-4
    shapes: tuple[Shape, ...] = field(default=())

    @property
    def name(self) -> str:
        return f"{self.primitive}/{self.label}" if self.label else self.primitive

    def call(self, local: Local, args: Sequence[Any]) -> list[Any]:
        return jax.tree.leaves(self.fn(local, *args) if self.local else self.fn(*args))

    @property
    def whole(self) -> Local:
        return Local(self.shapes, self.shapes)

    def equation(self) -> jex.JaxprEqn:
        """The one equation, whose operands and results are those of the function."""
        jaxpr = jax.make_jaxpr(lambda *args: self.call(self.whole, args))(*self.args).jaxpr
        names = [eqn.primitive.name for eqn in jaxpr.eqns]
        assert names == [self.primitive], f"{self.name} traces to {names}"
        (eqn,) = jaxpr.eqns
        assert list(eqn.invars) == list(jaxpr.invars), f"{self.name}: other operands"
        assert list(eqn.outvars) == list(jaxpr.outvars), f"{self.name}: other results"
        return eqn

    def rule(self) -> FactorRule:
        rule = factor_rule(self.equation())
        assert rule is not None, f"{self.primitive} has no rule"
        return rule


def strategies(case: Case) -> list[AxisStrategy]:
    """Those that do something and divide evenly by two."""
    rule = case.rule()
    return [
        strategy
        for strategy in axis_strategies(rule)[1:]
        if strategy.factor is None or rule.size(strategy.factor) % PARTS == 0
    ]


def check(case: Case, strategy: AxisStrategy) -> None:
    """Both positions together compute what one would alone."""
    rng = np.random.default_rng(0)
    expected = case.call(case.whole, case.args)
    cut = [_cut(x, p, rng) for x, p in zip(case.args, strategy.operands, strict=True)]
    shapes = [tuple(x.shape) for x in expected]
    locals_ = tuple(_part(s, p) for s, p in zip(shapes, strategy.results, strict=True))
    results = [
        case.call(Local(locals_, tuple(shapes), strategy, i), [pieces[i] for pieces in cut])
        for i in range(PARTS)
    ]
    for i, (want, placement) in enumerate(zip(expected, strategy.results, strict=True)):
        assert all(result[i].shape == locals_[i] for result in results)
        pieces = [_plain(result[i]) for result in results]
        _compare(_join(pieces, placement), _plain(want), case.rtol)
        if not isinstance(placement, (Split, Partial)):
            _compare(pieces[1], _plain(want), case.rtol)


def _part(shape: Shape, placement: Placement) -> Shape:
    if not isinstance(placement, Split):
        return shape
    return tuple(n // PARTS if d == placement.dim else n for d, n in enumerate(shape))


def _cut(x: Any, placement: Placement, rng: np.random.Generator) -> list[Any]:
    x = _host(x)
    if isinstance(placement, Split):
        size = x.shape[placement.dim] // PARTS
        head = (slice(None),) * placement.dim
        return [x[(*head, slice(i * size, (i + 1) * size))] for i in range(PARTS)]
    if isinstance(placement, Partial):
        return [np.asarray(p, x.dtype) for p in _pieces(x, placement.op, rng)]
    return [x] * PARTS


def _host(x: Any) -> Any:
    """As numpy, which compiles nothing; keys stay as they are."""
    return x if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray(x)


def _pieces(x: np.ndarray, op: str, rng: np.random.Generator) -> tuple[Any, Any]:
    """Two values that ``op`` combines to ``x``."""
    coin = rng.integers(0, 2, x.shape).astype(bool)
    some = rng.integers(1, 4, x.shape).astype(x.dtype)
    match op:
        case "add":
            return some, x - some
        case "max":
            return np.where(coin, x, x - some), np.where(coin, x - some, x)
        case "min":
            return np.where(coin, x, x + some), np.where(coin, x + some, x)
        case "mul":
            return np.where(coin, x, 1), np.where(coin, 1, x)
        case "or":
            mask = coin if x.dtype == bool else some
            return x & mask, x & ~mask
        case "and":
            mask = coin if x.dtype == bool else some
            return x | mask, x | ~mask
    raise AssertionError(op)


_JOIN: dict[str, Callable[[Any, Any], Any]] = {
    "add": np.add,
    "max": np.maximum,
    "min": np.minimum,
    "mul": np.multiply,
    "or": np.bitwise_or,
    "and": np.bitwise_and,
}


def _plain(x: Any) -> np.ndarray:
    """A result as numpy; keys as their words."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _join(pieces: list[Any], placement: Placement) -> Any:
    if isinstance(placement, Split):
        return np.concatenate(pieces, axis=placement.dim)
    if isinstance(placement, Partial):
        return _JOIN[placement.op](*pieces)
    return pieces[0]


def _compare(got: Any, want: Any, rtol: float) -> None:
    if jnp.issubdtype(want.dtype, jnp.inexact):
        wide = np.complex64 if jnp.issubdtype(want.dtype, jnp.complexfloating) else np.float32
        got, want = np.asarray(got, wide), np.asarray(want, wide)
        np.testing.assert_allclose(got, want, rtol=rtol, atol=max(rtol / 10, 1e-5))
    else:
        np.testing.assert_array_equal(got, want)
