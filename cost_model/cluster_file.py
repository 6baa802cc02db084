"""Clusters from TOML files.

::

    name = "lab"
    preset = "h100"               # start from this chip; without it, [chip] gives every constant
    shape = [2, 8]                # without [[levels]]: laid out as the preset's machines are

    [chip]                        # what differs from the preset
    hbm_bytes = "96 GiB"
    hbm_bandwidth = "2.4 TB/s"

    [[levels]]                    # physical dimensions, outermost first
    name = "infiniband"
    size = 2
    kind = "switch"               # or "torus", with wrap = true for a ring
    bandwidth = "50 GB/s"         # one direction: of a device's port, or of a torus link
    latency = "20 us"             # of a collective, or of a torus hop

Quantities are numbers in base units (bytes, bytes/s, FLOP/s, s) or text with a unit.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import tomllib
from collections.abc import Collection, Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any, cast

from autopar.core.errors import ClusterError
from autopar.cost_model.cluster import Cluster, check_shape
from autopar.cost_model.hardware import Chip, Level, chip_from_dict
from autopar.cost_model.presets import find_preset
from autopar.cost_model.units import parse_quantity

_TOP = ("name", "preset", "shape", "chip", "levels")
_LEVEL = ("name", "size", "kind", "bandwidth", "latency", "wrap")
_CHIP = tuple(field.name for field in dataclasses.fields(Chip))
_ENDINGS = {"_s": "s", "_flops": "FLOP/s", "_bandwidth": "bytes/s"}
_PLAIN = frozenset(
    (
        *("matmul_efficiency", "hbm_efficiency", "attention_efficiency"),
        *("matmul_tile", "matmul_half_k"),
    )
)


def read_cluster(path: str | PathLike[str]) -> Cluster:
    """Reads a cluster file.

    Raises:
      ClusterError: no such file, not TOML, or a wrong key or value, which it names.
    """
    where = fspath(path)
    try:
        data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ClusterError(f"cannot read cluster file {where}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ClusterError(f"{where} is not a TOML file: {error}") from None
    try:
        return _cluster(data, Path(path).stem)
    except ClusterError as error:
        raise ClusterError(f"{where}: {error}") from None


def write_cluster(cluster: Cluster, path: str | PathLike[str]) -> None:
    """Writes a file that ``read_cluster`` reads as the same cluster.

    Raises:
      ClusterError: the file cannot be written.
    """
    lines = [f"name = {json.dumps(cluster.name)}", f"shape = {list(cluster.shape)}", "", "[chip]"]
    for key, value in dataclasses.asdict(cluster.chip).items():
        lines.append(f"{key} = {json.dumps(value)}")
    for level in cluster.levels or (Level("alone", 1, "switch", 1.0, 0.0),):
        lines += ["", "[[levels]]", f"name = {json.dumps(level.name)}", f"size = {level.size}"]
        lines += [f"kind = {json.dumps(level.kind)}", f"bandwidth = {level.bandwidth!r}"]
        lines += [f"latency = {level.latency_s!r}", f"wrap = {json.dumps(level.wrap)}"]
    try:
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ClusterError(
            f"cannot write cluster file {fspath(path)}: {error.strerror}; give a path in a folder "
            "that exists and may be written to"
        ) from None


def _cluster(data: Mapping[str, Any], default_name: str) -> Cluster:
    _check_keys(data, _TOP, "")
    name = str(data.get("name", default_name))
    preset = None if "preset" not in data else str(data["preset"])
    changes = _table(data.get("chip", {}), "chip")
    if "levels" not in data:
        if preset is None:
            raise ClusterError("levels: missing; give [[levels]], or a preset and a shape")
        base = Cluster.preset(preset, _shape(data.get("shape", [1])))
        return Cluster(name, _chip(changes, base.chip), base.shape, base.levels)
    chip = _chip(changes, None if preset is None else find_preset(preset).chip)
    levels = _levels(data["levels"])
    count = math.prod(level.size for level in levels)
    shape = _shape(data.get("shape", [level.size for level in levels]))
    if math.prod(shape) != count:
        raise ClusterError(
            f"shape: {list(shape)} has {math.prod(shape)} devices, but the levels have {count}"
        )
    return Cluster(name, chip, shape, tuple(level for level in levels if level.size > 1))


def _chip(data: Mapping[str, Any], base: Chip | None) -> Chip:
    _check_keys(data, _CHIP, "chip.")
    values = {key: _chip_value(key, value) for key, value in data.items()}
    if base is not None:
        return chip_from_dict({**dataclasses.asdict(base), **values})
    for field in dataclasses.fields(Chip):
        if field.default is dataclasses.MISSING and field.name not in (*values, "name"):
            raise ClusterError(f"chip.{field.name}: missing; give it, or start from a preset")
    return chip_from_dict({"name": "custom", **values})


def _chip_value(key: str, value: object) -> object:
    if key in ("name", "overlap"):
        return str(value)
    if key in _PLAIN:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ClusterError(f"chip.{key}: {value!r} is not a number")
        return value
    dimension = next((d for ending, d in _ENDINGS.items() if key.endswith(ending)), "bytes")
    number = parse_quantity(value, dimension, f"chip.{key}")
    return int(number) if dimension == "bytes" else number


def _levels(tables: object) -> tuple[Level, ...]:
    if not isinstance(tables, list):
        raise ClusterError("levels: write each level as a [[levels]] table")
    found = enumerate(cast("list[object]", tables))
    return tuple(_level(_table(table, f"levels[{i}]"), i) for i, table in found)


def _level(data: Mapping[str, Any], index: int) -> Level:
    where = f"levels[{index}]"
    _check_keys(data, _LEVEL, f"{where}.")
    for key in ("size", "bandwidth"):
        if key not in data:
            raise ClusterError(f"{where}.{key}: missing")
    size = data["size"]
    if isinstance(size, bool) or not isinstance(size, int):
        raise ClusterError(f"{where}.size: {size!r} is not a whole number")
    kind = data.get("kind", "switch")
    if kind not in ("torus", "switch"):
        raise ClusterError(f"{where}.kind: {kind!r} is neither 'torus' nor 'switch'")
    return Level(
        name=str(data.get("name", f"level{index}")),
        size=size,
        kind=kind,
        bandwidth=parse_quantity(data["bandwidth"], "bytes/s", f"{where}.bandwidth"),
        latency_s=parse_quantity(data.get("latency", 0.0), "s", f"{where}.latency"),
        wrap=bool(data.get("wrap", False)),
    )


def _table(value: object, key: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ClusterError(f"{key}: {value!r} is not a table")
    return cast("dict[str, Any]", value)


def _shape(value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, int)):
        raise ClusterError(f"shape: {value!r} is not a list of sizes")
    return check_shape(cast("list[int] | int", value))


def _check_keys(data: Mapping[str, Any], known: Collection[str], prefix: str) -> None:
    for key in data:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {prefix}{near[0]}?" if near else ""
            raise ClusterError(f"{prefix}{key} is not known{hint} (known: {', '.join(known)})")
