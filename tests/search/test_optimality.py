"""Optimal is optimal: brute force on small steps, HiGHS on larger ones, layers alike on deep."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autopar
from autopar.core.errors import OptionError
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster, Resharder
from autopar.models import GPTConfig, MLPConfig, make_workload
from autopar.models.training import default_optimizer
from autopar.passes.trace import trace
from autopar.search.assemble import Restriction, assemble
from autopar.search.graph import build_graph
from autopar.search.memory import MemoryModel
from autopar.search.operations import operations
from autopar.search.problem import Problem
from autopar.search.roles import roles
from autopar.search.shrink import shrink
from autopar.search.solve import solve
from autopar.search.solvers import highs, toulbar2

Step = Callable[..., Any]
CLUSTERS = {(2,): Cluster.preset("tpu-v5e", (2, 1)), (2, 2): Cluster.preset("tpu-v5e", (2, 2))}


def small_step(seed: int, equations: int) -> tuple[Step, list[jax.ShapeDtypeStruct]]:
    """A composition of ``equations`` operations on matrices, and its arguments."""
    rng = np.random.default_rng(seed)
    sizes = (2048, 16384, 6)  # worth splitting; 6 divides by 2 but not by 4
    draw = lambda: int(rng.choice(sizes))  # noqa: E731
    shape = [draw(), draw()]
    arguments = [tuple(shape)]
    program: list[tuple[str, int]] = []
    for _ in range(equations):
        kind = str(rng.choice(["dot", "add", "relu", "transpose", "sum", "max", "mul"]))
        if kind == "dot":
            arguments.append((shape[1], draw()))
            shape[1] = arguments[-1][1]
        elif kind == "add":
            arguments.append(tuple(shape))
        elif kind == "transpose":
            shape.reverse()
        program.append((kind, len(arguments) - 1))

    def step(*values: jax.Array) -> jax.Array:
        x = values[0]
        for kind, operand in program:
            match kind:
                case "dot":
                    x = x @ values[operand]
                case "add":
                    x = x + values[operand]
                case "relu":
                    x = jnp.maximum(x, 0)
                case "transpose":
                    x = x.T
                case "sum":
                    x = x * jnp.sum(x, axis=0, keepdims=True)
                case "max":
                    x = x - jnp.max(x, axis=1, keepdims=True)
                case _:
                    x = x * x
        return x

    return step, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in arguments]


def problem_of(
    step: Step, args: Any, cluster: Cluster, mesh: Any, *, alike: bool, donate: Any = ()
) -> Problem:
    """The network of a step on one mesh."""
    traced = trace(step, *args, donate=donate)
    graph, spec = build_graph(traced), MeshSpec.of(mesh)
    fusion = MemoryModel(traced, graph, roles(traced, graph), cluster.chip).fusion
    resharder = Resharder(spec, cluster.axis_links(spec))
    return assemble(
        graph, operations(graph), fusion, cluster, spec, Restriction(), resharder, alike
    )


def assignments(step: Step, args: Any, mesh: tuple[int, ...]) -> float:
    network = problem_of(step, args, CLUSTERS[mesh], mesh, alike=False).network
    return float(np.prod([float(len(costs)) for costs in network.unary]))


def small_cases() -> list[tuple[int, tuple[int, ...]]]:
    """Seeds whose search space brute force can walk in a fraction of a second."""
    found: list[tuple[int, tuple[int, ...]]] = []
    for mesh, wanted, most in (((2,), 40, 5), ((2, 2), 10, 2)):
        seed, kept = 0, 0
        while kept < wanted:
            step, args = small_step(seed, 2 + seed % (most - 1))
            if assignments(step, args, mesh) <= 12_000:
                found.append((seed, mesh))
                kept += 1
            seed += 1
    return found


def test_exhaustive_agrees_on_fifty_small_steps() -> None:
    cases = small_cases()
    assert len(cases) == 50
    moved = 0
    for seed, mesh in cases:
        step, args = small_step(seed, 2 + seed % (4 if len(mesh) == 1 else 1))
        options: dict[str, Any] = {"cluster": CLUSTERS[mesh], "mesh": mesh, "donate": ()}
        truth = autopar.plan(step, *args, search="exhaustive", **options)
        found = autopar.plan(step, *args, search="optimal", **options)
        assert truth.solver.status == found.solver.status == "optimal", seed
        assert found.solver.objective_s == truth.solver.objective_s, seed
        assert found.solver.bound_s == found.solver.objective_s, seed
        total = truth.predicted.compute_s + truth.predicted.comm_s
        assert found.predicted.compute_s + found.predicted.comm_s == pytest.approx(total), seed
        moved += bool(found.predicted.collectives)
    assert moved >= 5  # in these, splitting is worth its collectives


def test_exhaustive_says_no_to_a_model() -> None:
    step, args = small_step(3, 12)
    with pytest.raises(OptionError, match="search='exhaustive' would try"):
        autopar.plan(step, *args, cluster=CLUSTERS[2, 2], mesh=(2, 2), search="exhaustive")


def gpt(layers: int, batch: int = 8, **changes: Any) -> tuple[Step, Any]:
    config = GPTConfig(layers=layers, d_model=256, heads=8, vocab=512, seq=64, **changes)
    return _step_of(config, batch)


def mlp(layers: int, batch: int = 64) -> tuple[Step, Any]:
    return _step_of(MLPConfig(layers=layers, inputs=256, hidden=256, outputs=256), batch)


def _step_of(config: Any, batch: int) -> tuple[Step, Any]:
    work = make_workload("model", config, optimizer=default_optimizer(), batch_size=batch)
    example = work.abstract_batch()
    return work.train_step, (work.abstract_state(example), example)


LARGER = {
    "mlp of 2, on 4": (lambda: mlp(2), "tpu-v5e", (2, 2), 4),
    "mlp of 2, on 2 x 2": (lambda: mlp(2), "tpu-v5e", (2, 2), (2, 2)),
    "mlp of 3, on 8 GPUs": (lambda: mlp(3), "h100", 8, 8),
    "mlp of 3, small batch": (lambda: mlp(3, batch=2), "h100", 8, 8),
    "mlp of 4, on a CPU": (lambda: mlp(4), "cpu", 4, 4),
    "gpt of 1, on 4": (lambda: gpt(1), "tpu-v5e", (2, 2), 4),
    "gpt of 1, small batch": (lambda: gpt(1, batch=2), "tpu-v5e", (2, 2), 4),
    "gpt of 1, on 8 GPUs": (lambda: gpt(1), "h100", 8, 8),
    "gpt of 1, remat": (lambda: gpt(1, remat=True), "tpu-v5e", (2, 2), 4),
    "gpt of 2, scan": (lambda: gpt(2, scan=True), "tpu-v5e", (2, 2), 4),
}


@pytest.mark.parametrize("name", LARGER)
def test_highs_agrees_on_training_steps(name: str) -> None:
    make, chip, shape, mesh = LARGER[name]
    step, args = make()
    cluster = Cluster.preset(chip, shape)
    network = problem_of(step, args, cluster, mesh, alike=False, donate=(0,)).network
    smaller, undo = shrink(network)
    ours, theirs = toulbar2(smaller, 30), highs(smaller, 60)
    assert ours.status == theirs.status == "optimal"
    assert ours.choice is not None
    assert ours.bound <= theirs.cost
    assert ours.cost == pytest.approx(theirs.cost, rel=1e-6)
    assert network.cost(undo(ours.choice)) == ours.cost


@pytest.mark.parametrize("model", [mlp, gpt])
def test_variables_do_not_grow_with_depth(model: Callable[[int], tuple[Step, Any]]) -> None:
    """Eight layers cost the search what four do, and share what they choose."""
    cluster = CLUSTERS[2, 2]
    four, eight = (
        problem_of(*model(layers), cluster, 4, alike=True, donate=(0,)) for layers in (6, 8)
    )
    assert len(eight.graph.nodes) > 1.2 * len(four.graph.nodes)
    assert len(eight.network.unary) == len(four.network.unary)


@pytest.mark.parametrize("mesh", [4, pytest.param((2, 2), marks=pytest.mark.slow)])
def test_alike_is_a_restriction(mesh: Any) -> None:
    """What is found for layers alike is a plan for layers apart, at the same cost."""
    step, args = gpt(3)
    alike, apart = (
        problem_of(step, args, CLUSTERS[2, 2], mesh, alike=flag, donate=(0,))
        for flag in (True, False)
    )
    assert len(alike.network.unary) < 0.8 * len(apart.network.unary)
    found, best = solve(alike.network, 30), solve(apart.network, 30)
    assert found.choice is not None
    assert found.status == best.status == "optimal"
    spread = tuple(found.choice[variable] for variable in alike.variables)
    assert apart.network.cost(spread) == found.cost
    assert best.bound <= found.cost
    assert found.cost <= 1.02 * best.cost  # and it costs little


def test_report_says_that_layers_are_alike() -> None:
    for (step, args), alike in ((mlp(2), False), (gpt(3), True)):
        plan = autopar.plan(step, *args, cluster=CLUSTERS[2, 2], mesh=4)
        assert plan.solver.layers_alike is alike
        assert (plan.solver.variables < plan.solver.nodes) is alike
        assert ("treat repeated layers alike" in str(plan)) is alike
