"""One jaxpr with views looked through, and the rules of ``fusion`` applied to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var

from autopar.cost_model.fusion_groups import Group, Groups
from autopar.cost_model.fusion_nature import Nature, elements, is_elementwise, itemsize_of
from autopar.cost_model.work import KINDS, aval_bytes, shape_of, work
from autopar.passes.fold import Alike

RECOMPUTE_RATIO = 2.25
"""A value is kept rather than recomputed if its sources are this much larger (measured, v5e)."""

LONGEST_ROW = 4096
"""Elements of a row that a matmul's kernel holds whole, for the softmax of it (measured, v5e)."""

_CHEAP_SIZE = 1  # elements of what may be broadcast for free
_NOTHING = frozenset[Var]()


@dataclass
class FusionGraph:
    """One jaxpr. ``decide``, then ``count_reads``, fill its tables.

    Attributes:
      nature: of an equation. grouped, alike: see ``fusion_borders``.
      roots: every view and what it is a view of.
      steps: all equations but views, and what each reads, views looked through.
      users: who uses each value, through views. cheap: values made of scalars and iota only.
      written: values in memory. charged: those whose writing their own equation pays.
      needed_for: for an unwritten value, the values in memory it is computed from.
      charged_for: those of them whose reading its consumer pays (a matmul pays for its own).
      chains: for an unwritten value, the arithmetic that its consumers repeat for it.
      operations: vector instructions of an elementwise value.
      convolved: the values a convolution's kernel makes on the way down its chain, and it.
      reads, softmaxes, beside, widened: see ``FusionBorders``. kernels: its ``sources``.
    """

    jaxpr: Jaxpr
    nature: Callable[[JaxprEqn], Nature] = Nature.of
    grouped: bool = True
    alike: Mapping[Var, Alike] = field(default_factory=dict[Var, Alike])
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
    chains: dict[Var, frozenset[Var]] = field(default_factory=dict[Var, frozenset[Var]])
    operations: dict[Var, float] = field(default_factory=dict[Var, float])
    convolved: dict[Var, JaxprEqn] = field(default_factory=dict[Var, JaxprEqn])
    beside: dict[Var, float] = field(default_factory=dict[Var, float])
    widened: dict[Var, Var] = field(default_factory=dict[Var, Var])

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
                for out in eqn.outvars if nature.weight else ():
                    self.operations[out] = nature.weight * elements(out)
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
                        self.chains[out] = _NOTHING if out in moved else self._chain(sources, out)
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
            if KINDS[eqn.primitive.name] == "conv" and self.grouped:
                self.convolved |= dict.fromkeys(chain, eqn)
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
        users = self.users.get(var, [])
        if len(users) < 2 or var in self.cheap:
            return False
        full = [v for v in ancestors if v in self.written and elements(v) >= elements(var)]
        size, own = sum(aval_bytes(v.aval) for v in full), aval_bytes(var.aval)
        dear = size > RECOMPUTE_RATIO * own
        if any(KINDS.get(user.primitive.name) == "conv" for user in users):
            dear |= not self.grouped or size * len(users) >= size + own * (1 + len(users))
        elif dear and len(full) >= 2:
            self._note_widened(var, full, size - RECOMPUTE_RATIO * own)
        return len(full) >= 2 and dear

    def _note_widened(self, var: Var, ancestors: Sequence[Var], spare: float) -> None:
        """Notes a value that would not be kept if an exponential of a softmax were narrow."""
        for exp in ancestors:
            if exp in self.softmaxes:
                narrow = aval_bytes(self.softmaxes[exp].aval)
                if aval_bytes(exp.aval) - narrow >= spare:
                    self.widened[var] = exp

    def count_reads(self) -> None:
        """Charges every group's reads to the equation that ends it, and lists what it needs."""
        bound = (*self.jaxpr.invars, *[out for eqn in self.jaxpr.eqns for out in eqn.outvars])
        place = {var: at for at, var in enumerate((*self.jaxpr.constvars, *bound))}
        written, charged, groups = self.written, self.charged, Groups(place)
        for eqn, nature, sources in self.steps:
            region, outs = nature.kind == "region", eqn.outvars
            if not outs:
                continue
            if nature.elementwise and elements(outs[0]) == 1:  # at hand as soon as its sources
                place.update(dict.fromkeys(outs, max([place[v] for v in sources], default=0)))
            writes = not written.isdisjoint(outs)
            if region or writes:
                needed = _behind(sources, self.needed_for)
                self.kernels[outs[0]] = tuple(sorted(needed, key=place.__getitem__))
            if not region and (writes or not charged.isdisjoint(outs)):
                group = Group(place[outs[0]], set())
                if self.grouped:
                    group = self._group(groups, eqn, nature, sources)
                self._count_reads_of(eqn, group)

    def _group(
        self, groups: Groups, eqn: JaxprEqn, nature: Nature, sources: Sequence[Var]
    ) -> Group:
        """The kernel of an equation; what it reads is to be added to what is at hand there."""
        outs = [out for out in eqn.outvars if out in self.written]
        light = nature.elementwise and not self.charged.isdisjoint(outs)
        if not light and not nature.reduces:
            found = groups.product(outs, self.convolved.get(eqn.outvars[0]))
            return found if found.convolution else Group(0, set())
        through = max(map(elements, sources if nature.reduces else eqn.outvars), default=0)
        needed, made = _behind(sources, self.needed_for), () if nature.reduces else outs
        group = groups.light(groups.place[eqn.outvars[0]], made, needed, through)
        if not group.at_hand:  # else it is hidden by what the kernel does already
            total = sum([self.operations[var] for var in self._chain(sources)])
            self.beside[eqn.outvars[0]] = total / max(1, *map(elements, eqn.invars))
        group.at_hand.update(made)
        return group

    def _chain(self, sources: Sequence[Var], *more: Var) -> frozenset[Var]:
        found = [self.chains[var] for var in sources if var in self.chains]
        return _NOTHING.union(*found, [var for var in more if var in self.operations])

    def _count_reads_of(self, eqn: JaxprEqn, group: Group) -> None:
        """Charges what is read to the equation, or to the convolution whose kernel it is in."""
        charged, seen = group.convolution or eqn, group.at_hand
        if charged is not eqn:
            self.charged.difference_update(eqn.outvars)
        for index, atom in enumerate(eqn.invars):
            if not isinstance(atom, Var) or not aval_bytes(atom.aval):
                continue
            root = self.root(atom)
            every = self.charged_for.get(root, (root,))
            fresh = [v for v in every if v not in seen]
            seen.update(fresh)
            most = elements(atom)
            size = sum([min(elements(v), most) * itemsize_of(v) for v in fresh])
            for v in fresh if self.alike else ():
                if v in self.alike and self.alike[v].beside.issubset(every):
                    size += self.alike[v].times * min(elements(v), most) * itemsize_of(v)
            if size:
                place = index if charged is eqn else 0
                key, own = (charged.outvars[0], place), aval_bytes(charged.invars[place].aval)
                self.reads[key] = self.reads.get(key, 0.0) + size / own


def _behind(sources: Sequence[Var], table: Mapping[Var, frozenset[Var]]) -> frozenset[Var]:
    """The values in memory that something is computed from.

    ``table``: of the values that do not lie there, the same.
    """
    found = [table[var] if var in table else frozenset((var,)) for var in sources]
    return found[0].union(*found[1:]) if found else _NOTHING
