"""Pins of inputs and of operations' results: specs, open dimensions, values that lie alike."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import P

import autopar
from autopar.core.layout import Layout, from_spec
from autopar.core.mesh import MeshSpec
from autopar.passes.sources import source_name
from autopar.passes.trace import Step, trace
from autopar.search.options import Options
from autopar.search.planner import best
from autopar.search.prepared import Prepared

CPU8 = autopar.Cluster.preset("cpu", 8)
MESH = MeshSpec.of((4, 2))
WIDE, DEEP = 32, 20
X = jax.random.normal(jax.random.key(1), (16, WIDE))

State = dict[str, Any]


def init(layers: int) -> State:
    keys = jax.random.split(jax.random.key(0), layers)
    params = {
        f"layer_{i}": {"w": jax.random.normal(key, (WIDE, WIDE)) / 6, "b": jnp.zeros(WIDE)}
        for i, key in enumerate(keys)
    }
    return {"params": params, "opt": optax.adam(1e-2).init(params)}


def loss(params: State, x: jax.Array) -> jax.Array:
    for name, layer in params.items():
        with jax.named_scope(name):
            x = jnp.tanh(x @ layer["w"] + layer["b"])
    return jnp.mean(x**2)


def step(state: State, x: jax.Array) -> tuple[State, jax.Array]:
    value, grads = jax.value_and_grad(loss)(state["params"], x)
    updates, opt = optax.adam(1e-2).update(grads, state["opt"])
    return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, value


def traced(layers: int) -> Step:
    return trace(step, init(layers), X, donate=())


def planned(layers: int = 2, **request: Any) -> autopar.Plan:
    return autopar.plan(step, init(layers), X, cluster=CPU8, mesh=(4, 2), donate=(), **request)


def rests(plan: autopar.Plan) -> dict[str, Layout]:
    return {value.path: value.layout for value in plan.inputs}


def lies(plan: autopar.Plan, name: str) -> Layout:
    """How the result of the operation of this name lies."""
    eqns = traced(2).jaxpr.jaxpr.eqns
    (found,) = (plan.hubs[f"{i}.0"] for i, eqn in enumerate(eqns) if source_name(eqn) == name)
    return found


def check_runs(plan: autopar.Plan) -> None:
    want = jax.jit(step)(init(2), X)
    for backend in ("jit", "shard_map"):
        got = autopar.apply(step, plan, backend=backend, donate=())(init(2), X)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("spec", [P("data", "model"), P(None, "data"), P()])
def test_result_of_an_operation(spec: jax.P) -> None:
    """It lies as pinned whatever is cheapest, and the step computes the same."""
    plan = planned(pins={"layer_0/dot_general": spec, "layer_1/tanh": spec})
    for name in ("layer_0/dot_general", "layer_1/tanh"):
        assert lies(plan, name) == from_spec(spec, MESH)
    assert plan.solver.status == "optimal"
    assert plan.solver.objective_s >= planned().solver.bound_s
    check_runs(plan)


def test_dimensions_left_open() -> None:
    """One way of all that are left to the search is found, the cheapest."""
    free = planned(pins={"layer_0/w": P(P.UNCONSTRAINED, None)})
    (found,) = (layout for path, layout in rests(free).items() if path == "state/params/layer_0/w")
    assert not any(str(placement) == "S(1)" for placement in found)
    every = (P(), P("data"), P("model"), P(("data", "model")))
    costs = [planned(pins={"layer_0/w": spec}).solver.objective_s for spec in every]
    assert free.solver.objective_s == pytest.approx(min(costs), rel=1e-9)


def test_values_that_lie_alike() -> None:
    """The moments as their parameters, one parameter as another, a result as an input."""
    pins = {
        r"opt/0/(?:mu|nu)/(.*)": r"state/params/\1",
        "params/layer_0/w": P(None, "data"),
        "params/layer_1/w": "params/layer_0/w",
        "layer_0/tanh": "x",
    }
    plan = planned(pins=pins)
    found = rests(plan)
    for path, layout in found.items():
        if "/mu/" in path or "/nu/" in path:
            assert layout == found["state/params" + path.partition("u/")[2].join(("/", ""))]
    assert found["state/params/layer_1/w"] == from_spec(P(None, "data"), MESH)
    assert lies(plan, "layer_0/tanh") == found["x"]
    check_runs(plan)


NAMES = ("params/layer_0/w", "params/layer_1/w", "layer_0/tanh", "layer_1/dot_general", "x")
SAID = st.one_of(
    st.sampled_from([P(), P("data"), P(None, "model"), P(P.UNCONSTRAINED, None)]),
    st.sampled_from(NAMES),
)


def tiny(state: State, x: jax.Array) -> tuple[State, jax.Array]:
    value, grads = jax.value_and_grad(loss)(state, x)
    return jax.tree.map(lambda p, g: p - 0.1 * g, state, grads), value


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES[:-1]), SAID, min_size=1, max_size=3))
def test_cheaper_than_none_that_is_allowed(pins: dict[str, Any]) -> None:
    """A random plan under the same pins is never cheaper, and each does what they say."""
    pins = {name: said for name, said in pins.items() if said != name}
    program = trace(tiny, init(2)["params"], X)
    pins = {name.removeprefix("params/"): _own(said) for name, said in pins.items()}

    def cost(search: str, seed: int = 0) -> int:
        options = Options(search=search, mesh=MESH, pins=pins, seed=seed)
        return best(Prepared.of(program, CPU8, options), options).solution.cost

    least = cost("optimal")
    assert all(cost("random", seed) >= least for seed in range(3))
    free = Options(mesh=MESH)
    assert least >= best(Prepared.of(program, CPU8, free), free).solution.bound


def _own(said: Any) -> Any:
    return said.removeprefix("params/") if isinstance(said, str) else said


ALL = {r".*/layer_\d+/w": P(None, "model"), r"opt/0/mu/(.*)": r"state/params/\1"}


@pytest.mark.parametrize(
    ("pins", "folded"),
    [
        (ALL, True),
        ({"x": P("data")}, True),
        ({r"params/layer_\d+/b": "params/layer_0/b"}, True),
        ({"params/layer_16/w": P("data")}, False),
        ({"params/layer_0/w": "params/layer_16/w"}, False),
        ({r"layer_\d+/tanh": P("data")}, False),
    ],
)
def test_layers_are_told_apart_only_by_pins(pins: dict[str, Any], folded: bool) -> None:
    """What pins say of all layers alike changes nothing about how they are searched."""
    program, options = traced(DEEP), Options(mesh=MESH, pins=pins)
    prepared = Prepared.folded(program, CPU8, options)
    assert (prepared.depth.fold is not None) == folded
    plain = best(Prepared.of(program, CPU8, options), options).solution
    found = best(prepared, options).solution
    assert found.bound <= plain.cost
    assert plain.bound <= found.cost


def test_solved_again_after_a_change() -> None:
    """Pins added and taken back, in any order, with a budget or before it: the same plan."""
    program = autopar.trace(step, init(2), X)
    ask = {"cluster": CPU8, "mesh": (4, 2)}
    first = autopar.plan(program, **ask)
    pinned = autopar.plan(program, **ask, pins={"layer_0/w": P("data")}, memory="1GiB")
    assert rests(pinned)["state/params/layer_0/w"] == from_spec(P("data"), MESH)
    for again in (autopar.plan(program, **ask), autopar.plan(step, init(2), X, **ask)):
        assert (again.inputs, again.hubs, again.strategies, again.predicted) == (
            *(first.inputs, first.hubs, first.strategies),
            first.predicted,
        )
    with pytest.raises(autopar.AutoparError, match="has its arguments already"):
        autopar.plan(program, X, **ask)
