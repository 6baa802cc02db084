"""A plan's kernels and collectives, one by one: together they are what the search added up."""

import dataclasses

import pytest

from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster, Resharder
from autopar.cost_model.overlap import Task, step_time
from autopar.models import preset
from autopar.passes.trace import trace
from autopar.search.assemble import Restriction, assemble
from autopar.search.baselines import baseline
from autopar.search.graph import build_graph
from autopar.search.memory import MemoryModel
from autopar.search.network import TICK_S
from autopar.search.operations import operations
from autopar.search.options import Options
from autopar.search.programs import search
from autopar.search.roles import roles
from autopar.search.solve import solve
from autopar.search.tasks import tasks

CLUSTER = Cluster.preset("tpu-v5e", (2, 4))


@pytest.mark.parametrize(
    ("scan", "remat", "name"), [(False, False, None), (True, False, None), (True, True, "fsdp")]
)
def test_tasks_add_up_to_the_objective(scan: bool, remat: bool, name: str | None) -> None:
    workload = preset("gpt:tiny", layers=2, scan=scan, remat=remat)
    batch = workload.abstract_batch(16)
    step = trace(workload.train_step, workload.abstract_state(batch), batch)
    graph, mesh = build_graph(step), MeshSpec.of((8,))
    memory = MemoryModel(step, graph, roles(step, graph), CLUSTER.chip)
    restriction = baseline(name, step, graph, mesh) if name else Restriction()
    links = CLUSTER.axis_links(mesh)
    resharder = Resharder(mesh, links)
    problem = assemble(
        graph, operations(graph), memory.fusion, CLUSTER, mesh, restriction, resharder, alike=True
    )
    found = solve(problem.network, 20.0)
    assert found.choice is not None
    made = tasks(problem, problem.states(found.choice), memory.fusion, memory.attention, resharder)
    time = step_time(made, CLUSTER.chip, links)
    total = time.compute_s + time.comm_s
    assert total == pytest.approx(found.cost * TICK_S, rel=0.01)  # free steps cost a nanosecond
    assert max(time.compute_s, time.comm_s) <= time.step_s <= total * (1 + 1e-9)
    assert sum(1 for task in made if task.body) == (2 if scan else 0)
    assert _in_order(made)


def test_a_plan_tells_what_is_exposed() -> None:
    workload = preset("gpt:tiny", layers=2)
    batch = workload.abstract_batch(16)
    step = trace(workload.train_step, workload.abstract_state(batch), batch)
    options = Options(mesh=MeshSpec.of((8,)), search="fsdp")
    plan = search(step, CLUSTER, options)
    found = plan.predicted
    assert found.compute_s + found.comm_s == pytest.approx(plan.solver.objective_s)
    assert found.step_s == found.compute_s + found.exposed_s
    assert 0 < found.exposed_s < 0.9 * found.comm_s
    chip = dataclasses.replace(CLUSTER.chip, overlap="none")
    alone = search(step, dataclasses.replace(CLUSTER, chip=chip), options)
    assert alone.strategies == plan.strategies  # what is hidden is no part of the objective
    assert alone.predicted.exposed_s == alone.predicted.comm_s == found.comm_s


def _in_order(made: tuple[Task, ...]) -> bool:
    """Whether every task comes after those it needs."""
    return all(
        all(need < index for need in task.needs) and _in_order(task.body)
        for index, task in enumerate(made)
    )
