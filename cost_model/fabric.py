"""How the devices of a kind of machine are joined: from a shape to physical levels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from autopar.core.errors import ClusterError
from autopar.cost_model.hardware import Chip, Level, LevelKind

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Torus:
    """TPU slices: a 2D or 3D torus of chips, joined to other slices over the data-centre network.

    Attributes:
      standard: chip count to slice shape, for shapes given as one number.
      pod: the largest extent of each dimension. wrap: when a dimension's ends are joined:
        ``"full"`` (only at its largest extent) or ``"cubes"`` (when the slice is made of whole
        4x4x4 cubes).
      link: bytes/s of one link, one direction. hop_s: latency of a hop.
      dcn: bytes/s of the data-centre network, one direction, per chip. dcn_s: latency over it.
      dies: JAX devices per chip, joined by ``die_link`` bytes/s; they share the chip's links.
    """

    standard: tuple[Shape, ...]
    pod: Shape
    wrap: Literal["full", "cubes"]
    link: float
    hop_s: float
    dcn: float
    dcn_s: float
    dies: int = 1
    die_link: float = 0.0

    def levels(self, name: str, shape: Shape) -> tuple[Shape, tuple[Level, ...]]:
        """The physical shape (slices first, if several) and levels, outermost first.

        Raises:
          ClusterError: no such slice exists.
        """
        rank = len(self.pod)
        if len(shape) == 1:
            shape = self._standard(name, shape[0])
        slices, torus = (shape[0], shape[1:]) if len(shape) > rank else (1, shape)
        torus += (1,) * (rank - len(torus))
        if len(torus) != rank or any(
            extent > most for extent, most in zip(sorted(torus), sorted(self.pod), strict=True)
        ):
            raise ClusterError(
                f"{name} has no slice of shape {_show(shape)}: the largest pod is "
                f"{_show(self.pod)} ({math.prod(self.pod)} chips); for several slices put their "
                f"number first, e.g. {_show((2, *self.pod))}"
            )
        found = [Level("dcn", slices, "switch", self.dcn / self.dies, self.dcn_s)]
        for index, extent in enumerate(torus):
            wrap = self._wraps(torus, index)
            found.append(
                Level(f"ici{index}", extent, "torus", self.link / self.dies, self.hop_s, wrap)
            )
        if self.dies > 1:
            found.append(Level("die", self.dies, "switch", self.die_link, self.hop_s))
        return (shape if slices > 1 else torus), tuple(lv for lv in found if lv.size > 1)

    def _wraps(self, torus: Shape, index: int) -> bool:
        if self.wrap == "cubes":
            return all(extent % 4 == 0 for extent in torus)
        return torus[index] == max(self.pod)

    def _standard(self, name: str, count: int) -> Shape:
        for shape in self.standard:
            if math.prod(shape) == count:
                return shape
        sizes = ", ".join(str(math.prod(shape)) for shape in self.standard)
        raise ClusterError(
            f"{name} has no standard slice of {count} chips (there are {sizes}); "
            "give the shape in full, e.g. 4x4"
        )


@dataclass(frozen=True, slots=True)
class Island:
    """Devices joined by one kind of switch, or by wires between pairs (``torus``), whose rates add
    up over the islands that a group spans.
    """

    name: str
    size: int
    bandwidth: float  # bytes/s, one direction, per device, as achieved
    latency_s: float  # of one collective, or of a hop
    kind: LevelKind = "switch"


@dataclass(frozen=True, slots=True)
class Nodes:
    """GPU servers: nested islands (outermost first), and a network between the outermost ones.

    ``egress`` is the bytes/s of the network, one direction, per device.
    """

    islands: tuple[Island, ...]
    egress: float
    egress_s: float
    network: str = "network"

    def levels(self, name: str, shape: Shape) -> tuple[Shape, tuple[Level, ...]]:
        """``(devices,)`` or ``(nodes, devices per node)`` to physical levels, outermost first."""
        most = math.prod(island.size for island in self.islands)
        nodes, inside = self._node_split(name, shape, most)
        found: list[Level] = []
        rest = inside
        for island in reversed(self.islands):
            outermost = len(found) == len(self.islands) - 1
            size = rest if outermost else math.gcd(rest, island.size)
            found.append(Level(island.name, size, island.kind, island.bandwidth, island.latency_s))
            rest //= size
        found.append(Level(self.network, nodes, "switch", self.egress, self.egress_s))
        levels = tuple(level for level in reversed(found) if level.size > 1)
        return ((nodes, inside) if nodes > 1 else (inside,)), levels

    def _node_split(self, name: str, shape: Shape, most: int) -> tuple[int, int]:
        if len(shape) == 2 and shape[1] <= most:
            return shape[0], shape[1]
        if len(shape) == 1:
            count = shape[0]
            if count <= most:
                return 1, count
            for inside in (most, 1 << (most.bit_length() - 1)):
                if count % inside == 0:
                    return count // inside, inside
        raise ClusterError(
            f"{name} nodes hold {most} devices, so shape {_show(shape)} cannot be laid out; "
            f"write a multiple of {most}, or nodes first: 2x{most}"
        )


@dataclass(frozen=True, slots=True)
class SharedMemory:
    """Emulated devices of one machine: every collective is a copy through its memory."""

    bandwidth: float  # bytes/s per device
    latency_s: float

    def levels(self, name: str, shape: Shape) -> tuple[Shape, tuple[Level, ...]]:
        """One level of all devices."""
        count = math.prod(shape)
        level = Level("memory", count, "switch", self.bandwidth, self.latency_s)
        return shape, ((level,) if count > 1 else ())


Fabric = Torus | Nodes | SharedMemory


@dataclass(frozen=True, slots=True)
class Preset:
    """A chip, how its machines are joined, and what JAX calls it (``device_kind``, lower case)."""

    chip: Chip
    fabric: Fabric
    device_kinds: tuple[str, ...] = ()


def _show(shape: Shape) -> str:
    return "x".join(map(str, shape))
