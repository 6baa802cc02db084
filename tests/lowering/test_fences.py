"""What XLA gets wrong by itself comes out right."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import autopar
from autopar.core.layout import P_ADD, B, Layout, Split, is_partial
from autopar.core.plan import Strategy
from autopar.passes.lowering.fences import guarded

X = jnp.arange(12.0).reshape(6, 2)


def _guarded(fn: Callable[..., Any], *args: Any) -> Any:
    """The one equation of ``fn`` with its operands guarded."""
    (eqn,) = jax.make_jaxpr(fn)(*args).jaxpr.eqns
    whole = Strategy(((),) * len(args), ((),))
    found = eqn.primitive.bind(
        *guarded(eqn, whole, args), **eqn.primitive.get_bind_params(eqn.params)
    )
    return found[0] if eqn.primitive.multiple_results else found


@pytest.mark.parametrize("start", [-7, 2, 7])
def test_a_slice_of_a_slice_out_of_bounds(start: int) -> None:
    """Each takes three rows, of which a device then takes one."""
    numbers = lax.GatherDimensionNumbers((0, 1), (), (0,))

    def sliced(x: Any, *start: Any) -> Any:
        return lax.dynamic_slice_p.bind(x, *start, slice_sizes=(3, 2))

    def gathered(x: Any, start: Any) -> Any:
        return lax.gather(x, start, numbers, (3, 2), mode="clip")

    def fn(x: Any, start: Any, row: Any) -> Any:
        found = _guarded(gathered, x, start[:1]), _guarded(sliced, x, *start)
        return [lax.dynamic_slice_in_dim(rows, row, 1) for rows in found]

    first = min(max(start, 0), 3)
    for row in range(3):
        for got in jax.jit(fn)(X, jnp.array([start, 0]), jnp.int32(row)):
            np.testing.assert_array_equal(got, X[first + row : first + row + 1])


def test_a_reduction_of_pieces_counts_the_initial_value_once() -> None:
    def add(x: Any, initial: Any) -> Any:
        return lax.reduce(x, initial, lambda a, b: a + b * 1, (0,))

    def fn(a: Any, b: Any) -> Any:
        return _guarded(add, jnp.concatenate([a, b]), jnp.float32(3))

    np.testing.assert_allclose(jax.jit(fn)(X, X), 2 * X.sum(0) + 3)


def _plan(step: Any, args: Any, mesh: tuple[int, ...], wanted: Callable[[Any], bool]) -> Any:
    """The first random plan with the wanted strategy for the first equation."""
    cluster = autopar.Cluster.preset("cpu", shape=(int(np.prod(mesh)),))
    options = {"cluster": cluster, "mesh": mesh, "search": "random", "donate": ()}
    plans = (autopar.plan(step, *args, seed=seed, **options) for seed in range(99))
    return next(plan for plan in plans if wanted(plan))


def _update(x: Any, place: Any, updates: Any) -> Any:
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    return lax.scatter_mul(x, place, updates, numbers, unique_indices=True, mode="drop")


def test_an_update_of_one_part_leaves_the_others_alone() -> None:
    args = (X, jnp.array([[1]]), jnp.full((1, 2), 3.0))
    plan = _plan(
        _update,
        args,
        (2,),
        lambda p: p.strategies["0"].operands[0] == (Split(0),) != p.inputs[0].layout,
    )
    got = autopar.apply(_update, plan, donate=())(*args)
    np.testing.assert_array_equal(jax.device_get(got), _update(*args))


def _convolve(x: Any, kernel: Any) -> Any:
    return lax.conv(x, kernel, (1, 1), "VALID")


def test_a_convolution_cut_in_space_is_summed_once() -> None:
    rng = np.random.default_rng(0)
    args = (
        rng.normal(size=(2, 3, 9, 10)).astype(np.float32),
        rng.normal(size=(3, 3, 4, 5)).astype(np.float32),
    )

    def wanted(plan: Any) -> bool:
        resting = [set(value.layout) for value in plan.inputs]
        cut = resting[0] == {B, Split(3)} and Split(2) in resting[1]
        return cut and all(map(is_partial, plan.strategies["0"].operands))

    got = autopar.apply(_convolve, _plan(_convolve, args, (2, 2), wanted), donate=())(*args)
    np.testing.assert_allclose(jax.device_get(got), _convolve(*args), rtol=1e-4, atol=1e-4)


S0, S1, S2 = Split(0), Split(1), Split(2)


def _of(layouts: Sequence[Layout], values: Sequence[Any]) -> tuple[Any, ...]:
    pairs = zip(values, layouts, strict=True)
    return tuple(replace(value, layout=layout) for value, layout in pairs)


@pytest.mark.parametrize(
    ("batched", "mesh", "operands", "result", "wanted"),
    [
        (False, (2, 2, 2), ((S0, B, B), (S0, B, S2)), (P_ADD, B, S1), (S1, S0, S0)),
        (False, (2, 2, 2), ((S0, S2, B), (S0, B, S2)), (P_ADD, S0, S1), (S0, S1, S1)),
        (True, (4, 2), ((S1, S0), (S1, S0)), (P_ADD, S0), (S0, S1)),
        (True, (2, 2, 2), ((S1, S0, S1), (S1, S0, S1)), (P_ADD, S0, P_ADD), (S0, S0, B)),
    ],
)
def test_a_product_scattered_beside_other_splits(
    batched: bool,
    mesh: tuple[int, ...],
    operands: tuple[Layout, Layout],
    result: Layout,
    wanted: Layout,
) -> None:
    """Its parts are in their places: matrices of gradients, and products of batches."""

    def step(x: Any, y: Any) -> Any:
        sums, batch = (((1,), (1,)), ((0,), (0,))) if batched else (((0, 1), (0, 1)), ((), ()))
        return lax.dot_general(x, y, (sums, batch))

    args = _numbers((8, 8, 16), (8, 8, 64))
    plan = _planned(step, args, mesh, Strategy(operands, (result,)), wanted)
    for backend in ("jit", "shard_map"):
        got = autopar.apply(step, plan, donate=(), backend=backend)(*args)
        np.testing.assert_array_equal(jax.device_get(got), step(*args), err_msg=backend)


@pytest.mark.parametrize(
    ("mesh", "operands", "result", "wanted"),
    [
        ((4, 2), ((S1, B), (S1, B)), (P_ADD, B), (B, B)),
        ((4, 2), ((B, S1), (B, S1)), (B, P_ADD), (S1, S0)),
        ((2, 2, 2), ((S0, B, S1), (S0, B, S1)), (S1, B, P_ADD), (B, S1, B)),
        ((2, 2, 2), ((S1, B, S1), (S1, B, S1)), (P_ADD, B, P_ADD), (B, S1, S1)),
    ],
)
def test_gradients_of_kernels_in_groups_are_summed_once(
    mesh: tuple[int, ...], operands: tuple[Layout, Layout], result: Layout, wanted: Layout
) -> None:
    """Not over the devices of another axis as well, which hold the same."""

    def step(x: Any, y: Any) -> Any:
        return lax.conv_general_dilated(x, y, (1,), [(1, 1)], batch_group_count=8)

    args = _numbers((16, 8, 16), (16, 8, 16))
    plan = _planned(step, args, mesh, Strategy(operands, (result,)), wanted)
    got = autopar.apply(step, plan, donate=())(*args)
    np.testing.assert_array_equal(jax.device_get(got), step(*args))


def test_groups_of_features_are_cut_by_the_batch() -> None:
    """Nothing is gathered."""

    def step(x: Any, kernel: Any) -> Any:
        return lax.conv_general_dilated(x, kernel, (1,), "SAME", feature_group_count=4)

    args = _numbers((8, 16, 16), (16, 4, 3))
    operands = (S0, S1), (B, S0)
    plan = _planned(step, args, (2, 4), Strategy(operands, ((S0, S1),)), (S0, S1))
    compiled = autopar.apply(step, plan, donate=()).lower(*args).compile()
    np.testing.assert_array_equal(jax.device_get(compiled(*args)), step(*args))
    assert not any(kind in compiled.as_text() for kind in ("all-", "permute"))


def test_what_is_reduced_axis_by_axis_is_scattered_over_one_dimension() -> None:
    """Over two at once the partitioner would reduce it whole."""

    def step(x: Any, y: Any) -> Any:
        return lax.transpose(lax.dot_general(x, y, (((0, 1), (0, 1)), ((), ()))), (1, 0))

    args = _numbers((8, 8, 16), (8, 8, 64))
    operands, strategy = ((S0, S1), (S0, S1)), Strategy(((S1, P_ADD),), ((S0, P_ADD),))
    plan = _planned(step, args, (4, 2), Strategy(operands, ((P_ADD, P_ADD),)), (S0, S1))
    plan = replace(plan, strategies={**plan.strategies, "1": strategy})
    lowered = autopar.apply(step, plan, donate=()).lower(*args)
    np.testing.assert_array_equal(jax.device_get(lowered.compile()(*args)), step(*args))
    assert '[{"data", "model"}, {}]' in lowered.as_text()


def _numbers(*shapes: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.integers(-4, 5, shape).astype("f") for shape in shapes]


def _planned(
    step: Any, args: Sequence[Any], mesh: tuple[int, ...], strategy: Strategy, wanted: Layout
) -> Any:
    """A plan of the one equation of ``step``, whose inputs rest as it reads them."""
    cluster = autopar.Cluster.preset("cpu", shape=(8,))
    plan = autopar.plan(step, *args, cluster=cluster, mesh=mesh, search="replicated", donate=())
    return replace(
        plan,
        inputs=_of(strategy.operands, plan.inputs),
        outputs=_of([wanted], plan.outputs),
        strategies={"0": strategy},
    )
