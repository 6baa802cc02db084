"""Plans that keep state on the host: chosen when memory asks for it, equal to the plain step."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import autopar
from autopar.core.errors import InfeasibleError, OptionError, PlanError
from autopar.core.layout import B, Split
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Offloaded
from autopar.core.plan_json import from_json, to_json
from autopar.models import preset
from autopar.passes.offload import pieces_under
from autopar.passes.remat import droppable
from autopar.passes.trace import trace
from autopar.runtime import PlannedStep
from autopar.search import planner
from autopar.search.options import Options
from autopar.search.prepared import Away, Prepared

SHAPE = (512, 1024)
OPTIMIZER = optax.adamw(1e-3)


def step(state: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    params, inner = state

    def loss(p: Any) -> jax.Array:
        y = x
        for w in p:
            y = y + jnp.sin(jnp.tanh(y @ w)) @ w.T
        return jnp.mean(y**2)

    value, grads = jax.value_and_grad(loss)(params)
    updates, inner = OPTIMIZER.update(grads, inner, params)
    return (optax.apply_updates(params, updates), inner), value


def arguments() -> tuple[Any, jax.Array]:
    params = [jnp.full(SHAPE, 0.01), jnp.full(SHAPE, 0.02)]
    return (params, OPTIMIZER.init(params)), jnp.ones((8, SHAPE[0]))


def plan(mebibytes: float, cluster: str = "cpu:1", **options: Any) -> autopar.Plan:
    target = autopar.cost_model.parse_cluster(cluster)
    return autopar.plan(
        step, *arguments(), cluster=target, memory=int(mebibytes * 2**20), **options
    )


def test_what_is_on_the_host_rests_as_it_must() -> None:
    """Though another layout costs no more: an update is streamed only if all of it rests alike."""
    cluster = autopar.cost_model.parse_cluster("cpu:4")
    traced = trace(step, *arguments())
    options = Options(mesh=MeshSpec.of({"data": 4}), memory_bytes=2**40)
    for layout in ((Split(0),), (Split(1),), (B,)):
        away = Away(frozenset((3, 5)), resting={3: layout, 5: layout})
        prepared = Prepared.of(traced, cluster, options, away)
        found = planner.search(traced, cluster, options, prepared)
        assert [found.inputs[i].layout for i in (3, 5)] == [layout, layout]


def test_what_fits_stays_on_the_device() -> None:
    assert not plan(64).offloaded


def test_what_does_not_fit_rests_on_the_host_and_the_plan_says_so() -> None:
    found = plan(10)
    held = sum(one.bytes for one in found.offloaded)
    assert found.predicted.host_bytes == held >= 4 * 2**20
    assert found.predicted.peak_bytes <= 10 * 2**20
    assert found.predicted.step_s >= found.predicted.compute_s + sum(
        one.seconds for one in found.offloaded
    )
    assert "on the host" in str(found)
    assert from_json(to_json(found)) == found


def test_none_keeps_all_on_the_device() -> None:
    with pytest.raises(InfeasibleError):
        plan(10, offload="none")
    with pytest.raises(OptionError, match="offload='some' is not offered"):
        plan(10, offload="some")


def test_a_small_host_says_so() -> None:
    with pytest.raises(InfeasibleError, match=r"no room for .* more: give more host_memory"):
        plan(10, host_memory="3MiB")


def test_a_plan_names_inputs_that_can_be_streamed() -> None:
    found = plan(10)
    for path, message in (("state/0/0", "cannot be kept on the host"), ("odd", "offloaded")):
        wrong = dataclasses.replace(found, offloaded=(Offloaded(path, 1, 1.0),))
        with pytest.raises(PlanError, match=message):
            autopar.apply(step, from_json(to_json(wrong))).lower(*arguments())


@pytest.mark.parametrize("backend", ["jit", "shard_map"])
def test_five_steps_equal_the_plain_ones(backend: str) -> None:
    planned, plain = autopar.apply(step, plan(10), backend=backend), jax.jit(step)
    (state, x), (other, _) = arguments(), arguments()
    for _ in range(STEPS):
        state, _ = planned(state, x)
        other, _ = plain(other, x)
    for one, same in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(one, same, rtol=1e-4, atol=1e-7)
    assert "pinned_host" in {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state)}


def loop_step(params: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    def loss(p: jax.Array) -> jax.Array:
        body = lambda y, w: (y + jnp.sin(jnp.tanh(y @ w)) @ w.T, None)  # noqa: E731
        return jnp.mean(jax.lax.scan(body, x, p)[0] ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    return params - 0.1 * grads, value


@pytest.mark.parametrize("devices", [1, 8])
def test_stacks_of_a_loop_on_the_host_give_the_same_step(devices: int) -> None:
    """What the forward loop leaves for the backward one, its carry included."""
    args = jnp.full((4, 16, 64), 0.1), jnp.ones((64, 16))
    cluster, mesh = autopar.Cluster.preset("cpu", (devices,)), MeshSpec.of({"data": devices})
    traced = trace(loop_step, *args)
    found = planner.search(traced, cluster, Options(mesh=mesh, pins={"x": jax.P("data")}))
    away = tuple(Offloaded("carry", 1, 1.0, name) for name in traced.stacks)
    assert len(away) >= 3
    found = dataclasses.replace(found, offloaded=away)
    assert from_json(to_json(found)) == found
    bound = PlannedStep(traced, found)
    assert str(jax.make_jaxpr(bound.call)(*args)).count("<host>") >= 2 * len(away)
    (same, expected), (params, loss) = jax.jit(loop_step)(*args), bound.call(*args)
    np.testing.assert_allclose(params, same, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    with pytest.raises(PlanError, match="backend='shard_map' does not offer"):
        autopar.apply(loop_step, found, backend="shard_map").lower(*args)
    odd = dataclasses.replace(found, offloaded=(Offloaded("carry", 1, 1.0, "0.0"),))
    with pytest.raises(PlanError, match="nothing that a loop stacks"):
        autopar.apply(loop_step, odd).lower(*args)


STEPS = 5
GPT = preset("gpt:tiny", d_model=256, heads=4, layers=1, seq=32, batch_size=8)


@pytest.mark.slow
@pytest.mark.parametrize(("devices", "backend"), [(1, "jit"), (8, "jit"), (8, "shard_map")])
def test_five_steps_of_a_gpt_equal_the_plain_ones(devices: int, backend: str) -> None:
    """Rematerialised, all state that may be on the host, sharded over all devices."""
    state = GPT.init(jax.random.key(0), next(GPT.batches()))
    batches = [next(GPT.batches(start=i)) for i in range(STEPS)]
    mesh = MeshSpec.of({"data": devices})
    pins = {"state/.*kernel": jax.P("data"), "batch/.*": jax.P("data")}
    traced = trace(GPT.train_step, state, batches[0])
    wanted = {i for i in droppable(traced.jaxpr) if "/" not in i}
    program = traced.rematerialised(sorted(wanted, key=int))
    cluster = autopar.Cluster.preset("cpu", (devices,))
    found = planner.search(program, cluster, Options(mesh=mesh, pins=pins))
    away = [
        Offloaded(traced.in_paths[i], 1, 1.0)
        for update in program.updates
        for i in sorted(update.inputs)
        if pieces_under(update, [found.inputs[i].layout], found.mesh)
    ]
    assert len(away) >= 12
    found = dataclasses.replace(
        found, recompute=tuple(sorted(wanted, key=int)), offloaded=tuple(away)
    )
    planned, plain = autopar.apply(GPT.train_step, found, backend=backend), jax.jit(GPT.train_step)
    other = jax.tree.map(jnp.copy, state)
    for batch in batches:
        state, metrics = planned(state, batch)
        other, expected = plain(other, batch)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=2e-3)
    kinds = {leaf.sharding.memory_kind for leaf in jax.tree.leaves(state.opt_state)}
    assert "pinned_host" in kinds


@pytest.mark.slow
def test_weights_that_a_loop_goes_over_rest_on_the_host() -> None:
    """With their gradients, and what the loop leaves for the backward pass.

    Five steps of a GPT whose layers are a loop equal the plain ones.
    """
    model = preset("gpt:tiny", d_model=256, heads=4, layers=4, seq=32, batch_size=8, scan=True)
    state = model.init(jax.random.key(0), next(model.batches()))
    batches = [next(model.batches(start=i)) for i in range(STEPS)]
    args = (model.train_step, state, batches[0])
    cluster = autopar.Cluster.preset("cpu", (1,))
    free = autopar.plan(*args, cluster=cluster, memory=2**40, remat="none").predicted.peak_bytes
    found = autopar.plan(*args, cluster=cluster, memory=int(0.25 * free))
    away = {one.value for one in found.offloaded}
    assert found.recompute
    assert "state/params/blocks/mlp/up/kernel" in away
    assert any(one.stack for one in found.offloaded)
    planned, plain = autopar.apply(model.train_step, found), jax.jit(model.train_step)
    other = jax.tree.map(jnp.copy, state)
    for batch in batches:
        state, metrics = planned(state, batch)
        other, expected = plain(other, batch)
        np.testing.assert_allclose(metrics["loss"], expected["loss"], rtol=2e-3)
    assert state.params["blocks"]["mlp"]["up"]["kernel"].sharding.memory_kind == "pinned_host"
