"""Single equations under their joint strategies, to carry out by jit and compare with one device.

A trial is an equation, a strategy of it, and the layouts before and after. Operands that are
partial are sums of what is split. All numbers are small integers, so that every sum is exact.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harnesses import QUICK
from jax import lax
from jax.extend.core import JaxprEqn

import autopar
from autopar.core.layout import Layout, Partial, Split, is_partial, show
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Strategy
from autopar.passes.rules import factor_rule
from autopar.search.domains import Domains

MESHES = ((2, 2), (4, 2), (2, 2, 2))
REDUCTIONS = {
    "add": (lax.reduce_sum_p, np.sum),
    "max": (lax.reduce_max_p, np.max),
    "min": (lax.reduce_min_p, np.min),
}


@dataclass(frozen=True)
class Trial:
    """How one equation is carried out: where its operands rest, and where its results go."""

    strategy: Strategy
    resting: tuple[Layout, ...]
    wanted: tuple[Layout, ...]

    def __str__(self) -> str:
        sides = (self.resting, self.strategy.operands, self.strategy.results, self.wanted)
        return " > ".join(" ".join(map(show, side)) for side in sides)


Group = tuple[Trial, ...]


def trials(eqn: JaxprEqn, mesh: tuple[int, ...], targets: int = 3) -> list[Trial]:
    """Every joint strategy, each with some layouts of results, in a fixed random order."""
    rule = factor_rule(eqn)
    assert rule is not None
    domains, rng = Domains(MeshSpec.of(mesh)), random.Random(0)
    layouts = [domains.layouts(v.aval.shape, frozenset()) for v in (*eqn.invars, *eqn.outvars)]
    inputs, outputs = layouts[: len(eqn.invars)], layouts[len(eqn.invars) :]
    found: dict[Trial, None] = {}
    for state in domains.op(rule):
        for target in range(targets):
            resting = tuple(
                layout if is_partial(layout) or target else rng.choice(every)
                for layout, every in zip(state.operands, inputs, strict=True)
            )
            strategy = Strategy(state.operands, state.results)
            found[Trial(strategy, resting, tuple(map(rng.choice, outputs)))] = None
    return rng.sample(list(found), len(found))


@dataclass(frozen=True)
class Case:
    """A function of one equation, and whether the like of it in its gradients are tried too.

    Attributes:
      below: for operands that are indices, what they are below.
    """

    function: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    below: tuple[tuple[int, int], ...] = ()
    gradients: bool = False

    def equations(self) -> list[JaxprEqn]:
        args = [
            jax.ShapeDtypeStruct(shape, np.int32 if i in dict(self.below) else np.float32)
            for i, shape in enumerate(self.shapes)
        ]
        (first,) = jax.make_jaxpr(self.function)(*args).jaxpr.eqns
        if not self.gradients:
            return [first]
        cotangent = jax.eval_shape(self.function, *args)
        transposed = jax.make_jaxpr(lambda ct, *xs: jax.vjp(self.function, *xs)[1](ct))
        eqns = transposed(cotangent, *args).jaxpr.eqns
        # Behind the one that the gradients do not need.
        return [first, *[e for e in eqns if e.primitive is first.primitive][1:]]

    def operands(self, eqn: JaxprEqn, rng: np.random.Generator) -> list[np.ndarray]:
        limits = dict(self.below)
        return [
            rng.integers(0 if i in limits else -4, limits.get(i, 5), var.aval.shape).astype(
                var.aval.dtype
            )
            for i, var in enumerate(eqn.invars)
        ]


def _conv(x: tuple[int, ...], kernel: tuple[int, ...], **options: Any) -> Case:
    numbers = ("NHC", "HIO", "NHC") if len(x) == 3 else ("NHWC", "HWIO", "NHWC")
    strides = (options.pop("stride", 1),) * (len(x) - 2)
    padding = options.pop("padding", "SAME")

    def function(x: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=numbers, **options
        )

    return Case(function, (x, kernel), gradients=True)


def _dot(pairs: Any, *shapes: tuple[int, ...]) -> Case:
    return Case(lambda x, y: lax.dot_general(x, y, pairs), shapes)


def _ragged(x: Any, y: Any, sizes: Any) -> Any:
    pairs = (((1,), (1,)), ((), ()))
    return lax.ragged_dot_general(x, y, sizes, lax.RaggedDotDimensionNumbers(pairs, (0,), (0,)))


def _put(x: Any, part: Any, *at: Any) -> Any:
    return lax.dynamic_update_slice_p.bind(x, part, *at)


def _gather(x: Any, at: Any) -> Any:
    return lax.gather(x, at, lax.GatherDimensionNumbers((2,), (0,), (0,)), (1, 8), mode="clip")


def _scatter(x: Any, at: Any, updates: Any) -> Any:
    numbers = lax.ScatterDimensionNumbers((2,), (0,), (0,))
    return lax.scatter_add(x, at, updates, numbers, mode="drop")


def _window(x: Any) -> Any:
    return lax.reduce_window(x, 0.0, lax.add, (1, 3, 1), (1, 1, 1), "SAME")


IMAGES = (8, 8, 8, 8)
CASES: dict[str, Case] = {
    "matmul": _dot((((1,), (1,)), ((), ())), (8, 8), (16, 8)),
    "gradient": _dot((((0, 1), (0, 1)), ((), ())), (8, 8, 8), (8, 8, 32)),
    "batched": _dot((((1,), (1,)), ((0,), (0,))), (8, 8, 8), (8, 8, 16)),
    "conv1d": _conv((8, 16, 8), (3, 8, 8)),
    "conv2d": _conv(IMAGES, (3, 3, 8, 16)),
    "conv-as-large": _conv(IMAGES, (8, 8, 8, 8)),
    "conv-1x1": _conv(IMAGES, (1, 1, 8, 16)),
    "conv-patches": _conv((8, 16, 16, 8), (8, 8, 8, 16), stride=8, padding="VALID"),
    "conv-strided": _conv(IMAGES, (3, 3, 8, 8), stride=2),
    "conv-dilated": _conv(IMAGES, (3, 3, 8, 8), rhs_dilation=(2, 2)),
    "conv-transposed": _conv(IMAGES, (3, 3, 8, 8), lhs_dilation=(2, 2), padding=[(1, 2)] * 2),
    "conv-grouped": _conv((8, 8, 8, 16), (3, 3, 2, 16), feature_group_count=8),
    "conv-two-groups": _conv((8, 8, 8, 16), (3, 3, 8, 16), feature_group_count=2),
    "conv-depthwise": _conv((8, 16, 8), (4, 1, 8), feature_group_count=8, padding=[(3, 0)]),
    "conv-depthwise-2": _conv(IMAGES, (3, 3, 1, 16), feature_group_count=8, stride=2),
    "conv-batch-groups": _conv((64, 8, 8, 4), (3, 3, 4, 16), batch_group_count=8),
    "ragged": Case(_ragged, ((16, 8), (4, 8, 8), (4,)), below=((2, 5),)),
    "put": Case(_put, ((8, 16), (8, 8), (), ()), below=((2, 1), (3, 9))),
    "gather": Case(_gather, ((16, 8), (8, 8, 1)), below=((1, 16),)),
    "scatter": Case(_scatter, ((16, 8), (8, 8, 1), (8, 8, 8)), below=((1, 16),)),
    "window": Case(_window, ((8, 8, 8),)),
    "cumsum": Case(lambda x: lax.cumsum(x, 1), ((8, 8, 8),)),
    "sort": Case(lambda x: lax.sort(x, dimension=1), ((8, 8, 8),)),
}


@cache
def equations(name: str) -> tuple[JaxprEqn, ...]:
    return tuple(CASES[name].equations())


def attempt(name: str, index: int, mesh: tuple[int, ...], group: Group) -> dict[str, str]:
    """Why trials of an equation, together in one program, do not do what one device does.

    By the trial, or under "program" where it cannot be run.
    """
    eqn, rng = equations(name)[index], np.random.default_rng(0)
    made = [_Inputs.of(trial, CASES[name].operands(eqn, rng), mesh, rng) for trial in group]
    try:
        got = jax.device_get(_carried_out(eqn, mesh, group, made))
    except Exception as error:
        return {"program": f"{type(error).__name__}: {error}"[:600]}
    found: dict[str, str] = {}
    for trial, inputs, results in zip(group, made, got, strict=True):
        for result, want in zip(results, _bound(eqn, inputs.whole), strict=True):
            if not np.array_equal(result, want):
                found[str(trial)] = f"off by {np.abs(result - want).max()}"
    return found


@dataclass(frozen=True)
class _Inputs:
    """``arrays`` in their layouts; where ``ops`` has one, their reduction is the operand."""

    arrays: list[np.ndarray]
    layouts: list[Layout]
    ops: list[str | None]
    whole: list[np.ndarray]

    @classmethod
    def of(
        cls,
        trial: Trial,
        operands: Sequence[np.ndarray],
        mesh: tuple[int, ...],
        rng: np.random.Generator,
    ) -> "_Inputs":
        made = cls([], [], [], [])
        for operand, read, rests in zip(
            operands, trial.strategy.operands, trial.resting, strict=True
        ):
            op = next((p.op for p in read if isinstance(p, Partial)), None)
            array, layout, whole = operand, rests, operand
            if op is not None:
                array = rng.integers(-4, 5, (math.prod(mesh), *operand.shape)).astype(operand.dtype)
                whole = REDUCTIONS[op][1](array, axis=0)
                layout = tuple(_behind(placement) for placement in read)
            for values, value in zip(
                (made.arrays, made.layouts, made.ops, made.whole),
                (array, layout, op, whole),
                strict=True,
            ):
                values.append(value)
        return made


def _behind(placement: Any) -> Any:
    """Of what is summed over a dimension in front, that which gives ``placement``."""
    if isinstance(placement, Partial):
        return Split(0)
    return Split(placement.dim + 1) if isinstance(placement, Split) else placement


def _carried_out(
    eqn: JaxprEqn, mesh: tuple[int, ...], group: Group, made: Sequence[_Inputs]
) -> Any:
    def step(*args: Any) -> Any:
        return tuple(
            _bound(eqn, [_reduced(x, op) for x, op in zip(one, inputs.ops, strict=True)])
            for one, inputs in zip(args, made, strict=True)
        )

    args = [tuple(inputs.arrays) for inputs in made]
    cluster = autopar.Cluster.preset("cpu", shape=(math.prod(mesh),))
    plan = autopar.plan(step, *args, cluster=cluster, mesh=mesh, search="replicated", donate=())
    resting = [layout for inputs in made for layout in inputs.layouts]
    wanted = [layout for trial in group for layout in trial.wanted]
    strategies = list(_strategies(group, made))
    assert len(strategies) == len(plan.strategies)
    plan = replace(
        plan,
        inputs=tuple(replace(v, layout=x) for v, x in zip(plan.inputs, resting, strict=True)),
        outputs=tuple(replace(v, layout=x) for v, x in zip(plan.outputs, wanted, strict=True)),
        strategies={str(i): strategy for i, strategy in enumerate(strategies)},
    )
    run = autopar.apply(step, plan, donate=())
    return run.lower(*args).compile(compiler_options=QUICK)(*args)


def _strategies(group: Group, made: Sequence[_Inputs]) -> Iterator[Strategy]:
    """In the order of the program's equations: reductions, then the equation itself."""
    for trial, inputs in zip(group, made, strict=True):
        read = zip(inputs.ops, inputs.layouts, trial.strategy.operands, strict=True)
        yield from (Strategy((rests,), (layout,)) for op, rests, layout in read if op is not None)
        yield trial.strategy


def _reduced(array: Any, op: str | None) -> Any:
    return array if op is None else REDUCTIONS[op][0].bind(array, axes=(0,), out_sharding=None)


def _bound(eqn: JaxprEqn, operands: Sequence[Any]) -> tuple[Any, ...]:
    found = eqn.primitive.bind(
        *map(jnp.asarray, operands), **eqn.primitive.get_bind_params(eqn.params)
    )
    return tuple(found) if eqn.primitive.multiple_results else (found,)
