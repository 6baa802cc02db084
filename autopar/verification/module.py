"""A compiled program read from the text that ``compiled.as_text()`` gives: scheduled HLO.

JAX offers no parser of it (its protocol buffers come without their Python classes), so this reads
the lines: one computation after another, an instruction a line.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
_OPERAND = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
    r"|(?:branch_computations|called_computations)=\{([^}]*)\}"
)
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_BITS = re.compile(r"[a-z]+(\d+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_COMMENT = re.compile(r"/\*.*?\*/")


@dataclass(frozen=True)
class Instruction:
    """One line: ``type`` is the result's, ``rest`` operands and attributes, as written."""

    name: str
    type: str
    opcode: str
    rest: str
    is_root: bool

    @cached_property
    def arrays(self) -> tuple[int, ...]:
        """Bytes of each array of the result, layout padding aside."""
        return tuple(array_bytes(*found) for found in _ARRAY.findall(self.type))

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the operands."""
        return tuple(_OPERAND.findall(self.rest.split(")", 1)[0]))

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations it calls, reducers included."""
        found: list[str] = []
        for one, many in _CALLED.findall(self.rest):
            found += [one] if one else _OPERAND.findall(many)
        return tuple(found)

    def attribute(self, pattern: str) -> str | None:
        """The first group of ``pattern`` in the attributes."""
        match = re.search(pattern, self.rest)
        return None if match is None else match[1]

    def integer(self, pattern: str) -> int | None:
        """As ``attribute``, for a number."""
        found = self.attribute(pattern)
        return None if found is None else int(found)


@dataclass(frozen=True)
class Module:
    """The computations of a program by name, and the one that runs first."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    def named(self, computation: str) -> Mapping[str, Instruction]:
        """The instructions of a computation by name."""
        return {i.name: i for i in self.computations.get(computation, ())}

    def holds(self, one: Instruction, opcodes: Collection[str]) -> bool:
        """Whether an instruction is, or calls, one of these."""
        inner = (i for name in one.called for i in self.computations.get(name, ()))
        return one.opcode in opcodes or any(self.holds(i, opcodes) for i in inner)

    def trips(self, loop: Instruction) -> int:
        """How often a ``while`` runs its body; 1 if that depends on data.

        Read from the loop's annotation, or else from a counter that is compared with a constant,
        and the constant that the body adds to it: windowed loops take several steps in one trip.
        """
        known = loop.integer(_TRIPS.pattern)
        if known is not None:
            return known
        condition = loop.attribute(r"condition=%?([\w.\-]+)") or ""
        body = loop.attribute(r"body=%?([\w.\-]+)") or ""
        bound, position = self._bound(condition)
        if bound is None:
            return 1
        step = self._step(body, position) if position is not None else 1
        return max(1, math.ceil(bound / step))

    def _bound(self, condition: str) -> tuple[int | None, int | None]:
        """The constant a counter is compared with, and the counter's place in the loop's state."""
        body = self.named(condition)
        for one in body.values():
            operands = [body[name] for name in one.operands if name in body]
            constants = [c for c in map(_constant, operands) if c is not None]
            if one.opcode == "compare" and constants and "direction=LT" in one.rest:
                places = [o.integer(r"index=(\d+)") for o in operands]
                return constants[0], next((p for p in places if p is not None), None)
        inner = [c for name in body.values() for c in name.called]
        constants = [c for c in map(_constant, body.values()) if c is not None]
        return (max(constants), None) if constants and inner else (None, None)

    def _step(self, name: str, position: int) -> int:
        """The constant that a body adds to one place of its state; 1 where it cannot be told."""
        body = self.named(name)
        root = next((one for one in body.values() if one.is_root), None)
        if root is None or position >= len(root.operands):
            return 1
        update = body.get(root.operands[position])
        while update is not None and update.opcode in ("copy", "bitcast"):
            update = body.get(update.operands[0])
        if update is None or update.opcode != "add":
            return 1
        found = [_constant(body[o]) for o in update.operands if o in body]
        return next((c for c in found if c), 1)


def parse(text: str) -> Module:
    """Reads the text of a compiled program."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if line and not line[0].isspace():
            match = _COMPUTATION.match(line)
            current = None if match is None else computations.setdefault(match[2], [])
            entry = match[2] if match and match[1] else entry
        elif current is not None and (found := _INSTRUCTION.match(_COMMENT.sub("", line))):
            root, name, type_, opcode, rest = found.groups()
            current.append(Instruction(name, type_, opcode, rest, bool(root)))
    return Module({name: tuple(found) for name, found in computations.items()}, entry)


def array_bytes(dtype: str, shape: str) -> int:
    """Bytes of an array as HLO writes its type: ``bf16``, ``4,8``."""
    bits = _BITS.match(dtype)
    count = math.prod(int(extent) for extent in shape.split(",") if extent)
    return count * max(1, int(bits[1]) // 8) if bits else count  # pred is a byte


def _constant(instruction: Instruction) -> int | None:
    if instruction.opcode != "constant":
        return None
    value = re.match(r"(-?\d+)\)", instruction.rest)
    return None if value is None else int(value[1])
