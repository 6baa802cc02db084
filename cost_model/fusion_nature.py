"""What kind of equation is what, to the rules of ``fusion``."""

from __future__ import annotations

import math
from typing import NamedTuple

from jax.extend.core import JaxprEqn, Literal, Var

from autopar.cost_model.work import KINDS, WorkKind, itemsize, kind_of, shape_of, work

_VIEWS = frozenset(
    (
        *("reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient"),
        *("sharding_constraint", "name", "pvary", "random_wrap", "random_unwrap"),
        *("bitcast_convert_type", "optimization_barrier"),
    )
)
_ELEMENTWISE = frozenset(
    (
        *("add", "sub", "mul", "div", "rem", "neg", "sign", "abs", "max", "min", "pow", "square"),
        *("exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "cbrt", "tanh", "logistic"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh"),
        *("atanh", "erf", "erfc", "erf_inv", "integer_pow", "lgamma", "digamma", "floor", "ceil"),
        *("round", "is_finite", "and", "or", "xor", "not", "eq", "ne", "lt", "le", "gt", "ge"),
        *("select_n", "clamp", "convert_element_type", "reduce_precision", "nextafter", "add_any"),
        *("shift_left", "shift_right_logical", "shift_right_arithmetic", "population_count"),
        *("real", "imag", "complex", "conj", "threefry2x32", "broadcast_in_dim", "iota", "slice"),
        *("dynamic_slice", "pad", "concatenate", "rev", "split", "zeros_like", "clz"),
    )
)
_NEED_OPERANDS = frozenset(("gather", "update", "region", "linalg"))
_WINDOWS = frozenset(
    (
        *("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"),
        *("select_and_scatter", "select_and_scatter_add", "select_and_gather_add"),
    )
)
_REDUCTIONS = frozenset(
    (
        *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
        *("reduce_xor", "argmax", "argmin"),
    )
)


def is_view(eqn: JaxprEqn) -> bool:
    """Whether every result is its operand's bytes under another shape."""
    name = eqn.primitive.name
    if name in _VIEWS:
        return len(eqn.invars) >= len(eqn.outvars)
    if name == "convert_element_type":
        return itemsize_of(eqn.invars[0]) == itemsize_of(eqn.outvars[0]) and (
            eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype  # pyright: ignore
        )
    return name == "broadcast_in_dim" and elements(eqn.invars[0]) == elements(eqn.outvars[0])


def is_elementwise(eqn: JaxprEqn) -> bool:
    """Whether the equation can be computed inside its consumers."""
    scatters = KINDS.get(eqn.primitive.name) == "update"
    return eqn.primitive.name in _ELEMENTWISE or (scatters and kind_of(eqn) == "map")


def elements(atom: Var | Literal) -> int:
    """Elements of a value."""
    return math.prod(shape_of(atom.aval))


def itemsize_of(atom: Var | Literal) -> int:
    """Bytes an element."""
    return itemsize(atom.aval)


class Nature(NamedTuple):
    """What the rules ask of an equation, whatever its values: equal for equations alike.

    Attributes:
      view, elementwise: see ``is_view``, ``is_elementwise``.
      kind: in ``KINDS``, if there.
      needs_operands: whether its operands must lie in memory.
      reduces: whether it sums up, or the like, what may be made in the same kernel.
      weight: vector instructions per element of elementwise work.
    """

    view: bool
    elementwise: bool
    kind: WorkKind | None
    needs_operands: bool
    reduces: bool
    weight: float

    @classmethod
    def of(cls, eqn: JaxprEqn) -> Nature:
        name, elementwise = eqn.primitive.name, is_elementwise(eqn)
        kind = kind_of(eqn)
        needs = not elementwise and (kind in _NEED_OPERANDS or name in _WINDOWS)
        reduces = kind == "reduce" and (name in _REDUCTIONS or name == "gather")
        weight = work(eqn).weight if elementwise else 0.0
        return cls(is_view(eqn), elementwise, KINDS.get(name), needs, reduces, weight)
