"""One jaxpr with views looked through, and the rules of ``fusion`` applied to it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.cost_model.work import KINDS, WorkKind, aval_bytes, itemsize, kind_of, shape_of, work

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


class Nature(NamedTuple):
    """What the rules ask of an equation, whatever its values: equal for equations alike.

    Attributes:
      view, elementwise: see ``is_view``, ``is_elementwise``.
      kind: in ``KINDS``, if there.
      needs_operands: whether its operands must lie in memory.
    """

    view: bool
    elementwise: bool
    kind: WorkKind | None
    needs_operands: bool

    @classmethod
    def of(cls, eqn: JaxprEqn) -> Nature:
        name, elementwise = eqn.primitive.name, is_elementwise(eqn)
        whole = kind_of(eqn) in _NEED_OPERANDS or name in _WINDOWS
        return cls(is_view(eqn), elementwise, KINDS.get(name), whole and not elementwise)


_NOTHING = frozenset[Var]()


@dataclass
class FusionGraph:
    """One jaxpr. ``decide``, then ``count_reads``, fill its tables.

    Attributes:
      nature: of an equation.
      roots: every view and what it is a view of.
      steps: all equations but views, and what each reads, views looked through.
      users: who uses each value, through views. cheap: values made of scalars and iota only.
      written: values in memory. charged: those whose writing their own equation pays.
      needed_for: for an unwritten value, the values in memory it is computed from.
      charged_for: those of them whose reading its consumer pays (a matmul pays for its own).
      reads, softmaxes: see ``FusionBorders``. kernels: its ``sources``.
    """

    jaxpr: Jaxpr
    nature: Callable[[JaxprEqn], Nature] = Nature.of
    roots: dict[Var, Var] = field(default_factory=dict[Var, Var])
    steps: list[tuple[JaxprEqn, Nature, list[Var]]] = field(default_factory=list)
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
        roots, users, cheap = self.roots, self.users, self.cheap
        for eqn in self.jaxpr.eqns:
            nature = self.nature(eqn)
            if nature.view:
                for out, source in zip(eqn.outvars, eqn.invars, strict=False):
                    if isinstance(source, Var):
                        roots[out] = roots.get(source, source)
                    else:
                        cheap.add(out)
                continue
            sources = [roots.get(atom, atom) for atom in eqn.invars if isinstance(atom, Var)]
            self.steps.append((eqn, nature, sources))
            for source in dict.fromkeys(sources):
                users[source].append(eqn)
            # Iota, and whatever is made of scalars and cheap values only, without heavy work.
            if nature.elementwise:
                for source in sources:
                    if source not in cheap and elements(source) > _CHEAP_SIZE:
                        break
                else:
                    cheap.update(eqn.outvars)
        self.outputs = {self.root(v) for v in self.jaxpr.outvars if isinstance(v, Var)}

    def root(self, var: Var) -> Var:
        return self.roots.get(var, var)

    def decide(self) -> None:
        """Fills ``written`` and ``charged``, and says what is behind all that is not written."""
        needed = set(self.outputs)
        for _, nature, sources in self.steps:
            if nature.needs_operands:
                needed.update([v for v in sources if v not in self.cheap])
        moved = self._move_down(needed)
        for eqn, nature, sources in self.steps:
            heavy = not nature.elementwise
            reached: frozenset[Var] | None = None
            for out in eqn.outvars:
                gets_buffer = moved.get(out)
                written = out in needed or (heavy if gets_buffer is None else gets_buffer)
                if not written:
                    reached = _behind(sources, self.needed_for) if reached is None else reached
                    written = not heavy and self._worth_keeping(out, reached)
                    if not written:
                        self.needed_for[out] = reached
                        self.charged_for[out] = (
                            _NOTHING if heavy else _behind(sources, self.charged_for)
                        )
                if written:
                    self.written.add(out)
                if heavy or (written and not gets_buffer):
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

        The matmul's kernel holds whole rows, so it goes on to the exponential, and writes that;
        but not where all that is done before is to widen ``var``: the maximum is that of the
        narrow values, which are written (measured, v5e).
        """
        users = self.users.get(var, [])
        by_name = {user.primitive.name: user for user in users}
        shape = shape_of(var.aval)
        if len(users) != 2 or set(by_name) != {"reduce_max", "sub"} or shape[-1] > LONGEST_ROW:
            return []
        if by_name["reduce_max"].params["axes"] != (len(shape) - 1,):
            return []
        (centred,) = by_name["sub"].outvars
        onward = self.users.get(centred, [])
        if needed & {var, centred} or [u.primitive.name for u in onward] != ["exp"]:
            return []
        return [centred, *onward[0].outvars]

    def is_narrow(self, var: Var) -> bool:
        """Whether only matmuls use an f32 value, and they would round it anyway."""
        users = self.users.get(var, [])
        return (
            bool(users)
            and var not in self.outputs
            and getattr(var.aval, "dtype", None) == np.float32
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
        bound = (*self.jaxpr.invars, *[out for eqn in self.jaxpr.eqns for out in eqn.outvars])
        place = {var: at for at, var in enumerate((*self.jaxpr.constvars, *bound))}
        written, charged = self.written, self.charged
        for eqn, nature, sources in self.steps:
            region, outs = nature.kind == "region", eqn.outvars
            if not outs:
                continue
            writes = not written.isdisjoint(outs)
            if region or writes:
                needed = _behind(sources, self.needed_for)
                self.kernels[outs[0]] = tuple(sorted(needed, key=place.__getitem__))
            if not region and (writes or not charged.isdisjoint(outs)):
                self._count_reads_of(eqn)

    def _count_reads_of(self, eqn: JaxprEqn) -> None:
        seen: set[Var] = set()
        for index, atom in enumerate(eqn.invars):
            if not isinstance(atom, Var) or not (own := aval_bytes(atom.aval)):
                continue
            root = self.root(atom)
            fresh = self.charged_for.get(root, (root,))
            fresh = [v for v in fresh if v not in seen]
            seen.update(fresh)
            most = elements(atom)
            size = sum([min(elements(v), most) * itemsize_of(v) for v in fresh])
            if size:
                self.reads[eqn.outvars[0], index] = size / own


def _behind(sources: Sequence[Var], table: Mapping[Var, frozenset[Var]]) -> frozenset[Var]:
    """The values in memory that something is computed from.

    ``table``: of the values that do not lie there, the same.
    """
    found = [table[var] if var in table else frozenset((var,)) for var in sources]
    return found[0].union(*found[1:]) if found else _NOTHING
