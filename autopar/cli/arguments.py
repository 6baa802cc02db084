"""Options that several commands share, and how their text is read."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import typer

from autopar.core.errors import ClusterError, OptionError, PinError
from autopar.search.options import OFFLOADS, REMATS, SEARCHES

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A preset such as gpt:125m, or package.module:function.",
        show_default=False,
    ),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster",
        help="PRESET:SHAPE such as tpu-v5e:4x4 or h100:8, or a .toml file.",
        show_default="the devices of this machine",
    ),
]
MemoryOption = Annotated[
    str | None,
    typer.Option(
        "--memory",
        help="Budget per device, such as 14GiB.",
        show_default="the chip's own, less a margin",
    ),
]
BatchOption = Annotated[
    int | None,
    typer.Option("--batch", min=1, help="Global batch size.", show_default="the model's own"),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="Change a preset's configuration: layers=2, remat=true. May be repeated.",
    ),
]
MeshOption = Annotated[
    str | None,
    typer.Option(
        "--mesh",
        help="Sizes of the mesh axes, such as 4x4 or data=4,model=4.",
        show_default="searched for",
    ),
]
PinOption = Annotated[
    list[str] | None,
    typer.Option(
        "--pin",
        metavar="REGEX=SPEC",
        help="Fix how inputs of these paths, or results of operations of these names, are split: "
        "for each dimension a mesh axis, None, or * for any: 'embed/embedding=model,None'; or "
        "'mu/(.*)=like:params/\\1'. May be repeated.",
    ),
]
TimeLimitOption = Annotated[
    float, typer.Option("--time-limit", help="Seconds of search for each mesh.")
]
SearchOption = Annotated[
    str, typer.Option("--search", metavar="NAME", help=f"One of {', '.join(SEARCHES)}.")
]
RematOption = Annotated[
    str,
    typer.Option(
        "--remat",
        metavar="NAME",
        help=f"Whether to recompute what memory cannot keep: {' or '.join(REMATS)}.",
    ),
]
OffloadOption = Annotated[
    str,
    typer.Option(
        "--offload",
        metavar="NAME",
        help="Whether the optimiser's state rests on the host where recomputing is not enough: "
        f"{' or '.join(OFFLOADS)}.",
    ),
]
HostMemoryOption = Annotated[
    str | None,
    typer.Option(
        "--host-memory",
        help="Host memory per device, such as 128GiB.",
        show_default="the chip's share of its host's",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")]
SeedOption = Annotated[int, typer.Option("--seed", help="What random numbers are drawn from.")]


def parse_overrides(texts: Sequence[str] | None) -> dict[str, Any]:
    """Reads ``NAME=VALUE`` each: numbers, ``true``, ``false``, and anything else as text.

    Raises:
      OptionError: a text has no ``=``.
    """
    overrides: dict[str, Any] = {}
    for text in texts or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise OptionError(f"--set {text!r} is not NAME=VALUE; write e.g. layers=2")
        try:
            overrides[name] = json.loads(value)
        except json.JSONDecodeError:
            overrides[name] = value
    return overrides


def parse_mesh(text: str | None) -> dict[str, int] | tuple[int, ...] | None:
    """Reads ``4x4`` or ``data=4,model=4``.

    Raises:
      ClusterError: the text is neither.
    """
    if text is None:
        return None
    try:
        if "=" not in text:
            return tuple(int(size) for size in text.split("x"))
        pairs = [part.split("=") for part in text.split(",")]
        mesh = {name.strip(): int(size) for name, size in pairs}
    except ValueError:
        mesh = {}
        pairs = []
    if not mesh or len(mesh) < len(pairs):
        raise ClusterError(
            f"--mesh {text!r} is not a mesh; write sizes such as 4x4, or distinct names and sizes "
            "such as data=4,model=4"
        )
    return mesh


def parse_pins(texts: Sequence[str] | None) -> dict[str, jax.P | str]:
    """Reads ``REGEX=SPEC`` each; a spec is written as ``model,None`` or as plans print it, what is
    to lie like another value as ``like:`` and its path.

    Raises:
      PinError: a text is no pin, or two have the same pattern.
    """
    pins: dict[str, jax.P | str] = {}
    for text in texts or ():
        pattern, equals, spec = text.rpartition("=")
        if not equals or not pattern:
            raise PinError(
                f"--pin {text!r} is not REGEX=SPEC; write e.g. 'embed/embedding=model,None'"
            )
        if pattern in pins:
            raise PinError(f"--pin {pattern!r} is given twice; leave one of them out")
        spec, like = spec.strip(), spec.strip().removeprefix("like:")
        pins[pattern] = _parse_spec(spec, text) if like == spec else like
    return pins


def _parse_spec(spec: str, pin: str) -> jax.P:
    """``model,None``, ``data+model,*``, ``P(('data', 'model'), None)``; nothing is ``P()``."""
    if spec.startswith("P(") and spec.endswith(")"):
        return jax.P(*_literal_entries(spec, pin))
    entries = [entry.strip() for entry in spec.split(",")] if spec else []
    return jax.P(*[_parse_entry(entry, spec, pin) for entry in entries])


def _parse_entry(entry: str, spec: str, pin: str) -> Any:
    if entry in ("None", "*"):
        return None if entry == "None" else jax.P.UNCONSTRAINED
    names = tuple(entry.split("+"))
    if not all(name.isidentifier() for name in names):
        raise _not_a_spec(spec, pin)
    return names[0] if len(names) == 1 else names


def _literal_entries(spec: str, pin: str) -> tuple[str | tuple[str, ...] | None, ...]:
    inner = spec.removeprefix("P(").removesuffix(")").strip().rstrip(",")
    try:
        entries = ast.literal_eval(f"({inner},)" if inner else "()")
    except (SyntaxError, ValueError):
        raise _not_a_spec(spec, pin) from None
    for entry in entries:
        group = entry if isinstance(entry, tuple) else (entry or "axis",)
        if not all(isinstance(name, str) for name in group):
            raise _not_a_spec(spec, pin)
    return entries


def _not_a_spec(spec: str, pin: str) -> PinError:
    return PinError(
        f"--pin {pin!r}: {spec!r} is not how an array is split; for each dimension name a mesh "
        "axis, several joined by +, None, or * for any: model,None or data+model,*"
    )
