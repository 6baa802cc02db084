"""Steps of every framework train as they did once decorated, from a state born in parts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from frameworks import PROGRAMS, Program, clipped_chain, frozen_dataclasses, linen

import autopar
from autopar import Plan
from autopar.core.layout import local_shape

P = jax.P
STEPS = 3


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Made(NamedTuple):
    """A program, decorated and planned, and what it makes: its state at first and after a step."""

    program: Program
    shapes: Any
    step: Any
    plan: Plan
    born: Any
    trained: tuple[Any, list[float]]


def made_of(program: Program, **options: Any) -> Made:
    """Fully sharded, unless said otherwise; run for a few steps."""
    step = autopar.parallelize(**{"mesh": 8, "search": "fsdp", **options})(program.step)
    shapes = jax.eval_shape(program.init, jax.random.key(0))
    plan = step.plan(shapes, program.batch)
    born = step.init(program.init, jax.random.key(0), batch=program.batch)
    state, losses = jax.tree.map(jnp.copy, born), []
    for _ in range(STEPS):
        state, loss = step(state, program.batch)
        losses.append(float(loss))
    return Made(program, shapes, step, plan, born, (state, losses))


def one_device(program: Program) -> tuple[Any, Any, list[float]]:
    """The state at first and at last, and the losses."""
    born, losses = jax.jit(program.init)(jax.random.key(0)), []
    state, step = born, jax.jit(program.step)
    for _ in range(STEPS):
        state, loss = step(state, program.batch)
        losses.append(float(loss))
    return born, state, losses


@pytest.fixture(scope="module", params=PROGRAMS, ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest) -> Made:
    return made_of(request.param())


def plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_same(got: Any, want: Any, rtol: float = 1e-5) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, w), g in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        scale = float(np.abs(plain(w)).max(initial=0))
        np.testing.assert_allclose(
            plain(g), plain(w), rtol, rtol * scale, err_msg=jax.tree_util.keystr(path)
        )


def test_training_is_that_of_one_device(made: Made) -> None:
    born, want, want_losses = one_device(made.program)
    state, losses = made.trained
    assert_same(made.born, born, rtol=1e-6)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
    assert_same(state, want)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("make", [linen, frozen_dataclasses, clipped_chain])
def test_explicit_collectives_do_the_same(make: Any) -> None:
    program = make()
    _, want, want_losses = one_device(program)
    state, losses = made_of(program, backend="shard_map").trained
    np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
    assert_same(state, want)


def test_the_state_is_born_in_parts(made: Made) -> None:
    """Each device gets its part from ``init``, not the whole and then a part."""
    values = [v for v in made.plan.inputs if not v.path.startswith("batch/")]
    for value, leaf in zip(values, jax.tree.leaves(made.born), strict=True):
        part = local_shape(value.shape, value.layout, made.plan.mesh)
        assert len(leaf.addressable_shards) == 8
        assert {shard.data.shape for shard in leaf.addressable_shards} == {part}, value.path
        if leaf.ndim:
            assert np.prod(part) == leaf.size / 8, value.path


def test_init_is_never_run_eagerly() -> None:
    program = linen()
    kinds: set[str] = set()

    def init(key: jax.Array) -> Any:
        state = program.init(key)
        kinds.update(type(leaf).__name__ for leaf in jax.tree.leaves(state))
        return state

    step = autopar.parallelize(mesh=8)(program.step)
    step.init(init, jax.random.key(0), batch=program.batch)
    assert kinds == {"DynamicJaxprTracer"}


def test_specs_mirror_arguments_and_results(made: Made) -> None:
    out = jax.eval_shape(made.program.step, made.shapes, made.program.batch)
    is_spec = lambda x: isinstance(x, jax.P)  # noqa: E731
    of_args = jax.tree.structure(made.plan.in_specs, is_leaf=is_spec)
    of_results = jax.tree.structure(made.plan.out_specs, is_leaf=is_spec)
    assert of_args == jax.tree.structure((made.shapes, made.program.batch))
    assert of_results == jax.tree.structure(out)


def test_the_state_leaves_as_it_came(made: Made) -> None:
    """What is fed to the next step lies as it expects: nothing is moved in between."""
    assert made.plan.in_specs[0] == made.plan.out_specs[0]
    shardings = made.step.shardings(made.shapes, made.program.batch)[0][0]
    for state in (made.born, made.trained[0]):
        for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
            assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_the_old_state_is_given_up(made: Made) -> None:
    state = jax.tree.map(jnp.copy, made.born)
    made.step(state, made.program.batch)
    big = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert big
    assert all(leaf.is_deleted() for leaf in big)


def test_asking_again_plans_nothing_anew(made: Made) -> None:
    assert made.step.plan(made.shapes, made.program.batch) is made.plan
    assert made.step.plan(made.born, made.program.batch) is made.plan


def test_pins_are_kept() -> None:
    program = linen()
    pins = {r"layers_0/kernel": P("model"), r"batch/.*": P("data"), r"count": P()}
    made = made_of(program, mesh={"data": 2, "model": 4}, search="optimal", pins=pins)
    assert made.plan.spec_of("state/params/params/layers_0/kernel") == P("model")
    assert made.plan.spec_of("state/opt/0/mu/params/layers_0/kernel") == P("model")
    assert made.plan.spec_of("batch/x") == made.plan.spec_of("batch/y") == P("data")
    kernel = made.born["params"]["params"]["layers_0"]["kernel"]
    assert kernel.sharding.spec == P("model")
    np.testing.assert_allclose(made.trained[1], one_device(program)[2], rtol=1e-6)
