"""What rules are built with: shapes of operands, fresh factor names, linearity by dtype."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import JaxprEqn, Literal, Var

from autopar.passes.rules.factors import Dims, FactorRule, Linear

Shape = tuple[int, ...]

_LETTERS = "ijklmnopqrstuvwxyzabcdefgh"


def shape_of(atom: Var | Literal) -> Shape:
    """The shape of an operand or result; ``()`` of what has none, such as a token."""
    return tuple(getattr(atom.aval, "shape", ()))


def dtype_of(atom: Var | Literal) -> Any:
    """The dtype of an operand or result; ``None`` of what has none, such as a token."""
    return getattr(atom.aval, "dtype", None)


def in_shapes(eqn: JaxprEqn) -> list[Shape]:
    """The shapes of the operands."""
    return [shape_of(atom) for atom in eqn.invars]


def out_shapes(eqn: JaxprEqn) -> list[Shape]:
    """The shapes of the results."""
    return [shape_of(var) for var in eqn.outvars]


def whole(shape: Sequence[int]) -> Dims:
    """The dimensions of a value that cannot be cut."""
    return (None,) * len(shape)


class Factors:
    """Names the factors of one rule, ``i, j, k, ...``, in the order they are asked for."""

    def __init__(self) -> None:
        self._sizes: dict[str, int] = {}
        self._names = itertools.chain(
            _LETTERS, (f"{c}{n}" for n in itertools.count(1) for c in _LETTERS)
        )

    def new(self, size: int) -> str | None:
        """A factor of this extent; ``None`` where there is nothing to cut."""
        if size <= 1:
            return None
        name = next(self._names)
        self._sizes[name] = size
        return name

    def dims(self, shape: Iterable[int], keep: Iterable[int] = ()) -> Dims:
        """A factor for each dimension of ``shape``, except for those in ``keep``."""
        kept = set(keep)
        return tuple(None if d in kept else self.new(size) for d, size in enumerate(shape))

    def rule(
        self,
        operands: Iterable[Dims],
        results: Iterable[Dims],
        *,
        reduce: Iterable[tuple[str | None, str]] = (),
        linear: Iterable[Linear] = (),
        joins: Iterable[tuple[str | None, int]] = (),
    ) -> FactorRule:
        """The finished rule. Entries of ``reduce`` and ``joins`` without a factor drop out."""
        return FactorRule(
            operands=tuple(operands),
            results=tuple(results),
            sizes=tuple(self._sizes.items()),
            reduce=tuple((name, op) for name, op in reduce if name),
            linear=tuple(linear),
            joins=tuple((name, operand) for name, operand in joins if name),
        )


def linear(eqn: JaxprEqn, *sets: Iterable[int], ops: Iterable[str] = ("add",)) -> list[Linear]:
    """The ``Linear`` entries of the operand sets, for each reduction their dtypes know.

    A set of literals alone drops out: a literal is never partial.
    """
    found: list[Linear] = []
    for op in ops:
        for operands in map(tuple, sets):
            atoms = [eqn.invars[i] for i in operands]
            if all(isinstance(atom, Literal) for atom in atoms):
                continue
            if all(reducible(op, atom.aval) for atom in (*atoms, *eqn.outvars)):
                found.append(Linear(operands, op))
    return found


def reducible(op: str, aval: Any) -> bool:
    """Whether partial values of this dtype can be combined by ``op``."""
    dtype = getattr(aval, "dtype", None)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        return False
    if dtype == jnp.bool_:
        return op in ("and", "or")
    if op in ("and", "or"):
        return jnp.issubdtype(dtype, jnp.integer)
    if op in ("max", "min"):
        return not jnp.issubdtype(dtype, jnp.complexfloating)
    return True
