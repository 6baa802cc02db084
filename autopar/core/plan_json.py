"""Plans as JSON files.

A file holds everything of a ``Plan`` but what differs from run to run (``solver.seconds``) and what
belongs to a process (the pytree structures), so that equal plans are equal bytes. Keys are sorted,
floats are written by ``repr``, and the strategies of equations, which repeat with a model's layers,
are numbers into a table of the distinct ones. Each entry of a field has a line of its own, so that
``diff`` shows what differs.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from autopar.core.errors import PlanError
from autopar.core.json_reader import JsonField, read_json
from autopar.core.layout import Layout, Split, show
from autopar.core.layout import parse as parse_layout
from autopar.core.mesh import AxisKind, MeshAxis, MeshSpec
from autopar.core.plan import (
    SCHEMA,
    CollectiveUse,
    MemoryCurve,
    Offloaded,
    Plan,
    Prediction,
    Recomputation,
    SolverReport,
    Strategy,
    ValuePlan,
)

_Record = TypeVar("_Record")

FORMAT = "autopar plan"
"""What the file's field ``format`` says, to tell a plan from any other JSON."""


def save(plan: Plan, path: Path) -> None:
    """Writes the plan to ``path``: through a temporary file, so that no reader sees half of it.

    Raises:
      PlanError: the file cannot be written; whatever was there before is still there.
    """
    target = path.resolve()  # a link stays a link
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(to_json(plan))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise PlanError(
            f"{path}: the plan cannot be written: {error.strerror or error}; give a path in a "
            "folder that exists and may be written to"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path) -> Plan:
    """Reads what ``save`` wrote.

    Raises:
      PlanError: there is no such file, or it is not a plan of this schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise PlanError(
            f"{path}: no such file; `autopar plan ... --save {path}` would make it"
        ) from None
    except UnicodeDecodeError as error:
        raise PlanError(
            f"{path}: not a plan: byte {error.start} is not UTF-8 text; give a file that "
            "Plan.save wrote"
        ) from None
    except OSError as error:
        raise PlanError(f"{path}: cannot be read: {error.strerror or error}") from None
    return from_json(text, str(path))


def to_json(plan: Plan) -> str:
    """The plan as JSON text: the same plan gives the same bytes in every process."""
    texts, numbers = _strategy_table(plan.strategies)
    solver = _record(plan.solver)
    del solver["seconds"]
    return _one_line_an_entry(
        {
            "format": FORMAT,
            "schema": plan.schema,
            "step": plan.step,
            "cluster": plan.cluster,
            "cluster_fingerprint": plan.cluster_fingerprint,
            "mesh": [_record(axis, kind=axis.kind) for axis in plan.mesh.axes],
            "inputs": [_value_to_data(value) for value in plan.inputs],
            "outputs": [_value_to_data(value) for value in plan.outputs],
            "strategy_table": texts,
            "strategies": numbers,
            "hubs": {name: show(layout) for name, layout in plan.hubs.items()},
            "predicted": _prediction_to_data(plan.predicted),
            "solver": solver,
            "fallbacks": {name: int(count) for name, count in plan.fallbacks.items()},
            "options": dict(plan.options),
            "recompute": list(plan.recompute),
            "recomputed": [_record(one) for one in plan.recomputed],
            "unlimited": _curve_to_data(plan.unlimited),
            "compiled_bytes": int(plan.compiled_bytes),
            "offloaded": [_record(one) for one in plan.offloaded],
        }
    )


def from_json(text: str, where: str = "") -> Plan:
    """The inverse of ``to_json``.

    Args:
      text: what ``to_json`` gave.
      where: the text's origin, for error messages.

    Raises:
      PlanError: the text is damaged, of another schema, or no plan; says where and what to do.
    """
    root = read_json(text, where)
    _check_schema(root)
    mesh = MeshSpec(tuple(_axis_from(axis) for axis in root.child("mesh").elements()))
    if len(set(mesh.names)) != len(mesh.names):
        raise root.child("mesh").wrong("axes of different names")
    table = [_strategy_from(entry, mesh) for entry in root.child("strategy_table").elements()]
    offloaded = tuple(_record_from(Offloaded, one) for one in root.child("offloaded").elements())
    inputs = tuple(_value_from(v, mesh) for v in root.child("inputs").elements())
    paths = {value.path for value in inputs}
    if not {one.value for one in offloaded if not one.stack} <= paths:
        raise root.child("offloaded").wrong("paths of inputs")
    return Plan(
        step=root.child("step").text(),
        cluster=root.child("cluster").mapping(),
        cluster_fingerprint=root.child("cluster_fingerprint").text(),
        mesh=mesh,
        inputs=inputs,
        outputs=tuple(_value_from(v, mesh) for v in root.child("outputs").elements()),
        strategies={
            name: table[number]
            for name, number in root.child("strategies").integers(len(table)).items()
        },
        hubs={name: _layout_from(v, mesh) for name, v in root.child("hubs").entries()},
        predicted=_prediction_from(root.child("predicted")),
        solver=_record_from(SolverReport, root.child("solver"), seconds=0.0),
        fallbacks={name: v.integer() for name, v in root.child("fallbacks").entries()},
        options={name: v.text() for name, v in root.child("options").entries()},
        recompute=tuple(name.text() for name in root.child("recompute").elements()),
        recomputed=tuple(
            _record_from(Recomputation, one) for one in root.child("recomputed").elements()
        ),
        unlimited=_curve_from(root.child("unlimited")),
        compiled_bytes=root.child("compiled_bytes").integer(),
        offloaded=offloaded,
        schema=SCHEMA,
    )


def _check_schema(root: JsonField) -> None:
    if root.child("format").text() != FORMAT:
        raise root.child("format").wrong(repr(FORMAT))
    schema = root.child("schema").integer()
    if schema != SCHEMA:
        age = "a newer" if schema > SCHEMA else "an older"
        raise PlanError(
            f"{root.where}the plan is of schema {schema}, from {age} autopar; this one reads "
            f"schema {SCHEMA}: make the plan again, or use the version that made it"
        )


def _one_line_an_entry(data: Mapping[str, Any]) -> str:
    fields = [f"{json.dumps(key)}: {_block(data[key])}" for key in sorted(data)]
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _block(value: Any) -> str:
    """A top-level field: containers with a line for each entry, anything else on one line."""
    if isinstance(value, Mapping) and value:
        lines = (f"{json.dumps(key)}: {_line(value[key])}" for key in sorted(value))
        return "{\n " + ",\n ".join(lines) + "\n}"
    if isinstance(value, list) and value:
        return "[\n " + ",\n ".join(map(_line, value)) + "\n]"
    return _line(value)


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)


def _number(value: float) -> float | str:
    """A float as JSON can hold it: infinities, which it has no numbers for, as text."""
    return float(value) if math.isfinite(value) else str(float(value))


def _strategy_table(
    strategies: Mapping[str, Strategy],
) -> tuple[list[list[list[str]]], dict[str, int]]:
    """The distinct strategies, each as the texts of its layouts, and every equation's number."""
    place: dict[Strategy, int] = {}
    numbers = {name: place.setdefault(strategies[name], len(place)) for name in sorted(strategies)}
    return [[list(map(show, s.operands)), list(map(show, s.results))] for s in place], numbers


