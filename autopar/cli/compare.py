"""``autopar compare``: what the search is worth, beside the plans people write by hand."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from autopar.cli import arguments, screen
from autopar.cli.workloads import find_job
from autopar.core.errors import InfeasibleError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.core.text import format_bytes, format_seconds
from autopar.cost_model import Cluster, parse_bytes, parse_cluster
from autopar.passes.trace import Step, trace
from autopar.search.options import BASELINES, Options, Progress
from autopar.search.programs import search

STRATEGIES = ("optimal", *BASELINES)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one strategy came to: a plan, or why there is none."""

    search: str
    plan: Plan | None
    error: InfeasibleError | None = None


def compare(
    model: arguments.ModelArgument,
    cluster: arguments.ClusterOption = None,
    memory: arguments.MemoryOption = None,
    batch: arguments.BatchOption = None,
    overrides: arguments.SetOption = None,
    mesh: arguments.MeshOption = None,
    time_limit: arguments.TimeLimitOption = 60.0,
    as_json: arguments.JsonOption = False,
) -> None:
    """Compare the optimal plan with data parallelism, FSDP, Megatron and their mixtures."""
    job = find_job(model, batch, arguments.parse_overrides(overrides))
    sizes = arguments.parse_mesh(mesh)
    target = Cluster.detect() if cluster is None else parse_cluster(cluster)
    options = Options(
        mesh=None if sizes is None else MeshSpec.of(sizes),
        memory_bytes=None if memory is None else parse_bytes(memory),
        time_limit_s=time_limit,
    )
    with screen.stages(quiet=as_json) as progress:
        step = trace(job.step, *job.args)  # once for all strategies
        outcomes = [_outcome(step, target, options, name, progress) for name in STRATEGIES]
    if as_json:
        screen.show_json([_as_data(outcome, outcomes[0]) for outcome in outcomes])
    else:
        screen.show(_as_table(model, target, outcomes))
    if all(outcome.plan is None for outcome in outcomes):
        raise outcomes[0].error or InfeasibleError("no strategy has a plan")


def _outcome(
    step: Step, cluster: Cluster, options: Options, name: str, progress: Progress
) -> Outcome:
    def tell(line: str) -> None:
        progress(f"{name}: {line}")

    try:
        found = search(step, cluster, dataclasses.replace(options, search=name, progress=tell))
    except InfeasibleError as error:
        return Outcome(name, None, error)
    return Outcome(name, found)


def _as_table(model: str, cluster: Cluster, outcomes: list[Outcome]) -> RenderableType:
    headers = ("strategy", "mesh", "step", "of optimal", "compute", "communication", "exposed")
    made = screen.table(*headers, "peak memory", right=6)
    for outcome in outcomes:
        plan = outcome.plan
        if plan is None:
            least = None if outcome.error is None else outcome.error.least_bytes
            needs = "" if least is None else f"{format_bytes(least)} or more"
            made.add_row(outcome.search, "infeasible", *[""] * 5, needs, style="red")
            continue
        predicted = plan.predicted
        ratio = _of_optimal(outcome, outcomes[0])
        made.add_row(
            outcome.search,
            str(plan.mesh),
            format_seconds(predicted.step_s),
            "" if ratio is None else f"{ratio:.2f} x",
            format_seconds(predicted.compute_s),
            format_seconds(predicted.comm_s),
            format_seconds(predicted.exposed_s),
            format_bytes(predicted.peak_bytes),
            style="bold green" if outcome is outcomes[0] else "",
        )
    title = Text(f"{model} on {cluster}, predicted", style="bold")
    reasons = [Text(f"{o.search}: {o.error}", style="red") for o in outcomes if o.error]
    return Group(title, Text(), made, *([Text(), *reasons] if reasons else []))


def _of_optimal(outcome: Outcome, optimal: Outcome) -> float | None:
    if outcome.plan is None or optimal.plan is None or not optimal.plan.predicted.step_s:
        return None
    return outcome.plan.predicted.step_s / optimal.plan.predicted.step_s


def _as_data(outcome: Outcome, optimal: Outcome) -> dict[str, Any]:
    if outcome.plan is None:
        least = None if outcome.error is None else outcome.error.least_bytes
        return {
            "search": outcome.search,
            "feasible": False,
            "least_bytes": least,
            "reason": str(outcome.error),
        }
    plan = outcome.plan
    return {
        "search": outcome.search,
        "feasible": True,
        "status": plan.solver.status,
        "mesh": dict(zip(plan.mesh.names, plan.mesh.sizes, strict=True)),
        "step_s": plan.predicted.step_s,
        "compute_s": plan.predicted.compute_s,
        "comm_s": plan.predicted.comm_s,
        "exposed_s": plan.predicted.exposed_s,
        "peak_bytes": plan.predicted.peak_bytes,
        "of_optimal": _of_optimal(outcome, optimal),
    }
