"""From a traced step and a cluster to a plan: the outer loop of the search.

For every mesh the cluster's devices can form: build the network, solve it, simulate the memory of
what was found, and while that does not fit, forbid it (one linear limit at the peak instant) and
solve again. The fastest plan that fits is the answer.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.core.errors import ClusterError, InfeasibleError, PinError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan, SolverReport
from autopar.cost_model import Cluster, format_bytes
from autopar.passes.trace import Step
from autopar.search import pins as pins_
from autopar.search import record
from autopar.search.domains import State
from autopar.search.last_resort import lightest, too_big
from autopar.search.memory import MeshMemory
from autopar.search.network import FORBIDDEN, TICK_S, Limit, Network, Solution, folded
from autopar.search.options import BASELINES, Options
from autopar.search.own_shardings import own_mesh, own_shardings
from autopar.search.prepared import Prepared
from autopar.search.problem import Problem
from autopar.search.solve import AxisChoices, random_choice, solve
from autopar.search.solvers import default_solver, exhaustive


@dataclass(frozen=True, slots=True)
class Candidate:
    """The best plan found on one mesh, and its simulated peak memory."""

    problem: Problem
    solution: Solution
    peak_bytes: int


def search(
    step: Step, cluster: Cluster, options: Options, prepared: Prepared | None = None
) -> Plan:
    """Finds the plan.

    Args:
      prepared: of the same step, cluster and options but for memory and time; made if not given.

    Raises:
      InfeasibleError: no plan fits the memory budget, or a baseline cannot be formed.
      PinError, ClusterError, OptionError: the request is inconsistent.
    """
    began = time.perf_counter()
    prepared = prepared or Prepared.folded(step, cluster, options)
    found = best(prepared, options)
    return planned(prepared, found, options, time.perf_counter() - began)


def best(
    prepared: Prepared,
    options: Options,
    last_resort: bool = True,
    known_s: float = math.inf,
    on: Sequence[MeshSpec] | None = None,
) -> Candidate:
    """The best plan, before it is written out; errors as of ``search``.

    Args:
      last_resort: whether the plan of least memory is sought where no other fits.
      known_s: what is sought takes less than this. That nothing does is an ``InfeasibleError`` too.
      on: meshes to look at, of those of ``meshes``; all if not given.
    """
    budget = options.memory_bytes or prepared.cluster.chip.usable_bytes
    found: Candidate | None = None
    known = int(min(known_s / TICK_S, FORBIDDEN))
    bound = FORBIDDEN  # of all meshes
    statuses: set[str] = set()
    failures: list[InfeasibleError] = []
    misfits: list[PinError] = []
    for mesh in meshes(prepared, options) if on is None else on:
        options.progress(f"searching {mesh}")
        try:
            other = _fit(prepared, prepared.problem(mesh), budget, options, known, last_resort)
        except InfeasibleError as error:
            failures.append(error)
            continue
        except PinError as error:  # another mesh may suit the pins
            misfits.append(error)
            continue
        solution = other.solution if isinstance(other, Candidate) else other
        bound = min(bound, solution.bound)
        statuses.add(solution.status)
        if isinstance(other, Candidate) and solution.cost < known:
            found, known = other, solution.cost
    if found is None:
        faster = InfeasibleError(f"no plan fits that takes less than {known_s:g} s")
        raise nearest(failures) if failures else next(iter(misfits), faster)
    solution = found.solution
    left_open = statuses - {"optimal", "infeasible"}
    out_of_time = left_open - {"feasible"}
    status = "stopped" if out_of_time else "feasible" if left_open else "optimal"
    bounded = dataclasses.replace(solution, bound=min(bound, solution.cost), status=status)
    return dataclasses.replace(found, solution=bounded)


def planned(prepared: Prepared, best: Candidate, options: Options, seconds: float) -> Plan:
    """The plan, written out. ``seconds``: that the search took."""
    cluster, depth = prepared.cluster, prepared.depth
    problem, found = best.problem, best.solution
    assert found.choice is not None
    states = problem.states(found.choice)
    predicted = record.prediction(depth, cluster, problem, found.choice, best.peak_bytes)
    solver = report(prepared, best, options, seconds)
    text = options.as_text()
    return record.assembled(depth, cluster, problem, states, predicted, solver, text)


def report(prepared: Prepared, best: Candidate, options: Options, seconds: float) -> SolverReport:
    """What is known of the plan's quality."""
    search, found = options.search, best.solution
    name = search if search in ("exhaustive", "random") else default_solver().__name__
    known = found.status, found.cost, found.bound
    return record.solver_report(best.problem, name, *known, seconds, prepared.alike)


def nearest(failures: list[InfeasibleError]) -> InfeasibleError:
    """The failure that came nearest to the budget."""
    known = [f for f in failures if f.least_bytes is not None]
    return min(known, key=lambda f: f.least_bytes or 0) if known else failures[0]