def _strategy_from(field: JsonField, mesh: MeshSpec) -> Strategy:
    sides = list(field.elements())
    if len(sides) != 2:
        raise field.wrong("two lists, the layouts of operands and of results")
    operands, results = (tuple(_layout_from(v, mesh) for v in side.elements()) for side in sides)
    return Strategy(operands, results)


def _layout_from(field: JsonField, mesh: MeshSpec, rank: int | None = None) -> Layout:
    text = field.text()
    try:
        layout = parse_layout(text)
    except ValueError:
        raise field.wrong("a layout such as 'S(0),B'") from None
    if len(layout) != len(mesh.axes):
        raise field.wrong(f"a layout with one placement for each of {len(mesh.axes)} mesh axes")
    if rank is not None and any(isinstance(p, Split) and p.dim >= rank for p in layout):
        raise field.wrong(f"a layout of a value of {rank} dimensions")
    return layout


def _axis_from(field: JsonField) -> MeshAxis:
    kind, size = field.child("kind"), field.child("size").integer(least=1)
    if kind.text() not in get_args(AxisKind):
        raise kind.wrong("'space' or 'time'")
    return _record_from(MeshAxis, field, kind=kind.text(), size=size)


def _value_to_data(value: ValuePlan) -> dict[str, Any]:
    shape = [int(extent) for extent in value.shape]
    return _record(value, shape=shape, layout=show(value.layout))


