"""Reading JSON that people and other programs may have touched: every error names its field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from autopar.core.errors import PlanError

_REMEDY = "the file is damaged or not a plan: make the plan again"


@dataclass(frozen=True, slots=True)
class JsonField:
    """A value within a JSON document, and where it stands.

    Attributes:
      where: the document's origin, ready to begin a message: ``"plan.json: "``, or empty.
      name: the value's place in the document: ``inputs[3].shape``; empty for the document itself.
    """

    value: Any
    where: str
    name: str = ""

    def wrong(self, expected: str) -> PlanError:
        """The error that this value is not what it should be."""
        shown = json.dumps(self.value)
        shown = shown if len(shown) <= 60 else shown[:57] + "..."
        name = self.name or "the document"
        return PlanError(f"{self.where}{name} is {shown}, expected {expected}; {_REMEDY}")

    def child(self, key: str) -> JsonField:
        """The value of a field that must be there."""
        fields = self.mapping()
        if key not in fields:
            raise PlanError(f"{self.where}field {self._named(key)!r} is missing; {_REMEDY}")
        return JsonField(fields[key], self.where, self._named(key))

    def entries(self) -> Iterator[tuple[str, JsonField]]:
        """Every key of an object, with its value."""
        for key, value in self.mapping().items():
            yield key, JsonField(value, self.where, self._named(key))

    def elements(self) -> Iterator[JsonField]:
        """The values of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for index, value in enumerate(cast("list[Any]", self.value)):
            yield JsonField(value, self.where, f"{self.name}[{index}]")

    def mapping(self) -> dict[str, Any]:
        """This value, an object."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        return cast("dict[str, Any]", self.value)

    def text(self) -> str:
        """This value, a string."""
        if not isinstance(self.value, str):
            raise self.wrong("text")
        return self.value

    def integer(self, least: int = 0, below: int | None = None) -> int:
        """This value, a whole number of at least ``least``."""
        value = self.value
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.wrong(f"a whole number of at least {least}")
        if below is not None and value >= below:
            raise self.wrong(f"a whole number below {below}")
        return value

    def number(self) -> float:
        """This value, a number; the texts ``inf``, ``-inf`` and ``nan`` are numbers too."""
        if self.value in ("inf", "-inf", "nan"):
            return float(self.value)
        if isinstance(self.value, bool) or not isinstance(self.value, (int, float)):
            raise self.wrong("a number")
        return float(self.value)

    def boolean(self) -> bool:
        """This value, true or false."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def _named(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key


def read_json(text: str, where: str) -> JsonField:
    """Parses a document; ``PlanError`` with the position if it is not JSON, or cut short."""
    prefix = f"{where}: " if where else ""
    try:
        return JsonField(json.loads(text), prefix)
    except json.JSONDecodeError as error:
        cut = "" if text.rstrip().endswith("}") else " (it seems to be cut short)"
        raise PlanError(
            f"{prefix}not JSON at line {error.lineno}, column {error.colno}{cut}: {error.msg}; "
            f"{_REMEDY}"
        ) from None
    except RecursionError:
        raise PlanError(f"{prefix}JSON nested too deep for a plan; {_REMEDY}") from None
