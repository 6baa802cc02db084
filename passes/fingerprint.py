"""A text of a jaxpr that is the same in every process, and its hash.

Variables are numbered in the order they are bound. Functions among the parameters count by name;
memory addresses, file names and source lines do not count.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b|\bid=\d+")
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][\w.\-+ ]+)+[\\/]")


def fingerprint(closed: ClosedJaxpr, extra: Iterable[str]) -> str:
    """The sha256, in hexadecimal, of the program, its constants and the ``extra`` lines."""
    digest = hashlib.sha256()
    for line in (*canonical_lines(closed), *extra):
        digest.update(line.encode())
        digest.update(b"\n")
    return digest.hexdigest()


def signature(eqn: JaxprEqn) -> str:
    """Text equal for equations that do the same to values of the same shapes and dtypes."""
    params = _Writer().params(eqn)
    operands = " ".join([aval_text(atom.aval) for atom in eqn.invars])
    results = " ".join([aval_text(var.aval) for var in eqn.outvars])
    return f"{eqn.primitive.name}[{params}] {operands} -> {results}"


def canonical_lines(closed: ClosedJaxpr) -> Iterator[str]:
    """The program as text, one line per equation."""
    writer = _Writer()
    for const in closed.consts:
        yield f"const {writer.value(const)}"
    yield from writer.lines(closed.jaxpr)


class _Writer:
    """Writes jaxprs; numbers variables as it goes."""

    def __init__(self) -> None:
        self._numbers: dict[Var, int] = {}

    def lines(self, jaxpr: Jaxpr) -> Iterator[str]:
        yield f"in {self._binders((*jaxpr.constvars, *jaxpr.invars))}"
        for eqn in jaxpr.eqns:
            yield self._eqn(eqn)
        yield f"out {self._atoms(jaxpr.outvars)}"

    def _eqn(self, eqn: JaxprEqn) -> str:
        operands = self._atoms(eqn.invars)
        params = self.params(eqn)
        return f"{self._binders(eqn.outvars)} = {eqn.primitive.name}[{params}] {operands}"

    def _binders(self, variables: Sequence[Var]) -> str:
        for var in variables:
            self._numbers.setdefault(var, len(self._numbers))
        return " ".join(f"{self._numbers[v]}:{aval_text(v.aval)}" for v in variables)

    def _atoms(self, atoms: Sequence[Var | Literal]) -> str:
        return " ".join(
            self.value(atom.val) + ":" + aval_text(atom.aval)
            if isinstance(atom, Literal)
            else str(self._numbers[atom])
            for atom in atoms
        )

    def params(self, eqn: JaxprEqn) -> str:
        """Parameters as text. Plain ones, of which most equations have the same few, only once."""
        items = tuple(eqn.params.items())
        if all(map(_is_plain, eqn.params.values())):
            return _plain_text(eqn.primitive.name, items)
        return self.items((str(k), v) for k, v in items)

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
            return "{" + "; ".join(self.lines(value)) + "}"
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


_PLAIN = (type(None), bool, int, str, np.dtype, enum.Enum)


def _is_plain(value: Any) -> bool:
    """Whether a parameter is hashable data, with no program in it."""
    return isinstance(value, _PLAIN) or (isinstance(value, tuple) and all(map(_is_plain, value)))


@functools.lru_cache(maxsize=4096)
def _plain_text(primitive: str, items: tuple[tuple[str, Any], ...]) -> str:
    del primitive  # the same name may mean a number here and a flag there
    return _Writer().items(items)


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
    text = f"{array.dtype}[{','.join(map(str, array.shape))}]"
    if isinstance(array, jax.Array):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        if not array.is_fully_addressable:
            return text
    host = np.asarray(array)
    return f"{text}#{hashlib.sha256(host.tobytes()).hexdigest()[:32]}"
