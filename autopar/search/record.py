"""From the states the solver chose to the Plan that is handed on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from autopar.core.layout import Layout
from autopar.core.plan import (
    CollectiveUse,
    Plan,
    Prediction,
    SolverReport,
    Strategy,
    ValuePlan,
)
from autopar.cost_model import Cluster, Resharder
from autopar.cost_model.hardware import Level
from autopar.cost_model.overlap import step_time
from autopar.cost_model.work import itemsize
from autopar.passes.trace import Step, source_name
from autopar.search.domains import State
from autopar.search.forms import Forms
from autopar.search.graph import Edge, Node
from autopar.search.memory import MemoryModel
from autopar.search.network import TICK_S
from autopar.search.problem import Problem
from autopar.search.tasks import tasks


def strategies(problem: Problem, states: Sequence[State]) -> dict[str, Strategy]:
    """The strategy of every equation, by name."""
    return {
        node.name: Strategy(state.operands, state.results)
        for node, state in zip(problem.graph.nodes, states, strict=True)
        if node.kind == "op"
    }


def hubs(problem: Problem, states: Sequence[State]) -> dict[str, Layout]:
    """The materialised layout of every shared value; of an input, where it is not as at rest."""
    found: dict[str, Layout] = {}
    for node, state in zip(problem.graph.nodes, states, strict=True):
        at_rest = node.kind == "input" and state.operands == state.results
        if node.kind in ("hub", "input") and not at_rest and not node.name.startswith("const"):
            found[node.name] = state.results[0]
    return found


def inputs(step: Step, states: Sequence[State], roles: Sequence[str]) -> tuple[ValuePlan, ...]:
    """How every flat argument rests."""
    return tuple(
        ValuePlan(path, tuple(aval.shape), str(aval.dtype), states[i].operands[0], roles[i])
        for i, (path, aval) in enumerate(zip(step.in_paths, step.in_avals, strict=True))
    )


def outputs(step: Step, problem: Problem, states: Sequence[State]) -> tuple[ValuePlan, ...]:
    """How every flat result lies: as the input it becomes, or as its own node says."""
    tied = dict(step.ties)
    own = {node.name: state for node, state in zip(problem.graph.nodes, states, strict=True)}
    found: list[ValuePlan] = []
    for position, (path, aval) in enumerate(zip(step.out_paths, step.out_avals, strict=True)):
        state = states[tied[position]] if position in tied else own[f"out:{position}"]
        layout = state.operands[0]
        found.append(ValuePlan(path, tuple(aval.shape), str(aval.dtype), layout, "outputs"))
    return tuple(found)


def collectives(
    step: Step,
    problem: Problem,
    states: Sequence[State],
    resharder: Resharder,
    levels: Sequence[Level],
) -> tuple[CollectiveUse, ...]:
    """Every collective of one step, those alike together. ``levels``: those of the cluster."""
    counts: dict[tuple[str, str, int, str, str], int] = defaultdict(int)
    seconds: dict[tuple[str, str, int, str, str], float] = defaultdict(float)
    nodes, forms = problem.graph.nodes, Forms(problem.graph, problem.mesh, levels)
    for edge, left, right in (*problem.moves(states), *_unrestings(problem, states)):
        path = resharder.path(edge.shape, edge.itemsize, left, right, coalesced=edge.coalesced)
        for one, form in zip(path, forms.of(path, edge, left), strict=True):
            if one.bytes == 0:
                continue
            key = (one.kind, one.axis, one.bytes, _value_name(step, nodes, edge), form)
            counts[key] += edge.weight
            seconds[key] += edge.weight * one.seconds
    return tuple(
        CollectiveUse(*key[:3], count, seconds[key], *key[3:])
        for key, count in sorted(counts.items())
    )


def _unrestings(problem: Problem, states: Sequence[State]) -> list[tuple[Edge, Layout, Layout]]:
    """Inputs that are gathered once for several uses, as if by an edge."""
    found: list[tuple[Edge, Layout, Layout]] = []
    for node, state in zip(problem.graph.nodes, states, strict=True):
        if node.kind == "input" and node.var is not None and state.operands != state.results:
            size = itemsize(node.var.aval)
            edge = Edge(node.index, 0, node.index, 0, node.shape, size, 1, coalesced=True)
            found.append((edge, state.operands[0], state.results[0]))
    return found


def _value_name(step: Step, nodes: Sequence[Node], edge: Edge) -> str:
    node = nodes[edge.src]
    if node.name.startswith("in:"):
        return step.in_paths[node.index]
    if nodes[edge.dst].kind == "input":
        return step.in_paths[edge.dst]
    if node.eqn is not None:
        return source_name(node.eqn)
    eqn = nodes[edge.dst].eqn
    return node.name if eqn is None else f"operand of {source_name(eqn)}"


def prediction(
    step: Step,
    cluster: Cluster,
    problem: Problem,
    choice: tuple[int, ...],
    memory: MemoryModel,
    peak_bytes: int,
) -> Prediction:
    """Sums the plan up. Compute is what is left of the objective when communication is taken."""
    states = problem.states(choice)
    resharder = problem.resharder
    moved = collectives(step, problem, states, resharder, cluster.levels)
    comm = sum(one.seconds for one in moved)
    exposed = comm
    if moved and cluster.chip.overlap != "none":
        made = tasks(problem, states, memory.fusion, memory.attention, resharder)
        time = step_time(made, cluster.chip, resharder.links)
        exposed = min(comm, max(0.0, time.step_s - time.compute_s))
    compute = max(0.0, problem.network.cost(choice) * TICK_S - comm)
    model = memory.on(problem)
    held = model.stacked(states)
    return Prediction(
        step_s=compute + exposed,
        compute_s=compute,
        comm_s=comm,
        exposed_s=exposed,
        peak_bytes=peak_bytes,
        exact_peak_bytes=model.peak(states, pieces=False)[1],
        host_bytes=0,
        memory=model.breakdown(held),
        collectives=moved,
        curve=model.curve(held),
    )


def solver_report(
    problem: Problem, name: str, status: str, cost: int, bound: int, seconds: float, alike: bool
) -> SolverReport:
    """What is known of the plan's quality; costs in units of ``TICK_S``."""
    return SolverReport(
        name=name,
        status=status,
        objective_s=cost * TICK_S,
        bound_s=bound * TICK_S,
        seconds=seconds,
        variables=len(problem.network.unary),
        nodes=len(problem.graph.nodes),
        layers_alike=alike,
    )


def assembled(
    step: Step,
    cluster: Cluster,
    problem: Problem,
    states: Sequence[State],
    roles: Sequence[str],
    predicted: Prediction,
    solver: SolverReport,
    options: Mapping[str, str],
) -> Plan:
    """The plan itself."""
    return Plan(
        step=step.fingerprint,
        cluster=cluster.to_dict(),
        cluster_fingerprint=cluster.fingerprint,
        mesh=problem.mesh,
        inputs=inputs(step, states, roles),
        outputs=outputs(step, problem, states),
        strategies=strategies(problem, states),
        hubs=hubs(problem, states),
        predicted=predicted,
        solver=solver,
        fallbacks=problem.fallbacks,
        options=options,
        in_tree=step.in_tree,
        out_tree=step.out_tree,
    )
