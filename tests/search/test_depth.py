"""A folded step is searched as the whole step is: the same network, plan, bytes and peak."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import jax
import numpy as np
import optax
import pytest
from peer_models import dense, mlp, pairs, squared

from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.cost_model import Cluster
from autopar.cost_model.overlap import Task, step_time
from autopar.models import preset
from autopar.passes.fold import NotFoldable
from autopar.passes.remat.sides import backward
from autopar.passes.trace import Step, trace
from autopar.search import planner
from autopar.search.draft import unfolded
from autopar.search.options import Options
from autopar.search.prepared import Prepared
from autopar.search.problem import Problem
from autopar.search.storage_choice import choose
from autopar.search.storage_model import StorageModel
from autopar.search.storage_names import dropped_names
from autopar.search.storage_values import Value
from autopar.search.tasks import tasks_without

CLUSTER = Cluster.preset("tpu-v5e", (2, 4))
FREE = Options(mesh=MeshSpec.of((2, 4)), memory_bytes=2**62)


@pytest.fixture(scope="module", params=["gpt", "mlp", "unlike"])
def step(request: pytest.FixtureRequest) -> Step:
    if request.param == "mlp":
        return _perceptron([dense(256, 256)] * 24)
    if request.param == "unlike":
        return _unlike(_perceptron([dense(256, 256)] * 40), 18)
    workload = preset("gpt:tiny", layers=14, d_model=64, seq=32)
    batch = workload.abstract_batch(64)
    return trace(workload.train_step, workload.abstract_state(batch), batch)


def _perceptron(params: Any) -> Step:
    optimiser = optax.adam(1e-3)

    def step(state: Any, batch: Any) -> Any:
        params, opt = state
        gradients = jax.grad(squared(mlp))(params, batch)
        updates, opt = optimiser.update(gradients, opt, params)
        return optax.apply_updates(params, updates), opt

    return trace(step, (params, jax.eval_shape(optimiser.init, params)), pairs(512, 256))


def _unlike(step: Step, first: int) -> Step:
    """The step with layers from the ``first`` on recomputed."""
    layers, eqns = step.layers, step.jaxpr.jaxpr.eqns
    assert layers is not None
    again = [
        str(position)
        for position, (eqn, back) in enumerate(zip(eqns, backward(eqns), strict=True))
        if not back and layers.stack[position] == 0 and layers.layer[position] >= first
        if eqn.primitive.name in ("add", "max")
    ]
    found = step.rematerialised(again)
    assert found.fold is not None
    assert len(found.fold.groups) == 2
    return found


@pytest.fixture(scope="module")
def both(step: Step) -> tuple[Prepared, Prepared]:
    folded = Prepared.folded(step, CLUSTER, FREE)
    assert folded.depth.fold is not None
    return folded, Prepared.of(step, CLUSTER, FREE)


@pytest.fixture(scope="module")
def tolerance(step: Step) -> float:
    """Of memory. Of small layers more than those kept stay on the chip from the forward pass on."""
    return 0.01 if len(step.in_paths) < 200 else 0.0


def planned(prepared: Prepared, options: Options = FREE) -> Plan:
    return planner.search(prepared.step, CLUSTER, options, prepared)


def whole_variables(prepared: Prepared, problem: Problem) -> dict[str, int]:
    """The variable of every node of the whole step."""
    return {
        name: variable
        for node, variable in zip(prepared.graph.nodes, problem.variables, strict=True)
        for name in prepared.depth.names(node)
    }


def test_the_network_is_that_of_the_whole_step(both: tuple[Prepared, Prepared]) -> None:
    folded, whole = (prepared.problem(FREE.mesh) for prepared in both if FREE.mesh)
    assert folded.network.pairs.keys() == whole.network.pairs.keys()
    for one, other in zip(folded.network.unary, whole.network.unary, strict=True):
        np.testing.assert_array_equal(one, other)
    for pair, table in folded.network.pairs.items():
        np.testing.assert_array_equal(table, whole.network.pairs[pair])
    assert whole_variables(both[0], folded) == whole_variables(both[1], whole)
    assert both[0].graph.size == len(both[1].graph.nodes)


def test_the_plan_is_that_of_the_whole_step(
    both: tuple[Prepared, Prepared], tolerance: float
) -> None:
    plans = [planned(prepared) for prepared in both]
    # What is hidden behind what is simulated kernel by kernel, and all but linear in the layers.
    exposed = [plan.predicted.exposed_s for plan in plans]
    assert exposed[0] == pytest.approx(exposed[1], abs=0.01 * plans[0].predicted.step_s)
    curves = [plan.predicted.curve for plan in plans]
    assert curves[0].instants[-1] == pytest.approx(curves[1].instants[-1], abs=10)
    assert curves[0].fullest == curves[1].fullest
    peaks = [plan.predicted.peak_bytes for plan in plans]
    assert peaks[0] == pytest.approx(peaks[1], rel=tolerance)
    assert plans[0].inputs == plans[1].inputs
    assert plans[0].outputs == plans[1].outputs
    assert plans[0].strategies == plans[1].strategies
    assert plans[0].hubs == plans[1].hubs
    assert plans[0].predicted.collectives == plans[1].predicted.collectives
    for one, other in zip(*(_proven(plan) for plan in plans), strict=True):
        assert one == other


def _proven(plan: Plan) -> tuple[object, ...]:
    solver = plan.solver
    return solver.objective_s, solver.bound_s, solver.status, solver.nodes, solver.variables


def test_memory_is_that_of_the_whole_step(
    both: tuple[Prepared, Prepared], tolerance: float
) -> None:
    assert FREE.mesh is not None
    problems = [prepared.problem(FREE.mesh) for prepared in both]
    models = [
        prepared.depth.memory_on(problem) for prepared, problem in zip(both, problems, strict=True)
    ]
    random = np.random.default_rng(0)
    for _ in range(6):
        choice = tuple(int(random.integers(len(costs))) for costs in problems[0].network.unary)
        states = [problem.states(choice) for problem in problems]
        found = [model.peak(one) for model, one in zip(models, states, strict=True)]
        assert found[0][1] == pytest.approx(found[1][1], rel=tolerance)
        loads: list[int] = []
        for model, (instant, _) in zip(models, found, strict=True):
            weights = model.limit(instant, 0).weights
            loads.append(sum(int(weight[choice[v]]) for v, weight in weights.items()))
        assert loads[0] == pytest.approx(loads[1], rel=tolerance)


def test_a_limit_holds_in_the_whole_step() -> None:
    whole = _perceptron([dense(256, 256)] * 20)
    free = planned(Prepared.folded(whole, CLUSTER, FREE))
    budget = int(0.9 * free.predicted.peak_bytes)
    plan = planned(
        Prepared.folded(whole, CLUSTER, FREE), dataclasses.replace(FREE, memory_bytes=budget)
    )
    assert 0 < plan.predicted.peak_bytes <= budget
    assert [value.path for value in plan.inputs] == list(whole.in_paths)
    assert plan.step == whole.fingerprint


def test_choices_of_storage_are_those_of_the_whole_step(
    both: tuple[Prepared, Prepared], tolerance: float
) -> None:
    """A choice for each layer, those left out included; kernels of one moment may change places."""
    found = planner.best(both[0], FREE)
    fold = both[0].depth.fold
    if fold is not None and len(fold.groups) > 1:
        with pytest.raises(NotFoldable):
            StorageModel.of(both[0], found, remat=True)
        return
    folded = StorageModel.of(both[0], found, remat=True)
    whole = StorageModel.of(both[1], unfolded(both[0], found, both[1]), remat=True)
    assert folded.peak == pytest.approx(whole.peak, rel=tolerance)
    assert [still(value) for value in folded.values] == [still(value) for value in whole.values]
    assert folded.bodies[0].eqns.keys() == whole.bodies[0].eqns.keys()
    for share in (0.9, 0.7, 0.5):
        one, other = (
            choose(model.values, model.base, share * whole.peak) for model in (folded, whole)
        )
        assert (one is None) == (other is None)
        if one and other:
            assert one.seconds == pytest.approx(other.seconds, rel=2e-3, abs=1e-9)
            names = dropped_names(folded.values, folded.bodies, one.recomputed)
            assert names == dropped_names(whole.values, whole.bodies, one.recomputed)


def still(value: Value) -> tuple[object, ...]:
    """All that does not depend on the order of kernels."""
    made = value.var, value.name, value.label, sorted(value.group), sorted(value.sources)
    held = value.bytes, value.again, value.trips, value.needed, value.droppable
    return *made, *held, pytest.approx(value.seconds)


def test_without_its_generic_layer_a_step_has_the_tasks_of_one_less() -> None:
    folded = Prepared.folded(_perceptron([dense(256, 256)] * 24), CLUSTER, FREE)
    fold = folded.depth.fold
    assert fold is not None
    left = 24 - len(fold.groups[0].folded)
    fewer = Prepared.of(_perceptron([dense(256, 256)] * left), CLUSTER, FREE)
    random = np.random.default_rng(0)
    for _ in range(4):
        kinds: dict[object, int] = {}
        found: list[tuple[Task, ...]] = []
        for prepared in (folded, fewer):
            problem, memory = prepared.problem(MeshSpec.of((2, 4))), prepared.depth.memory
            states = [
                domain[kinds.setdefault((node.kind, domain), int(random.integers(len(domain))))]
                for node, domain in zip(prepared.graph.nodes, problem.domains, strict=True)
            ]
            parts = problem, states, memory.fusion, memory.attention, problem.resharder
            found.append(tasks_without(*parts, prepared.depth.gone)[-1])
        assert counted(found[0]) == counted(found[1])
        links = CLUSTER.axis_links(MeshSpec.of((2, 4)))
        times = [step_time(made, CLUSTER.chip, links).step_s for made in found]
        assert times[0] == pytest.approx(times[1], rel=1e-3)  # of two at once one is first


def counted(made: tuple[Task, ...]) -> Counter[object]:
    """Tasks, whatever their order."""
    return Counter((task.load, task.moves, task.ahead, len(task.needs)) for task in made)
