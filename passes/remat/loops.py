"""Rematerialisation in loops: a forward ``scan``, and the backward one that reads its stacks.

What the forward body makes and drops is no longer stacked: the backward body computes it again,
first thing, from what is kept (any value of the forward body, stacked), what the forward loop
scans over and is constant in it, and the carry at the start of each trip, stacked. There is no
barrier in the body: nothing is shared across trips, and XLA schedules worse with one (measured).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from jax.core import ShapedArray
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from autopar.core import compat
from autopar.passes.remat.copies import Env, again, read
from autopar.passes.remat.sides import Atom, is_backward


def partners(eqns: Sequence[JaxprEqn], position: int) -> tuple[int, ...]:
    """The backward loops of the forward loop at ``position``; none for other equations."""
    eqn = eqns[position]
    if eqn.primitive.name != "scan" or is_backward(eqn):
        return ()
    stacks = frozenset(eqn.outvars[eqn.params["num_carry"] :])
    return tuple(i for i, other in enumerate(eqns) if _turns(eqn, other, stacks))


def _turns(eqn: JaxprEqn, other: JaxprEqn, stacks: frozenset[Var]) -> bool:
    """Whether ``other`` is a loop of the backward pass that goes over ``stacks`` the other way."""
    if other.primitive.name != "scan" or not is_backward(other):
        return False
    scanned = other.invars[other.params["num_consts"] + other.params["num_carry"] :]
    return (
        other.params["length"] == eqn.params["length"]
        and other.params["reverse"] != eqn.params["reverse"]
        and any(isinstance(atom, Var) and atom in stacks for atom in scanned)
    )


def recompute_in_loop(eqns: list[JaxprEqn], position: int, dropped: Collection[int]) -> None:
    """Has every backward loop of a forward one recompute what ``dropped`` equations of its body
    make. The loops are replaced in ``eqns``; stacks that nobody reads any more stay, to be pruned.
    """
    for partner in partners(eqns, position):
        pair = _Pair(_Loop(eqns[position]), _Loop(eqns[partner]), frozenset(dropped))
        if pair.rewrite():
            eqns[position] = pair.forward.equation()
            eqns[partner] = pair.backward.equation()


@dataclass(slots=True)
class _Loop:
    """A scan taken apart: operands and body inputs by kind, results likewise."""

    eqn: JaxprEqn
    body: Jaxpr = field(init=False)
    consts: dict[Var, Atom] = field(init=False)
    carries: dict[Var, Atom] = field(init=False)
    scanned: dict[Var, Atom] = field(init=False)
    stacked: list[tuple[Atom, Var]] = field(init=False)
    carried: list[tuple[Atom, Var]] = field(init=False)
    eqns: list[JaxprEqn] = field(init=False)

    def __post_init__(self) -> None:
        params = self.eqn.params
        self.body = params["jaxpr"].jaxpr
        n, m = params["num_consts"], params["num_carry"]
        inputs = list(zip(self.body.invars, self.eqn.invars, strict=True))
        results = list(zip(self.body.outvars, self.eqn.outvars, strict=True))
        self.consts, self.carries = dict(inputs[:n]), dict(inputs[n : n + m])
        self.scanned = dict(inputs[n + m :])
        self.carried, self.stacked = results[:m], results[m:]
        self.eqns = list(self.body.eqns)

    def stack(self, atom: Atom) -> Var:
        """The stack of a value of the body, outside; a new result if there is none yet."""
        for inner, outer in self.stacked:
            if inner is atom and not isinstance(outer, compat.DropVar):
                return outer
        aval = atom.aval
        length = self.eqn.params["length"]
        outer = compat.new_var(ShapedArray((length, *aval.shape), aval.dtype))  # pyright: ignore
        self.stacked.append((atom, outer))
        return outer

    def input(self, outer: Atom, like: Var, scan: bool) -> Var:
        """The body's input for an operand; a new one if there is none yet."""
        table = self.scanned if scan else self.consts
        for inner, known in table.items():
            if known is outer and isinstance(outer, Var):
                return inner
        inner = compat.like_var(like)
        table[inner] = outer
        return inner

    def equation(self) -> JaxprEqn:
        """The scan, put together again."""
        inputs = {**self.consts, **self.carries, **self.scanned}
        results = [*self.carried, *self.stacked]
        body = self.body.replace(
            invars=list(inputs), outvars=[inner for inner, _ in results], eqns=self.eqns
        )
        params = dict(self.eqn.params, jaxpr=ClosedJaxpr(body, ()), num_consts=len(self.consts))
        if "linear" in params:
            params["linear"] = (False,) * len(inputs)
        outvars = [outer for _, outer in results]
        return self.eqn.replace(invars=list(inputs.values()), outvars=outvars, params=params)


@dataclass(slots=True)
class _Pair:
    """A forward loop, a backward one, and the equations of the forward body that are dropped."""

    forward: _Loop
    backward: _Loop
    dropped: frozenset[int]

    def rewrite(self) -> bool:
        """Whether the backward loop read anything dropped; if so, it computes it again now."""
        eqns = self.forward.body.eqns
        made = {var: p for p in self.dropped for var in eqns[p].outvars}
        lost = {
            inner: value
            for inner, value in self._read_by_backward()
            if isinstance(value, Var) and value in made
        }
        members = sorted(_closure(eqns, made, lost.values()))
        env: Env = {}
        for atom in (atom for p in members for atom in eqns[p].invars):
            if isinstance(atom, Var) and atom not in made and atom not in env:
                env[atom] = self._brought(atom)
        copied = again([eqns[p] for p in members], env)
        renamed = {inner: env[value] for inner, value in lost.items()}
        rest = (
            eqn.replace(invars=[read(renamed, atom) for atom in eqn.invars])
            for eqn in self.backward.eqns
        )
        self.backward.eqns = [*copied, *rest]
        return bool(lost)

    def _read_by_backward(self) -> Iterator[tuple[Var, Atom]]:
        """Inputs of the backward body, and the value of the forward body stacked for each."""
        values = {outer: inner for inner, outer in self.forward.stacked}
        for inner, outer in self.backward.scanned.items():
            if isinstance(outer, Var) and outer in values:
                yield inner, values[outer]

    def _brought(self, var: Var) -> Var:
        """A kept value of the forward body, as an input of the backward body."""
        forward, backward = self.forward, self.backward
        if var in forward.consts:
            return backward.input(forward.consts[var], var, scan=False)
        if var in forward.scanned:
            return backward.input(forward.scanned[var], var, scan=True)
        return backward.input(forward.stack(var), var, scan=True)


def _closure(
    eqns: Sequence[JaxprEqn], made: dict[Var, int], wanted: Collection[Var]
) -> frozenset[int]:
    """The dropped equations that it takes to compute ``wanted``."""
    found: set[int] = set()
    waiting = [made[var] for var in wanted]
    while waiting:
        if (position := waiting.pop()) not in found:
            found.add(position)
            inputs = (a for a in eqns[position].invars if not isinstance(a, Literal))
            waiting.extend(made[var] for var in inputs if var in made)
    return frozenset(found)
