"""Reading JSON that people and other programs may have touched: every error names its field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from autopar.core.errors import PlanError

_REMEDY = "the file is damaged or not a plan: make the plan again"


class JsonField(NamedTuple):
    """A value within a JSON document, and where it stands.

    Attributes:
      where: the document's origin, ready to begin a message: ``"plan.json: "``, or empty.
      parent: the object or list that it is in; ``None`` for the document itself.
      key: its key or position there.
    """

    value: Any
    where: str
    parent: JsonField | None = None
    key: str | int = ""

    @property
    def name(self) -> str:
        """The value's place: ``inputs[3].shape``; empty for the document itself."""
        if self.parent is None:
            return ""
        above = self.parent.name
        if isinstance(self.key, int):
            return f"{above}[{self.key}]"
        return f"{above}.{self.key}" if above else self.key

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
            name = JsonField(None, self.where, self, key).name
            raise PlanError(f"{self.where}field {name!r} is missing; {_REMEDY}")
        return JsonField(fields[key], self.where, self, key)

    def entries(self) -> Iterator[tuple[str, JsonField]]:
        """Every key of an object, with its value."""
        for key, value in self.mapping().items():
            yield key, JsonField(value, self.where, self, key)

    def elements(self) -> Iterator[JsonField]:
        """The values of a list."""
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        for index, value in enumerate(cast("list[Any]", self.value)):
            yield JsonField(value, self.where, self, index)

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

    def integers(self, below: int) -> dict[str, int]:
        """This value, an object of whole numbers from 0 on."""
        found = self.mapping()
        if not all(type(value) is int and 0 <= value < below for value in found.values()):
            for _, field in self.entries():
                field.integer(below=below)  # one of them says what is wrong
        return found

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
