"""``autopar clusters``: the machines autopar knows."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from rich.console import Group
from rich.text import Text

from autopar.cli import arguments, screen
from autopar.core.text import format_bytes
from autopar.cost_model import PRESETS
from autopar.cost_model.fabric import Fabric, Nodes, Preset, Torus

TERA, GIGA = 1e12, 1e9


def clusters(as_json: arguments.JsonOption = False) -> None:
    """List the presets of --cluster, with the numbers plans are priced by."""
    if as_json:
        screen.show_json({name: _as_data(preset) for name, preset in PRESETS.items()})
        return
    headers = ("such as", "links", "bf16 TFLOP/s", "f32", "memory", "GB/s")
    table = screen.table(*headers, right=4)
    for name, preset in PRESETS.items():
        chip = preset.chip
        table.add_row(
            f"{name}:{_example(preset.fabric)}",
            _links(preset.fabric),
            f"{chip.bf16_flops / TERA:.4g}",
            f"{chip.f32_flops / TERA:.4g}",
            "this machine's" if name == "cpu" else format_bytes(chip.hbm_bytes),
            f"{chip.hbm_bandwidth / GIGA:.4g}",
        )
    notes = "Per device, dense peaks; links in GB/s, one direction. f32 is JAX's default precision."
    screen.show(Group(table, Text(), Text(notes, style="dim")))


def _as_data(preset: Preset) -> dict[str, Any]:
    return {
        "chip": dataclasses.asdict(preset.chip),
        "example": _example(preset.fabric),
        "links": _links(preset.fabric),
    }


def _example(fabric: Fabric) -> str:
    """A shape that such machines come in."""
    if isinstance(fabric, Torus):
        shapes = [shape for shape in fabric.standard if math.prod(shape) == 16]
        return "x".join(map(str, shapes[0] if shapes else fabric.standard[-1]))
    return f"2x{math.prod(i.size for i in fabric.islands)}" if isinstance(fabric, Nodes) else "8"


def _links(fabric: Fabric) -> str:
    if isinstance(fabric, Torus):
        pod = "x".join(map(str, fabric.pod))
        return f"torus up to {pod} {_rate(fabric.link)}; network {_rate(fabric.dcn)}"
    if isinstance(fabric, Nodes):
        inside = ", ".join(f"{i.size} by {i.name} {_rate(i.bandwidth)}" for i in fabric.islands)
        return f"{inside}; {fabric.network} {_rate(fabric.egress)}"
    return f"one machine's memory, {_rate(fabric.bandwidth)}"


def _rate(bandwidth: float) -> str:
    return f"{bandwidth / GIGA:.3g}"
