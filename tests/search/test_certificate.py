"""The certificate: what it says of plans whose repeated layers differ is true, and near."""

from __future__ import annotations

from typing import Any

import jax
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import dense as dense_network
from peer_models import dense, mlp, pairs, squared

from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster
from autopar.passes.trace import trace
from autopar.search.certificate import NEAR, certified, lower_bound
from autopar.search.network import TICK_S
from autopar.search.options import Options
from autopar.search.prepared import Prepared
from autopar.search.programs import search
from autopar.search.solve import solve


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(0, 10**6), st.booleans())
def test_no_assignment_costs_less(seed: int, limited: bool) -> None:
    network = dense_network(seed, limited)
    best = solve(network, 10.0)
    assert lower_bound(network, best.cost, 10.0) <= best.cost


def test_bound_of_a_deep_step_is_true_and_near() -> None:
    def step(params: Any, batch: Any) -> Any:
        gradients = jax.grad(squared(mlp))(params, batch)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    deep = trace(step, [dense(256, 256)] * 30, pairs(64, 256))
    cluster = Cluster.preset("tpu-v5e", (2, 2))
    options = Options(mesh=MeshSpec.of((2, 2)), memory_bytes=2**45)
    plan = search(deep, cluster, options)
    assert plan.solver.layers_alike
    report = certified(deep, cluster, plan, options).solver
    network = Prepared.of(deep, cluster, options).unrolled(plan.mesh).network
    best = solve(network, 60.0)
    assert report.bound_s <= best.cost * TICK_S <= plan.solver.objective_s
    assert (report.layers_alike, report.status) == (False, "optimal")
    assert report.gap <= NEAR
