"""A cluster: one kind of chip, and the levels of links that join the devices."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import jax

from autopar.core.errors import ClusterError
from autopar.core.mesh import MeshSpec
from autopar.cost_model.hardware import Chip, Level, Link, chip_from_dict
from autopar.cost_model.presets import find_preset, machine_bytes, preset_for_device
from autopar.cost_model.topology import axis_links, factorizations


@dataclass(frozen=True, slots=True)
class Cluster:
    """The devices a plan is for.

    Attributes:
      shape: as a person writes it: torus extents, ``(nodes, devices per node)``, or ``(devices,)``.
      levels: the physical dimensions, outermost (slowest) first. Device numbers run row-major over
        them. A cluster of one device has none.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    levels: tuple[Level, ...] = ()

    @classmethod
    def preset(cls, name: str, shape: Sequence[int] | int = (1,)) -> Cluster:
        """A cluster of a known accelerator.

        Args:
          name: ``"tpu-v5e"``, ``"h100"``, ``"cpu"``, ...; see ``autopar clusters``.
          shape: TPU: the slice, ``(4, 4)``, or its chip count, ``16``; several slices go first,
            ``(2, 16, 16)``. GPU: the device count or ``(nodes, devices per node)``. CPU: the count.

        Raises:
          ClusterError: an unknown name, or a shape such machines do not come in.
        """
        found = find_preset(name)
        shape, levels = found.fabric.levels(name, check_shape(shape))
        chip = found.chip
        if name == "cpu":
            share = machine_bytes() // math.prod(shape)
            chip = dataclasses.replace(chip, hbm_bytes=share, host_bytes=share)
        return cls(name, chip, shape, levels)

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> Cluster:
        """Reads a cluster from a TOML file (its format: ``cluster_file``)."""
        from autopar.cost_model.cluster_file import read_cluster

        return read_cluster(path)

    @classmethod
    def detect(cls) -> Cluster:
        """The cluster JAX sees in this process.

        Raises:
          ClusterError: no preset describes these devices.
        """
        devices = jax.devices()
        name = "cpu" if devices[0].platform == "cpu" else preset_for_device(devices[0].device_kind)
        if name is None:
            raise ClusterError(
                f"no preset describes {devices[0].device_kind!r} devices; "
                "describe them in a file and use Cluster.from_toml(path)"
            )
        cluster = cls.preset(name, _detected_shape(devices))
        stats = cast("Mapping[str, int] | None", devices[0].memory_stats())
        limit = (stats or {}).get("bytes_limit")
        if limit and name != "cpu":
            chip = dataclasses.replace(cluster.chip, hbm_bytes=limit)
            return dataclasses.replace(cluster, chip=chip)
        return cluster

    @property
    def device_count(self) -> int:
        return math.prod(level.size for level in self.levels)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything the cost model reads, in hexadecimal."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def axis_links(self, mesh: MeshSpec) -> tuple[Link, ...]:
        """The effective link of a collective along each axis of ``mesh``, in mesh order.

        Raises:
          ClusterError: the mesh is not for this many devices.
        """
        if mesh.device_count != self.device_count:
            raise ClusterError(
                f"mesh {mesh} is for {mesh.device_count} devices, but {self} has "
                f"{self.device_count}"
            )
        return axis_links(self.levels, mesh)

    def default_meshes(self, max_axes: int = 2) -> tuple[MeshSpec, ...]:
        """Every factorisation of the device count into up to ``max_axes`` axes, fewest first."""
        count = self.device_count
        shapes = [sizes for axes in range(1, max_axes + 1) for sizes in factorizations(count, axes)]
        return tuple(MeshSpec.of(sizes) for sizes in shapes or [(1,)])

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; equal clusters give equal text."""
        return {
            "name": self.name,
            "chip": dataclasses.asdict(self.chip),
            "shape": list(self.shape),
            "levels": [dataclasses.asdict(level) for level in self.levels],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Cluster:
        """The inverse of ``to_dict``; ``ClusterError`` if ``data`` is not a cluster."""
        try:
            return cls(
                str(data["name"]),
                chip_from_dict(data["chip"]),
                check_shape(data["shape"]),
                tuple(Level(**level) for level in data["levels"]),
            )
        except (KeyError, TypeError) as error:
            raise ClusterError(f"not a cluster description: {error}") from None

    def __str__(self) -> str:
        return f"{self.name}:{'x'.join(map(str, self.shape))}"


def parse_cluster(text: str) -> Cluster:
    """Reads ``"tpu-v5e:4x4"``, ``"h100:8"``, ``"cpu:8"``, or the path of a TOML file."""
    if text.endswith(".toml"):
        return Cluster.from_toml(text)
    match = re.fullmatch(r"([\w.-]+?)(?::(\d+(?:x\d+)*))?", text.strip())
    if match is None:
        raise ClusterError(
            f"{text!r} is not a cluster; write preset:shape such as 'tpu-v5e:4x4' or 'h100:8', "
            "or the path of a .toml file"
        )
    shape = tuple(int(part) for part in match[2].split("x")) if match[2] else (1,)
    return Cluster.preset(match[1], shape)


def check_shape(shape: Sequence[int] | int) -> tuple[int, ...]:
    """``shape`` as a tuple of positive integers; ``ClusterError`` otherwise."""
    sizes: tuple[object, ...] = tuple(shape) if isinstance(shape, Iterable) else (shape,)
    for size in sizes:
        if _is_not_count(size):
            raise ClusterError(
                f"shape: {shape!r} holds {size!r}; every dimension needs at least one device"
            )
    if not sizes:
        raise ClusterError("shape: () is empty; a cluster needs at least one device")
    return cast("tuple[int, ...]", sizes)


def _is_not_count(size: object) -> bool:
    return isinstance(size, bool) or not isinstance(size, int) or size < 1


def _detected_shape(devices: Sequence[Any]) -> tuple[int, ...]:
    """The slice shape from TPU coordinates, the device count of anything else."""
    coords = [tuple(getattr(device, "coords", ())) for device in devices]
    if not all(coords) or devices[0].platform != "tpu":
        return (len(devices),)
    extents = tuple(max(axis) - min(axis) + 1 for axis in zip(*coords, strict=True))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    while len(extents) > 1 and extents[-1] == 1:
        extents = extents[:-1]
    return (slices, *extents) if slices > 1 else extents
