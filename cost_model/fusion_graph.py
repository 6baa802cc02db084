"""One jaxpr with views looked through, and the rules of ``fusion`` applied to it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.cost_model.work import KINDS, aval_bytes, itemsize, kind_of, shape_of, work

RECOMPUTE_RATIO = 2.25
"""A value is kept rather than recomputed if its sources are this much larger (measured, v5e)."""

LONGEST_ROW = 4096
"""Elements of a row that a matmul's kernel holds whole, for the softmax of it (measured, v5e)."""

_VIEWS = frozenset(
    (
        *("reshape", "transpose", "squeeze", "expand_dims", "copy", "copy_p", "stop_gradient"),
        *("sharding_constraint", "name", "pvary", "random_wrap", "random_unwrap"),
        *("bitcast_convert_type", "optimization_barrier"),
    )
)
_ELEMENTWISE = frozenset(
    (
        *("add", "sub", "mul", "div", "rem", "neg", "sign", "abs", "max", "min", "pow", "square"),
        *("exp", "exp2", "log", "log1p", "expm1", "sqrt", "rsqrt", "cbrt", "tanh", "logistic"),
        *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh", "asinh", "acosh"),
        *("atanh", "erf", "erfc", "erf_inv", "integer_pow", "lgamma", "digamma", "floor", "ceil"),
        *("round", "is_finite", "and", "or", "xor", "not", "eq", "ne", "lt", "le", "gt", "ge"),
        *("select_n", "clamp", "convert_element_type", "reduce_precision", "nextafter", "add_any"),
        *("shift_left", "shift_right_logical", "shift_right_arithmetic", "population_count"),
        *("real", "imag", "complex", "conj", "threefry2x32", "broadcast_in_dim", "iota", "slice"),
        *("dynamic_slice", "pad", "concatenate", "rev", "split", "zeros_like", "clz"),
    )
)
_NEED_OPERANDS = frozenset(("gather", "update", "region", "linalg"))
_WINDOWS = frozenset(
    (
        *("reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"),
        *("select_and_scatter", "select_and_scatter_add", "select_and_gather_add"),
    )
)
_CHEAP_SIZE = 1  # elements of what may be broadcast for free


def is_view(eqn: JaxprEqn) -> bool:
    """Whether every result is its operand's bytes under another shape."""
    name = eqn.primitive.name
    if name in _VIEWS:
        return len(eqn.invars) >= len(eqn.outvars)
    if name == "convert_element_type":
        return itemsize_of(eqn.invars[0]) == itemsize_of(eqn.outvars[0]) and (
            eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype  # pyright: ignore
        )
    return name == "broadcast_in_dim" and elements(eqn.invars[0]) == elements(eqn.outvars[0])


def is_elementwise(eqn: JaxprEqn) -> bool:
    """Whether the equation can be computed inside its consumers."""
    scatters = KINDS.get(eqn.primitive.name) == "update"
    return eqn.primitive.name in _ELEMENTWISE or (scatters and kind_of(eqn) == "map")


def elements(atom: Var | Literal) -> int:
    """Elements of a value."""
    return math.prod(shape_of(atom.aval))


def itemsize_of(atom: Var | Literal) -> int:
    """Bytes an element."""
    return itemsize(atom.aval)


