"""Layers that differ under a memory limit: within it, no worse than alike, and the same numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autopar
from autopar.core.errors import InfeasibleError
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster
from autopar.passes.trace import trace
from autopar.search import planner
from autopar.search.certificate import lower_bound
from autopar.search.draft import Draft
from autopar.search.memory_prices import priced
from autopar.search.mixing import mixed
from autopar.search.network import TICK_S
from autopar.search.options import Options
from autopar.search.prepared import Prepared

AMPLE = 2**45
Step = Callable[[Any, Any], Any]


def stack(layers: int, width: int, hidden: int, batch: int) -> tuple[Step, Any, Any]:
    """A step of residual layers, and its arguments."""

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for up, down in params:
            x = x + jnp.tanh(x @ up) @ down
        return jnp.mean(x**2)

    def step(params: Any, x: jax.Array) -> Any:
        return jax.tree.map(lambda p, d: p - 0.1 * d, params, jax.grad(loss)(params, x))

    one = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((width, hidden), (hidden, width))]
    return step, [tuple(one)] * layers, jax.ShapeDtypeStruct((batch, width), jnp.float32)


STACKS = [
    ((16, 1024, 4096, 4096), "tpu-v5e", (2, 2), (4,)),
    ((16, 1024, 1024, 8192), "tpu-v5e", (2, 2), (4,)),
    ((18, 256, 256, 1024), "tpu-v5e", (2, 2), (4,)),
    ((16, 256, 512, 64), "tpu-v5e", (2, 4), (8,)),
    ((16, 1024, 4096, 4096), "h100", 8, (2, 4)),
    ((8, 1024, 1024, 8192), "tpu-v5e", (2, 1), (2,)),  # too small for layers to be alike
]


@pytest.mark.parametrize(("sizes", "chip", "shape", "mesh"), STACKS)
def test_mixed_plans(sizes: tuple[int, ...], chip: str, shape: Any, mesh: tuple[int, ...]) -> None:
    """They fit, cost less than where layers are alike, and no less than the optimum there is."""
    step, *args = stack(*sizes)
    traced, cluster = trace(step, *args), Cluster.preset(chip, shape)
    ample = Options(mesh=MeshSpec.of(mesh), memory_bytes=AMPLE, time_limit_s=5.0)
    prepared = Prepared.folded(traced, cluster, ample)
    plain = Prepared.of(traced, cluster, ample)
    apart = plain.unrolled(MeshSpec.of(mesh))
    memory = plain.memory.on(apart)
    free = planner.best(prepared, ample)
    found = 0
    for share in (0.9, 0.8):
        budget = int(share * free.peak_bytes)
        options = dataclasses.replace(ample, memory_bytes=budget)
        try:
            alike = Draft(prepared, planner.best(prepared, options), options, 0.0)
        except InfeasibleError:
            continue
        draft = mixed(alike, alike.solver.objective_s)
        if draft is None:
            continue
        found += 1
        names = {
            name: state
            for node, state in zip(draft.prepared.graph.nodes, draft.states, strict=True)
            for name in draft.prepared.depth.names(node)
        }
        states = [names[node.name] for node in plain.graph.nodes]
        choice = [domain.index(s) for domain, s in zip(apart.domains, states, strict=True)]
        cost = draft.found.solution.cost
        assert apart.network.cost(choice) == cost
        assert free.solution.bound <= cost < alike.found.solution.cost
        instant, peak = memory.peak(states)
        assert peak == draft.peak_bytes <= budget
        price = (alike.found.solution.cost - cost) / (free.peak_bytes - peak)
        room = price * (budget + memory.vmem_bytes)
        assert lower_bound(priced(memory, instant, price), cost + int(room), 2.0) - room <= cost
        plan = draft.plan
        assert (plan.predicted.peak_bytes, plan.solver.status) == (peak, "feasible")
        assert plan.solver.objective_s == pytest.approx(cost * TICK_S)
        assert plan.solver.bound_s <= plan.solver.objective_s
    assert found or sizes[0] < 16


def test_nothing_is_mixed_where_alike_costs_little() -> None:
    step, *args = stack(16, 1024, 4096, 4096)
    options = Options(mesh=MeshSpec.of(4), memory_bytes=AMPLE)
    prepared = Prepared.folded(trace(step, *args), Cluster.preset("tpu-v5e", (2, 2)), options)
    free = Draft(prepared, planner.best(prepared, options), options, 0.0)
    assert mixed(free, free.solver.objective_s) is None


@pytest.mark.parametrize("backend", ["jit", "shard_map"])
def test_a_mixed_plan_computes_the_same(backend: Any) -> None:
    step, *args = stack(16, 256, 512, 64)
    cluster = Cluster.preset("tpu-v5e", (2, 4))
    options: dict[str, Any] = {"cluster": cluster, "mesh": 8, "offload": "none", "remat": "none"}
    free = autopar.plan(step, *args, memory=AMPLE, **options)
    budget = int(0.8 * free.predicted.peak_bytes)
    plan = autopar.plan(step, *args, memory=budget, **options)
    assert plan.predicted.peak_bytes <= budget
    rests = [str(value.layout) for value in plan.inputs if value.path.startswith("params/")]
    work = [str(s) for name, s in plan.strategies.items() if "/" not in name]
    assert len({tuple(rests[i : i + 2]) for i in range(0, 32, 2)}) > 1 or len(set(work)) > 1
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda a: jnp.asarray(rng.normal(0, 0.05, a.shape), a.dtype), args)
    want = jax.jit(step)(*values)
    got = autopar.apply(step, plan, backend=backend)(*values)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), got, want)


def test_places_follow_the_program() -> None:
    """The layers of a second stack come after those of the first."""

    def step(params: Any, x: jax.Array) -> jax.Array:
        for one in params[0]:
            x = jnp.tanh(x @ one)
        for one in params[1]:
            x = jnp.sin(x @ one) + x
        return x

    params = [[jax.ShapeDtypeStruct((8, 8), jnp.float32)] * count for count in (6, 9)]
    traced = trace(step, params, jax.ShapeDtypeStruct((4, 8), jnp.float32), donate=())
    assert traced.layers is not None
    places = traced.layers.places()[: len(traced.jaxpr.jaxpr.eqns)]
    assert sorted(set(places.tolist())) == list(range(15))
    assert (np.diff(places) >= 0).all()
