"""Which state may rest on the host: what only elementwise work of the optimiser reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from autopar.passes.rules import Atom, factor_rule

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """Elementwise work that makes the next step's state of this one's, for arrays of one shape.

    Attributes:
      state: the flat inputs of the step that nothing else reads, and the flat outputs they become.
      members: positions of its equations, in order.
      operands: what these read of the array's shape, the state included; scalars: what else.
      itemsize: of the widest operand, bytes.
      results: the flat outputs that they make.
      replaced: for each result, the donated operand in whose place it is written, if there is one.
      scanned: the flat inputs among these (weights) that all else goes over only by loops.
      stacks: operands that a loop stacks and nothing else reads: the gradients of these.
    """

    shape: Shape
    state: tuple[tuple[int, int], ...]
    members: tuple[int, ...]
    operands: tuple[Var, ...]
    scalars: tuple[Var, ...]
    itemsize: int
    results: tuple[int, ...]
    replaced: tuple[Var | None, ...]
    scanned: tuple[int, ...]
    stacks: tuple[Var, ...]

    @property
    def inputs(self) -> frozenset[int]:
        """The flat inputs that may rest on the host, and are used nowhere else."""
        return frozenset(source for source, _ in self.state)

    @property
    def movable(self) -> frozenset[int]:
        """The flat inputs that may rest on the host."""
        return self.inputs | frozenset(self.scanned)


def updates(
    closed: ClosedJaxpr, donated: Sequence[bool], ties: Sequence[tuple[int, int]]
) -> tuple[Update, ...]:
    """All updates of a step, by the position of their last equation.

    What reads a state input, and all that follows from it, must be elementwise on arrays of its
    shape, and make nothing but results of the step. A norm of the update, say, is in the way.

    Args:
      donated: whether each flat input may be overwritten.
      ties: ``(flat output, flat input)`` pairs: outputs that are the next step's inputs.
    """
    return tuple(sorted(_Finder(closed.jaxpr, donated, ties).found(), key=lambda u: u.members[-1]))


class _Finder:
    def __init__(self, jaxpr: Jaxpr, donated: Sequence[bool], ties: Sequence[tuple[int, int]]):
        self.jaxpr, self.eqns = jaxpr, jaxpr.eqns
        self.ties = tuple((out, source) for out, source in ties if donated[source])
        self.sources = dict(self.ties)
        self.users: dict[Var, list[int]] = defaultdict(list)
        self.maker: dict[Var, int] = {}
        for position, eqn in enumerate(self.eqns):
            self.maker.update((var, position) for var in eqn.outvars)
            for var in {atom for atom in eqn.invars if isinstance(atom, Var)}:
                self.users[var].append(position)
        self.outputs: dict[Var, list[int]] = defaultdict(list)
        for position, atom in enumerate(jaxpr.outvars):
            if isinstance(atom, Var):
                self.outputs[atom].append(position)

    def found(self) -> Iterator[Update]:
        """Inputs whose work overlaps are updated together."""
        groups: list[tuple[set[int], list[tuple[int, int]]]] = []
        for out, source in self.ties:
            members = self._closure(self.jaxpr.invars[source], self.jaxpr.outvars[out])
            if members is None:
                continue
            state = [(source, out)]
            for group in [g for g in groups if not g[0].isdisjoint(members)]:
                groups.remove(group)
                members |= group[0]
                state = group[1] + state
            groups.append((members, state))
        for members, state in groups:
            yield self._update(members, state)

    def _closure(self, var: Var, target: Atom) -> set[int] | None:
        """The equations that anything made of ``var`` reaches, if all are elementwise on it."""
        shape = shape_of(var)
        if not shape or var in self.outputs:
            return None
        members: set[int] = set()
        waiting = [var]
        while waiting:
            for position in self.users[waiting.pop()]:
                if position in members:
                    continue
                if not _is_pointwise(self.eqns[position], shape):
                    return None
                members.add(position)
                waiting.extend(self.eqns[position].outvars)
        return members if self.maker.get(target) in members else None  # pyright: ignore

    def _update(self, members: set[int], state: list[tuple[int, int]]) -> Update:
        shape = shape_of(self.jaxpr.invars[state[0][0]])
        made = {var for position in members for var in self.eqns[position].outvars}
        results = sorted(out for var in made for out in self.outputs.get(var, ()))
        self._pull(members, shape)
        ordered = tuple(sorted(members))
        reads = self._reads(ordered)
        operands = tuple(var for var in reads if shape_of(var) == shape)
        sources = [self.sources.get(out) for out in results]
        taken = [None if i is None else self.jaxpr.invars[i] for i in sources]
        mine = {source for source, _ in state}
        weights = (i for i in sources if i is not None and i not in mine)
        return Update(
            shape,
            tuple(state),
            ordered,
            operands,
            tuple(var for var in reads if shape_of(var) != shape),
            max(map(_itemsize, operands)),
            tuple(results),
            tuple(var if var in operands else None for var in taken),
            tuple(i for i in weights if self._only_scanned(self.jaxpr.invars[i], members)),
            tuple(var for var in operands if self._is_stack(var, members)),
        )

    def _only_scanned(self, var: Var, members: set[int]) -> bool:
        """Whether others than ``members`` go over it by loops of the step, and nothing else."""
        others = [self.eqns[p] for p in self.users[var] if p not in members]
        return var not in self.outputs and all(var in scanned_by(eqn) for eqn in others)

    def _is_stack(self, var: Var, members: set[int]) -> bool:
        """Whether a loop stacks it for ``members`` alone."""
        maker = self.maker.get(var)
        if maker is None or self.eqns[maker].primitive.name != "scan" or var in self.outputs:
            return False
        stacked = self.eqns[maker].outvars[self.eqns[maker].params["num_carry"] :]
        return var in stacked and members.issuperset(self.users[var])

    def _reads(self, members: Sequence[int]) -> list[Var]:
        """What they read that none of them makes."""
        made = {var for position in members for var in self.eqns[position].outvars}
        atoms = (atom for position in members for atom in self.eqns[position].invars)
        return [*dict.fromkeys(a for a in atoms if isinstance(a, Var) and a not in made)]

    def _pull(self, members: set[int], shape: Shape) -> None:
        """Adds what only they read, where its operands are no more bytes than it is.

        So gradients are read in the precision in which the backward pass leaves them.
        """
        read = set(self._reads(sorted(members)))
        waiting = [-self.maker[var] for var in read if var in self.maker]
        heapify(waiting)  # the last equation first, so that all readers of a value are known
        while waiting:
            position = -heappop(waiting)
            eqn = self.eqns[position]
            if position in members or len(eqn.outvars) != 1:
                continue
            (var,) = eqn.outvars
            if var in self.outputs or not members.issuperset(self.users[var]):
                continue
            atoms = {atom for atom in eqn.invars if isinstance(atom, Var)}
            fresh = {atom for atom in atoms - read if shape_of(atom) == shape}
            if sum(map(_itemsize, fresh)) > _itemsize(var):
                continue
            if _is_pointwise(eqn, shape) or _is_fill(eqn, shape):
                members.add(position)
                for atom in atoms - read:
                    if atom in self.maker:
                        heappush(waiting, -self.maker[atom])
                read |= atoms


def scanned_by(eqn: JaxprEqn) -> list[Atom]:
    """What a loop goes over and does not read otherwise; nothing, of other equations."""
    if eqn.primitive.name != "scan":
        return []
    first = eqn.params["num_consts"] + eqn.params["num_carry"]
    return [atom for atom in eqn.invars[first:] if atom not in eqn.invars[:first]]


def _is_pointwise(eqn: JaxprEqn, shape: Shape) -> bool:
    """Whether each element of the results is made of the operands' at its place, and of scalars."""
    atoms = (*eqn.invars, *eqn.outvars)
    if eqn.effects or any(shape_of(atom) not in (shape, ()) for atom in atoms):
        return False
    if any(shape_of(var) != shape for var in eqn.outvars):
        return False
    rule = factor_rule(eqn)
    if rule is None or rule.reduce:
        return False
    dims = [dims for dims in (*rule.operands, *rule.results) if dims]
    first = rule.results[0]
    cut = all(name is not None for name, extent in zip(first, shape, strict=True) if extent > 1)
    return cut and all(one == first for one in dims)


def _is_fill(eqn: JaxprEqn, shape: Shape) -> bool:
    """Whether it repeats a scalar."""
    return eqn.primitive.name == "broadcast_in_dim" and all(
        (shape_of(eqn.invars[0]) == (), shape_of(eqn.outvars[0]) == shape, len(eqn.invars) == 1)
    )


def shape_of(atom: Var | Literal) -> Shape:
    """The shape of a value."""
    return tuple(getattr(atom.aval, "shape", ()))


def _itemsize(var: Var) -> int:
    return var.aval.dtype.itemsize  # pyright: ignore
