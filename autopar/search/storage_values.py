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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from jax.extend.core import ClosedJaxpr, JaxprEqn, Var

from autopar.cost_model import FusionBorders, Timeline
from autopar.passes.remat import droppable
from autopar.passes.sources import source_name
from autopar.search.storage_bodies import Body, bodies_of, reads_of

GAIN = 0.1
"""Of the time that recomputing is predicted to save, what compiled programs save (measured, v5e:
0.19 of 1.65 million cycles of two blocks of a GPT whose exponentials are recomputed; 0.0 of 9.9 of
three larger ones). The arithmetic of what is recomputed hides less well than is priced."""

Seconds = Callable[[str, JaxprEqn, FusionBorders], float]
"""What running the equation of a name costs, with the layout changes of its operands."""

Size = Callable[[Var], int]
"""Bytes of a value on a device."""


Span = tuple[int, int, float]
"""First instant, last instant, bytes: more if above zero, else less."""


@dataclass(slots=True)
class Value:
    """One choice.

    Attributes:
      var: the value. name: of the equation that makes it. label: in the user's program.
      group: names of the equations that make it from what is in memory: its fused kernel.
      sources: numbers of the values that the group reads.
      bytes: on a device, a trip. again: where it is recomputed. trips: how often.
      seconds: of running the group again, a trip, less what its readers then read less; where that
        is less than nothing, ``GAIN`` of it.
      needed: whether the backward pass reads it (or what is fused from it).
      start, last_forward: the instants between which the forward pass holds it.
      first, last: those of the backward pass's reads, if ``needed``.
      saved: of ``seconds``, what its readers save, before ``GAIN``.
      stacking: seconds a trip of writing it to a stack and reading it there, if it is kept.
      droppable: whether it may be recomputed; what a loop carries may not.
      buffers: the variables of the buffers that hold it as the program is written.
      body: the body it is in.
      beside: what else is in memory, or no longer, if it is recomputed.
    """

    var: Var
    name: str
    label: str
    group: tuple[str, ...]
    sources: tuple[int, ...]
    bytes: int
    again: int
    seconds: float
    trips: int
    start: int
    last_forward: int
    body: str
    first: int = -1
    last: int = -1
    saved: float = 0.0
    stacking: float = 0.0
    droppable: bool = True
    buffers: tuple[Var, ...] = ()
    beside: tuple[Span, ...] = ()

    @property
    def needed(self) -> bool:
        return self.first >= 0


def storage_values(
    closed: ClosedJaxpr,
    borders: FusionBorders,
    timeline: Timeline,
    seconds: Seconds,
    size: Size,
    bandwidth: float,
    streams: Mapping[Var, float] = MappingProxyType({}),
    casts: Mapping[Var, Span] | None = None,
) -> tuple[tuple[Value, ...], tuple[Body, ...], dict[Var, int]]:
    """All values whose storage is a choice, makers before readers, the bodies they are in, and of
    streams the number of the value that they are there with.

    Args:
      bandwidth: of device memory, bytes a second.
      streams: what a layout change has products find in memory (see ``Streamed``), and its bytes.
      casts: of weights, and when they are held; if ``None``, nothing is said of what is beside.
    """
    may_drop = droppable(closed)
    bodies = tuple(bodies_of(closed, borders, timeline))
    values: list[Value] = []
    attached: dict[Var, int] = {}
    for body in bodies:
        finder = _Finder(body, timeline, may_drop, seconds, size, bandwidth, len(values))
        values += finder.values()
        attached |= finder.attach(streams, values)
        if casts is not None and not body.span:
            finder.note_beside(casts, values)
    return tuple(values), bodies, attached


def _is_maximum(body: Body, var: Var) -> bool:
    maker = body.eqns.get(body.makers.get(var, -1))
    return maker is not None and maker.primitive.name == "reduce_max"


