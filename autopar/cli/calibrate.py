"""``autopar calibrate``: the constants of the cost model, measured on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from autopar.cli import arguments, screen
from autopar.cli.devices import start_devices
from autopar.cost_model import calibration
from autopar.cost_model.cluster_file import write_cluster


def calibrate(
    save: Annotated[
        Path | None,
        typer.Option("--save", help="Write the cluster there, for --cluster to read."),
    ] = None,
    devices: Annotated[
        int | None,
        typer.Option("--devices", help="Emulated devices, where there is no accelerator."),
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds of measurement.")] = 5,
    as_json: arguments.JsonOption = False,
) -> None:
    """Measure this machine's matrix products, memory and collectives, for plans made for it."""
    start_devices(devices)
    with screen.stages(quiet=as_json) as progress:
        found = calibration.calibrate(rounds=rounds, progress=progress)
    if save is not None:
        write_cluster(found.cluster, save)
    if as_json:
        screen.show_json(_as_data(found))
        return
    screen.show(_as_table(found))
    if save is not None:
        screen.note(f"saved to {save}; plan with --cluster {save}")


def _as_data(found: calibration.Calibration) -> dict[str, Any]:
    return {
        "cluster": found.cluster.to_dict(),
        "curves": [dataclasses.asdict(curve) | {"error": curve.error} for curve in found.curves],
    }


def _as_table(found: calibration.Calibration) -> Group:
    chip = found.cluster.chip
    curves = screen.table("curve", "samples", "median error", "worst error", right=3)
    for curve in found.curves:
        worst = max(curve.residuals, key=abs)
        curves.add_row(curve.name, str(len(curve.samples)), f"{curve.error:.1%}", f"{worst:+.1%}")
    constants = screen.table("constant", "measured", right=1)
    for name, value in (
        ("bf16", f"{chip.bf16_flops / 1e9:.4g} GFLOP/s"),
        ("f32", f"{chip.f32_flops / 1e9:.4g} GFLOP/s"),
        ("half its rate at a contraction of", str(chip.matmul_half_k)),
        ("arithmetic", f"{chip.vector_flops / 1e9:.4g} GFLOP/s"),
        ("memory", f"{chip.hbm_bandwidth / 1e9:.4g} GB/s"),
        ("a kernel", f"{chip.launch_s * 1e6:.3g} us"),
        *((f"{v.name}", f"{v.bandwidth / 1e9:.4g} GB/s") for v in found.cluster.levels),
        *((f"{v.name}, latency", f"{v.latency_s * 1e6:.3g} us") for v in found.cluster.levels),
    ):
        constants.add_row(name, value)
    return Group(
        Text(f"{found.cluster}, per device, all devices at work", style="bold"),
        constants,
        Text(),
        curves,
    )
