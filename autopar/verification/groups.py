"""Which devices take part in a collective together, and along which mesh axes that is."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np

from autopar.core.errors import AutoparError
from autopar.core.mesh import MeshSpec

Groups = tuple[tuple[int, ...], ...]

_NUMBERS = re.compile(r"\d+")
_LISTED = re.compile(r"replica_groups=\{(\{.*?\}(?:,\{.*?\})*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(
    r"replica_groups=mesh\[([^\]]*)\]"
    r"(?:, device_ids=\((?:\[([\d,]+)\]T\(([\d,]+)\)|([\d,]+))\))?"
    r"\s*\{([^}]*)\}"
)
_UNREAD = re.compile(r"replica_groups=(?!\{\})\S*")
_PAIRS = re.compile(r"source_target_pairs=\{(\{.*?\}(?:,\{.*?\})*)\}")


def device_groups(attributes: str, device_count: int) -> Groups:
    """The groups that ``replica_groups`` or ``source_target_pairs`` name, in any of their forms.

    A permute's group is what its pairs connect. No groups named: all devices together.

    Raises:
      AutoparError: ``replica_groups`` is in a form that is not known.
    """
    if (match := _LISTED.search(attributes)) is not None:
        return tuple(_numbers(group) for group in match[1].split("},{"))
    if (match := _IOTA.search(attributes)) is not None:
        return _rows(_iota(match[2], match[3]).reshape(_numbers(match[1])))
    if (match := _MESH.search(attributes)) is not None:
        axes, source, order, listed, named = match.groups()
        groups = _mesh_groups(axes, named)
        if source is None and listed is None:
            return groups
        devices = _iota(source, order).reshape(-1) if source else np.array(_numbers(listed))
        return _rows(devices[np.array(groups)])
    if (match := _PAIRS.search(attributes)) is not None:
        return _connected([_numbers(pair) for pair in match[1].split("},{")])
    if (match := _UNREAD.search(attributes)) is not None:
        raise AutoparError(f"the compiler names groups of devices in a form not known: {match[0]}")
    return (tuple(range(device_count)),)


def _iota(shape: str, order: str | None) -> np.ndarray:
    """``[4,2]T(1,0)``: devices counted in ``shape``, whose dimensions are then put in ``order``."""
    numbers = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return numbers.transpose(_numbers(order)) if order else numbers


def _mesh_groups(axes: str, named: str) -> Groups:
    """``mesh['a'=4,'b'=2] {'b'}``, or part of an axis: ``{'a':(2)2}``, two before it, two of it."""
    sizes = {name: int(size) for name, size in re.findall(r"'([^']*)'=(\d+)", axes)}
    parts: list[tuple[str, int, int]] = []
    for name, before, size in re.findall(r"'([^']*)'(?::\((\d+)\)(\d+))?", named):
        parts.append((name, int(before or 1), int(size or sizes[name])))
    shape: list[int] = []
    chosen: list[int] = []
    for name, size in sizes.items():
        cuts = sorted((before, part) for other, before, part in parts if other == name)
        done = 1
        for before, part in cuts:
            shape.append(before // done)
            chosen.append(len(shape))
            shape.append(part)
            done = before * part
        shape.append(size // done)
    numbers = np.arange(math.prod(shape)).reshape(shape)
    others = [axis for axis in range(len(shape)) if axis not in chosen]
    members = math.prod(shape[axis] for axis in chosen)
    return _rows(numbers.transpose([*others, *chosen]).reshape(-1, members))


def _connected(pairs: list[tuple[int, ...]]) -> Groups:
    group = {device: device for pair in pairs for device in pair}

    def find(device: int) -> int:
        while group[device] != device:
            device = group[device]
        return device

    for source, target in pairs:
        group[find(source)] = find(target)
    found: dict[int, list[int]] = {}
    for device in sorted(group):
        found.setdefault(find(device), []).append(device)
    return tuple(map(tuple, found.values()))


def axis_of(groups: Groups, mesh: MeshSpec) -> str:
    """The mesh axes along which devices of a group differ, major first; ``?`` if it is no axis."""
    wanted = {frozenset(group) for group in groups}
    numbers = np.arange(mesh.device_count).reshape(mesh.sizes)
    axes = range(len(mesh.sizes))
    for count in range(1, len(mesh.sizes) + 1):
        for chosen in itertools.combinations(axes, count):
            others = [axis for axis in axes if axis not in chosen]
            members = math.prod(mesh.sizes[axis] for axis in chosen)
            rows = numbers.transpose([*others, *chosen]).reshape(-1, members)
            if {frozenset(row) for row in _rows(rows)} == wanted:
                return "+".join(mesh.names[axis] for axis in chosen if mesh.sizes[axis] > 1)
    return "?"


def _rows(numbers: np.ndarray) -> Groups:
    return tuple(tuple(int(device) for device in row) for row in numbers)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, _NUMBERS.findall(text)))
