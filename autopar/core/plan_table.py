"""A plan as people read it: what it costs, how every input lies, what moves between devices."""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import jax.numpy as jnp
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autopar.core.folding import Numbers, common_folder, fold, numbers
from autopar.core.layout import Layout, local_shape
from autopar.core.mesh import MeshSpec
from autopar.core.plan import CollectiveUse, Plan, ValuePlan
from autopar.core.text import format_bytes, format_seconds

WIDTH = 100
"""Columns of a plan printed anywhere but on a terminal."""

ROLES = ("parameters", "optimizer state", "batch", "other")
"""The order in which inputs are listed."""

LEGEND = "P(...) names the mesh axes that split an array, dimension by dimension; P(): not split"

NAMED_VALUES = 2
"""Values named beside one row of collectives, those that take the most time."""

_SHORT_DTYPES = (("float", "f"), ("uint", "u"), ("int", "i"), ("complex", "c"))


def render(plan: Plan) -> str:
    """The plan as plain text."""
    return to_text(renderable(plan))


def to_text(what: RenderableType) -> str:
    """Plain text of ``WIDTH`` columns, whatever terminal there is."""
    console = Console(file=io.StringIO(), width=WIDTH, color_system=None, _environ={})
    with console.capture() as capture:
        console.print(what)
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())


def renderable(plan: Plan) -> RenderableType:
    """The plan for a ``rich`` console: as wide as that is, and with its colours."""
    parts: list[RenderableType] = [_summary(plan), Text(), _inputs(plan)]
    parts.append(Text(LEGEND, style="dim"))
    if plan.predicted.collectives:
        parts += [Text(), _collectives(plan)]
    if plan.recomputed:
        parts += [Text(), _recomputed(plan)]
    if plan.offloaded:
        parts += [Text(), _offloaded(plan)]
    if plan.fallbacks:
        parts += [Text(), _fallbacks(plan)]
    return Group(*parts)


def show_spec(spec: Iterable[object]) -> str:
    """``P(None, 'model')``, in the same words whatever the version of JAX."""
    return f"P({', '.join(map(repr, spec))})"


def show_cluster(plan: Plan) -> str:
    """The cluster as it is written: ``tpu-v5e:4x4``."""
    name, shape = plan.cluster.get("name", "?"), plan.cluster.get("shape", ())
    return f"{name}:{'x'.join(map(str, shape))}" if shape else str(name)


def show_search(plan: Plan) -> str:
    """How good the plan is known to be, in words."""
    solver = plan.solver
    if solver.status == "optimal":
        found = f"proven optimal{f' within {100 * solver.gap:.1g} %' if solver.gap else ''}"
        found += " among plans that treat repeated layers alike" if solver.layers_alike else ""
    else:
        found = "stopped by the time limit" if solver.status == "stopped" else "not proven optimal"
        if solver.bound_s > 0:
            found += f": the best would be at most {100 * solver.gap:.2g} % faster"
    return f"{plan.options.get('search', solver.name)}: {found}"


def _summary(plan: Plan) -> Table:
    predicted, count = plan.predicted, plan.mesh.device_count
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    devices = f"{count} device" + ("s" if count != 1 else "")
    table.add_row("cluster", Text(f"{show_cluster(plan)} ({devices}), mesh {plan.mesh}"))
    took = f" (in {format_seconds(plan.solver.seconds)})" if plan.solver.seconds else ""
    table.add_row("search", Text(show_search(plan) + took))
    share = 100 * predicted.exposed_s / predicted.step_s if predicted.step_s else 0.0
    step = Text(format_seconds(predicted.step_s), style="bold green")
    step.append(
        f" predicted: compute {format_seconds(predicted.compute_s)}, communication "
        f"{format_seconds(predicted.comm_s)}, exposed {format_seconds(predicted.exposed_s)} "
        f"({share:.0f} %){_host_link(plan)}",
        style="not bold default",
    )
    table.add_row("step", step)
    memory = Text(format_bytes(predicted.peak_bytes), style="bold green")
    asked = f" ({format_bytes(plan.compiled_bytes)} compiled)" if plan.compiled_bytes else ""
    memory.append(f" peak a device{asked}{_breakdown(plan)}", style="not bold default")
    table.add_row("memory", memory)
    return table


