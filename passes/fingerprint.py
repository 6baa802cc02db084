"""A text of a jaxpr that is the same in every process, and its hash.

Variables are numbered in the order they are bound in their jaxpr. Functions among the parameters
count by name; memory addresses, file names and source lines do not count.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b|\bid=\d+")
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][\w.\-+ ]+)+[\\/]")

Known = TypeVar("Known")


def fingerprint(
    closed: ClosedJaxpr, extra: Iterable[str], signatures: Signatures | None = None
) -> str:
    """The sha256, in hexadecimal, of the program, its constants and the ``extra`` lines."""
    lines = (*canonical_lines(closed, signatures), *extra, "")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def canonical_lines(closed: ClosedJaxpr, signatures: Signatures | None = None) -> list[str]:
    """The program as text, one line per equation."""
    signatures = signatures or Signatures()
    consts = [f"const {signatures.value(const)}" for const in closed.consts]
    return consts + signatures.lines(closed.jaxpr)


class Signatures:
    """Texts that are equal for equations that do the same to values of the same shapes and dtypes.

    A program repeats itself: what is known to be like an earlier equation is not written again.
    Equations asked for are kept, so that the next pass through the program finds them, and so that
    no other abstract value takes the identity of theirs.
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, str] = {}
        self._asked: dict[int, str] = {}
        self._kept: list[JaxprEqn | Jaxpr] = []

    def of(self, eqn: JaxprEqn) -> str:
        """The signature of ``eqn``."""
        asked = self._asked.get(id(eqn))
        if asked is None:
            asked = self._asked[id(eqn)] = self._of(eqn)
            self._kept.append(eqn)
        return asked

    def _of(self, eqn: JaxprEqn) -> str:
        params = eqn.params
        values = params.values()
        if not _INEXACT.isdisjoint(map(type, values)):
            return self._text(eqn)
        # JAX makes few abstract values for many variables: to hash them takes longer than all else.
        operands = [id(atom.aval) for atom in eqn.invars]
        results = [id(var.aval) for var in eqn.outvars]
        key = (eqn.primitive, *params, *values, *operands, None, *results)
        try:
            found = self._known.get(key)
        except TypeError:  # a parameter that cannot be hashed
            return self._text(eqn)
        if found is None:
            found = self._known[key] = self._text(eqn)
        return found

    def _text(self, eqn: JaxprEqn) -> str:
        params = self.items((str(k), v) for k, v in eqn.params.items())
        operands = " ".join([aval_text(atom.aval) for atom in eqn.invars])
        results = " ".join([aval_text(var.aval) for var in eqn.outvars])
        return f"{eqn.primitive.name}[{params}] {operands} -> {results}"

    def _body(self, jaxpr: Jaxpr) -> str:
        """The text of a body. Layers have bodies alike: those are known by what their equations
        have in common, column by column, which is quicker than equation by equation.
        """
        try:
            key = self._columns(jaxpr)
            found = self._known.get(key)
        except TypeError:  # a parameter that cannot be hashed
            return "; ".join(self.lines(jaxpr))
        if found is None:
            found = self._known[key] = "; ".join(self.lines(jaxpr))
            self._kept.append(jaxpr)
        return found

    def _columns(self, jaxpr: Jaxpr) -> Hashable:
        """Equal for bodies alike; ``TypeError`` if equal values might not be the same."""
        eqns = jaxpr.eqns
        results = [var for eqn in eqns for var in eqn.outvars]
        bound = (*jaxpr.constvars, *jaxpr.invars, *results)
        values = [value for eqn in eqns for value in eqn.params.values()]
        if not _INEXACT.isdisjoint(map(type, values)):
            raise TypeError
        numbers = dict(zip(bound, range(len(bound)), strict=True))
        atoms = [atom for eqn in eqns for atom in eqn.invars]
        reads = [
            self._literal(atom) if isinstance(atom, Literal) else numbers[atom]
            for atom in (*atoms, *jaxpr.outvars)
        ]
        shapes = [(eqn.primitive, *eqn.params, len(eqn.invars), len(eqn.outvars)) for eqn in eqns]
        ids = [id(var.aval) for var in bound]
        return tuple(shapes), tuple(values), len(jaxpr.constvars), tuple(ids), tuple(reads)

    def lines(self, jaxpr: Jaxpr) -> list[str]:
        """The equations of ``jaxpr``, what they read by the number of the value."""
        inputs = (*jaxpr.constvars, *jaxpr.invars)
        numbers = {var: str(number) for number, var in enumerate(inputs)}
        found = [f"in {' '.join([aval_text(var.aval) for var in inputs])}"]
        for eqn in jaxpr.eqns:
            atoms = [
                self._literal(atom) if isinstance(atom, Literal) else numbers[atom]
                for atom in eqn.invars
            ]
            found.append(f"{' '.join(atoms)} {self.of(eqn)}")
            for var in eqn.outvars:
                numbers[var] = str(len(numbers))
        atoms = [
            self._literal(atom) if isinstance(atom, Literal) else numbers[atom]
            for atom in jaxpr.outvars
        ]
        return [*found, f"out {' '.join(atoms)}"]

    def _literal(self, atom: Literal) -> str:
        return f"{self.value(atom.val)}:{aval_text(atom.aval)}"

    def items(self, items: Iterable[tuple[str, Any]]) -> str:
        """Named values, sorted by name."""
        return ", ".join(f"{key}={self.value(value)}" for key, value in sorted(items, key=_first))

    def value(self, value: Any) -> str:
        """A parameter or constant as text."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return repr(value) if not isinstance(value, enum.Enum) else str(value)
        if isinstance(value, ClosedJaxpr):
            consts = " ".join(map(self.value, value.consts))
            return f"({consts})" + self.value(value.jaxpr)
        if isinstance(value, Jaxpr):
            return "{" + self._body(value) + "}"
        if isinstance(value, enum.Enum):
            return str(value)
        if isinstance(value, (jax.Array, np.ndarray, np.generic)):
            return _array_text(value)
        if isinstance(value, (np.dtype, type)):
            return getattr(value, "name", None) or getattr(value, "__name__", "type")
        return self._structure(value)

    def _structure(self, value: Any) -> str:
        kind = type(value).__name__
        if isinstance(value, (jax.sharding.Mesh, jax.sharding.AbstractMesh)):  # on any devices
            sizes = ", ".join(f"{name}={size}" for name, size in value.shape.items())
            return f"Mesh({sizes}; {', '.join(str(kind) for kind in value.axis_types)})"
        if isinstance(value, jax.sharding.NamedSharding):
            return f"NamedSharding({self.value(value.mesh)}; {value.spec}; {value.memory_kind})"
        if isinstance(value, Mapping):
            return "{" + self.items((str(k), v) for k, v in value.items()) + "}"
        if isinstance(value, AbstractSet):
            return "{" + ", ".join(sorted(map(self.value, value))) + "}"
        if isinstance(value, (tuple, list)):
            return f"{kind}({', '.join(map(self.value, value))})"
        if isinstance(value, functools.partial):
            return f"partial({self.value(value.func)}, {self.value(value.args)})"
        if dataclasses.is_dataclass(value):
            fields = dataclasses.fields(value)
            return f"{kind}({self.items((f.name, getattr(value, f.name)) for f in fields)})"
        if callable(value):
            return function_name(value)
        return _PATH.sub("", _ADDRESS.sub("", str(value)))


class PerSignature(Generic[Known]):
    """What is the same for all equations of one signature, worked out once for each."""

    def __init__(self, signatures: Signatures, make: Callable[[JaxprEqn], Known]) -> None:
        self._of, self._make = signatures.of, make
        self._known: dict[str, Known] = {}

    def __call__(self, eqn: JaxprEqn) -> Known:
        signature = self._of(eqn)
        if signature not in self._known:
            self._known[signature] = self._make(eqn)
        return self._known[signature]


_INEXACT = frozenset((float, complex, np.float32, np.float64))
"""Types of which two values may be equal and not the same: 0.0 and -0.0."""


def aval_text(aval: Any) -> str:
    """Shape, dtype and weak type."""
    shape = getattr(aval, "shape", None)
    if shape is None:
        return _ADDRESS.sub("", str(aval))
    return _array_type(shape, aval.dtype, getattr(aval, "weak_type", False))


@functools.lru_cache(maxsize=4096)
def _array_type(shape: tuple[int, ...], dtype: Any, weak: bool) -> str:
    return f"{dtype}{'*' if weak else ''}[{','.join(map(str, shape))}]"


def function_name(function: Callable[..., Any]) -> str:
    """A callable's name, without the place it was defined in."""
    if isinstance(function, functools.partial):
        return function_name(function.func)
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def _first(item: tuple[str, Any]) -> str:
    return item[0]


def _array_text(array: Any) -> str:
    """Type and contents; of an array whose contents are not all here, or of a key, the type."""
    text = _array_type(array.shape, array.dtype, False)
    if isinstance(array, jax.Array):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        if not array.is_fully_addressable:
            return text
    contents = np.asarray(array).tobytes()
    short = len(contents) <= 16
    return f"{text}#{contents.hex() if short else hashlib.sha256(contents).hexdigest()[:32]}"
