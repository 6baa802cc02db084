"""From the states the solver chose to the Plan that is handed on."""

from __future__ import annotations

import functools
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
from autopar.cost_model import Chip, Cluster
from autopar.cost_model.hardware import Level
from autopar.cost_model.overlap import step_time
from autopar.cost_model.reshard import casts_first
from autopar.cost_model.work import itemsize
from autopar.passes.trace import Step
from autopar.search.depth import Depth, named_by_source
from autopar.search.domains import State
from autopar.search.forms import Forms
from autopar.search.graph import Edge
from autopar.search.network import TICK_S
from autopar.search.problem import Problem
from autopar.search.tasks import tasks_without
from autopar.search.windows import windowed_s

_text = functools.cache(str)
"""Of a dtype: NumPy takes its time, and there are few."""


def strategies(depth: Depth, states: Sequence[State]) -> dict[str, Strategy]:
    """The strategy of every equation, by name."""
    found: dict[str, Strategy] = {}
    for node, state in zip(depth.graph.nodes, states, strict=True):
        if node.kind == "op":
            strategy = Strategy(state.operands, state.results)
            found.update(dict.fromkeys(depth.names(node), strategy))
    return found


def hubs(depth: Depth, states: Sequence[State]) -> dict[str, Layout]:
    """The materialised layout of every shared value; of an input, where it is not as at rest."""
    found: dict[str, Layout] = {}
    for node, state in zip(depth.graph.nodes, states, strict=True):
        at_rest = node.kind == "input" and state.operands == state.results
        if node.kind in ("hub", "input") and not at_rest and not node.name.startswith("const"):
            found.update(dict.fromkeys(depth.names(node), state.results[0]))
    return found


def borders(depth: Depth, states: Sequence[State]) -> dict[str, Layout]:
    """How inputs rest and outputs lie, by the names of their nodes."""
    found: dict[str, Layout] = {}
    for node, state in zip(depth.graph.nodes, states, strict=True):
        if node.kind in ("input", "output"):
            found.update(dict.fromkeys(depth.names(node), state.operands[0]))
    return found


def inputs(depth: Depth, lie: Mapping[str, Layout]) -> tuple[ValuePlan, ...]:
    """How every flat argument rests. ``lie``: see ``borders``."""
    step = depth.whole
    values = zip(step.in_paths, step.in_avals, depth.roles, strict=True)
    return tuple(
        ValuePlan(path, tuple(aval.shape), _text(aval.dtype), lie[f"in:{i}"], role)
        for i, (path, aval, role) in enumerate(values)
    )


def outputs(step: Step, lie: Mapping[str, Layout]) -> tuple[ValuePlan, ...]:
    """How every flat result lies: as the input it becomes, or as its own node says."""
    tied = dict(step.ties)
    found: list[ValuePlan] = []
    for position, (path, aval) in enumerate(zip(step.out_paths, step.out_avals, strict=True)):
        layout = lie[f"in:{tied[position]}" if position in tied else f"out:{position}"]
        found.append(ValuePlan(path, tuple(aval.shape), _text(aval.dtype), layout, "outputs"))
    return tuple(found)


