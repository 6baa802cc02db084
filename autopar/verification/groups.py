"""Which devices take part in a collective together, and along which mesh axes that is."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np

from autopar.core.mesh import MeshSpec

Groups = tuple[tuple[int, ...], ...]

_NUMBERS = re.compile(r"\d+")
_LISTED = re.compile(r"replica_groups=\{(\{.*?\}(?:,\{.*?\})*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\](?:\s*\(([\d,]*)\))?\s*\{([^}]*)\}")
_PAIRS = re.compile(r"source_target_pairs=\{(\{.*?\}(?:,\{.*?\})*)\}")


def device_groups(attributes: str, device_count: int) -> Groups:
    """The groups that ``replica_groups`` or ``source_target_pairs`` name, in any of their forms.

    A permute's group is what its pairs connect. No groups named: all devices together.
    """
    if (match := _LISTED.search(attributes)) is not None:
        return tuple(_numbers(group) for group in match[1].split("},{"))
    if (match := _IOTA.search(attributes)) is not None:
        shape, source = _numbers(match[1]), _numbers(match[2])
        numbers = np.arange(math.prod(source)).reshape(source)
        if match[3]:
            numbers = numbers.transpose(_numbers(match[3]))
        return _rows(numbers.reshape(shape))
    if (match := _MESH.search(attributes)) is not None:
        return _mesh_groups(match[1], match[3])
    if (match := _PAIRS.search(attributes)) is not None:
        return _connected([_numbers(pair) for pair in match[1].split("},{")])
    return (tuple(range(device_count)),)


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