def _value_from(field: JsonField, mesh: MeshSpec) -> ValuePlan:
    shape = tuple(extent.integer() for extent in field.child("shape").elements())
    layout = _layout_from(field.child("layout"), mesh, len(shape))
    return _record_from(ValuePlan, field, shape=shape, layout=layout)


def _prediction_to_data(predicted: Prediction) -> dict[str, Any]:
    memory = {name: int(count) for name, count in predicted.memory.items()}
    return _record(
        predicted,
        memory=memory,
        collectives=[_record(use) for use in predicted.collectives],
        curve=_curve_to_data(predicted.curve),
    )


def _prediction_from(field: JsonField) -> Prediction:
    uses = field.child("collectives").elements()
    return _record_from(
        Prediction,
        field,
        memory={name: count.integer() for name, count in field.child("memory").entries()},
        collectives=tuple(_record_from(CollectiveUse, use) for use in uses),
        curve=_curve_from(field.child("curve")),
    )


def _curve_to_data(curve: MemoryCurve) -> dict[str, Any]:
    held = {name: list(counts) for name, counts in curve.bytes.items()}
    return _record(curve, instants=list(curve.instants), bytes=held)


def _curve_from(field: JsonField) -> MemoryCurve:
    instants = tuple(one.integer() for one in field.child("instants").elements())
    held: dict[str, tuple[int, ...]] = {}
    for name, counts in field.child("bytes").entries():
        held[name] = tuple(count.integer() for count in counts.elements())
        if len(held[name]) != len(instants):
            raise counts.wrong(f"{len(instants)} numbers, one for every instant")
    return _record_from(MemoryCurve, field, instants=instants, bytes=held)


_WRITERS: Mapping[str, Callable[[Any], Any]] = {
    "str": str,
    "int": int,
    "float": _number,
    "bool": bool,
}
_READERS: Mapping[str, tuple[type, Callable[[JsonField], Any]]] = {
    "str": (str, JsonField.text),
    "int": (int, JsonField.integer),
    "float": (float, JsonField.number),
    "bool": (bool, JsonField.boolean),
}
"""How a dataclass field is written and read, by its annotation."""


def _record(value: Any, **given: Any) -> dict[str, Any]:
    """The fields of a dataclass as JSON data; ``given`` holds those that are not plain scalars."""
    return {
        f.name: given[f.name] if f.name in given else _WRITERS[str(f.type)](getattr(value, f.name))
        for f in dataclasses.fields(value)
    }


def _record_from(cls: Callable[..., _Record], field: JsonField, **given: Any) -> _Record:
    """The inverse of ``_record``."""
    found, read = field.mapping(), given
    for name, kind, reader in _readers(cls):
        if name not in given:
            value = found.get(name)  # most are as they should be; the reader says what is not
            plain = type(value) is kind and not (kind is int and cast("int", value) < 0)
            read[name] = value if plain else reader(field.child(name))
    return cls(**read)


@functools.cache
def _readers(cls: Any) -> tuple[tuple[str, type, Callable[[JsonField], Any]], ...]:
    """The fields of a dataclass that are plain scalars: their JSON type, and how each is read."""
    types = ((f.name, str(f.type)) for f in dataclasses.fields(cls))
    return tuple((name, *_READERS[type_]) for name, type_ in types if type_ in _READERS)
