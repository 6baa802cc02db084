"""Cases of ``elementwise.py`` and ``random_bits.py``."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core.primitives as p
import jax.numpy as jnp
import numpy as np
from emulation import Case, Local
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental.layout import Layout, with_layout_constraint

_RNG = np.random.default_rng(1)


def floats(*shape: int, low: float = 0.1, high: float = 0.9) -> jax.Array:
    return jnp.asarray(_RNG.uniform(low, high, shape), jnp.float32)


def ints(*shape: int, low: int = 1, high: int = 30, dtype: Any = jnp.int32) -> jax.Array:
    return jnp.asarray(_RNG.integers(low, high, shape), dtype)


def bools(*shape: int) -> jax.Array:
    return jnp.asarray(_RNG.integers(0, 2, shape), bool)


def keys(*shape: int) -> jax.Array:
    return jax.random.split(jax.random.key(0), shape)


def bind(primitive: Any, **params: Any) -> Callable[..., Any]:
    return lambda *args: primitive.bind(*args, **params)


_UNARY = (
    *("abs", "acos", "asin", "asinh", "atan", "atanh", "bessel_i0e", "bessel_i1e", "cbrt", "ceil"),
    *("cos", "cosh", "digamma", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor"),
    *("is_finite", "lgamma", "log", "log1p", "logistic", "neg", "round", "rsqrt", "sign", "sin"),
    *("sinh", "sqrt", "square", "tan", "tanh"),
)
_BINARY = (
    *("atan2", "complex", "div", "eq", "ge", "gt", "igamma", "igamma_grad_a", "igammac", "le"),
    *("lt", "max", "min", "mul", "ne", "nextafter", "polygamma", "pow", "rem", "sub", "zeta"),
)
_INTEGER = {
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
    "xor": lax.bitwise_xor,
    "mulhi": lax.mulhi,
    "shift_left": lax.shift_left,
    "shift_right_arithmetic": lax.shift_right_arithmetic,
    "shift_right_logical": lax.shift_right_logical,
}


def _plain() -> Iterator[Case]:
    for name in _UNARY:
        yield Case(name, getattr(lax, name), [floats(4)])
    yield Case("acosh", lax.acosh, [floats(4, low=1.1, high=1.9)])
    for name in _BINARY:
        yield Case(name, getattr(lax, name), [floats(4), floats(4)])
    yield Case("add", lax.add, [floats(4, 6), floats(4, 6)])
    yield Case("add", lax.add, [floats(4, 6), floats()], "scalar")
    yield Case("add", p.add_p.bind, [floats(4, 6), floats(1, 6)], "row")
    yield Case("mul", lax.mul, [floats(), floats(4, 6)], "scalar")
    yield Case("div", lax.div, [ints(4, 6), ints(4, 6)], "integer")
    for name, fn in _INTEGER.items():
        yield Case(name, fn, [ints(4), ints(4)])
    yield Case("not", lax.bitwise_not, [ints(4)])
    yield Case("clz", lax.clz, [ints(4)])
    yield Case("population_count", lax.population_count, [ints(4)])
    yield Case("or", lax.bitwise_or, [bools(4, 6), bools(4, 6)], "boolean")
    for name in ("eq_to", "le_to", "lt_to"):
        primitive = getattr(p, f"{name}_p")
        yield Case(name, primitive.bind, [floats(4), floats(4)])
    for name in ("real", "imag", "conj"):
        yield Case(name, _complex_fn(name), [lax.complex(floats(4), floats(4))])
    yield Case("add_any", p.add_jaxvals_p.bind, [floats(4, 6), floats(4, 6)])
    betas = [floats(4) for _ in range(3)]
    yield Case("regularized_incomplete_beta", p.regularized_incomplete_beta_p.bind, betas)


def _complex_fn(name: str) -> Callable[..., Any]:
    if name == "conj":
        return bind(p.conj_p, input_dtype=np.dtype(np.complex64))
    return getattr(lax, name)


def _with_parameters() -> Iterator[Case]:
    for y in (1, 2):
        yield Case("integer_pow", bind(p.integer_pow_p, y=y), [floats(4)], f"{y}")
    yield Case("reduce_precision", lambda x: lax.reduce_precision(x, 8, 4), [floats(4)])
    yield Case("clamp", lax.clamp, [jnp.float32(0.3), floats(4), jnp.float32(0.7)])
    yield Case("select_n", lax.select_n, [bools(4), floats(4), floats(4)])
    yield Case("select_n", lax.select_n, [bools(), bools(4), bools(4)], "scalar")
    for source, target in (
        *(("float32", "bfloat16"), ("float32", "int32"), ("int32", "float32")),
        *(("int16", "int32"), ("int32", "int16"), ("uint8", "int32"), ("bool", "float32")),
    ):
        x = ints(4).astype(source)
        convert = bind(
            p.convert_element_type_p, new_dtype=np.dtype(target), weak_type=False, sharding=None
        )
        yield Case("convert_element_type", convert, [x], f"{source}-{target}")
    yield Case("bitcast_convert_type", _bitcast(jnp.int32), [floats(4)])
    yield Case("bitcast_convert_type", _bitcast(jnp.int8), [floats(4)], "narrower")
    yield Case("bitcast_convert_type", _bitcast(jnp.int32), [ints(2, 4, dtype=jnp.int8)], "wider")


def _bitcast(dtype: Any) -> Callable[..., Any]:
    return lambda x: lax.bitcast_convert_type(x, dtype)


def _identities() -> Iterator[Case]:
    mesh = jax.make_mesh((1,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    here = jax.sharding.NamedSharding(mesh, jax.P())
    yield Case("copy", jnp.copy, [floats(4)])
    yield Case("name", lambda x: checkpoint_name(x, "x"), [floats(4)])
    yield Case("stop_gradient", lax.stop_gradient, [floats(4)])
    yield Case("stop_gradient", lax.stop_gradient, [bools(4)], "boolean")
    yield Case("device_put", jax.device_put, [floats(4)])
    yield Case("optimization_barrier", _barrier, [floats(4), floats(6)])
    yield Case("sharding_constraint", lambda x: lax.with_sharding_constraint(x, here), [floats(4)])
    yield Case(
        "layout_constraint",
        lambda x: with_layout_constraint(jnp.asarray(x), Layout(major_to_minor=(0,))),
        [floats(4)],
    )


def _barrier(*xs: Any) -> Any:
    return lax.optimization_barrier(xs)


def _random() -> Iterator[Case]:
    impl = jax.extend.random.threefry_prng_impl
    yield Case("random_seed", bind(p.random_seed_p, impl=impl), [ints(4)])
    yield Case("random_fold_in", p.random_fold_in_p.bind, [keys(4), ints(4, dtype=jnp.uint32)])
    yield Case("random_clone", jax.random.clone, [keys(4)])
    yield Case("random_wrap", jax.random.wrap_key_data, [jax.random.key_data(keys(4))])
    yield Case("random_unwrap", jax.random.key_data, [keys(4)])
    yield Case("random_gamma", bind(p.random_gamma_p, log_space=False), [keys(2), floats(2)])
    words = [ints(4, dtype=jnp.uint32) for _ in range(4)]
    yield Case("threefry2x32", p.threefry2x32_p.bind, words)
    yield Case("random_bits", _draw, [keys(2)], local=True, shapes=((2, 4),))
    yield Case("random_split", _split, [keys(2)], local=True, shapes=((2, 4),))
    state = jax.random.key_data(jax.random.key(0, impl="rbg"))
    yield Case("rng_bit_generator", lambda k: lax.rng_bit_generator(k, (4, 6)), [state])
    yield Case("rng_uniform", lambda a, b: lax.rng_uniform(a, b, (4, 6)), [floats(), floats()])


def _draw(local: Local, key: Any) -> Any:
    """What is drawn per key depends on the whole shape: a position keeps its part."""
    bits = p.random_bits_p.bind(key, bit_width=32, shape=local.whole_shapes[0][1:])
    return bits if local.strategy is None or key.shape != (2,) else local.own_part(bits)


def _split(local: Local, key: Any) -> Any:
    split = p.random_split_p.bind(key, shape=local.whole_shapes[0][1:])
    return split if local.strategy is None or key.shape != (2,) else local.own_part(split)


CASES = [*_plain(), *_with_parameters(), *_identities(), *_random()]
