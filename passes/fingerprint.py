"""What of a program tells it from another, in numbers and texts, and its hash.

Variables are numbered in the order they are bound in their jaxpr. Functions among the parameters
count by name; memory addresses, file names and source lines do not count.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import chain, count, pairwise
from operator import itemgetter
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from numpy.typing import NDArray

from autopar.passes.texts import array_text, aval_text, function_name, plain

IntArray = NDArray[np.int64]

Known = TypeVar("Known")


def fingerprint(closed: ClosedJaxpr, extra: Iterable[str], signatures: Signatures) -> str:
    """The sha256, in hexadecimal, of the program, its constants and the ``extra`` lines."""
    lines = (signatures.value(closed), *extra, "")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """A program in numbers, one array for each thing that equations have.

    Attributes:
      kinds: of each equation; equal if the signatures are, among programs of one ``Signatures``.
      reads: of each operand, equation by equation, and of each result of the program: the number of
        the value read (constants, inputs, then what equations make, in order), or -1 and less: a
        literal.
      operands, results: how many each equation has.
    """

    kinds: IntArray
    reads: IntArray
    operands: IntArray
    results: IntArray


@dataclass(frozen=True, slots=True, eq=False)
class _Kind:
    """What equations alike have: their number and signature, and the first one's parameters."""

    number: int
    text: str
    params: Mapping[str, Any]
    types: list[type]

    def has(self, params: Mapping[str, Any]) -> bool:
        """Whether it is sure that these are alike: 1, 1.0 and True are equal, arrays not at all."""
        try:
            return params == self.params and [*map(type, params.values())] == self.types
        except (TypeError, ValueError):
            return False