def meshes(prepared: Prepared, options: Options) -> tuple[MeshSpec, ...]:
    """The meshes to try: the one asked for, the one that shardings in the step are written for, or
    those that suit the cluster and the request.
    """
    cluster, own = prepared.cluster, own_mesh(own_shardings(prepared.graph))
    mesh = options.mesh or own
    if mesh is not None:
        if mesh.device_count != cluster.device_count:
            whose = "" if options.mesh else ", for which the step's own shardings are written,"
            raise ClusterError(
                f"mesh {mesh}{whose} has {mesh.device_count} devices, the cluster "
                f"{cluster} has {cluster.device_count}; choose sizes that multiply to that, or "
                "another cluster"
            )
        return (mesh,)
    offered = cluster.default_meshes()
    flat = tuple(mesh for mesh in offered if len(mesh.axes) == 1)
    if options.search in ("replicated", "data", "fsdp"):
        offered = flat or offered[:1]
    elif options.search == "megatron":
        offered = (MeshSpec.of({"model": cluster.device_count}),)
    elif options.search in ("fsdp+megatron", "redco"):
        offered = tuple(mesh for mesh in offered if len(mesh.axes) == 2) or offered
    wanted = pins_.axis_names(options.pins)
    kept = tuple(mesh for mesh in offered if wanted <= set(mesh.names))
    if not kept:
        raise PinError(
            f"the pins speak of mesh axes {sorted(wanted)}, which no mesh tried has; "
            "name the mesh yourself: mesh={'data': ..., 'model': ...}"
        )
    return kept


def _fit(
    prepared: Prepared,
    problem: Problem,
    budget: int,
    options: Options,
    known: int,
    last_resort: bool,
) -> Candidate | Solution:
    """Solves, and limits the instants that are over budget until the simulated peak fits it.

    A solution without a choice as soon as nothing that costs less than what is ``known`` is to be
    found: ``infeasible`` if there is nothing, else with a bound of what there may be.
    """
    model = prepared.depth.memory_on(problem)
    # On one or two axes a network is small enough to be solved whole.
    axes = functools.cache(problem.axis_choices) if len(problem.mesh.axes) > 2 else tuple
    limits: dict[int, Limit] = {}
    least, bound, exact, heaviest = FORBIDDEN, 0, True, ""
    deadline = time.monotonic() + options.time_limit_s
    while (left := deadline - time.monotonic()) > 0 or not limits:
        network = dataclasses.replace(problem.network, limits=tuple(map(folded, limits.values())))
        free = None if limits else prepared.free.get(problem.mesh)
        found = free or _solve(network, axes, options, left, known)
        if found.choice is None or found.cost >= known:
            if known < FORBIDDEN:
                below = known if found.status == "infeasible" else found.bound
                bound = max(bound, below) if exact else bound
                return Solution(None, FORBIDDEN, min(bound, known), _status(found, exact))
            if limits and not last_resort:
                raise too_big(options.search, problem.mesh, least, budget, heaviest)
            break
        if not limits:
            prepared.free[problem.mesh] = found
        bound = max(bound, found.bound) if exact else bound
        states = problem.states(found.choice)
        peak = model.peak(states)[1]
        if peak <= budget:
            status, bound = _status(found, exact), min(bound, found.cost)
            solution = dataclasses.replace(found, status=status, bound=bound)
            return Candidate(problem, solution, peak)
        if peak < least:
            least, heaviest = peak, model.heaviest(states)
        if options.search in BASELINES:
            raise too_big(options.search, problem.mesh, peak, budget, heaviest)
        options.progress(f"peak {format_bytes(peak)} over {format_bytes(budget)}: tightening")
        exact &= _tighten(limits, model, states, budget)
    free = prepared.free.get(problem.mesh)
    solution, peak = lightest(problem, axes, model, limits, free, least, budget, options)
    if left <= 0:
        solution = dataclasses.replace(solution, status="stopped")
    return Candidate(problem, solution, peak)


def _status(found: Solution, exact: bool) -> str:
    """What is proven, if limits may have ruled out what fits unless they are ``exact``."""
    proven = found.status in ("optimal", "infeasible")
    return "feasible" if proven and not exact else found.status


def _tighten(
    limits: dict[int, Limit], model: MeshMemory, states: Sequence[State], budget: int
) -> bool:
    """Limits every instant over budget. False if one had to be limited to less than the budget.

    A limit leaves out the copies made while values are re-laid. Where it holds and the instant is
    over all the same, it makes room for them; what fits may then be excluded too.
    """
    exact = True
    for instant, live, copies in model.over(states, budget):
        if live - copies > budget + model.vmem_bytes:
            limits[instant] = model.limit(instant, budget)
        else:
            before = limits.get(instant)
            room = before.bound - model.vmem_bytes if before else budget
            # What the limit leaves out is known to be on the chip in part, or not at all.
            wanted = budget - copies - model.vmem_bytes
            bound = min(wanted, room - (live - budget), room - budget // 500)
            limits[instant] = model.limit(instant, bound)
            exact = False
    return exact


def _solve(
    network: Network, axes: AxisChoices, options: Options, seconds: float, known: int
) -> Solution:
    if options.search == "exhaustive":
        return exhaustive(network)
    if options.search == "random":
        return random_choice(network, options.seed)
    return solve(network, seconds, axes=axes, known=known)
