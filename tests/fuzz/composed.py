"""Random programs: equations drawn one after another over a pool of arrays.

A program is a list of instructions, so that it prints as text from which it can be run again.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

Shape = tuple[int, ...]
LARGEST = 1024
"""Elements of the largest array a program may make."""


@dataclass(frozen=True)
class Instruction:
    """Applies operation ``op`` to values of the pool; its result joins the pool."""

    op: str
    inputs: tuple[int, ...]
    options: tuple[int, ...] = ()


@dataclass(frozen=True)
class Composed:
    """Arrays of these shapes, and what is made of them. The last few values are the results."""

    shapes: tuple[Shape, ...]
    body: tuple[Instruction, ...]
    differentiate: bool

    def args(self) -> tuple[Any, ...]:
        rng = np.random.default_rng(0)
        return tuple(rng.normal(size=shape).astype(np.float32) for shape in self.shapes)

    def values(self, *args: Any) -> list[Any]:
        pool = list(args)
        for one in self.body:
            pool.append(OPERATIONS[one.op].apply([pool[i] for i in one.inputs], one.options))
        return pool[len(args) :]

    def __call__(self, *args: Any) -> Any:
        used = {i for one in self.body for i in one.inputs}
        ends = [v for i, v in enumerate(self.values(*args), len(args)) if i not in used]
        if not self.differentiate:
            return ends

        def loss(args: Any) -> Any:
            values = self.values(*args)
            ends = [v for i, v in enumerate(values, len(args)) if i not in used]
            return sum(jnp.sum(jnp.sin(jnp.arange(v.size).reshape(v.shape)) * v) for v in ends)

        return ends, jax.grad(loss)(args)


@dataclass(frozen=True)
class Operation:
    """``fits`` draws the options for inputs of some shapes; ``None`` where it cannot take them."""

    arity: int
    fits: Callable[[Any, list[Shape]], tuple[int, ...] | None]
    apply: Callable[[list[Any], tuple[int, ...]], Any]


OPERATIONS: dict[str, Operation] = {}


def _any(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    del draw, shapes
    return ()


def _alike(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    del draw
    return () if len(set(shapes)) == 1 else None


def _axis(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    rank = len(shapes[0])
    if rank == 0 or len(set(shapes)) > 1:
        return None
    return (draw(st.integers(0, rank - 1)),)


def _even_axis(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    found = _axis(draw, shapes)
    return found if found and shapes[0][found[0]] % 2 == 0 else None


def _two_axes(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    return _axis(draw, shapes) if len(shapes[0]) > 1 else None


def _permutation(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    rank = len(shapes[0])
    return tuple(draw(st.permutations(range(rank)))) if rank > 1 else None


def _new_axis(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    if len(shapes[0]) > 2:
        return None
    return (draw(st.integers(0, len(shapes[0]))), draw(st.sampled_from((2, 4, 8))))


def _product(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    x, y = shapes
    pairs = [(i, j) for i, n in enumerate(x) for j, m in enumerate(y) if n == m]
    return draw(st.sampled_from(pairs)) if pairs and len(x) + len(y) < 7 else None


def _rows(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    if not shapes[0] or shapes[0][0] < 2:
        return None
    return (draw(st.integers(0, 99)), draw(st.sampled_from((4, 8))))


def _rows_and_updates(draw: Any, shapes: list[Shape]) -> tuple[int, ...] | None:
    x, y = shapes
    if not x or len(x) != len(y) or x[1:] != y[1:]:
        return None
    return (draw(st.integers(0, 99)),)


def _op(name: str, arity: int, fits: Any, apply: Callable[..., Any]) -> None:
    OPERATIONS[name] = Operation(arity, fits, apply)


def _indices(seed: int, count: int, size: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).integers(-1, size + 1, count), jnp.int32)


def _middle(x: Any, axis: int) -> Any:
    return jnp.split(x, 2, axis)[0] * jnp.split(x, 2, axis)[1]


def _split_dim(x: Any, axis: int) -> Any:
    shape = x.shape
    return x.reshape(*shape[:axis], 2, shape[axis] // 2, *shape[axis + 1 :])


def _merge(x: Any, axis: int) -> Any:
    axis = min(axis, x.ndim - 2)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _scan(x: Any, reverse: int) -> Any:
    def body(carry: Any, row: Any) -> Any:
        carry = jnp.tanh(carry + row)
        return carry, carry * row

    last, rows = jax.lax.scan(body, jnp.zeros(x.shape[1:]), x, reverse=bool(reverse))
    return rows + last


def _apart(x: Any, axis: int) -> Any:
    """Without ties, between which rounding would choose."""
    return x + 0.0137 * jax.lax.broadcasted_iota(jnp.float32, x.shape, axis)


def _filled(x: Any, indices: Any) -> Any:
    return x.at[indices].get(mode="fill", fill_value=2)


def _pooled(x: Any, axis: int) -> Any:
    window = tuple(2 if d == axis else 1 for d in range(x.ndim))
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, window, "VALID")


def _shift(x: Any, axis: int) -> Any:
    config = [(1, -1, 0) if d == axis else (0, 0, 0) for d in range(x.ndim)]
    return jax.lax.pad(x, jnp.float32(0.5), config)


def _loop(x: Any) -> Any:
    return jax.lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y + i * jnp.mean(x)), x)


_op("sin", 1, _any, lambda v, o: jnp.sin(v[0]))
_op("tanh", 1, _any, lambda v, o: jnp.tanh(v[0] * 0.5))
_op("scale", 1, _any, lambda v, o: v[0] * 0.7 - 0.2)
_op("add", 2, _alike, lambda v, o: v[0] + v[1])
_op("sub", 2, _alike, lambda v, o: v[0] - v[1])
_op("mul", 2, _alike, lambda v, o: v[0] * jnp.tanh(v[1]))
_op("where", 2, _alike, lambda v, o: jnp.where(v[0] > 0.1234, v[0], v[1] - 1))
_op("sum", 1, _axis, lambda v, o: v[0].sum(o[0]))
_op("mean", 1, _axis, lambda v, o: v[0].mean(o[0]))
_op("max", 1, _axis, lambda v, o: _apart(v[0], o[0]).max(o[0]))
_op("softmax", 1, _axis, lambda v, o: jax.nn.softmax(v[0], o[0]))
_op("cumsum", 1, _axis, lambda v, o: jnp.tanh(jnp.cumsum(v[0], o[0])))
_op("sort", 1, _axis, lambda v, o: jnp.sort(_apart(v[0], o[0]), o[0]))
_op("flip", 1, _axis, lambda v, o: jnp.flip(v[0], o[0]))
_op("transpose", 1, _permutation, lambda v, o: v[0].transpose(o))
_op("split_dim", 1, _even_axis, lambda v, o: _split_dim(v[0], o[0]))
_op("merge", 1, _two_axes, lambda v, o: _merge(v[0], o[0]))
_op("broadcast", 1, _new_axis, lambda v, o: jnp.repeat(jnp.expand_dims(v[0], o[0]), o[1], o[0]))
_op("tile", 1, _axis, lambda v, o: jnp.concatenate([v[0], -v[0]], o[0]))
_op("concatenate", 2, _axis, lambda v, o: jnp.concatenate(v, o[0]))
_op("stack", 2, _axis, lambda v, o: jnp.stack(v, o[0]))
_op("halves", 1, _even_axis, lambda v, o: _middle(v[0], o[0]))
_op("slice", 1, _even_axis, lambda v, o: jax.lax.slice_in_dim(v[0], 1, v[0].shape[o[0]], 1, o[0]))
_op("stride", 1, _even_axis, lambda v, o: jax.lax.slice_in_dim(v[0], 0, None, 2, o[0]))
_op("pool", 1, _even_axis, lambda v, o: _pooled(v[0], o[0]))
_op("shift", 1, _even_axis, lambda v, o: _shift(v[0], o[0]))
_op("dot", 2, _product, lambda v, o: jnp.tanh(jnp.tensordot(v[0], v[1], ((o[0],), (o[1],)))))
_op("take", 1, _rows, lambda v, o: jnp.take(v[0], _indices(*o, v[0].shape[0]), 0, mode="clip"))
_op("fill", 1, _rows, lambda v, o: _filled(v[0], _indices(*o, v[0].shape[0])))
_op(
    *("scatter_add", 2, _rows_and_updates),
    lambda v, o: v[0].at[_indices(o[0], v[1].shape[0], v[0].shape[0])].add(v[1]),
)
_op("iota", 1, _axis, lambda v, o: v[0] + jax.lax.broadcasted_iota(jnp.float32, v[0].shape, o[0]))
_op("scan", 1, _rows, lambda v, o: _scan(v[0], o[0] % 2))
_op("loop", 1, _any, lambda v, o: _loop(v[0]))
_op("remat", 1, _any, lambda v, o: jax.checkpoint(lambda x: jnp.sin(jnp.sin(x) * x))(v[0]))
# A sum may be zero but for rounding, which would then choose the branch; a sum of squares is not.
_op("cond", 1, _any, lambda v, o: jax.lax.cond((v[0] ** 2).sum() > 0.3, jnp.sin, jnp.cos, v[0]))


@st.composite
def programs(draw: Any, least: int = 6, most: int = 30) -> Composed:
    """Programs of some equations, of which several are drawn per instruction."""
    dims = st.sampled_from((4, 8))
    shapes = draw(st.lists(st.tuples(dims, dims), min_size=2, max_size=3).map(tuple))
    pool = list(shapes)
    body: list[Instruction] = []
    count = draw(st.integers(least, most)) // 2
    for _ in range(4 * most):
        if len(body) >= count:
            break
        one = _draw_instruction(draw, pool)
        if one is None:
            continue
        args = [jax.ShapeDtypeStruct(pool[i], jnp.float32) for i in one.inputs]
        made = jax.eval_shape(
            lambda *v, one=one: OPERATIONS[one.op].apply(list(v), one.options), *args
        )
        if made.size <= LARGEST and made.size and len(made.shape) <= 4:
            body.append(one)
            pool.append(made.shape)
    return Composed(shapes, tuple(body), draw(st.booleans()))


def _draw_instruction(draw: Any, pool: list[Shape]) -> Instruction | None:
    name = draw(st.sampled_from(sorted(OPERATIONS)))
    operation = OPERATIONS[name]
    recent = st.integers(max(0, len(pool) - 5), len(pool) - 1)
    inputs = [draw(recent)]
    if operation.arity == 2:
        mates = [
            i
            for i, shape in enumerate(pool)
            if name in ("dot", "scatter_add") or shape == pool[inputs[0]]
        ]
        inputs.append(draw(st.sampled_from(mates)))
    options = operation.fits(draw, [pool[i] for i in inputs])
    return None if options is None else Instruction(name, tuple(inputs), tuple(options))
