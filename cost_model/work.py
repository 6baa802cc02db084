"""What one equation computes: FLOPs of the matrix and vector units, and the bytes it touches.

``work`` looks at an equation once and returns a ``Work``: a frozen description that gives FLOPs and
bytes for *local* operand and result shapes, whichever way the equation is cut. FLOPs are exact for
matmuls and convolutions (a multiply and an add are two); other operations count per element,
weighted by how many vector instructions they take.

One dict, ``KINDS``, from primitive to how it is counted. A primitive that is not in it counts as
one vector operation per result element, and is read and written whole.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import JaxprEqn

from autopar.cost_model.hardware import DtypeClass

Shape = tuple[int, ...]
WorkKind = Literal["dot", "conv", "map", "reduce", "gather", "update", "linalg", "region", "free"]

VECTOR_WEIGHTS: Mapping[str, float] = {
    # Vector instructions per element, [E]stimates from XLA's polynomial expansions.
    **dict.fromkeys(("exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "cbrt", "div"), 6.0),
    **dict.fromkeys(("tanh", "logistic", "sin", "cos", "tan"), 10.0),
    **dict.fromkeys(("erf", "erfc", "erf_inv", "pow", "atan2", "lgamma", "digamma"), 25.0),
    **dict.fromkeys(("asin", "acos", "atan", "sinh", "cosh", "asinh", "acosh", "atanh"), 25.0),
    **dict.fromkeys(("random_bits", "threefry2x32", "rng_bit_generator"), 80.0),
    **dict.fromkeys(("sort", "top_k", "approx_top_k"), 100.0),
    **dict.fromkeys(("rem", "nextafter"), 6.0),
}
"""Elementwise and other per-element operations that take more than one vector instruction."""

CONVOLVED = 5.0
"""Vector instructions per element of a convolution's result, with all that its kernel does to it
(the compiler's cycles, v5e: 8 for 1024 elements, whatever is done to them)."""

ROWS, LANES = 8, 128
"""A tile of a TPU: rows of elements that lie side by side, as a convolution's features do."""

_NOTHING = (
    *("broadcast_in_dim", "reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p"),
    *("convert_element_type", "bitcast_convert_type", "iota", "stop_gradient", "slice", "rev"),
    *("concatenate", "pad", "real", "imag", "optimization_barrier", "split", "pvary"),
    *("sharding_constraint", "reduce_precision", "name", "random_wrap", "random_unwrap"),
)
_REDUCTIONS = (
    *("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or"),
    *("reduce_xor", "argmax", "argmin", "reduce", "cumsum", "cumprod", "cummax", "cummin"),
    *("cumlogsumexp", "reduce_window", "reduce_window_sum", "reduce_window_max"),
    *("reduce_window_min", "select_and_scatter", "select_and_scatter_add"),
    *("select_and_gather_add", "sort", "top_k", "approx_top_k"),
)
_UPDATES = (
    *("scatter", "scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-min"),
    *("scatter_min", "scatter-max", "scatter_max", "scatter-sub", "dynamic_update_slice"),
)
_LINALG = (
    *("cholesky", "triangular_solve", "lu", "qr", "geqrf", "householder_product", "eigh", "eig"),
    *("svd", "schur", "hessenberg", "tridiagonal", "tridiagonal_solve", "fft"),
)
_REGIONS = (
    *("scan", "while", "cond", "remat", "remat2", "checkpoint", "jit", "pjit", "closed_call"),
    *("custom_jvp_call", "custom_vjp_call", "custom_lin", "core_call", "run_state"),
)

KINDS: Mapping[str, WorkKind] = {
    "dot_general": "dot",
    "ragged_dot": "dot",
    "ragged_dot_general": "dot",
    "conv_general_dilated": "conv",
    **dict.fromkeys(_REDUCTIONS, "reduce"),
    **dict.fromkeys(("gather", "dynamic_slice"), "gather"),
    **dict.fromkeys(_UPDATES, "update"),
    **dict.fromkeys(_LINALG, "linalg"),
    **dict.fromkeys(_REGIONS, "region"),
    **dict.fromkeys(_NOTHING, "free"),
}
"""How each primitive is counted; what is not here is ``map``."""


@dataclass(frozen=True, slots=True)
class Dot:
    """Which dimensions of a ``dot_general`` play which part."""

    lhs_contract: tuple[int, ...]
    rhs_contract: tuple[int, ...]
    lhs_batch: tuple[int, ...]
    rhs_batch: tuple[int, ...]

    def dims(self, lhs: Shape, rhs: Shape) -> tuple[int, int, int, int]:
        """``(batch, m, n, k)`` of operands of these shapes."""
        batch = math.prod([lhs[d] for d in self.lhs_batch])
        k = math.prod([lhs[d] for d in self.lhs_contract])
        m = math.prod(lhs) // max(1, batch * k)
        groups = math.prod([rhs[d] for d in self.rhs_batch])  # batch, or a ragged dot's groups
        n = math.prod(rhs) // max(1, groups * k)
        return batch, m, n, k


@dataclass(frozen=True, slots=True)
class Conv:
    """Where the features lie, and how much of the lhs is holes."""

    rhs_out: int
    out_feature: int
    holes: int

    def dims(self, rhs: Shape, out: Shape) -> tuple[int, int, int, int]:
        """``(batch, m, n, k)`` of the matmul the convolution amounts to."""
        n = out[self.out_feature]
        m = math.prod(out) // max(1, n)
        k = math.prod(rhs) // max(1, rhs[self.rhs_out])
        return 1, max(1, m // self.holes), n, k

    def laid_out(self, out: Shape) -> int:
        """Elements of the result, its features padded to ``LANES``."""
        n = max(1, out[self.out_feature])
        return math.prod(out) // n * -(-n // LANES) * LANES


@dataclass(frozen=True, slots=True)
class Work:
    """One equation's work, for operands and results of any local shape.

    Attributes:
      kind: how it is counted.
      dtype_class: which peak rate of the matrix units applies.
      in_itemsizes, out_itemsizes: bytes an element (of 4-bit types: one).
      weight: vector instructions per element (times the side, for linear algebra).
      matmul: the dimensions of a dot or a convolution.
    """

    primitive: str
    kind: WorkKind
    dtype_class: DtypeClass
    in_itemsizes: tuple[int, ...]
    out_itemsizes: tuple[int, ...]
    weight: float = 0.0
    matmul: Dot | Conv | None = None

    def matmul_dims(self, operands: tuple[Shape, ...], results: tuple[Shape, ...]):
        """``(batch, m, n, k)``, or ``None`` for what is no matmul."""
        if isinstance(self.matmul, Dot):
            return self.matmul.dims(operands[0], operands[1])
        if isinstance(self.matmul, Conv):
            return self.matmul.dims(operands[1], results[0])
        return None

    def matmul_flops(self, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> int:
        """FLOPs of the matrix units: two for each multiply-add."""
        dims = self.matmul_dims(operands, results)
        return 2 * math.prod(dims) if dims is not None else 0

    def vector_flops(self, operands: tuple[Shape, ...], results: tuple[Shape, ...]) -> float:
        """Weighted operations of the vector units."""
        if not self.weight:
            return 0.0
        if isinstance(self.matmul, Conv):
            return self.weight * self.matmul.laid_out(results[0])
        if self.kind in ("reduce", "linalg") and operands:
            elements = math.prod(operands[0])
            side = operands[0][-1] if self.kind == "linalg" and operands[0] else 1
            return self.weight * elements * side
        if self.kind == "update" and len(operands) > 1:
            return self.weight * math.prod(operands[-1 if self.primitive != _DUS else 1])
        return self.weight * sum([math.prod(shape) for shape in results])

    def operand_bytes(self, index: int, operands: tuple[Shape, ...], results: tuple[Shape, ...]):
        """Bytes read of one operand that lies in device memory."""
        if self.kind == "gather" and index == 0:
            return math.prod(results[0]) * self.in_itemsizes[0]
        if self.kind == "update" and index == 0:
            return 0  # in place: the untouched part does not move
        return math.prod(operands[index]) * self.in_itemsizes[index]

    def result_bytes(self, index: int, operands: tuple[Shape, ...], results: tuple[Shape, ...]):
        """Bytes written of one result that goes to device memory."""
        if self.kind == "update":
            update = 1 if self.primitive == _DUS else len(operands) - 1
            scale = 1 if self.primitive == _DUS else 2  # a scatter reads what it adds to
            return scale * math.prod(operands[update]) * self.out_itemsizes[index]
        return math.prod(results[index]) * self.out_itemsizes[index]


_DUS = "dynamic_update_slice"
_WEIGHTS = {"map": 1.0, "reduce": 1.0, "update": 1.0, "linalg": 2.0, "conv": CONVOLVED}


def work(eqn: JaxprEqn) -> Work:
    """Describes an equation's work."""
    primitive = eqn.primitive.name
    kind = kind_of(eqn)
    weight = _WEIGHTS.get(kind, 0.0)
    return Work(
        primitive=primitive,
        kind=kind,
        dtype_class=_dtype_class(eqn) if kind in ("dot", "conv") else "f32",
        in_itemsizes=tuple(itemsize(atom.aval) for atom in eqn.invars),
        out_itemsizes=tuple(itemsize(var.aval) for var in eqn.outvars),
        weight=_weight(eqn, weight),
        matmul=_matmul(eqn),
    )


def kind_of(eqn: JaxprEqn) -> WorkKind:
    """How an equation is counted.

    A gather or scatter of single entries, each from a row of its own, as ``take_along_axis`` and
    its gradient are, compares every place with the index: it sums rows, or is elementwise.
    """
    name = eqn.primitive.name
    kind = KINDS.get(name, "map")
    numbers = eqn.params.get("dimension_numbers") if kind in ("gather", "update") else None
    if not getattr(numbers, "operand_batching_dims", ()):
        return kind
    if name == "gather" and not numbers.offset_dims:  # pyright: ignore
        return "reduce"
    one_hot = name in ("scatter-add", "scatter_add", "scatter")
    return "map" if one_hot and not numbers.update_window_dims else kind  # pyright: ignore


def flops(eqn: JaxprEqn) -> int:
    """Matrix FLOPs of the whole, uncut equation (regions count as nothing; sum their bodies)."""
    shapes_in = tuple(shape_of(atom.aval) for atom in eqn.invars)
    shapes_out = tuple(shape_of(var.aval) for var in eqn.outvars)
    return work(eqn).matmul_flops(shapes_in, shapes_out)


def itemsize(aval: Any) -> int:
    """Bytes an element of an abstract value; a key type's own size, 0 for tokens."""
    dtype = getattr(aval, "dtype", None)
    return 0 if dtype is None else _dtype_size(dtype)


@lru_cache
def _dtype_size(dtype: Any) -> int:
    if jnp.issubdtype(dtype, jax.dtypes.extended):  # keys
        return int(getattr(dtype, "itemsize", 8))
    return max(1, np.dtype(dtype).itemsize)


def shape_of(aval: Any) -> Shape:
    """The shape of an abstract value; ``()`` for tokens and the like."""
    return tuple(getattr(aval, "shape", ()))


def aval_bytes(aval: Any) -> int:
    """Bytes of a whole abstract value."""
    return math.prod(shape_of(aval)) * itemsize(aval)


def _matmul(eqn: JaxprEqn) -> Dot | Conv | None:
    name, params = eqn.primitive.name, eqn.params
    if name == "dot_general":
        (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = params["dimension_numbers"]
        return Dot(*map(tuple, (lhs_contract, rhs_contract, lhs_batch, rhs_batch)))
    if name in ("ragged_dot", "ragged_dot_general"):
        # Every row meets one group's matrix: m x k by k x n, whatever the number of groups.
        if "ragged_dot_dimension_numbers" in params:
            numbers = params["ragged_dot_dimension_numbers"]
            ((lhs, rhs), (lhs_batch, rhs_batch)) = numbers.dot_dimension_numbers
            groups = tuple(getattr(numbers, "rhs_group_dimensions", ()))
            return Dot(tuple(lhs), tuple(rhs), tuple(lhs_batch), (*rhs_batch, *groups))
        return Dot((1,), (1,), (), (0,))
    if name == "conv_general_dilated":
        numbers = params["dimension_numbers"]
        return Conv(
            rhs_out=numbers.rhs_spec[0],
            out_feature=numbers.out_spec[1],
            holes=math.prod(params["lhs_dilation"]),
        )
    return None


def _weight(eqn: JaxprEqn, default: float) -> float:
    if eqn.primitive.name == "integer_pow":  # repeated squaring
        return float(max(1, 2 * int(abs(eqn.params["y"])).bit_length() - 2))
    return VECTOR_WEIGHTS.get(eqn.primitive.name, default)


def _dtype_class(eqn: JaxprEqn) -> DtypeClass:
    dtypes = [np.dtype(atom.aval.dtype) for atom in eqn.invars[:2]]  # pyright: ignore
    widest = max(dtypes, key=lambda dtype: dtype.itemsize)
    if widest.itemsize == 1:
        return "int8" if widest.kind in "iub" else "fp8"
    if widest.itemsize == 2:
        return "bf16"
    precision = eqn.params.get("precision")
    names = {str(p).rsplit(".", 1)[-1] for p in precision} if precision is not None else set()
    exact = bool(names & {"HIGHEST", "HIGH"}) or widest.itemsize > 4
    return "f32_highest" if exact else "f32"
