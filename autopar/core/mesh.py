"""Meshes: the named axes along which values lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from autopar.core.errors import ClusterError

AxisKind = Literal["space", "time"]

DEFAULT_NAMES = ("data", "model", "expert", "context")


@dataclass(frozen=True, slots=True)
class MeshAxis:
    """One axis: ``size`` positions along which a value is split, broadcast or partial.

    A ``space`` axis runs over devices; a ``time`` axis over microbatches.
    """

    name: str
    size: int
    kind: AxisKind = "space"


@dataclass(frozen=True, slots=True)
class MeshSpec:
    """An ordered tuple of mesh axes, the major one first. Abstract: holds no devices."""

    axes: tuple[MeshAxis, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def device_count(self) -> int:
        return math.prod(axis.size for axis in self.axes if axis.kind == "space")

    def __str__(self) -> str:
        return " x ".join(f"{axis.name}={axis.size}" for axis in self.axes)

    @classmethod
    def of(cls, mesh: MeshSpec | Mapping[str, int] | Sequence[int] | int) -> MeshSpec:
        """Reads a mesh as users write it: ``(4, 2)``, ``{"data": 4, "model": 2}`` or ``8``.

        Raises:
          ClusterError: an axis of size below one, or no name left for an axis.
        """
        if isinstance(mesh, MeshSpec):
            return mesh
        if isinstance(mesh, int):
            mesh = (mesh,)
        sizes = isinstance(mesh, (Mapping, Sequence)) and not isinstance(mesh, str)  # pyright: ignore
        if not sizes or not mesh:
            raise ClusterError(
                f"mesh={mesh!r} holds no sizes of axes; write (4, 2) or {{'data': 4, 'model': 2}} "
                "(of a jax.sharding.Mesh, dict(mesh.shape))"
            )
        if isinstance(mesh, Mapping):
            named = [(str(name), size) for name, size in mesh.items()]
        else:
            if len(mesh) > len(DEFAULT_NAMES):
                raise ClusterError(
                    f"mesh {tuple(mesh)} has {len(mesh)} axes but only {len(DEFAULT_NAMES)} have "
                    "default names; give a dict of axis name to size"
                )
            named = list(zip(DEFAULT_NAMES, mesh, strict=False))
        for name, size in named:
            if type(size) is not int or size < 1:
                raise ClusterError(
                    f"mesh axis {name!r} has size {size!r}; every axis needs at least one device"
                )
        return cls(tuple(MeshAxis(name, size) for name, size in named))
