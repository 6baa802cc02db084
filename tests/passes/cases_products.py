"""Cases of ``dot.py``, ``conv.py`` and ``linalg.py``."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core.primitives as p
import jax.numpy as jnp
from cases_elementwise import bind, bools, floats
from emulation import Case, Local
from jax import lax
from jax.lax import linalg


def _dots() -> Iterator[Case]:
    batched = (((3,), (1,)), ((0, 2), (0, 3)))
    yield Case("dot_general", _dot((((1,), (0,)), ((), ()))), [floats(4, 6), floats(6, 2)])
    operands = [floats(2, 4, 2, 6), floats(2, 6, 4, 2)]
    yield Case("dot_general", _dot(batched), operands, "batched")
    yield Case("dot_general", _dot((((1,), (0,)), ((), ()))), [bools(4, 6), bools(6, 2)], "boolean")
    sizes = jnp.asarray([3, 1], jnp.int32)
    yield Case("ragged_dot_general", lax.ragged_dot, [floats(4, 6), floats(2, 6, 2), sizes])
    for label, pairs in (
        ("contracting", (((0,), (0,)), ((), ()))),
        ("batch", (((2,), (1,)), ((0,), (0,)))),
    ):
        shapes = ((4, 6), (4, 2)) if label == "contracting" else ((4, 2, 6), (4, 6, 2))
        numbers = lax.RaggedDotDimensionNumbers(pairs, [0], [])
        operands = [*(floats(*s) for s in shapes), sizes]
        yield Case("ragged_dot_general", _ragged(numbers), operands, label)
    numbers = (((2,), (2,)), ((0,), (0,)))
    scaled = bind(_scaled_dot_primitive(), dimension_numbers=numbers, preferred_element_type=None)
    operands = [floats(2, 4, 8), floats(2, 6, 8), floats(2, 4, 4), floats(2, 6, 2)]
    yield Case("scaled_dot", scaled, operands, rtol=2e-2)


def _dot(pairs: Any) -> Callable[..., Any]:
    return lambda x, y: lax.dot_general(x, y, pairs)


def _ragged(numbers: Any) -> Callable[..., Any]:
    return lambda x, y, sizes: lax.ragged_dot_general(x, y, sizes, numbers)


def _scaled_dot_primitive() -> Any:
    """JAX exports the function alone."""
    x = jnp.ones((1, 2, 2))
    jaxpr = jax.make_jaxpr(lambda x: lax.scaled_dot(x, x, lhs_scale=x[..., :1]))(x)
    return next(e.primitive for e in jaxpr.eqns if e.primitive.name == "scaled_dot")


def _convolutions() -> Iterator[Case]:
    yield Case("conv_general_dilated", _conv, [floats(4, 6, 5, 5), floats(2, 6, 3, 3)])
    grouped = [floats(2, 8, 5, 5), floats(4, 2, 3, 3)]
    yield Case("conv_general_dilated", _conv, grouped, "feature-groups")
    depthwise = [floats(2, 4, 5, 5), floats(8, 1, 3, 3)]
    yield Case("conv_general_dilated", _conv, depthwise, "depthwise")
    shapes = ((2, 8, 3, 3),)
    batch_grouped = [floats(8, 4, 5, 5), floats(8, 4, 3, 3)]
    yield Case(
        *("conv_general_dilated", _batch_grouped_conv, batch_grouped, "batch-groups"),
        local=True,
        shapes=shapes,
    )


def _conv(x: Any, kernel: Any) -> Any:
    groups = x.shape[1] // kernel.shape[1]
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", feature_group_count=groups)


def _batch_grouped_conv(local: Local, x: Any, kernel: Any) -> Any:
    groups = x.shape[0] // local.shapes[0][0]
    return lax.conv_general_dilated(x, kernel, (1, 1), "VALID", batch_group_count=groups)


_WINDOW = {"window_dimensions": (1, 1, 2), "window_strides": (1, 1, 2), "padding": ((0, 0),) * 3}
_DILATIONS = {"base_dilation": (1, 1, 1), "window_dilation": (1, 1, 1)}


def _windows() -> Iterator[Case]:
    x = floats(4, 2, 6)
    for name in ("sum", "max", "min"):
        primitive = getattr(p, f"reduce_window_{name}_p")
        yield Case(f"reduce_window_{name}", bind(primitive, **_WINDOW, **_DILATIONS), [x])
    yield Case("reduce_window", _generic_window, [x, floats()])
    move = bind(p.select_and_scatter_add_p, select_prim=lax.ge_p, **_WINDOW)
    yield Case("select_and_scatter_add", move, [floats(4, 2, 3), x])
    take = bind(p.select_and_gather_add_p, select_prim=lax.ge_p, **_WINDOW, **_DILATIONS)
    yield Case("select_and_gather_add", take, [floats(4, 2, 6), x], rtol=2e-2)


def _generic_window(x: Any, initial: Any) -> Any:
    def combine(a: Any, b: Any) -> Any:
        return a + 2 * b

    return lax.reduce_window(x, initial, combine, (1, 1, 2), (1, 1, 2), "VALID")


def _matrices(*batch: int, n: int = 3) -> jax.Array:
    """Symmetric, positive definite, and well conditioned."""
    x = floats(*batch, n, n)
    return x @ jnp.swapaxes(x, -1, -2) + n * jnp.eye(n)


def _fished(program: Callable[..., Any], primitive: str, *args: Any) -> Callable[..., Any]:
    """The equation of a primitive that is reached only through a larger program."""
    found = [e for e in _equations(jax.make_jaxpr(program)(*args).jaxpr) if e[0] == primitive]
    _, eqn = found[0]
    return bind(eqn.primitive, **eqn.params)


def _equations(jaxpr: Any) -> Iterator[tuple[str, Any]]:
    for eqn in jaxpr.eqns:
        yield eqn.primitive.name, eqn
        for inner in jax.extend.core.jaxprs_in_params(eqn.params):
            yield from _equations(inner)


def _problems() -> Iterator[Case]:
    x = _matrices(4)
    tall = floats(4, 5, 3)
    for name in (
        "cholesky",
        "eig",
        "eigh",
        "hessenberg",
        "lu",
        "qr",
        "schur",
        "svd",
        "tridiagonal",
    ):
        yield Case(name, _decomposition(name, x), [x])
    yield Case("householder_product", linalg.householder_product, [tall, floats(4, 3)])
    yield Case("ormqr", linalg.ormqr, [tall, floats(4, 3), floats(4, 5, 2)])
    yield Case("geqrf", _fished(_qr_multiply(False), "geqrf", x[0]), [tall])
    yield Case(
        "geqp3", _fished(_qr_multiply(True), "geqp3", x[0]), [x, jnp.zeros((4, 3), jnp.int32)]
    )
    yield Case("cholesky_update", linalg.cholesky_update, [jnp.eye(4) * 2, floats(4)])
    product = bind(linalg.symmetric_product_p, alpha=1.0, beta=0.0)
    yield Case("symmetric_product", product, [tall, floats(4, 5, 5)])
    pivots = jnp.asarray([[1, 2, 2]] * 4, jnp.int32)
    permute = bind(linalg.lu_pivots_to_permutation_p, permutation_size=5)
    yield Case("lu_pivots_to_permutation", permute, [pivots])
    for kind, shape in (("FFT", (4, 6)), ("IRFFT", (4, 4))):
        fft = bind(p.fft_p, fft_type=lax.FftType[kind], fft_lengths=(6,))
        signal = lax.complex(floats(*shape), floats(*shape))
        yield Case("fft", fft, [signal], "" if kind == "FFT" else "real")


def _qr_multiply(pivoting: bool) -> Callable[..., Any]:
    return lambda x: jax.scipy.linalg.qr_multiply(x, x, pivoting=pivoting)


def _decomposition(name: str, x: jax.Array) -> Callable[..., Any]:
    programs: dict[str, Callable[..., Any]] = {"schur": jax.scipy.linalg.schur}
    program = programs.get(name, getattr(linalg, name))
    return _fished(program, name, x[0] if name == "schur" else x)


def _solves() -> Iterator[Case]:
    params = {"lower": True, "transpose_a": False, "conjugate_a": False, "unit_diagonal": False}
    x = jnp.tril(_matrices(4))
    for left, shape in ((True, (4, 3, 2)), (False, (4, 2, 3))):
        solve = bind(p.triangular_solve_p, left_side=left, **params)
        yield Case("triangular_solve", solve, [x, floats(*shape)], "" if left else "right")
    diagonals = [floats(4, 6), 3 + floats(4, 6), floats(4, 6)]
    solve = bind(p.tridiagonal_solve_p, perturb_singular=False)
    yield Case("tridiagonal_solve", solve, [*diagonals, floats(4, 6, 2)])


CASES = [*_dots(), *_convolutions(), *_windows(), *_problems(), *_solves()]
