"""One published row, priced: its step traced, and its strategy imposed on the search."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax
from _published_rows import Case, Unpriced

from autopar.core.layout import B, Layout, Split, divides, shifted
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Resharder
from autopar.cost_model.compute import Load
from autopar.cost_model.hardware import DtypeClass
from autopar.cost_model.overlap import Task
from autopar.models.training import TrainState, default_optimizer
from autopar.models.workload import Workload, make_workload
from autopar.passes.trace import Step, trace
from autopar.search.assemble import Restriction, assemble
from autopar.search.baselines import placement
from autopar.search.domains import State
from autopar.search.graph import Graph, Node, build_graph
from autopar.search.memory import MemoryModel
from autopar.search.operations import operations
from autopar.search.roles import BATCH, roles
from autopar.search.solve import solve
from autopar.search.tasks import tasks

SEARCH_S = 60.0


@dataclass(frozen=True)
class Priced:
    """What one device does in a step, and the most bytes it holds."""

    tasks: tuple[Task, ...]
    peak_bytes: int


def price(case: Case) -> Priced:
    """Traces and plans one row."""
    step = _step(case)
    mesh = MeshSpec.of(case.mesh)
    graph = build_graph(step)
    ops = operations(graph)
    memory = MemoryModel(step, graph, roles(step, graph), case.cluster.chip)
    resharder = Resharder(mesh, case.cluster.axis_links(mesh))
    restriction = _restriction(step, graph, mesh, int(case.microbatches > 1))
    alike = len(graph.nodes) > 400
    problem = assemble(
        graph,
        ops,
        memory.fusion,
        case.cluster,
        mesh,
        restriction,
        resharder,
        alike,
        memory.attention,
    )
    axes = problem.axis_choices() if len(mesh.axes) > 2 else ()
    found = solve(problem.network, SEARCH_S, axes=axes)
    if found.choice is None:
        raise Unpriced("the strategy leaves no plan")
    states = problem.states(found.choice)
    model = memory.on(problem)
    parts = model.stacked(states).breakdown()
    state = parts.get("parameters", 0) + parts.get("optimizer state", 0)
    found_tasks = tasks(problem, states, memory.fusion, memory.attention, resharder)
    if case.linear != "bf16":
        found_tasks = quantised(found_tasks, case)
    peak = memory.on(problem).peak(states)[1] - state * (case.flat - 1) // case.flat
    return Priced(found_tasks, peak)


def quantised(every: Sequence[Task], case: Case) -> tuple[Task, ...]:
    """The linear layers, but for the last, on operands of eight bits, which are cast before."""
    vocab, linear = case.config.vocab // case.model, cast(DtypeClass, case.linear)
    found: list[Task] = []
    places: list[int] = []
    for task in every:
        task = task._replace(needs=tuple(places[need] for need in task.needs))
        dims = task.load.matmul
        if task.body:
            task = task._replace(body=quantised(task.body, case))
        elif dims and dims[0] == 1 and not task.load.attention_share and vocab not in dims:
            _, m, n, k = dims
            found.append(Task(Load(moved_bytes=case.cast_bytes * k * (m + n)), needs=task.needs))
            load = dataclasses.replace(task.load, dtype_class=linear)
            task = task._replace(load=load, needs=(*task.needs, len(found) - 1))
        places.append(len(found))
        found.append(task)
    return tuple(found)


def _step(case: Case) -> Step:
    workload = make_workload("row", case.config, optimizer=default_optimizer(), batch_size=1)
    batch = workload.abstract_batch(case.batch)
    state = workload.abstract_state(workload.abstract_batch(1))
    if case.microbatches == 1:
        return trace(workload.train_step, state, batch)
    stacked = {
        name: jax.ShapeDtypeStruct((case.microbatches, *leaf.shape), leaf.dtype)
        for name, leaf in batch.items()
    }
    return trace(_accumulated(workload), state, stacked)


def _accumulated(workload: Workload) -> Any:
    """A train step that sums gradients over the batch's leading dimension, in f32."""
    family = workload.config.family()

    def loss(params: Any, batch: Any) -> jax.Array:
        outputs = family.model.apply({"params": params}, *[batch[name] for name in family.inputs])
        return family.loss(outputs, batch["targets"])

    def step(state: TrainState, batches: Any) -> tuple[TrainState, jax.Array]:
        def one(total: Any, batch: Any) -> tuple[Any, jax.Array]:
            value, grads = jax.value_and_grad(loss)(state.params, batch)
            return jax.tree.map(jnp.add, total, grads), value

        zeros = jax.tree.map(jnp.zeros_like, state.params)
        grads, values = jax.lax.scan(one, zeros, batches)
        updates, opt_state = workload.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        after = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return after, values.mean()

    return step


