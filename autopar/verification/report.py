"""What a plan predicts beside what the compiler made of it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from autopar.core.plan import CollectiveUse, Plan
from autopar.core.text import format_bytes, format_seconds
from autopar.cost_model import Cluster
from autopar.cost_model.hardware import Level
from autopar.cost_model.whole import gathers_by_reduction, scatters_by_reduction
from autopar.verification.hlo import Collective, wire_bytes
from autopar.verification.numerics import Numerics

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True, slots=True)
class Traffic:
    """All collectives of one kind over the same mesh axes.

    Attributes:
      wire_bytes: what one device sends in a step. count: how many a step; compilers combine and
        split them, so counts say less than bytes.
    """

    kind: str
    axis: str
    wire_bytes: float
    count: int


@dataclass(frozen=True, slots=True)
class Report:
    """Prediction and compiled program of one plan. Printing it gives a table; bytes a device.

    Attributes:
      target: what was compiled for. backend: ``cpu`` or ``tpu``. lowering: ``jit`` or
        ``shard_map``.
      compiled_peak_bytes: arguments, results and the most temporaries live at once.
      available_bytes: memory of the chip.
      compiled_compute_s: the compiler's cycle estimates of all kernels but collectives; ``None``
        where it gives none. compiled_products_s: of those of them that hold a matrix product.
      numerics: where the step was run.
    """

    target: str
    mesh: str
    backend: str
    lowering: str
    predicted_peak_bytes: int
    compiled_peak_bytes: int
    available_bytes: int
    predicted: tuple[Traffic, ...]
    compiled: tuple[Traffic, ...]
    predicted_compute_s: float
    compiled_compute_s: float | None
    compiled_products_s: float | None = None
    numerics: Numerics | None = None

    @property
    def peak_error(self) -> float:
        """How far the predicted peak is off, relative to the compiled one; negative: too low."""
        return self.predicted_peak_bytes / self.compiled_peak_bytes - 1

    @property
    def wire_error(self) -> float | None:
        """The same of all bytes sent; ``None`` where the compiled program sends none."""
        return _error(_total(self.predicted), _total(self.compiled))

    @property
    def compute_error(self) -> float | None:
        """The same of the seconds of compute."""
        return _error(self.predicted_compute_s, self.compiled_compute_s or 0)

    @property
    def products_share(self) -> float | None:
        """Share of the compiled compute that is in kernels that hold a matrix product."""
        products, whole = self.compiled_products_s, self.compiled_compute_s
        return products / whole if whole and products is not None else None

    @property
    def fits(self) -> bool:
        """Whether the compiled program fits the chip."""
        return self.compiled_peak_bytes <= self.available_bytes

    @property
    def exact(self) -> Mapping[str, bool]:
        """By kind of collective: whether its bytes over each axis are the predicted ones."""
        return {
            kind: all(
                round(_of(self.predicted, *key)) == round(_of(self.compiled, *key))
                for key in _keys(self.predicted, self.compiled)
                if key[0] == kind
            )
            for kind, _ in _keys(self.predicted, self.compiled)
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            **asdict(self),
            "exact": self.exact,
            "peak_error": self.peak_error,
            "wire_error": self.wire_error,
            "compute_error": self.compute_error,
            "products_share": self.products_share,
            "fits": self.fits,
        }

    def __str__(self) -> str:
        from autopar.core.plan_table import to_text

        return to_text(self.renderable())

    def renderable(self) -> RenderableType:
        """The tables, for a terminal."""
        from rich.console import Group
        from rich.text import Text

        how = f"{self.lowering}, {'emulated devices' if self.backend == 'cpu' else 'TPU compiler'}"
        title = Text(f"{self.target}, mesh {self.mesh}: {how}", style="bold")
        made = _table("", "predicted", "compiled", "error")
        made.add_row(
            *_bytes_row("peak memory", self.predicted_peak_bytes, self.compiled_peak_bytes)
        )
        made.add_row(*self._compute_row())
        sent = (_total(self.predicted), _total(self.compiled))
        made.add_row(*_bytes_row("bytes sent", *sent))
        for kind, axis in _keys(self.predicted, self.compiled):
            pair = (_of(self.predicted, kind, axis), _of(self.compiled, kind, axis))
            made.add_row(*_bytes_row(f"  {kind} over {axis}", *pair))
        return Group(title, Text(), made, *(Text(note) for note in self._notes()))

    def _compute_row(self) -> tuple[str, ...]:
        compiled = self.compiled_compute_s
        shown = "" if compiled is None else format_seconds(compiled)
        predicted = format_seconds(self.predicted_compute_s)
        return "compute", predicted, shown, _percent(self.compute_error)

    def _notes(self) -> Iterable[str]:
        if not self.fits:
            yield f"does not fit: a device has {format_bytes(self.available_bytes)}"
        if self.backend == "cpu":
            yield "memory is predicted for XLA:TPU, and compiled here by XLA:CPU"
        if (self.backend, self.lowering) == ("cpu", "jit"):
            yield "under jit XLA:CPU makes reduce-scatters of all-reduces: they count as such"
        if self.numerics is not None:
            found = self.numerics
            yield (
                f"{found.results} results beside those of one device, differences relative to the "
                f"largest magnitude: metrics {found.metrics_error:.1e}, state "
                f"{found.state_error:.1e} ({found.state})"
            )


def predicted_traffic(
    plan: Plan, scatters: bool = True, tpu: str | None = None
) -> tuple[Traffic, ...]:
    """What the plan says is sent.

    Args:
      scatters: whether reduce-scatters count as such, and not as all-reduces.
      tpu: ``jit`` or ``shard_map`` where XLA:TPU compiles. Windowed products pass their sums round
        the ring both ways: so each device sends two more parts than it must. An exchange over
        several axes at once counts as over the first (a fifth too little on 4x4).
    """
    sizes = dict(zip(plan.mesh.names, plan.mesh.sizes, strict=True))
    levels = Cluster.from_dict(plan.cluster).levels
    found: list[tuple[str, str, float, int]] = []
    for one in plan.predicted.collectives:
        size = sizes[one.axis]
        whole = one.form == "whole" if tpu == "jit" else tpu and _is_whole(one, size, levels)
        reduced = (
            whole
            or (tpu and one.form == "small")
            or (one.kind == "reduce-scatter" and not scatters)
        )
        kind = "all-reduce" if reduced else one.kind
        sent = wire_bytes(kind, one.bytes, size)
        if tpu == "jit" and one.form == "windowed":
            sent += 2 * one.bytes / size
        if tpu == "jit" and one.form == "joined":
            continue
        if tpu == "shard_map" and kind == "reduce-scatter":
            sent += (size - 1) * one.padding
            found.append(("collective-permute", one.axis, (size - 1) * one.padding, one.count))
        found.append((kind, one.axis, sent, one.count))
    return _summed(found)


def _is_whole(one: CollectiveUse, size: int, levels: Sequence[Level]) -> bool:
    """Whether XLA:TPU makes an all-reduce of an explicit collective."""
    if one.kind == "reduce-scatter":
        return scatters_by_reduction(levels, size)
    return one.kind == "all-gather" and gathers_by_reduction(levels, size, one.bytes)


def compiled_traffic(found: Iterable[Collective]) -> tuple[Traffic, ...]:
    """What the compiled program sends."""
    return _summed((one.kind, one.axis, one.wire_bytes, one.count) for one in found)


def _summed(items: Iterable[tuple[str, str, float, int]]) -> tuple[Traffic, ...]:
    total: dict[tuple[str, str], float] = defaultdict(float)
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for kind, axis, size, count in items:
        if size:
            total[kind, axis] += size * count
            counts[kind, axis] += count
    return tuple(Traffic(*key, total[key], counts[key]) for key in sorted(total))


def _keys(*sides: tuple[Traffic, ...]) -> list[tuple[str, str]]:
    return sorted({(one.kind, one.axis) for side in sides for one in side})


def _of(side: tuple[Traffic, ...], kind: str, axis: str) -> float:
    return sum(one.wire_bytes for one in side if (one.kind, one.axis) == (kind, axis))


def _total(side: tuple[Traffic, ...]) -> float:
    return sum(one.wire_bytes for one in side)


def _error(predicted: float, compiled: float) -> float | None:
    return predicted / compiled - 1 if compiled else None


def _percent(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"


def _bytes_row(name: str, predicted: float, compiled: float) -> tuple[str, ...]:
    error = _percent(_error(predicted, compiled))
    return name, format_bytes(int(predicted)), format_bytes(int(compiled)), error


def _table(*headers: str) -> Any:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, header in enumerate(headers):
        made.add_column(header, justify="right" if index else "left")
    return made


def traffic_by_kind(side: Iterable[Traffic]) -> Mapping[str, float]:
    """Bytes sent by kind, over all axes."""
    total: dict[str, float] = defaultdict(float)
    for one in side:
        total[one.kind] += one.wire_bytes
    return dict(total)