@dataclass
class FusionGraph:
    """One jaxpr. ``decide``, then ``count_reads``, fill its tables.

    Attributes:
      roots: every view and what it is a view of. producer: who makes each value that is no view.
      read: what each equation, by its identity, reads, views looked through.
      users: who uses each value, through views. cheap: values made of scalars and iota only.
      written: values in memory. charged: those whose writing their own equation pays.
      needed_for: for an unwritten value, the values in memory it is computed from.
      charged_for: those of them whose reading its consumer pays (a matmul pays for its own).
      reads, softmaxes: see ``FusionBorders``. kernels: its ``sources``.
    """

    jaxpr: Jaxpr
    roots: dict[Var, Var] = field(default_factory=dict[Var, Var])
    producer: dict[Var, JaxprEqn] = field(default_factory=dict[Var, JaxprEqn])
    read: dict[int, list[Var]] = field(default_factory=dict[int, list[Var]])
    users: dict[Var, list[JaxprEqn]] = field(default_factory=lambda: defaultdict(list))
    written: set[Var] = field(default_factory=set[Var])
    charged: set[Var] = field(default_factory=set[Var])
    charged_for: dict[Var, frozenset[Var]] = field(default_factory=dict[Var, frozenset[Var]])
    needed_for: dict[Var, frozenset[Var]] = field(default_factory=dict[Var, frozenset[Var]])
    reads: dict[tuple[Var, int], float] = field(default_factory=dict[tuple[Var, int], float])
    kernels: dict[Var, tuple[Var, ...]] = field(default_factory=dict[Var, tuple[Var, ...]])
    cheap: set[Var] = field(default_factory=set[Var])
    softmaxes: dict[Var, Var] = field(default_factory=dict[Var, Var])

    def __post_init__(self) -> None:
        self.place = {v: i for i, v in enumerate((*self.jaxpr.constvars, *self.jaxpr.invars))}
        for eqn in self.jaxpr.eqns:
            for out in eqn.outvars:
                self.place[out] = len(self.place)
            if is_view(eqn):
                for out, source in zip(eqn.outvars, eqn.invars, strict=False):
                    if isinstance(source, Var):
                        self.roots[out] = self.root(source)
                    else:
                        self.cheap.add(out)
                continue
            for out in eqn.outvars:
                self.producer[out] = eqn
            sources = [self.root(atom) for atom in eqn.invars if isinstance(atom, Var)]
            self.read[id(eqn)] = sources
            for source in dict.fromkeys(sources):
                self.users[source].append(eqn)
            if _is_cheap(eqn, self.cheap, sources):
                self.cheap.update(eqn.outvars)
        self.outputs = {self.root(v) for v in self.jaxpr.outvars if isinstance(v, Var)}

    def root(self, var: Var) -> Var:
        return self.roots.get(var, var)

    def sources(self, eqn: JaxprEqn) -> list[Var]:
        return self.read[id(eqn)]

    def decide(self) -> None:
        """Fills ``written`` and ``charged``, and says what is behind all that is not written."""
        needed = set(self.outputs)
        for eqn in self.jaxpr.eqns:
            whole = kind_of(eqn) in _NEED_OPERANDS or eqn.primitive.name in _WINDOWS
            if whole and not is_elementwise(eqn):
                needed.update(v for v in self.sources(eqn) if v not in self.cheap)
        moved = self._move_down(needed)
        for eqn in self.jaxpr.eqns:
            if is_view(eqn):
                continue
            heavy = not is_elementwise(eqn)
            reached = self._behind(eqn, self.needed_for)
            for out in eqn.outvars:
                gets_buffer = moved.get(out)
                kept = heavy if gets_buffer is None else gets_buffer
                if kept or out in needed or (not heavy and self._worth_keeping(out, reached)):
                    self.written.add(out)
                else:
                    self.needed_for[out] = reached
                    self.charged_for[out] = (
                        frozenset() if heavy else self._behind(eqn, self.charged_for)
                    )
                if heavy or (out in self.written and not gets_buffer):
                    self.charged.add(out)

    def _move_down(self, needed: set[Var]) -> dict[Var, bool]:
        """Values on the chains below matmuls: ``True`` for the one that gets the buffer."""
        moved: dict[Var, bool] = {}
        for eqn in reversed(self.jaxpr.eqns):
            if KINDS.get(eqn.primitive.name) not in ("dot", "conv"):
                continue
            chain = [eqn.outvars[0]]
            while (step := self._next_in_chain(chain[-1], needed)) and step not in moved:
                chain.append(step)
            softmax = self._softmax_below(chain[-1], needed)
            if softmax:
                self.softmaxes[softmax[-1]] = min(chain, key=itemsize_of)
            chain += softmax
            narrowest = min(map(itemsize_of, chain))
            while not softmax and itemsize_of(chain[-1]) > narrowest:
                chain.pop()
            if len(chain) > 1:
                moved |= {var: var is chain[-1] for var in chain}
        return moved

    def _next_in_chain(self, var: Var, needed: set[Var]) -> Var | None:
        users = self.users.get(var, [])
        if var in needed or len(users) != 1 or not is_elementwise(users[0]):
            return None
        (step, *more) = users[0].outvars
        if more or elements(step) != elements(var):
            return None
        widens = itemsize_of(step) > itemsize_of(var)
        if widens and users[0].primitive.name == "convert_element_type":
            return step if len(self.users.get(step, [])) == 1 else None
        return step

    def _softmax_below(self, var: Var, needed: set[Var]) -> list[Var]:
        """What a softmax over rows that fit makes of ``var``: ``x - max(x)`` and its exponential.

        The matmul's kernel holds whole rows, so it goes on to the exponential, and writes that.
        """
        users = self.users.get(var, [])
        widened: list[Var] = []
        if len(users) == 1 and users[0].primitive.name == "convert_element_type":
            widened = list(users[0].outvars)
            users = self.users.get(widened[0], [])
        by_name = {user.primitive.name: user for user in users}
        shape = shape_of(var.aval)
        if len(users) != 2 or set(by_name) != {"reduce_max", "sub"} or shape[-1] > LONGEST_ROW:
            return []
        if by_name["reduce_max"].params["axes"] != (len(shape) - 1,):
            return []
        (centred,) = by_name["sub"].outvars
        onward = self.users.get(centred, [])
        if needed & {var, *widened, centred} or [u.primitive.name for u in onward] != ["exp"]:
            return []
        return [*widened, centred, *onward[0].outvars]

    def _behind(self, eqn: JaxprEqn, table: Mapping[Var, frozenset[Var]]) -> frozenset[Var]:
        """The values in memory that the equation's results are computed from."""
        return frozenset[Var]().union(*(self._memory(v, table) for v in self.sources(eqn)))

    def _memory(self, var: Var, table: Mapping[Var, frozenset[Var]]) -> frozenset[Var]:
        if var in self.written or var not in self.producer:
            return frozenset((var,))
        return table[var]

    def is_narrow(self, var: Var) -> bool:
        """Whether only matmuls use an f32 value, and they would round it anyway."""
        users = self.users.get(var, [])
        dtype = getattr(var.aval, "dtype", None)
        return (
            dtype == np.float32
            and var not in self.outputs
            and bool(users)
            and all(
                user.primitive.name == "dot_general" and work(user).dtype_class == "f32"
                for user in users
            )
        )

    def _worth_keeping(self, var: Var, ancestors: frozenset[Var]) -> bool:
        if len(self.users.get(var, [])) < 2 or var in self.cheap:
            return False
        full = [v for v in ancestors if v in self.written and elements(v) >= elements(var)]
        size = sum(aval_bytes(v.aval) for v in full)
        convolved = any(KINDS.get(u.primitive.name) == "conv" for u in self.users[var])
        dear = convolved or size > RECOMPUTE_RATIO * aval_bytes(var.aval)
        return len(full) >= 2 and dear

    def count_reads(self) -> None:
        """Charges every group's reads to the equation that ends it, and lists what it needs."""
        for eqn in self.jaxpr.eqns:
            region = KINDS.get(eqn.primitive.name) == "region"
            if is_view(eqn) or not eqn.outvars:
                continue
            if region or any(out in self.written for out in eqn.outvars):
                needed = self._behind(eqn, self.needed_for)
                self.kernels[eqn.outvars[0]] = tuple(sorted(needed, key=self.place.__getitem__))
            if region or not any(v in self.written or v in self.charged for v in eqn.outvars):
                continue
            seen: set[Var] = set()
            for index, atom in enumerate(eqn.invars):
                if not isinstance(atom, Var) or not (own := aval_bytes(atom.aval)):
                    continue
                fresh = self._memory(self.root(atom), self.charged_for) - seen
                seen |= fresh
                most = elements(atom)
                size = sum(min(elements(v), most) * itemsize_of(v) for v in fresh)
                if size:
                    self.reads[eqn.outvars[0], index] = size / own


def _is_cheap(eqn: JaxprEqn, cheap: set[Var], sources: Sequence[Var]) -> bool:
    """Iota, and whatever is made of scalars and cheap values only, without heavy work."""
    return is_elementwise(eqn) and all(v in cheap or elements(v) <= _CHEAP_SIZE for v in sources)
