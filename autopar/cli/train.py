"""``autopar train``: train a model over the devices at hand, and check it against one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from autopar import api
from autopar.cli import arguments, screen
from autopar.cli.devices import EMULATED, start_devices
from autopar.cli.training import Run, Trainer
from autopar.cli.workloads import find_workload
from autopar.core.errors import OptionError
from autopar.core.plan import Plan
from autopar.core.plan_table import renderable, show_cluster
from autopar.core.text import format_seconds

CHECKED_STEPS = 20
TOLERANCE = 1e-4
"""Largest difference of losses over the first ``CHECKED_STEPS`` steps that ``--check`` accepts."""

DevicesOption = Annotated[
    int | None,
    typer.Option(
        "--devices",
        min=1,
        help="Devices to emulate where there is no accelerator.",
        show_default=f"all accelerators, or {EMULATED} emulated devices",
    ),
]
StepsOption = Annotated[int, typer.Option("--steps", min=1, help="Training steps.")]
PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="Carry out the plan of this file; search for none.")
]
CheckOption = Annotated[
    bool,
    typer.Option(
        "--check",
        help=f"Repeat the first {CHECKED_STEPS} steps on one device: losses must agree to "
        f"{TOLERANCE:g}, and fall.",
    ),
]


@dataclass(frozen=True, slots=True)
class Result:
    """A run, the plan it carried out, and how far it was from the run on one device."""

    model: str
    plan: Plan
    run: Run
    difference: float | None

    @property
    def failures(self) -> list[str]:
        """What ``--check`` has to object to."""
        if self.difference is None:
            return []
        found: list[str] = []
        if not self.difference <= TOLERANCE:
            found.append(
                f"losses differ from one device's by up to {self.difference:.2e}, more than "
                f"{TOLERANCE:g}: the plan changes what is computed"
            )
        if not self.run.fell:
            found.append("the loss did not fall: train for more steps, or look at the model")
        return found


def train(
    model: arguments.ModelArgument,
    devices: DevicesOption = None,
    steps: StepsOption = 60,
    batch: arguments.BatchOption = None,
    overrides: arguments.SetOption = None,
    search: arguments.SearchOption = "optimal",
    plan: PlanOption = None,
    check: CheckOption = False,
    seed: arguments.SeedOption = 0,
    as_json: arguments.JsonOption = False,
) -> None:
    """Train a model on real text over all devices of this machine, emulated ones if need be."""
    if plan is not None and search != "optimal":
        raise OptionError("--plan and --search: a plan file is carried out as it is; give one")
    options: dict[str, Any] = {"search": search} if plan is None else {"plan": Plan.load(plan)}
    start_devices(devices)
    workload = find_workload(model, arguments.parse_overrides(overrides))
    trainer = Trainer(workload, batch or workload.batch_size, seed)
    shapes = workload.abstract_batch(trainer.batch_size)
    with screen.stages(quiet=as_json) as progress:
        step = api.parallelize(progress=progress, **options)(workload.train_step)
        made = step.plan(workload.abstract_state(shapes), shapes)
    if not as_json:
        screen.show(Group(renderable(made), Text()))
    with screen.steps(f"training, {made.mesh.device_count} devices", steps, quiet=as_json) as done:
        run = trainer.many_devices(step, steps, done)
    difference = None
    if check:
        count = min(steps, CHECKED_STEPS)
        with screen.steps("again, 1 device", count, quiet=as_json) as done:
            difference = run.difference(trainer.one_device(count, done))
    _report(Result(model, made, run, difference), as_json)


def _report(result: Result, as_json: bool) -> None:
    if as_json:
        screen.show_json(_as_data(result))
    else:
        screen.show(_as_table(result))
    for failure in result.failures:
        screen.note(f"autopar: {failure}")
    if result.failures:
        raise typer.Exit(1)


def _as_table(result: Result) -> RenderableType:
    run, table = result.run, screen.table("", "")
    table.show_header = False
    table.add_row("loss", f"{run.losses[0]:.4f} at first, {run.losses[-1]:.4f} at last")
    table.add_row("tokens/s", f"{run.tokens_per_s:,.0f}")
    table.add_row("step, measured", f"{format_seconds(run.step_s)} (median)")
    predicted = format_seconds(result.plan.predicted.step_s)
    table.add_row("step, predicted", f"{predicted} (on {show_cluster(result.plan)})")
    if result.difference is not None:
        verdict = "FAILED" if result.failures else "ok"
        checked = min(CHECKED_STEPS, len(run.losses))
        table.add_row(
            "check",
            f"{verdict}: losses of {checked} steps within {result.difference:.1e} of one device's",
        )
    return Group(Text(f"{result.model}, {len(run.losses)} steps", style="bold"), table)


def _as_data(result: Result) -> dict[str, Any]:
    run, plan = result.run, result.plan
    return {
        "model": result.model,
        "cluster": show_cluster(plan),
        "mesh": dict(zip(plan.mesh.names, plan.mesh.sizes, strict=True)),
        "losses": list(run.losses),
        "tokens_per_s": run.tokens_per_s,
        "measured_step_s": run.step_s,
        "predicted_step_s": plan.predicted.step_s,
        "max_difference": result.difference,
        "failures": result.failures,
    }