class Signatures:
    """Texts that are equal for equations that do the same to values of the same shapes and dtypes.

    A program repeats itself: what is known to be like an earlier equation is not written again, and
    programs are read by columns, in a few passes of which none is a call for each equation. What
    was read is kept, so that the next pass through the program finds it, and so that no other
    abstract value takes the identity of one that is known.
    """

    def __init__(self) -> None:
        self._texts: dict[str, int] = {}
        self._kinds: dict[Hashable, _Kind] = {}
        self._latest: dict[bytes, _Kind] = {}
        self._literals: dict[Hashable, int] = {}
        self._literal_texts: dict[str, int] = {}
        self._literal_avals: list[int] = []
        self._bodies: dict[Hashable, str] = {}
        self._asked: dict[int, _Kind] = {}
        self._columns: dict[int, Columns] = {}
        self._kept: list[object] = []

    def of(self, eqn: JaxprEqn) -> str:
        """The signature of ``eqn``."""
        asked = self._asked.get(id(eqn))
        if asked is None:
            avals = [id(atom.aval) for atom in (*eqn.invars, *eqn.outvars)]
            row = np.array((id(eqn.primitive), len(eqn.invars), *avals), np.int64).tobytes()
            asked = self._read((eqn,), (row,))[0]
        return asked.text

    def columns(self, jaxpr: Jaxpr) -> Columns:
        """``jaxpr`` in numbers."""
        known = self._columns.get(id(jaxpr))
        if known is None:
            known = self._columns[id(jaxpr)] = self._by_columns(jaxpr)
            self._kept.append(jaxpr)
        return known

    def _by_columns(self, jaxpr: Jaxpr) -> Columns:
        eqns, inputs = jaxpr.eqns, (*jaxpr.constvars, *jaxpr.invars)
        operands, results = [eqn.invars for eqn in eqns], [eqn.outvars for eqn in eqns]
        bound = [*inputs, *chain.from_iterable(results)]
        numbers: dict[Var, int] = dict(zip(bound, count(), strict=False))
        reads = _integers(
            self._literal(atom) if isinstance(atom, Literal) else numbers[atom]
            for atom in chain(chain.from_iterable(operands), jaxpr.outvars)
        )
        sizes = _integers(map(len, operands)), _integers(map(len, results))
        # JAX makes few abstract values for many variables: to hash them takes longer than all else.
        made = _integers(map(id, [var.aval for var in bound]))
        avals = np.concatenate([made, _integers(reversed(self._literal_avals))])
        read = avals[reads[: sizes[0].sum()]]
        heads = _integers(map(id, [eqn.primitive for eqn in eqns]))
        rows = _rows(heads, *sizes, read, made[len(inputs) :])
        kinds = _integers([kind.number for kind in self._read(eqns, rows)])
        return Columns(kinds, reads, *sizes)

    def _read(self, eqns: Sequence[JaxprEqn], rows: Iterable[bytes]) -> list[_Kind]:
        """The kinds of equations, known from then on; ``rows``: see ``_rows``."""
        latest, found, asked = self._latest, list[_Kind](), dict[int, _Kind]()
        if eqns and id(eqns[0]) in self._asked:  # a program rewritten in part
            asked = self._asked
        for eqn, row in zip(eqns, rows, strict=True):
            kind = asked.get(id(eqn))
            if kind is None:
                kind = latest.get(row)
                if kind is None or ((eqn.params or kind.params) and not kind.has(eqn.params)):
                    kind = self._kind(eqn, row)
            found.append(kind)
        self._asked.update(zip(map(id, eqns), found, strict=True))
        self._kept.append(eqns)
        return found

    def _kind(self, eqn: JaxprEqn, row: bytes) -> _Kind:
        params = eqn.params
        inexact = [repr(value) for value in params.values() if type(value) in _INEXACT]
        key = row, tuple(params.items()), *inexact
        try:
            found = self._kinds.get(key)
            found = found or self._kinds.setdefault(key, self._numbered(eqn))
        except TypeError:  # a parameter that cannot be hashed
            return self._numbered(eqn)
        if not inexact:
            self._latest[row] = found
        return found

    def _numbered(self, eqn: JaxprEqn) -> _Kind:
        text = self._text(eqn)
        number = self._texts.setdefault(text, len(self._texts))
        return _Kind(number, text, eqn.params, [*map(type, eqn.params.values())])

    def _text(self, eqn: JaxprEqn) -> str:
        params = self.items((str(k), v) for k, v in eqn.params.items())
        operands = " ".join([aval_text(atom.aval) for atom in eqn.invars])
        results = " ".join([aval_text(var.aval) for var in eqn.outvars])
        return f"{eqn.primitive.name}[{params}] {operands} -> {results}"

    def _literal(self, atom: Literal) -> int:
        """A number below zero; equal for literals alike."""
        value = atom.val
        try:
            key = id(atom.aval), type(value), value.dtype, value.tobytes()
        except AttributeError:  # Python's own numbers
            key = id(atom.aval), type(value), repr(value)
        found = self._literals.get(key)
        if found is None:
            text = f"{self.value(value)}:{aval_text(atom.aval)}"
            self._kept.append(atom)
            found = self._literal_texts.setdefault(text, -1 - len(self._literal_texts))
            if -found > len(self._literal_avals):
                self._literal_avals.append(id(atom.aval))
            self._literals[key] = found
        return found

    def body(self, jaxpr: Jaxpr) -> str:
        """A hash of a body: of its inputs, signatures and literals in the order in which they first
        appear, and of who reads what. Layers have bodies alike: these are known by their columns.
        """
        columns, bound = self.columns(jaxpr), (*jaxpr.constvars, *jaxpr.invars)
        avals = tuple([id(var.aval) for var in bound])
        key = avals, len(jaxpr.constvars), columns.kinds.tobytes(), columns.reads.tobytes()
        found = self._bodies.get(key)
        if found is None:
            found = self._bodies[key] = self._hash(jaxpr, columns)
        return found

    def _hash(self, jaxpr: Jaxpr, columns: Columns) -> str:
        inputs = [aval_text(var.aval) for var in (*jaxpr.constvars, *jaxpr.invars)]
        kinds, order = _by_appearance(columns.kinds)
        reads, literals = columns.reads.copy(), columns.reads < 0
        reads[literals], written = _by_appearance(reads[literals])
        reads[literals] = -1 - reads[literals]
        texts, values = tuple(self._texts), tuple(self._literal_texts)
        head = f"{len(jaxpr.constvars)} {len(inputs)} {len(order)} {len(written)} {len(kinds)}"
        lines = [head, *inputs, *(texts[k] for k in order), *(values[-1 - k] for k in written), ""]
        found = hashlib.sha256("\n".join(lines).encode())
        for part in (kinds, reads):
            found.update(part.astype("<i8").tobytes())
        return found.hexdigest()

    def items(self, items: Iterable[tuple[str, Any]]) -> str:
        """Named values, sorted by name."""
        return ", ".join(
            f"{key}={self.value(value)}" for key, value in sorted(items, key=itemgetter(0))
        )

    def value(self, value: Any) -> str:
        """A parameter or constant as text."""
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
            return repr(value) if not isinstance(value, enum.Enum) else str(value)
        if isinstance(value, ClosedJaxpr):
            consts = " ".join(map(self.value, value.consts))
            return f"({consts})" + self.value(value.jaxpr)
        if isinstance(value, Jaxpr):
            return "{" + self.body(value) + "}"
        if isinstance(value, enum.Enum):
            return str(value)
        if isinstance(value, (jax.Array, np.ndarray, np.generic)):
            return array_text(value)
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
        return plain(str(value))


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


def _integers(numbers: Iterable[int]) -> IntArray:
    return np.fromiter(numbers, np.int64)


def _rows(
    heads: IntArray, operands: IntArray, results: IntArray, read: IntArray, made: IntArray
) -> list[bytes]:
    """Of each equation, in bytes: its head, how many operands, these, its results."""
    sizes = np.stack([np.full(len(heads), 2), operands, results], axis=1)
    part = np.repeat(np.tile(np.arange(3), len(heads)), sizes.ravel())
    table = np.empty(len(part), np.int64)
    table[part == 0] = np.stack([heads, operands], axis=1).ravel()
    table[part == 1], table[part == 2] = read, made
    ends, data = table.itemsize * sizes.sum(axis=1).cumsum(), table.tobytes()
    return [data[start:end] for start, end in pairwise([0, *ends.tolist()])]


def _by_appearance(numbers: IntArray) -> tuple[IntArray, list[int]]:
    """The numbers, numbered anew in the order in which they appear; and the old ones in it."""
    old, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)
    new = np.empty(len(old), np.int64)
    new[order] = np.arange(len(old))
    return new[inverse], old[order].tolist()