def _restriction(step: Step, graph: Graph, mesh: MeshSpec, batch_dim: int) -> Restriction:
    """Batch and state rest as the strategy says; weights are gathered where they are used, layer by
    layer; gradients are reduced where they are made; tensor parallelism keeps weights split.
    """
    axes = {axis.name: i for i, axis in enumerate(mesh.axes) if axis.size > 1}
    over = [axes[name] for name in ("replica", "data") if name in axes]
    shards = [axes["data"]] if "data" in axes else []
    place = placement(mesh, over, shards, axes.get("model"))
    stacked = {edge.src for edge in graph.edges if edge.dst_shift}
    resting: dict[int, tuple[Layout, ...]] = {}
    for index, role in enumerate(roles(step, graph)):
        shape = tuple(step.in_avals[index].shape)
        layout = place(step.in_paths[index], shape, role)
        if role == BATCH and shape:
            layout = tuple(Split(p.dim + batch_dim) if isinstance(p, Split) else p for p in layout)
        elif index in stacked:  # where only the number of layers divides, it is left whole
            layout = tuple(B if p == Split(0) else p for p in layout)
        resting[index] = (layout,)
    borders = _whole_borders(graph, mesh) | _weights(graph, resting)
    return Restriction(resting, borders, _allow(graph, over, axes.get("model")))


def _weights(graph: Graph, resting: dict[int, tuple[Layout, ...]]) -> dict[int, tuple[Layout, ...]]:
    """Weights enter loops as they rest, so that each trip gathers its own."""
    fixed = dict(resting)
    found: dict[int, tuple[Layout, ...]] = {}
    feeders: dict[int, list[Any]] = defaultdict(list)
    for edge in graph.edges:
        feeders[edge.dst].append(edge)
    for node in graph.nodes:
        edges = feeders[node.index]
        if node.kind != "hub" or ".in" not in node.name or len(edges) != 1:
            continue
        (edge,) = edges
        if edge.src in fixed and len(node.shape) > 1:
            layout = fixed[edge.src][0]
            if edge.src_shift > edge.dst_shift or edge.src_shift < edge.dst_shift:
                layout = shifted(layout, edge.src_shift - edge.dst_shift)
            fixed[node.index] = found[node.index] = (layout,)
    return found


def _whole_borders(graph: Graph, mesh: MeshSpec) -> dict[int, tuple[Layout, ...]]:
    """What else crosses a loop's border is no partial sum."""
    found: dict[int, tuple[Layout, ...]] = {}
    for node in graph.nodes:
        border = node.kind == "hub" and (".in" in node.name or ".out" in node.name)
        if border and math.prod(node.shape) > 1:
            choices = (B, *(Split(d) for d in range(len(node.shape))))
            every = itertools.product(choices, repeat=len(mesh.axes))
            found[node.index] = tuple(x for x in every if divides(node.shape, x, mesh))
    return found


def _allow(graph: Graph, over: list[int], model: int | None) -> Any:
    """Matmuls read weights whole but for the model axis, and activations split over the batch."""
    weights: dict[int, set[int]] = defaultdict(set)
    for edge in graph.edges:
        head = graph.heads[edge.src] or (graph.nodes[edge.src].kind == "input")
        if head and len(edge.shape) - edge.src_shift > 1 and not graph.heads[edge.dst]:
            weights[edge.dst].add(edge.slot)

    def alike(node: Node, state: State) -> bool:
        """Whether activations lie on all axes of the batch in the same way."""
        if graph.heads[node.index] or graph.tails[node.index]:
            return True
        values = (*node.eqn.invars, *node.eqn.outvars)
        pairs = zip(values, (*state.operands, *state.results), strict=True)
        return all(len({x[axis] for axis in over}) == 1 for v, x in pairs if v.aval.ndim > 2)

    def allow(node: Node, state: State) -> bool:
        eqn = node.eqn
        if eqn is not None and len(over) > 1 and not alike(node, state):
            return False
        if eqn is None or eqn.primitive.name != "dot_general" or len(weights[node.index]) != 1:
            return True
        (slot,) = weights[node.index]
        weight, other = state.operands[slot], state.operands[1 - slot]
        if any(weight[axis] != B or not isinstance(other[axis], Split) for axis in over):
            return False
        return model is None or isinstance(weight[model], Split)

    return allow
