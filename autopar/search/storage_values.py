"""The values of the forward pass whose storage is a choice: kept for the backward pass, or not.

A value is a choice if it lies in device memory (``fusion``: the end of a fused kernel) and what
follows from it in the backward pass could be had by running its kernel again. What fusion computes
inside its readers is no choice: it is wherever its sources are. One value stands so for its whole
chain of views and elementwise work.

Values live in *bodies*: the step itself, and the body of each forward loop that has a backward one
(its values are stacked if kept, ``trips`` of them, and recomputed a trip at a time).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from jax.extend.core import ClosedJaxpr, JaxprEqn, Var

from autopar.cost_model import FusionBorders, Timeline
from autopar.passes.remat import droppable, is_backward, partners
from autopar.passes.trace import source_name

Seconds = Callable[[str, JaxprEqn], float]
"""What running the equation of a name costs, with the layout changes of its operands."""

Size = Callable[[Var], int]
"""Bytes of a value on a device."""


@dataclass(slots=True)
class Value:
    """One choice.

    Attributes:
      var: the value. name: of the equation that makes it. label: in the user's program.
      group: names of the equations that make it from what is in memory: its fused kernel.
      sources: numbers of the values that the group reads.
      bytes: on a device, a trip. seconds: of running the group again, a trip. trips: how often.
      needed: whether the backward pass reads it (or what is fused from it).
      start, last_forward: the instants between which the forward pass holds it.
      first, last: those of the backward pass's reads, if ``needed``.
      buffers: the variables of the buffers that hold it as the program is written.
      body: the body it is in.
    """

    var: Var
    name: str
    label: str
    group: tuple[str, ...]
    sources: tuple[int, ...]
    bytes: int
    seconds: float
    trips: int
    start: int
    last_forward: int
    body: str
    first: int = -1
    last: int = -1
    buffers: tuple[Var, ...] = ()

    @property
    def needed(self) -> bool:
        return self.first >= 0


@dataclass(slots=True)
class Body:
    """A forward body: its equations, by position, and who reads its values in the backward pass.

    ``reads``: value (root) to instants of the backward kernels that read it. ``span``: for a loop,
    the instants at which the forward loop begins and the backward one ends.
    """

    name: str
    eqns: dict[int, JaxprEqn]
    trips: int
    makers: dict[Var, int]
    reads: dict[Var, list[int]]
    stacks: dict[Var, list[Var]] = field(default_factory=dict[Var, list[Var]])
    span: tuple[int, int] | None = None

    def named(self, position: int) -> str:
        return f"{self.name}{position}"


def storage_values(
    closed: ClosedJaxpr, borders: FusionBorders, timeline: Timeline, seconds: Seconds, size: Size
) -> tuple[tuple[Value, ...], tuple[Body, ...]]:
    """All values whose storage is a choice, makers before readers, and the bodies they are in."""
    may_drop = droppable(closed)
    bodies = tuple(_bodies(closed, borders, timeline))
    values: list[Value] = []
    for body in bodies:
        values += _Finder(body, borders, timeline, may_drop, seconds, size, len(values)).values()
    return tuple(values), bodies


def _bodies(closed: ClosedJaxpr, borders: FusionBorders, timeline: Timeline) -> Iterator[Body]:
    eqns = closed.jaxpr.eqns
    late = _after_backward(eqns)
    paired = {i: partners(eqns, i) for i in range(len(eqns))}
    reads = _reads((e for e in eqns if is_backward(e)), borders, timeline)
    forward = {i: e for i, e in enumerate(eqns) if i not in late and not paired[i]}
    makers = {var: i for i, e in enumerate(eqns) if i not in late for var in e.outvars}
    yield Body("", forward, 1, makers, reads)
    for position, backs in paired.items():
        if backs:
            yield _loop_body(eqns, position, backs, borders, timeline)


def _loop_body(
    eqns: Sequence[JaxprEqn],
    position: int,
    backs: Sequence[int],
    borders: FusionBorders,
    timeline: Timeline,
) -> Body:
    """The body of a forward loop; what backward loops read of its stacks counts as read."""
    eqn = eqns[position]
    inner = eqn.params["jaxpr"].jaxpr
    carries = eqn.params["num_carry"]
    stacked: dict[Var, Var] = {}
    stacks: dict[Var, list[Var]] = defaultdict(list)
    for atom, outer in zip(inner.outvars[carries:], eqn.outvars[carries:], strict=True):
        if isinstance(atom, Var):
            stacked[outer] = borders.root(atom)
            stacks[borders.root(atom)].append(outer)
    reads: dict[Var, list[int]] = defaultdict(list)
    end = 0
    for back in backs:
        other = eqns[back]
        body = other.params["jaxpr"].jaxpr
        found = _reads(body.eqns, borders, timeline)
        for var, atom in zip(body.invars, other.invars, strict=True):
            if isinstance(atom, Var) and atom in stacked:
                begin = timeline.instant_of[other.outvars[0]]
                reads[stacked[atom]] += found.get(var, [begin])
        end = max(end, max(i for i, e in enumerate(timeline.kernels) if e is other))
    forward = dict(enumerate(inner.eqns))
    makers = {var: i for i, e in forward.items() for var in e.outvars}
    span = (timeline.instant_of[eqn.outvars[0]], end)
    trips = eqn.params["length"]
    return Body(f"{position}/body/", forward, trips, makers, reads, stacks, span)


def _after_backward(eqns: Sequence[JaxprEqn]) -> frozenset[int]:
    """The backward pass, and what follows from it: the optimiser."""
    late: set[int] = set()
    made: set[object] = set()
    for position, eqn in enumerate(eqns):
        if is_backward(eqn) or not made.isdisjoint(map(id, eqn.invars)):
            late.add(position)
            made.update(map(id, eqn.outvars))
    return frozenset(late)


def _reads(
    eqns: Iterator[JaxprEqn] | Sequence[JaxprEqn], borders: FusionBorders, timeline: Timeline
) -> dict[Var, list[int]]:
    """The instants of the kernels among these that read each value."""
    found: dict[Var, list[int]] = defaultdict(list)
    for eqn in eqns:
        if eqn.outvars and eqn.outvars[0] in borders.sources:
            instant = timeline.instant_of.get(eqn.outvars[0], 0)
            for var in borders.sources[eqn.outvars[0]]:
                found[var].append(instant)
    return found


@dataclass(slots=True)
class _Finder:
    body: Body
    borders: FusionBorders
    timeline: Timeline
    may_drop: frozenset[str]
    seconds: Seconds
    size: Size
    first_number: int
    numbers: dict[Var, int] = field(default_factory=dict[Var, int])

    def values(self) -> list[Value]:
        body, found = self.body, list[Value]()
        forward_reads = _reads(tuple(body.eqns.values()), self.borders, self.timeline)
        for position, eqn in body.eqns.items():
            for var in eqn.outvars:
                if var in self.borders.writes and self.borders.root(var) is var:
                    value = self._value(position, eqn, var, forward_reads)
                    if value is not None:
                        self.numbers[var] = self.first_number + len(found)
                        found.append(value)
        return found

    def _value(
        self, position: int, eqn: JaxprEqn, var: Var, forward_reads: dict[Var, list[int]]
    ) -> Value | None:
        body = self.body
        members, sources = self._group(position)
        names = tuple(body.named(p) for p in sorted(members))
        if not self.may_drop.issuperset(names) or not self.size(var):
            return None
        start = self.timeline.instant_of.get(eqn.outvars[0], 0)
        reads = body.reads.get(var, [])
        buffers = tuple(body.stacks.get(var, ())) if body.span else (var,)
        return Value(
            var=var,
            name=body.named(position),
            label=source_name(eqn),
            group=names,
            sources=sources,
            bytes=self.size(var),
            seconds=sum(self.seconds(body.named(p), body.eqns[p]) for p in members),
            trips=body.trips,
            start=start,
            last_forward=max(forward_reads.get(var, [start])),
            body=body.name,
            first=min(reads, default=-1),
            last=max(reads, default=-1),
            buffers=buffers,
        )

    def _group(self, position: int) -> tuple[set[int], tuple[int, ...]]:
        """The equations of the kernel that ends at ``position``, and the values that it reads."""
        body = self.body
        members, sources = {position}, dict[int, None]()
        waiting = list(body.eqns[position].invars)
        while waiting:
            atom = waiting.pop()
            if not isinstance(atom, Var) or atom not in body.makers:
                continue
            if atom in self.numbers:
                sources[self.numbers[atom]] = None
                continue
            maker = body.makers[atom]
            fused = maker in body.eqns and atom not in self.borders.writes
            if fused and maker not in members:
                members.add(maker)
                waiting.extend(body.eqns[maker].invars)
        return members, tuple(sources)


def dropped_names(
    values: Sequence[Value], bodies: Sequence[Body], recomputed: Sequence[int]
) -> tuple[str, ...]:
    """The equations to recompute if these values are.

    They are those of the values' kernels; what is fused from their results; and what all these read
    that does not lie in memory: a barrier would put it there.
    """
    chosen = {name for number in recomputed for name in values[number].group}
    kept = {v.var for v in values} - {values[number].var for number in recomputed}
    for body in bodies:
        lost: set[Var] = set()
        for position, eqn in body.eqns.items():
            name = body.named(position)
            reads = any(isinstance(atom, Var) and atom in lost for atom in eqn.invars)
            if name in chosen or (reads and kept.isdisjoint(eqn.outvars)):
                chosen.add(name)
                lost.update(eqn.outvars)
        for position, eqn in reversed(body.eqns.items()):
            if body.named(position) in chosen:
                makers = (
                    body.makers.get(a) for a in eqn.invars if isinstance(a, Var) and a not in kept
                )
                chosen.update(body.named(p) for p in makers if p is not None and p in body.eqns)
    return tuple(sorted(chosen, key=_place))


def _place(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in name.split("/") if part.isdigit())
