"""Which links a mesh axis lies on, and how fast a collective along it can go.

Devices are numbered row-major over the levels, the outermost first, and a mesh is laid row-major on
that numbering. A mesh axis is then a stride and a size, and meets each level in a *part*: ``count``
positions, ``step`` apart. From the inside out:

* **torus** parts work side by side: each adds ``W`` (line) or ``2 W`` (closed ring), divided by its
  step, because ``step`` interleaved groups share the same links. ("How to Scale Your Model",
  chapter
  Sharding: a gather over several torus axes enjoys the bandwidth of all of them.)
* a **switch** part with ``g`` devices of the axis inside each port group pools their ports: ``g
  W``. (The same book, chapter GPUs: bytes over the node's egress.) What is pooled is what the axis
  has inside the node; an axis that strides over whole nodes has one port per device.
* stages pipeline, so the slowest one sets the rate. A stage of ``c`` groups moves ``(c-1)/c`` of
  what is gathered: two nodes exchange half. (The same chapter: hierarchical collectives.)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.core.mesh import MeshSpec
from autopar.cost_model.hardware import Level, Link
from autopar.cost_model.whole import WHOLE_DEVICES, scatters_by_reduction

TIME_LINK = Link("time", math.inf, 0.0)
"""A time axis moves nothing between devices."""


@dataclass(frozen=True, slots=True)
class Part:
    """The piece of a mesh axis that lies on one level."""

    level: Level
    count: int
    step: int

    @property
    def closed(self) -> bool:
        """Whether the part is a whole torus dimension that wraps around."""
        return self.level.wrap and self.count * self.step == self.level.size

    @property
    def rate(self) -> float:
        """bytes/s of one device's share of this part."""
        if self.level.kind == "switch":
            return self.level.bandwidth
        return self.level.bandwidth * (2.0 if self.closed else 1.0) / self.step

    @property
    def hops(self) -> int:
        if self.level.kind == "switch":
            return 1
        return (self.count // 2 if self.closed else self.count - 1) * self.step


def axis_strides(mesh: MeshSpec) -> tuple[int, ...]:
    """The distance, in device numbers, between neighbours along each axis (0 for time axes)."""
    strides, stride = [], 1
    for axis in reversed(mesh.axes):
        strides.append(stride if axis.kind == "space" else 0)
        stride *= axis.size if axis.kind == "space" else 1
    return tuple(reversed(strides))


def axis_parts(levels: Sequence[Level], stride: int, size: int) -> tuple[Part, ...]:
    """The parts of a mesh axis, innermost first.

    An axis that does not line up with the levels is taken to lie on the outermost level it touches.
    """
    parts: list[Part] = []
    inner = 1
    touched: Level | None = None
    for level in reversed(levels):
        low, high = max(stride, inner), min(stride * size, inner * level.size)
        if high > low:
            touched = level
            if high % low == 0 and low % inner == 0:
                parts.append(Part(level, high // low, low // inner))
        inner *= level.size
    if math.prod(part.count for part in parts) != size and touched is not None:
        return (Part(touched, size, 1),)
    return tuple(parts)


def link_of_parts(parts: Sequence[Part]) -> Link:
    """The effective link of an axis with these parts (innermost first)."""
    size = math.prod(part.count for part in parts)
    if not parts:
        return Link("none", math.inf, 0.0, hops=0.0, exchange_bandwidth=math.inf)
    slowest, inside = 0.0, 1  # seconds per byte of what is gathered
    exchange = 0.0  # seconds per byte of the local buffer
    for group in _groups(parts):
        count = math.prod(part.count for part in group)
        rate = inside * sum(part.rate for part in group)
        slowest = max(slowest, (count - 1) / count / rate)
        for part in group:
            torus = part.level.kind == "torus"
            share = part.count / 4.0 if torus else (part.count - 1) / part.count
            exchange = max(exchange, share / part.rate)
        inside *= count
    hops = sum(part.hops for part in parts)
    latency = sum(part.hops * part.level.latency_s for part in parts)
    return Link(
        name="+".join(part.level.name for part in reversed(parts)),
        bandwidth=(size - 1) / size / slowest if size > 1 else math.inf,
        latency_s=latency / hops if hops else 0.0,
        wrap=all(part.closed for part in parts),
        hops=float(hops),
        exchange_bandwidth=1.0 / exchange if size > 1 else math.inf,
    )


def _groups(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Runs of torus parts together, every switch part by itself."""
    run: list[Part] = []
    for part in parts:
        if part.level.kind == "torus":
            run.append(part)
            continue
        if run:
            yield run
        yield [part]
        run = []
    if run:
        yield run


def axis_links(levels: Sequence[Level], mesh: MeshSpec) -> tuple[Link, ...]:
    """The effective link of every axis of ``mesh``, in mesh order."""
    return tuple(
        TIME_LINK if axis.kind == "time" else _axis_link(levels, stride, axis.size)
        for axis, stride in zip(mesh.axes, axis_strides(mesh), strict=True)
    )


def _axis_link(levels: Sequence[Level], stride: int, size: int) -> Link:
    link = link_of_parts(axis_parts(levels, stride, size))
    # Over fewer chips products are mostly computed piece by piece round a ring (``search.forms``).
    whole = size >= WHOLE_DEVICES and scatters_by_reduction(levels, size)
    return dataclasses.replace(link, scatters=False) if whole else link


def factorizations(count: int, axes: int) -> Iterator[tuple[int, ...]]:
    """Every way to write ``count`` as an ordered product of ``axes`` factors above one.

    The minor factors grow slowest: ``8 -> (4, 2), (2, 4)``.
    """
    if axes == 1:
        if count > 1:
            yield (count,)
        return
    for minor in range(2, count // 2 + 1):
        if count % minor == 0:
            for rest in factorizations(count // minor, axes - 1):
                yield (*rest, minor)
