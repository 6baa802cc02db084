"""``autopar plan``: how best to run a model on a cluster that need not be at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from autopar import api
from autopar.cli import arguments, screen
from autopar.cli.devices import start_devices
from autopar.cli.workloads import find_job
from autopar.core.plan_json import to_json
from autopar.core.plan_table import renderable
from autopar.cost_model import parse_cluster


def plan(
    model: arguments.ModelArgument,
    cluster: arguments.ClusterOption = None,
    memory: arguments.MemoryOption = None,
    batch: arguments.BatchOption = None,
    overrides: arguments.SetOption = None,
    mesh: arguments.MeshOption = None,
    search: arguments.SearchOption = "optimal",
    pin: arguments.PinOption = None,
    seed: arguments.SeedOption = 0,
    time_limit: arguments.TimeLimitOption = 60.0,
    remat: arguments.RematOption = "auto",
    confirm: Annotated[
        str | None,
        typer.Option(
            "--confirm",
            metavar="BACKEND",
            help="Compile the plan as jit or shard_map, and search for less if it does not fit.",
            show_default="predicted memory is believed",
        ),
    ] = None,
    offload: arguments.OffloadOption = "auto",
    host_memory: arguments.HostMemoryOption = None,
    certify: Annotated[
        bool, typer.Option("--certify", help="Bound plans whose repeated layers differ too.")
    ] = False,
    save: Annotated[Path | None, typer.Option("--save", help="Write the plan there.")] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Draw device memory over the step (.svg, .png or .pdf)."),
    ] = None,
    as_json: arguments.JsonOption = False,
) -> None:
    """Plan a model's training step for a cluster; needs none of its hardware."""
    job = find_job(model, batch, arguments.parse_overrides(overrides))
    sizes, pins = arguments.parse_mesh(mesh), arguments.parse_pins(pin)
    target = None if cluster is None else parse_cluster(cluster)
    if confirm is not None and target is not None and target.chip.name == "cpu":
        start_devices(target.device_count)
    with screen.stages(quiet=as_json) as progress:
        made = api.plan(
            job.step,
            *job.args,
            cluster=target,
            memory=memory,
            mesh=sizes,
            search=search,
            pins=pins,
            seed=seed,
            time_limit=time_limit,
            remat=remat,
            confirm=confirm,
            offload=offload,
            host_memory=host_memory,
            certify=certify,
            progress=progress,
        )
    if save is not None:
        made.save(save)
    if picture is not None:
        made.picture(picture)
    if as_json:
        typer.echo(to_json(made), nl=False)
        return
    screen.show(renderable(made))
    if save is not None:
        screen.note(f"saved to {save}")
    if picture is not None:
        screen.note(f"drawn in {picture}")
