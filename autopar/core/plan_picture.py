"""Device memory over a step as a picture: what is held when, by category, and the peak."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from autopar.core.errors import PlanError
from autopar.core.plan import MemoryCurve, Plan
from autopar.core.text import format_bytes

GIB = 2**30

COLOURS = {
    "parameters": "#4477aa",
    "optimizer state": "#66ccee",
    "gradients": "#ccbb44",
    "activations": "#ee6677",
    "batch": "#bbbbbb",
    "outputs": "#888888",
    "other": "#aa3377",
    "collective buffers": "#228833",
}
"""Of every category, from the bottom up; told apart by the colour-blind (Tol's bright scheme)."""


def draw(plan: Plan, path: Path) -> None:
    """Draws the plan's memory; above it, if it was made to fit, that of the plan without a limit.

    Raises:
      PlanError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise PlanError(
            "a picture needs matplotlib, which is not installed: pip install 'autopar[pictures]'"
        ) from None
    curves = [("this plan", plan.predicted.curve)]
    if plan.unlimited.instants:
        curves.insert(0, ("without a limit", plan.unlimited))
    figure = Figure(figsize=(9, 1.2 + 2.8 * len(curves)), layout="constrained")
    axes = list(figure.subplots(len(curves), 1, sharey=True, squeeze=False)[:, 0])
    for axis, (title, curve) in zip(axes, curves, strict=True):
        _panel(axis, title, curve, _budget(plan))
    axes[-1].set_xlabel("kernels of the step, as they run")
    figure.legend(*_legend(axes), loc="outside lower center", ncols=4, frameon=False)
    try:
        with matplotlib.rc_context({"svg.hashsalt": "autopar", "svg.fonttype": "none"}):
            figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except (OSError, ValueError) as error:
        raise PlanError(
            f"{path}: the picture cannot be written: {error}; give a name that ends with .svg, "
            ".png or .pdf, in a folder that exists"
        ) from None


def _panel(axis: Any, title: str, curve: MemoryCurve, budget: int) -> None:
    names = [name for name in COLOURS if name in curve.bytes]
    heights = [[count / GIB for count in curve.bytes[name]] for name in names]
    axis.stackplot(
        curve.instants, *heights, labels=names, colors=[COLOURS[n] for n in names], step="mid"
    )
    totals = curve.totals
    at = max(range(len(totals)), key=totals.__getitem__)
    peak = totals[at]
    axis.plot([curve.instants[at]], [peak / GIB], "kv", markersize=5)
    axis.set_title(f"{title}: peak {format_bytes(peak)}, at {curve.fullest}", fontsize=10)
    axis.axhline(budget / GIB, color="black", linestyle="--", linewidth=0.8, label="budget")
    axis.set_ylabel("GiB a device")
    axis.margins(x=0)


def _budget(plan: Plan) -> int:
    """Bytes a device may hold: what was asked for, or what the chip has."""
    asked = plan.options.get("memory", "chip")
    return int(asked) if asked.isdigit() else int(plan.cluster["chip"]["hbm_bytes"])


def _legend(axes: Sequence[Any]) -> tuple[list[Any], list[str]]:
    """One entry for each label of any panel."""
    found: dict[str, Any] = {}
    for axis in axes:
        handles, labels = axis.get_legend_handles_labels()
        found.update(zip(labels, handles, strict=True))
    return list(found.values()), list(found)
