"""The public surface, on eight devices: what a user does with a planned step."""

from __future__ import annotations

import functools
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from steps import adam_init, adam_step, batch_of, mlp_init, net_init, net_step, sgd_step, shapes

import autopar

KEY = jax.random.key(0)
CPU8 = autopar.Cluster.preset("cpu", 8)
# Emulated devices are slow to talk, so that by itself the search would replicate everything: these
# make it split.
SPLIT = {"mesh": 8, "pins": {"batch/.": jax.P("data"), ".*kernel": jax.P(None, "data")}}


def split(step: Callable[..., Any], **options: Any) -> Any:
    return autopar.parallelize(cluster=CPU8, **{**SPLIT, **options})(step)


def by_one_device(step: Callable[..., Any], state: Any, steps: int, **batch: int) -> Any:
    """What ``steps`` steps give without autopar."""
    losses = []
    for seed in range(steps):
        state, loss = jax.jit(step)(state, batch_of(seed=seed, **batch))
        losses.append(loss)
    return state, losses


def assert_close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def largest_shard(state: Any) -> float:
    """The largest share of any matrix of ``state`` that one device holds."""
    return max(
        math.prod(shard.data.shape) / leaf.size
        for leaf in jax.tree.leaves(state)
        if leaf.ndim > 1
        for shard in leaf.addressable_shards
    )


def test_bare_decorator() -> None:
    @autopar.parallelize
    def step(params: Any, batch: Any) -> Any:
        """Trains."""
        return sgd_step(params, batch)

    assert (step.__name__, step.__doc__) == ("step", "Trains.")
    expected = jax.jit(sgd_step)(mlp_init(KEY), batch_of())
    assert_close(step(mlp_init(KEY), batch_of()), expected)
    assert step.plan(mlp_init(KEY), batch_of()).mesh.device_count == 8


def test_decorator_with_options() -> None:
    @autopar.parallelize(cluster=CPU8, mesh={"rows": 8}, pins={"batch/.": jax.P("rows")})
    def step(params: Any, batch: Any) -> Any:
        return sgd_step(params, batch)

    plan = step.plan(shapes(mlp_init(KEY)), shapes(batch_of()))
    assert plan.spec_of("batch/x") == jax.P("rows")
    assert plan.mesh.names == ("rows",)


STEPS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "plain pytrees": (mlp_init, sgd_step),
    "dataclasses that are pytrees": (net_init, net_step),
    "optax, clipped by the global norm": (adam_init, adam_step),
}


@pytest.mark.parametrize("style", STEPS)
@pytest.mark.parametrize("backend", ["jit", "shard_map"])
def test_three_steps_equal_one_device(style: str, backend: str) -> None:
    init, step = STEPS[style]
    ours = split(step, backend=backend)
    state = ours.init(init, KEY, batch=batch_of())
    losses = []
    for seed in range(3):
        state, loss = ours(state, batch_of(seed=seed))
        losses.append(loss)
    expected, expected_losses = by_one_device(step, init(KEY), 3)
    assert_close(state, expected)
    assert_close(losses, expected_losses)
    assert largest_shard(state) == 1 / 8


def test_flax_nnx() -> None:
    """A module split into its graph, which is static, and its state."""

    class Model(nnx.Module):
        def __init__(self, rngs: nnx.Rngs) -> None:
            self.up = nnx.Linear(32, 64, rngs=rngs)
            self.down = nnx.Linear(64, 32, rngs=rngs)

        def __call__(self, x: jax.Array) -> jax.Array:
            return self.down(nnx.relu(self.up(x)))

    graph, state = nnx.split(Model(nnx.Rngs(0)))

    def step(state: Any, batch: Any) -> Any:
        def loss(state: Any) -> jax.Array:
            return jnp.mean((nnx.merge(graph, state)(batch["x"]) - batch["y"]) ** 2)

        value, grads = jax.value_and_grad(loss)(state)
        return jax.tree.map(lambda p, g: p - 0.1 * g, state, grads), value

    expected, losses = by_one_device(step, state, 3)
    ours = split(step, pins={"batch/.": jax.P("data"), ".*kernel.*": jax.P(None, "data")})
    for seed in range(3):
        state, loss = ours(state, batch_of(seed=seed))
    assert_close(state, expected)
    assert_close(loss, losses[-1])
    assert largest_shard(state) == 1 / 8
    nnx.merge(graph, state)  # it is still a module


def test_state_is_born_sharded() -> None:
    ours = split(adam_step)
    whole: list[str] = []

    def init(key: jax.Array) -> Any:
        state = adam_init(key)
        jax.tree.map(lambda a: whole.append(type(a).__name__), state)
        return state

    state = ours.init(init, KEY, batch=shapes(batch_of()))
    assert set(whole) <= {"DynamicJaxprTracer"}  # never run eagerly
    assert largest_shard(state) == 1 / 8
    (shardings, _), _ = ours.shardings(shapes(state), shapes(batch_of()))
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
    assert_close(state, adam_init(KEY))


def test_layouts_are_stable_across_steps() -> None:
    ours = split(adam_step)
    state = ours.init(adam_init, KEY, batch=batch_of())
    born = jax.tree.map(lambda a: a.sharding, state)
    after, _ = ours(state, batch_of())
    for old, leaf in zip(jax.tree.leaves(born), jax.tree.leaves(after), strict=True):
        assert old.is_equivalent_to(leaf.sharding, leaf.ndim)


def test_compiled_once() -> None:
    ours = split(adam_step)
    state = ours.init(adam_init, KEY, batch=batch_of())
    for seed in range(3):
        state, _ = ours(state, batch_of(seed=seed))
    assert ours._bound is not None
    assert ours._bound.call._cache_size() == 1


