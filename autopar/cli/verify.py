"""``autopar verify``: what the compiler makes of a plan, beside what the plan predicts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import jax
import typer

from autopar import api
from autopar.cli import arguments, screen
from autopar.cli.devices import start_devices
from autopar.cli.workloads import Job, find_job
from autopar.core.errors import OptionError
from autopar.core.plan import Plan
from autopar.cost_model import Cluster, parse_cluster


def verify(
    model: arguments.ModelArgument,
    cluster: arguments.ClusterOption = None,
    plan: Annotated[
        Path | None,
        typer.Option(
            "--plan", help="A plan saved by `autopar plan`.", show_default="searched for now"
        ),
    ] = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            help="tpu: compile for the plan's TPU slice, which need not be there. cpu: compile "
            "for emulated devices, run a step, and compare it with one device.",
        ),
    ] = "cpu",
    lowering: Annotated[
        str, typer.Option("--lowering", help="How the plan is carried out: jit or shard_map.")
    ] = "jit",
    memory: arguments.MemoryOption = None,
    batch: arguments.BatchOption = None,
    overrides: arguments.SetOption = None,
    mesh: arguments.MeshOption = None,
    search: arguments.SearchOption = "optimal",
    seed: arguments.SeedOption = 0,
    time_limit: arguments.TimeLimitOption = 60.0,
    as_json: arguments.JsonOption = False,
) -> None:
    """Compile a plan, and show its memory, communication and compute beside the prediction."""
    given = None if plan is None else Plan.load(plan)
    if given is not None and (cluster or mesh or memory or search != "optimal"):
        raise OptionError(
            "with --plan nothing is searched: leave out --cluster, --mesh, --memory and --search"
        )
    target = None if cluster is None else parse_cluster(cluster)
    if backend == "cpu":
        start_devices(_device_count(given, target))
    job = find_job(model, batch, arguments.parse_overrides(overrides))
    with screen.stages(quiet=as_json) as progress:
        made = given or api.plan(
            job.step,
            *job.args,
            cluster=target,
            memory=memory,
            mesh=arguments.parse_mesh(mesh),
            search=search,
            seed=seed,
            time_limit=time_limit,
            progress=progress,
        )
        progress("compiling")
        args = _values(job, seed) if backend == "cpu" else job.args
        report = api.verify(job.step, made, *args, backend=backend, lowering=lowering)
    if as_json:
        screen.show_json(report.to_dict())
    else:
        screen.show(report.renderable())


def _device_count(plan: Plan | None, cluster: Cluster | None) -> int | None:
    if plan is not None:
        return plan.mesh.device_count
    return None if cluster is None else cluster.device_count


def _values(job: Job, seed: int) -> tuple[Any, ...]:
    """Arguments to run the step with; shapes alone where the job has none."""
    if job.workload is None:
        return job.args
    size = jax.tree.leaves(job.args[1])[0].shape[0]
    batch = next(job.workload.batches(seed, batch=size))
    return job.workload.init(jax.random.key(seed), batch), batch
