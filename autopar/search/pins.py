"""Pins: layouts the user fixes, by the path of an input."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

import jax

from autopar.core.errors import PinError
from autopar.core.layout import Layout, divides, from_spec
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.passes.trace import Step

Pins = Mapping[str, jax.P]
"""Regular expression over input paths (matched to their end, from any ``/``) to the spec."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The layout of one input, and the pin that says so."""

    pattern: str
    spec: jax.P
    layout: Layout


def axis_names(pins: Pins) -> set[str]:
    """Every mesh axis the pins speak of."""
    entries = [entry for spec in pins.values() for entry in spec]
    groups = [entry if isinstance(entry, tuple) else (entry,) for entry in entries]
    return {name for group in groups for name in group if isinstance(name, str)}


def following(plan: Plan, step: Step) -> dict[str, jax.P]:
    """Pins by which the inputs of ``step`` rest as their likes do under ``plan``.

    An input's like has its shape and dtype and the longest common end of paths; of several, a
    parameter comes first. So ``params/block_0/kernel`` of an evaluation follows
    ``state/params/block_0/kernel`` of the training step, and not the moments named alike.

    Raises:
      PinError: no input of ``step`` has a like.
    """
    found: dict[str, jax.P] = {}
    for path, aval in zip(step.in_paths, step.in_avals, strict=True):
        type_ = (tuple(aval.shape), str(aval.dtype))
        ranked = [
            ((_common_end(path, value.path), value.role == "parameters"), -i)
            for i, value in enumerate(plan.inputs)
            if (value.shape, value.dtype) == type_
        ]
        (ends, _), place = max(ranked, default=((0, False), 0))
        if ends:
            found[re.escape(path)] = plan.inputs[-place].spec(plan.mesh)
    if not found:
        raise PinError(
            "like= names a plan whose inputs are unlike those of this step: none has the name, "
            f"shape and dtype of one here; it has {plan.inputs[0].path!r}, here is "
            f"{step.in_paths[0]!r}; give the plan of a step with the same parameters"
        )
    return found


def _common_end(a: str, b: str) -> int:
    """How many parts of two paths agree, from the end."""
    pairs = zip(reversed(a.split("/")), reversed(b.split("/")), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def resolve(pins: Pins, step: Step, mesh: MeshSpec) -> dict[int, Pinned]:
    """The pinned layout of every flat input a pin names.

    Raises:
      PinError: a pin names no input, is no regular expression, contradicts another pin, or does not
        fit the shape or the mesh.
    """
    pinned: dict[int, Pinned] = {}
    for pattern, spec in pins.items():
        for position in _matches(pattern, step):
            layout = _layout(pattern, spec, position, step, mesh)
            earlier = pinned.setdefault(position, Pinned(pattern, spec, layout))
            if earlier.layout != layout:
                raise PinError(
                    f"pins contradict each other: {step.in_paths[position]!r} is pinned to "
                    f"{earlier.spec} by {earlier.pattern!r} and to {spec} by {pattern!r}; "
                    "make one of the patterns narrower, or remove it"
                )
    return pinned


def _matches(pattern: str, step: Step) -> list[int]:
    try:
        compiled = re.compile(rf"(?:.*/)?(?:{pattern})")
    except re.error as error:
        raise PinError(f"pin {pattern!r} is not a regular expression: {error}") from None
    found = [i for i, path in enumerate(step.in_paths) if compiled.fullmatch(path)]
    if not found:
        near = difflib.get_close_matches(pattern, step.in_paths, n=3, cutoff=0.0)
        raise PinError(
            f"pin {pattern!r} names no input of the step; the nearest paths are {', '.join(near)}"
        )
    return found


def _layout(pattern: str, spec: jax.P, position: int, step: Step, mesh: MeshSpec) -> Layout:
    shape = tuple(step.in_avals[position].shape)
    where = f"pin {pattern!r} = {spec} on {step.in_paths[position]!r} of shape {shape}"
    if len(spec) > len(shape):
        raise PinError(
            f"{where}: the spec has {len(spec)} entries, the value {len(shape)} dimensions"
        )
    try:
        layout = from_spec(tuple(spec), mesh)
    except ValueError as error:
        raise PinError(f"{where}: {error}") from None
    if not divides(shape, layout, mesh):
        raise PinError(f"{where}: the mesh {mesh} does not divide it evenly; splits must be even")
    return layout