def test_donated_input_is_deleted() -> None:
    ours = split(sgd_step)
    state = ours.init(mlp_init, KEY, batch=batch_of())
    ours(state, batch_of())
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))


def test_nothing_is_donated_unasked() -> None:
    ours = split(sgd_step, donate=())
    state, batch = ours.init(mlp_init, KEY, batch=batch_of()), batch_of()
    ours(state, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, batch)))


def test_keyword_arguments() -> None:
    ours = split(sgd_step, donate=())
    by_position = ours(mlp_init(KEY), batch_of())
    assert_close(ours(batch=batch_of(), params=mlp_init(KEY)), by_position)
    assert_close(ours(mlp_init(KEY), batch=batch_of()), by_position)


def test_another_shape_is_planned_anew() -> None:
    ours = split(sgd_step, donate=())
    small, large = batch_of(16), batch_of(32)
    for batch in (small, large, small):
        assert_close(ours(mlp_init(KEY), batch), jax.jit(sgd_step)(mlp_init(KEY), batch))
        assert ours.plan(mlp_init(KEY), batch).inputs[-1].shape == batch["y"].shape
    assert ours.plan(mlp_init(KEY), small) is ours.plan(mlp_init(KEY), small)  # remembered


def test_user_errors_are_not_swallowed() -> None:
    ours = split(sgd_step)
    with pytest.raises(autopar.AutoparError, match="missing 1 required positional"):
        ours(mlp_init(KEY))


def test_plan_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    args = (shapes(mlp_init(KEY)), shapes(batch_of()))
    plan = autopar.plan(sgd_step, *args, cluster=CPU8, **SPLIT)
    plan.save(path)
    ours = autopar.parallelize(plan=str(path))(sgd_step)
    assert ours.plan(*args) == plan
    assert ours.plan(*args).solver == autopar.Plan.load(path).solver
    assert_close(ours(mlp_init(KEY), batch_of()), jax.jit(sgd_step)(mlp_init(KEY), batch_of()))


def test_ahead_of_time() -> None:
    ours = split(sgd_step)
    args = (shapes(mlp_init(KEY)), shapes(batch_of()))
    assert ours.trace(*args).jaxpr.eqns
    assert "stablehlo" in ours.lower(*args).as_text()
    compiled = ours.compile(*args)
    assert "planned_step" in compiled.as_text()
    state = ours.init(mlp_init, KEY, batch=args[1])
    (_, batch_sharding), _ = ours.shardings(*args)
    found = compiled(state, jax.device_put(batch_of(), batch_sharding))
    assert_close(found, jax.jit(sgd_step)(mlp_init(KEY), batch_of()))


def test_shardings_are_those_of_the_plan() -> None:
    ours = split(sgd_step)
    args = (shapes(mlp_init(KEY)), shapes(batch_of()))
    ins, outs = ours.shardings(*args)
    plan = ours.plan(*args)
    assert jax.tree.map(lambda s: s.spec, ins) == plan.in_specs
    assert jax.tree.map(lambda s: s.spec, outs) == plan.out_specs
    assert jax.tree.structure(ins) == jax.tree.structure(args)
    assert plan.in_specs[0]["layer_0"]["kernel"] == jax.P(None, "data")
    assert isinstance(ins[1]["x"], NamedSharding)
    assert ins[1]["x"].mesh.axis_names == ("data",)


def test_some_of_the_devices() -> None:
    plan = autopar.plan(
        sgd_step,
        shapes(mlp_init(KEY)),
        shapes(batch_of()),
        cluster=autopar.Cluster.preset("cpu", 2),
        **{**SPLIT, "mesh": 2},
    )
    last = jax.devices()[-2:]
    state, _ = autopar.apply(sgd_step, plan, devices=last)(mlp_init(KEY), batch_of())
    assert {d for leaf in jax.tree.leaves(state) for d in leaf.devices()} == set(last)


def test_bound_arguments() -> None:
    def step(params: Any, batch: Any, *, scale: float) -> Any:
        return sgd_step(params, jax.tree.map(lambda x: scale * x, batch))

    bound = functools.partial(step, scale=2.0)
    assert_close(split(bound)(mlp_init(KEY), batch_of()), jax.jit(bound)(mlp_init(KEY), batch_of()))


@pytest.mark.parametrize("search", ["data", "fsdp", "random", "optimal"])
def test_every_search_gives_a_step_that_runs(search: str) -> None:
    ours = autopar.parallelize(cluster=CPU8, mesh=8, search=search, seed=3)(adam_step)
    state = ours.init(adam_init, KEY, batch=batch_of())
    state, loss = ours(state, batch_of())
    assert_close((state, loss), jax.jit(adam_step)(adam_init(KEY), batch_of()))


PROGRAM = """
import sys
import jax
from steps import adam_init, adam_step, batch_of, shapes
import autopar

state = jax.eval_shape(adam_init, jax.random.key(0))
plan = autopar.plan(
    adam_step, state, shapes(batch_of(256)), cluster=autopar.Cluster.preset("h100", 8)
)
plan.save(sys.argv[1])
"""


def test_same_plan_byte_for_byte(tmp_path: Path) -> None:
    """In two processes whose sets and dicts of text are ordered differently."""
    texts = []
    for seed in ("1", "2"):
        path = tmp_path / f"plan{seed}.json"
        folder = str(Path(__file__).parent)
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": folder, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", PROGRAM, str(path)], env=env, check=True)
        texts.append(path.read_bytes())
    assert len(texts[0]) > 1000
    assert texts[0] == texts[1]