@dataclass(slots=True)
class _Finder:
    body: Body
    timeline: Timeline
    may_drop: frozenset[str]
    seconds: Seconds
    size: Size
    bandwidth: float
    first_number: int
    numbers: dict[Var, int] = field(default_factory=dict[Var, int])

    def values(self) -> list[Value]:
        body, found = self.body, list[Value]()
        forward_reads = reads_of(tuple(body.eqns.values()), body.borders, self.timeline)
        for var in body.carries:
            self.numbers[var] = self.first_number + len(found)
            found.append(self._carried(var))
        for position, eqn in body.eqns.items():
            for var in eqn.outvars:
                if var in body.borders.writes and body.borders.root(var) is var:
                    value = self._value(position, eqn, var, forward_reads)
                    if value is not None:
                        self.numbers[var] = self.first_number + len(found)
                        found.append(value)
        self._note_reads(found)
        self._keep_maxima(found)
        for value in found:
            value.seconds = max(GAIN * value.seconds, value.seconds)
        return found

    def attach(self, streams: Mapping[Var, float], values: list[Value]) -> dict[Var, int]:
        """Counts each stream with the last of the values that it is computed from: it is held as
        that is. Returns those of this body.
        """
        found: dict[Var, int] = {}
        for var, size in streams.items():
            numbers = (self.numbers[var],) if var in self.numbers else self._behind(var)
            if numbers and not self.body.span:
                value = values[max(numbers)]
                value.bytes, value.again = value.bytes + int(size), value.again + int(size)
                found[var] = max(numbers)
        return found

    def note_beside(self, casts: Mapping[Var, Span], values: Sequence[Value]) -> None:
        """Notes what else recomputing a value changes: casts of weights are then made again, and
        what would be in memory only as an exponential is wide is made in its readers.
        """
        for number, span in (*self._cast_again(casts, values), *self._narrowed(values)):
            if span[0] <= span[1]:
                values[number].beside += (span,)

    def _cast_again(
        self, casts: Mapping[Var, Span], values: Sequence[Value]
    ) -> Iterator[tuple[int, Span]]:
        """Each cast that is read in one kernel goes with the largest value that is recomputed to
        recompute its reader: that which the kernel makes, or one that the reader is made of.
        """
        users: dict[Var, dict[int, int]] = defaultdict(dict)
        for number, value in enumerate(values):
            for place in map(int, value.group):
                for atom in self.body.eqns[place].invars:
                    if isinstance(atom, Var) and self.body.borders.root(atom) in casts:
                        users[self.body.borders.root(atom)][number] = place
        for var, found in users.items():
            for number, place in found.items() if len(found) == 1 else ():
                every = (number, *self._group(place)[1])
                start, end, size = casts[var]
                yield max(every, key=lambda one: values[one].bytes), (start, end, -size)

    def _narrowed(self, values: Sequence[Value]) -> Iterator[tuple[int, Span]]:
        """What such a value is computed from is then read where that would have been."""
        borders, uses = self.body.borders, self.timeline.uses
        chosen = {value.var for value in values}
        for var, exp in borders.widened.items():
            if exp in self.numbers and var in uses:
                number, end = self.numbers[exp], uses[var][1]
                value = values[number]
                yield number, (self.timeline.instant_of[var], end, -float(self.size(var)))
                yield number, (value.last + 1, end, float(value.again))
                for source in borders.sources.get(var, ()):
                    if source in uses and source not in chosen:
                        yield number, (uses[source][1] + 1, end, float(self.size(source)))

    def _carried(self, var: Var) -> Value:
        assert self.body.span is not None
        return Value(
            *(var, "", "carry", (), (), self.size(var), 0, 0.0, self.body.trips),
            *(self.body.span[0], self.body.span[0], self.body.name),
            stacking=2 * self.size(var) / self.bandwidth,
            droppable=False,
        )

    def _note_reads(self, values: list[Value]) -> None:
        """What is fused into its readers is read by way of its sources."""
        for var, instants in self.body.reads.items():
            root = self.body.borders.root(var)
            numbers = (self.numbers[root],) if root in self.numbers else self._behind(root)
            for value in (values[number - self.first_number] for number in numbers):
                value.first = min(instants) if value.first < 0 else min(value.first, *instants)
                value.last = max(value.last, *instants)
                saved = (value.bytes - value.again) * len(set(instants))
                value.saved += saved / self.bandwidth
                value.seconds -= saved / self.bandwidth

    def _keep_maxima(self, values: list[Value]) -> None:
        """The maxima of rows stay, so that the exponential is recomputed inside its readers."""
        for value in values:
            if value.var in self.body.borders.softmaxes:
                for number in value.sources:
                    source = values[number - self.first_number]
                    if source.body == value.body and _is_maximum(self.body, source.var):
                        source.droppable = False

    def _behind(self, var: Var) -> tuple[int, ...]:
        maker = self.body.makers.get(var)
        return () if maker is None or maker not in self.body.eqns else self._group(maker)[1]

    def _value(
        self, position: int, eqn: JaxprEqn, var: Var, forward_reads: dict[Var, list[int]]
    ) -> Value | None:
        body = self.body
        members, sources = self._group(position)
        names = tuple(body.named(p) for p in sorted(members))
        if not self.may_drop.issuperset(names) or not self.size(var):
            return None
        start = self.timeline.instant_of.get(eqn.outvars[0], 0)
        return Value(
            var=var,
            name=body.named(position),
            label=source_name(eqn),
            group=names,
            sources=sources,
            bytes=self.size(var),
            again=self.size(body.borders.softmaxes.get(var, var)),
            seconds=sum(self.seconds(body.named(p), body.eqns[p], body.borders) for p in members),
            trips=body.trips,
            start=body.span[0] if body.span else start,
            last_forward=max(forward_reads.get(var, [start])),
            body=body.name,
            stacking=2 * self.size(var) / self.bandwidth if body.span else 0.0,
            buffers=() if body.span else (var,),
        )

    def _group(self, position: int) -> tuple[set[int], tuple[int, ...]]:
        """The equations of the kernel that ends at ``position``, and the values that it reads."""
        body = self.body
        members, sources = {position}, dict[int, None]()
        waiting = list(body.eqns[position].invars)
        while waiting:
            atom = waiting.pop()
            if not isinstance(atom, Var):
                continue
            if atom in self.numbers:
                sources[self.numbers[atom]] = None
            if atom in self.numbers or atom not in body.makers:
                continue
            maker = body.makers[atom]
            fused = maker in body.eqns and atom not in body.borders.writes
            if fused and maker not in members:
                members.add(maker)
                waiting.extend(body.eqns[maker].invars)
        return members, tuple(sources)