def _host_link(plan: Plan) -> str:
    seconds = sum(one.seconds for one in plan.offloaded)
    return f", to the host and back {format_seconds(seconds)}" if plan.offloaded else ""


def _breakdown(plan: Plan) -> str:
    memory = sorted(plan.predicted.memory.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{name} {format_bytes(count)}" for name, count in memory if count]
    if plan.predicted.host_bytes:
        parts.append(f"on the host {format_bytes(plan.predicted.host_bytes)}")
    return f": {', '.join(parts)}" if parts else ""


def _inputs(plan: Plan) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("inputs", ratio=1, overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("split by", no_wrap=True, style="cyan")
    table.add_column("on a device", no_wrap=True)
    known = numbers(value.path for value in plan.inputs)
    by_role: dict[str, list[ValuePlan]] = defaultdict(list)
    for value in plan.inputs:
        by_role[value.role].append(value)
    for role in sorted(by_role, key=_role_order):
        values = by_role[role]
        mirrors = role == "optimizer state"
        followers = _followers(values, by_role["parameters"]) if mirrors else {}
        folder = common_folder(value.path for value in values)
        table.add_row(*_title(role, folder, values, plan.mesh))
        if followers:
            places = ", ".join(p.show(known) for p in fold(dict.fromkeys(followers.values())))
            table.add_row(_indent(f"{places}/..."), f"x{len(followers)}", "as the parameters")
        rest = [value for value in values if value.path not in followers]
        for row in _rows(rest, folder, known, plan.mesh):
            table.add_row(*row)
    return table


def _role_order(role: str) -> int:
    return ROLES.index(role) if role in ROLES else len(ROLES)


def _title(
    role: str, folder: str, values: Sequence[ValuePlan], mesh: MeshSpec
) -> tuple[Text, Text, Text, Text]:
    whole = sum(_bytes(value.shape, value.dtype) for value in values)
    local = sum(_bytes(local_shape(v.shape, v.layout, mesh), v.dtype) for v in values)
    name = Text(role, style="bold").append(f" in {folder}" if folder else "", style="not bold")
    count = f"{len(values)} array" + ("s" if len(values) != 1 else "")
    return name, Text(f"{count}, {format_bytes(whole)}"), Text(), Text(format_bytes(local))


def _followers(values: Sequence[ValuePlan], parameters: Sequence[ValuePlan]) -> dict[str, str]:
    """Paths that mirror a parameter and lie as it does; each with the folder of its mirror."""
    root = common_folder(value.path for value in parameters)
    mirrored = {value.path.removeprefix(root): value for value in parameters}
    found: dict[str, str] = {}
    for value in values:
        parts = value.path.split("/")
        for cut in range(1, len(parts)):
            parameter = mirrored.get("/".join(parts[cut:]))
            if parameter and (parameter.shape, parameter.layout) == (value.shape, value.layout):
                found[value.path] = "/".join(parts[:cut])
                break
    return found


def _indent(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2))


def _rows(
    values: Sequence[ValuePlan], folder: str, known: Numbers, mesh: MeshSpec
) -> Iterator[tuple[Padding, Text, Text, Text]]:
    """One row for each shape and layout, the largest values first."""
    groups: dict[tuple[str, tuple[int, ...], Layout], list[ValuePlan]] = defaultdict(list)
    for value in values:
        groups[value.dtype, value.shape, value.layout].append(value)
    for (dtype, shape, layout), group in sorted(
        groups.items(), key=lambda item: -_bytes(item[0][1], item[0][0])
    ):
        patterns = fold(value.path.removeprefix(folder) for value in group)
        names = ", ".join(pattern.show(known) for pattern in patterns)
        times = f" x{len(group)}" if len(group) > 1 else ""
        local = ",".join(map(str, local_shape(shape, layout, mesh)))
        shown = f"{_short(dtype)}[{','.join(map(str, shape))}]{times}"
        spec = show_spec(group[0].spec(mesh))
        yield _indent(names), Text(shown), Text(spec), Text(f"[{local}]")


def _collectives(plan: Plan) -> Group:
    """A line for each kind and axis, the slowest first, and below it, or beside, what they move."""
    groups: dict[tuple[str, str], list[CollectiveUse]] = defaultdict(list)
    for use in plan.predicted.collectives:
        groups[use.kind, use.axis].append(use)
    known = numbers(use.value for use in plan.predicted.collectives)
    wide = max(len("over"), *(len(axis) for _, axis in groups))
    header = f"{'communication':20} {'over':{wide}} {'times':>6}  {'each':>11}  {'in all':>8}"
    lines: list[RenderableType] = [Text(f"{header}  {'time':>8}  what", style="bold")]
    for (kind, axis), group in sorted(
        groups.items(), key=lambda item: (-sum(use.seconds for use in item[1]), item[0])
    ):
        row = Text(f"  {kind:18} {axis:{wide}} {_amounts(group)}")
        moved = Text(_moved(group, known), style="dim")
        if len(row) + len(moved) + 2 <= WIDTH:
            lines.append(row.append("  ").append(moved))
        else:
            lines += [row, Padding(moved, (0, 0, 0, 4))]
    return Group(*lines)


def _amounts(uses: Sequence[CollectiveUse]) -> str:
    sizes = [use.bytes for use in uses]
    each = ("<= " if min(sizes) < max(sizes) else "") + format_bytes(max(sizes))
    total = format_bytes(sum(use.bytes * use.count for use in uses))
    seconds = format_seconds(sum(use.seconds for use in uses))
    return f"{sum(use.count for use in uses):>6}  {each:>11}  {total:>8}  {seconds:>8}"


def _moved(uses: Sequence[CollectiveUse], known: Numbers) -> str:
    """The values that these collectives move, those that take the most time first."""
    seconds: dict[str, float] = defaultdict(float)
    for use in uses:
        seconds[use.value] += use.seconds
    patterns = fold(sorted(seconds, key=lambda value: (-seconds[value], value)))
    names = [pattern.show(known) for pattern in patterns[:NAMED_VALUES]]
    if len(patterns) > NAMED_VALUES:
        names.append(f"{sum(p.count for p in patterns[NAMED_VALUES:])} more")
    return ", ".join(names)


def _recomputed(plan: Plan) -> Group:
    """What the backward pass computes again."""
    header = f"{'recomputed':11} {'times':>6}  {'not held':>10}  {'time':>8}  what"
    return _stored(header, [(r.value, r.count, r.bytes, r.seconds) for r in plan.recomputed])


def _offloaded(plan: Plan) -> Group:
    """What rests on the host."""
    header = f"{'on the host':11} {'arrays':>6}  {'held there':>10}  {'time':>8}  what"
    return _stored(header, [(one.value, 1, one.bytes, one.seconds) for one in plan.offloaded])


def _stored(header: str, values: Sequence[tuple[str, int, int, float]]) -> Group:
    """A line for each pattern of names, the largest first; values with count, bytes and seconds."""
    known = numbers(name for name, *_ in values)
    groups = [
        (pattern.show(known), [one for one in values if pattern.holds(one[0])])
        for pattern in fold(name for name, *_ in values)
    ]
    lines: list[RenderableType] = [Text(header, style="bold")]
    for name, group in sorted(groups, key=lambda item: -sum(size for _, _, size, _ in item[1])):
        count, size, seconds = (sum(column) for column in list(zip(*group, strict=True))[1:])
        row = f"{'':11} {count:>6}  {format_bytes(size):>10}  {format_seconds(seconds):>8}  "
        lines.append(Text(row).append(name, "dim"))
    return Group(*lines)


def _fallbacks(plan: Plan) -> Text:
    names = ", ".join(f"{name} x{count}" for name, count in sorted(plan.fallbacks.items()))
    text = Text("replicated ", style="bold yellow")
    return text.append(f"for want of a sharding rule: {names}", style="not bold default")


def _bytes(shape: Sequence[int], dtype: str) -> int:
    return math.prod(shape) * _itemsize(dtype)


def _itemsize(dtype: str) -> int:
    """Bytes an element; JAX's random keys, which numpy does not know, count as their 8 bytes."""
    try:
        return jnp.dtype(dtype).itemsize
    except TypeError:
        return 8


def _short(dtype: str) -> str:
    """``float32`` to ``f32``, as JAX writes it."""
    if dtype == "bfloat16":
        return "bf16"
    for long, short in _SHORT_DTYPES:
        if dtype.startswith(long):
            return short + dtype.removeprefix(long)
    return dtype