def collectives(
    depth: Depth, problem: Problem, states: Sequence[State], levels: Sequence[Level]
) -> tuple[CollectiveUse, ...]:
    """Every collective of one step, those alike together. ``levels``: those of the cluster."""
    counts: dict[tuple[str, str, int, str, str, int], int] = defaultdict(int)
    seconds: dict[tuple[str, str, int, str, str, int], float] = defaultdict(float)
    graph, forms = problem.graph, Forms(problem.graph, problem.mesh, levels)
    moves = [
        (graph.edges[place], int(graph.edge_copies[place]), left, right)
        for place, left, right in problem.moves(states)
    ]
    for edge, copies, left, right in (*moves, *_unrestings(problem, states)):
        shape, size = edge.shape, edge.itemsize
        path = problem.resharder.path(shape, size, left, right, coalesced=edge.coalesced)
        moved = _moved_itemsize(problem, states, edge, left)
        for one, form in zip(path, forms.of(path, edge, left), strict=True):
            if one.bytes == 0:
                continue
            names = _value_names(depth, edge)
            padding = forms.padding(one, edge, moved)
            for name in names:
                key = (one.kind, one.axis, one.bytes * moved // size, name, form, padding)
                counts[key] += edge.weight * copies // len(names)
                seconds[key] += edge.weight * copies // len(names) * one.seconds
    return tuple(
        CollectiveUse(*key[:3], count, seconds[key], *key[3:])
        for key, count in sorted(counts.items())
    )


def _moved_itemsize(problem: Problem, states: Sequence[State], edge: Edge, left: Layout) -> int:
    """Bytes an element of what an edge moves: what is cast to fewer on arrival is cast before.

    The search prices it as if not: so do its seconds.
    """
    eqn, state = problem.graph.nodes[edge.dst].eqn, states[edge.dst]
    if eqn is None or not casts_first(eqn, state.operands, state.results, left):
        return edge.itemsize
    return itemsize(eqn.outvars[0].aval)


def _unrestings(
    problem: Problem, states: Sequence[State]
) -> list[tuple[Edge, int, Layout, Layout]]:
    """Inputs that are gathered once for several uses, as if by an edge, and how many each is."""
    copies = problem.graph.copies
    found: list[tuple[Edge, int, Layout, Layout]] = []
    for node, state in zip(problem.graph.nodes, states, strict=True):
        if node.kind == "input" and node.var is not None and state.operands != state.results:
            size = itemsize(node.var.aval)
            edge = Edge(node.index, 0, node.index, 0, node.shape, size, 1, coalesced=True)
            found.append((edge, int(copies[node.index]), state.operands[0], state.results[0]))
    return found


def _value_names(depth: Depth, edge: Edge) -> tuple[str, ...]:
    """Of the value moved: by what makes it, else by what reads it."""
    nodes = depth.graph.nodes
    src, dst = nodes[edge.src], nodes[edge.dst]
    if not named_by_source(depth.graph, edge):
        found = tuple([f"operand of {name}" for name in depth.sources(dst)])
    elif dst.kind == "input" and src.kind != "input":
        found = depth.sources(dst)
    else:
        found = depth.sources(src)
    return found or depth.names(src)


def prediction(
    depth: Depth, cluster: Cluster, problem: Problem, choice: tuple[int, ...], peak_bytes: int
) -> Prediction:
    """Sums the plan up. Compute is what is left of the objective when communication is taken."""
    states = problem.states(choice)
    moved = collectives(depth, problem, states, cluster.levels)
    comm = sum(one.seconds for one in moved)
    exposed = comm
    if moved and cluster.chip.overlap != "none":
        exposed = min(comm, max(0.0, _exposed(depth, cluster.chip, problem, states)))
    compute = max(0.0, problem.network.cost(choice) * TICK_S - comm)
    model = depth.memory_on(problem)
    held = model.stacked(states)
    return Prediction(
        step_s=compute + exposed,
        compute_s=compute,
        comm_s=comm,
        exposed_s=exposed,
        peak_bytes=peak_bytes,
        exact_peak_bytes=model.peak(states, pieces=False)[1],
        host_bytes=0,
        memory=held.breakdown(),
        collectives=moved,
        curve=held.curve(),
        windowed_s=windowed_s(depth, cluster, problem, states) if model.program.waits else 0.0,
    )


def _exposed(depth: Depth, chip: Chip, problem: Problem, states: Sequence[State]) -> float:
    """Seconds of a step beyond its kernels'; what each layer adds, as often as there are more."""
    memory, resharder = depth.memory, problem.resharder
    parts = problem, states, memory.fusion, memory.attention, resharder
    times = [step_time(made, chip, resharder.links) for made in tasks_without(*parts, depth.gone)]
    own, *fewer = (time.step_s - time.compute_s for time in times)
    left_out = (one.times for one in memory.whole.layers)
    return own + sum(n * (own - one) for n, one in zip(left_out, fewer, strict=True))


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
        nodes=problem.graph.size,
        layers_alike=alike,
    )


def assembled(
    depth: Depth,
    cluster: Cluster,
    problem: Problem,
    states: Sequence[State],
    predicted: Prediction,
    solver: SolverReport,
    options: Mapping[str, str],
) -> Plan:
    """The plan itself."""
    step, lie = depth.whole, borders(depth, states)
    return Plan(
        step=step.fingerprint,
        cluster=cluster.to_dict(),
        cluster_fingerprint=cluster.fingerprint,
        mesh=problem.mesh,
        inputs=inputs(depth, lie),
        outputs=outputs(step, lie),
        strategies=strategies(depth, states),
        hubs=hubs(depth, states),
        predicted=predicted,
        solver=solver,
        fallbacks=problem.fallbacks,
        options=options,
        in_tree=step.in_tree,
        out_tree=step.out_tree,
    )
