"""What gradients hold on their way: parts of windowed products, and sums that wait."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import autopar
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster, Resharder
from autopar.models import preset
from autopar.passes.trace import Step, trace
from autopar.search.assemble import assemble
from autopar.search.baselines import baseline
from autopar.search.domains import State
from autopar.search.graph import build_graph
from autopar.search.holding import WINDOW_PARTS
from autopar.search.memory import MemoryModel, MeshMemory
from autopar.search.operations import operations
from autopar.search.roles import roles
from autopar.search.solve import solve
from autopar.search.windows import COPYING, SUMMING, WRITING

CLUSTER = Cluster.preset("tpu-v5e", (2, 4))
WIDTH, ROWS, LAYERS = 64, 8192, 3


def train(state: Any, x: jax.Array) -> Any:
    def loss(weights: Any) -> jax.Array:
        y = x
        for weight in weights:
            y = jnp.tanh(y @ weight)
        return jnp.mean((y - x) ** 2)

    weights, mean, square = state
    value, grads = jax.value_and_grad(loss)(weights)
    mean = jax.tree.map(lambda m, g: 0.9 * m + g, mean, grads)
    square = jax.tree.map(lambda v, g: 0.9 * v + g * g, square, grads)
    step = jax.tree.map(lambda m, v: m / jnp.sqrt(v), mean, square)
    return (jax.tree.map(jnp.subtract, weights, step), mean, square), value


def chosen(step: Step, name: str) -> tuple[MeshMemory, tuple[State, ...]]:
    """The memory of a named strategy on eight devices, and its states."""
    graph, mesh = build_graph(step), MeshSpec.of((8,))
    model = MemoryModel(step, graph, roles(step, graph), CLUSTER.chip)
    resharder = Resharder(mesh, CLUSTER.axis_links(mesh))
    restriction = baseline(name, step, graph, mesh)
    parts = (operations(graph), model.fusion, CLUSTER, mesh, restriction, resharder)
    problem = assemble(graph, *parts, alike=True)
    found = solve(problem.network, 20.0)
    assert found.choice is not None
    return model.on(problem), problem.states(found.choice)


def mlp() -> Step:
    weight = jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)
    state = ([weight] * LAYERS,) * 3
    return trace(train, state, jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32))


def waiting(memory: MeshMemory, states: tuple[State, ...], pieces: bool) -> list[float]:
    """Bytes that are held until the backward pass is over, and no longer."""
    bytes_of, until = memory.program.bytes_of(states, pieces), memory.program.timeline.last_heavy
    found = memory.program._held_by_moves.of(states, bytes_of, pieces)
    assert set(found.lasting.values()) <= {until}
    spans = [size for start, end, size, *_ in found.extra if start < end == until]
    return [*spans, *[bytes_of[var] for var in found.lasting]]


def test_windowed_products_hold_two_parts_of_their_results() -> None:
    memory, states = chosen(mlp(), "fsdp")
    found = memory.program._held_by_moves.of(states, memory.program.bytes_of(states), pieces=True)
    part = 4 * WIDTH * WIDTH / 8
    assert [extra[2] for extra in found.extra].count(WINDOW_PARTS * part) == LAYERS
    assert 4 * WIDTH * WIDTH not in waiting(memory, states, pieces=True)


@pytest.mark.parametrize(("name", "windows"), [("fsdp", LAYERS), ("data", 0)])
def test_windowed_products_copy_an_operand_and_add_up_pieces(name: str, windows: int) -> None:
    state = ([jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)] * LAYERS,) * 3
    args = (state, jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32))
    plan = autopar.plan(train, *args, cluster=CLUSTER, mesh=8, search=name)
    operand, result = 4 * ROWS * WIDTH / 8, 4 * WIDTH * WIDTH
    chip = CLUSTER.chip
    least = (COPYING * operand + SUMMING * result) / (chip.hbm_bandwidth * chip.hbm_efficiency)
    written = WRITING * operand / (chip.hbm_bandwidth * chip.hbm_efficiency)
    found = plan.predicted.windowed_s
    assert windows * least <= found * (1 + 1e-9) <= windows * (least + written) * (1 + 1e-6)


@pytest.mark.parametrize(("name", "pieces"), [("fsdp", False), ("data", True), ("data", False)])
def test_what_is_not_windowed_waits_whole(name: str, pieces: bool) -> None:
    memory, states = chosen(mlp(), name)
    assert waiting(memory, states, pieces).count(4 * WIDTH * WIDTH) == LAYERS


def test_scores_of_one_sequence_stay_narrow_under_jit() -> None:
    workload = preset("gpt:tiny", layers=1, dtype=jnp.bfloat16)
    batch = workload.abstract_batch(8)
    step = trace(workload.train_step, workload.abstract_state(batch), batch)
    memory, states = chosen(step, "data")
    (exponential,) = memory.program.scores
    narrow, wide = (
        memory.program.bytes_of(states, pieces)[exponential] for pieces in (True, False)
    )
    assert 2 * narrow == wide


def test_gradients_wait_as_far_as_there_is_room() -> None:
    memory, states = chosen(mlp(), "data")
    full = memory.peak(states)[1]
    least = MeshMemory(memory.program, 0).peak(states)[1]
    assert least < full
    for usable in (full, (least + full) // 2, least):
        model = MeshMemory(memory.program, usable)
        assert model.peak(states)[1] == usable
        assert sum(model.stacked(states).breakdown().values()) == pytest.approx(usable, abs=8)
