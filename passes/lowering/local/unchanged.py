"""Primitives that mean the same on parts: no parameter of theirs holds a shape that may be cut.

Their rules keep whole whatever dimension their parameters speak of. A primitive is listed here only
when someone has looked; what is listed nowhere may run on whole values alone.
"""

from __future__ import annotations

from typing import Any

from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import Sharding

from autopar.passes.lowering.fences import guarded
from autopar.passes.lowering.local.site import Site, Values, local


@local(
    # Elementwise.
    *("abs", "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e"),
    *("bessel_i1e", "cbrt", "ceil", "clamp", "clz", "cos", "cosh", "digamma", "eq", "eq_to"),
    *("erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma"),
    *("igamma_grad_a", "igammac", "is_finite", "le", "le_to", "lgamma", "log", "log1p"),
    *("logistic", "lt", "lt_to", "mulhi", "ne", "nextafter", "not", "polygamma"),
    *("population_count", "pow", "reduce_precision", "regularized_incomplete_beta", "rem"),
    *("round", "rsqrt", "shift_left", "shift_right_arithmetic", "shift_right_logical", "sign"),
    *("sin", "sinh", "sqrt", "square", "tan", "tanh", "xor", "zeta"),
    *("add", "add_any", "sub", "complex", "neg", "real", "imag", "conj", "mul", "div", "max"),
    *("min", "and", "or", "integer_pow", "select_n", "bitcast_convert_type"),
    *("copy", "copy_p", "name", "stop_gradient", "optimization_barrier"),
    # Products: dimension numbers, no extents.
    *("dot_general", "ragged_dot_general", "scaled_dot"),
    # Axes and windows that are whole.
    *("reduce_sum", "reduce_prod", "reduce_max", "reduce_min", "reduce_and", "reduce_or"),
    *("reduce_xor", "argmax", "argmin", "transpose", "squeeze", "rev", "concatenate"),
    *("split", "stack", "unstack", "pad", "dynamic_update_slice"),
    *("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"),
    *("select_and_scatter_add", "select_and_gather_add", "sort", "top_k", "approx_top_k"),
    *("cumsum", "cummax", "cummin", "cumprod", "cumlogsumexp"),
    # Batches of problems.
    *("cholesky", "cholesky_update", "eig", "eigh", "geqp3", "geqrf", "hessenberg"),
    *("householder_product", "lu", "ormqr", "qr", "schur", "svd", "symmetric_product"),
    *("tridiagonal", "lu_pivots_to_permutation", "triangular_solve", "tridiagonal_solve"),
    # Functions of a key (or counter) each.
    *("random_seed", "random_fold_in", "random_clone", "random_gamma", "threefry2x32"),
    *("random_wrap", "random_unwrap", "rng_bit_generator", "rng_uniform", "platform_index"),
)
def _unchanged(site: Site, operands: Values) -> list[Any]:
    return site.bind(operands)


@local("reduce")
def _reduce(site: Site, operands: Values) -> list[Any]:
    return site.bind(guarded(site.eqn, site.strategy, operands))


@local("fft")
def _fft(site: Site, operands: Values) -> list[Any]:
    """XLA:CPU transforms row-major arrays only, but lets what reads the result choose its order."""
    return [with_layout_constraint(x, Layout(tuple(range(x.ndim)))) for x in site.bind(operands)]


@local("convert_element_type")
def _convert(site: Site, operands: Values) -> list[Any]:
    return site.bind(operands, sharding=None)


@local("sharding_constraint", "layout_constraint", "reshard")
def _said_by_the_plan(site: Site, operands: Values) -> list[Any]:
    """How values lie is for the plan to say: nothing is left of these."""
    del site
    return list(operands)


@local("device_put")
def _device_put(site: Site, operands: Values) -> list[Any]:
    """Moves between memories stay; moves between devices are for the plan to say."""
    devices = [
        None if isinstance(place, Sharding) or hasattr(place, "device_kind") else place
        for place in site.eqn.params["devices"]
    ]
    return site.bind(operands, devices=tuple(devices), srcs=(None,) * len(devices))
