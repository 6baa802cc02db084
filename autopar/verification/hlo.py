r"""What a compiled program sends, and how long its kernels take, by the compiler's own account.

Every collective is counted once, as often as the loops around it run. XLA:TPU writes one collective
in many ways (measured, libtpu 0.0.42):

* in pieces, spread over the fusions that hide it, those of windowed loops (below) included: they
  share a ``chain_id``;
* a reduce-scatter as an all-reduce inside a computation named ``all-reduce-scatter``;
* a product with its gather or reduce-scatter as a loop of ``collective-permute``: a *windowed* one,
  by the name of its body, and the permute that joins the loop's two halves after it.

Bytes on the wire are what a device sends, by ring algorithms, ``n`` devices and payload ``V``:
``V (n-1)/n`` for all-gather (``V`` the result), reduce-scatter (the operand) and all-to-all, twice
that for all-reduce, ``V`` for a permute.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from autopar.core.mesh import MeshSpec
from autopar.verification.groups import axis_of, device_groups
from autopar.verification.module import Instruction, Module, array_bytes, parse

_KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_OPCODES = {
    **{kind: kind for kind in _KINDS},
    **{f"{kind}-start": kind for kind in _KINDS},
    "ragged-all-to-all": "all-to-all",
}
_WINDOWED = re.compile(r"windowed_dot_general_body_(ag|rs)")
_WINDOWS = {"ag": "all-gather", "rs": "reduce-scatter"}
_PRODUCTS = frozenset(("convolution", "dot"))
_NAME = r'op_name="([^"]*)"'
_CYCLES = r'"estimated_cycles":"(\d+)"'


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of a compiled program.

    Attributes:
      kind: what it amounts to; ``form``: as the program has it.
      axis: the mesh axes it runs over, ``data`` or ``data+model``; ``?`` if its groups are others.
      payload_bytes: of each, on one device. wire_bytes: what a device sends in each.
      count: how often it runs in a step.
      value: where in the user's program it comes from.
    """

    kind: str
    form: str
    axis: str
    payload_bytes: int
    wire_bytes: float
    count: int
    value: str


@dataclass(frozen=True, slots=True)
class Program:
    """A compiled program.

    Attributes:
      cycles: of its kernels but for collectives, if it says; ``product_cycles``: of those that hold
        a matrix product or a convolution (XLA:TPU writes both as ``convolution``).
    """

    collectives: tuple[Collective, ...]
    cycles: int | None
    product_cycles: int | None


def wire_bytes(kind: str, payload: float, size: int) -> float:
    """Bytes that a device sends in one collective of ``payload`` bytes among ``size`` devices."""
    if kind == "collective-permute":
        return payload
    return payload * (size - 1) / size * (2 if kind == "all-reduce" else 1)


def read_program(text: str, mesh: MeshSpec) -> Program:
    """Reads the text of a compiled program that runs on the devices of ``mesh``, row-major."""
    module = parse(text)
    found: dict[object, Collective] = {}
    cycles, of_products = list[int](), list[int]()
    for computation, loop, trips, fused in _walk(module, module.entry, _TOP, 1, False):
        for one in module.computations[computation]:
            kind = _OPCODES.get(one.opcode)
            if kind is not None:
                # Channel numbers are shared by collectives that have nothing to do with each other.
                chain = one.attribute(r'chain_id="(\d+)"') if fused else None
                home = _TOP if _is_hidden(one) else loop
                key = (home, one.attribute(_NAME), chain) if chain else (computation, one.name)
                often = home.trips if chain else trips
                found.setdefault(key, _collective(module, computation, one, kind, often, mesh))
            elif not fused and one.opcode != "while":
                spent = one.integer(_CYCLES)
                if spent is not None:
                    cycles.append(spent * trips)
                    of_products += cycles[-1:] if module.holds(one, _PRODUCTS) else []
    totals = (sum(cycles), sum(of_products)) if cycles else (None, None)
    return Program(tuple(found.values()), *totals)


@dataclass(frozen=True, slots=True)
class _Loop:
    """A loop of the program itself, not a windowed one, and how often its body runs in a step."""

    path: str
    trips: int


_TOP = _Loop("", 1)


def _is_hidden(one: Instruction) -> bool:
    """Whether a collective is no loop's own, though its pieces may be put into some."""
    name = one.attribute(_NAME)
    return name is not None and "while/body" not in name


def _walk(
    module: Module, name: str, loop: _Loop, trips: int, fused: bool
) -> Iterator[tuple[str, _Loop, int, bool]]:
    """``(computation, innermost loop around it, how often it runs, whether in a fusion)``."""
    yield name, loop, trips, fused
    for one in module.computations[name]:
        for called in one.called:
            if called not in module.computations:
                continue
            if one.opcode == "while":
                inner = trips * module.trips(one)
                own = (
                    loop if _WINDOWED.search(one.rest) else _Loop(f"{loop.path}/{one.name}", inner)
                )
                yield from _walk(module, called, own, inner, fused)
            else:
                yield from _walk(module, called, loop, trips, fused or one.opcode == "fusion")


def _collective(
    module: Module, computation: str, one: Instruction, kind: str, trips: int, mesh: MeshSpec
) -> Collective:
    form = kind
    groups = device_groups(one.rest, mesh.device_count)
    size = max((len(group) for group in groups), default=1)
    payload = _payload(one, kind, size)
    if kind == "collective-permute":
        kind = _windowed(module, computation, one) or kind
        sent = float(payload)
    else:
        if kind == "all-reduce" and computation.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"
        sent = wire_bytes(kind, payload, size)
    name = one.attribute(_NAME) or one.name
    return Collective(kind, form, axis_of(groups, mesh), payload, sent, trips, name)


def _payload(one: Instruction, kind: str, size: int) -> int:
    """Bytes of the full local buffer. An asynchronous start gives operands and results."""
    arrays: Sequence[int] = one.arrays
    if one.opcode in ("all-gather-start", "collective-permute-start", "reduce-scatter-start"):
        arrays = _results(one.type)
    payload = sum(arrays)
    return payload * size if kind == "reduce-scatter" else payload


def _results(type_: str) -> Sequence[int]:
    """The arrays of the second part of ``(operands, results, context...)``."""
    arrays = [array_bytes(*f) for f in re.findall(r"([a-z]+\d*\w*)\[([\d,]*)\]", type_)]
    if type_.startswith("(("):
        return arrays[len(arrays) // 2 :]
    return arrays[1:2]


def _windowed(module: Module, computation: str, one: Instruction) -> str | None:
    """The collective that a permute is a part of: it stands in a windowed loop, or joins one."""
    match = _WINDOWED.search(computation)
    if match is not None:
        return _WINDOWS[match[1]]
    body = module.named(computation)
    waiting, seen = list(one.operands), set[str]()
    while waiting and len(seen) < 16:
        source = body.get(waiting.pop())
        if source is None or source.name in seen:
            continue
        seen.add(source.name)
        if source.opcode == "while":
            match = _WINDOWED.search(source.rest)
            return None if match is None else _WINDOWS[match[1]]
        if source.opcode in ("get-tuple-element", "copy", "bitcast", "fusion", "copy-done"):
            waiting += source.operands
    return None


def total_wire_bytes(collectives: Sequence[Collective]) -> float:
    """Bytes a device sends in a step."""
    return math.fsum(one.wire_bytes * one.count for one in collectives)
