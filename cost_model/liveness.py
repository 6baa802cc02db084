"""The walk that finds when each value is written and last read; ``memory`` states the rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.cost_model.bodies import Bodies, aside_last, hoisted_casts
from autopar.cost_model.schedule import Kernel, kernels, schedule
from autopar.passes.rules import Region, regions

Atom = Var | Literal


@dataclass(frozen=True, slots=True)
class Span:
    """A buffer to be: ``kind`` is ``input``, ``value`` or ``hoisted``."""

    var: Var
    start: int
    end: int
    kind: str
    scale: float = 1.0


@dataclass
class Walk:
    """Runs the kernels of a step in order, and notes starts and uses.

    Attributes:
      bodies: what is known of the step's bodies; two walks share it.
      in_place: output values (looked through views) and the donated inputs they replace.
      lasting: the outputs that are the next step's inputs, if what only the others need (a loss
        that is shown) is to run last.
      clock: the next instant. ran: the equation of every instant so far.
      backward: whether each instant belongs to the backward pass; tail: whether only light work
        follows it (the optimiser's side of the step).
      alias: values that live in another one's buffer.
    """

    bodies: Bodies
    in_place: Mapping[Var, Var]
    lasting: frozenset[Var] | None = None
    ran: list[JaxprEqn] = field(default_factory=list[JaxprEqn])
    backward: list[bool] = field(default_factory=list[bool])
    tail: list[bool] = field(default_factory=list[bool])
    starts: dict[Var, int] = field(default_factory=dict[Var, int])
    first_use: dict[Var, int] = field(default_factory=dict[Var, int])
    last_use: dict[Var, int] = field(default_factory=dict[Var, int])
    busy: set[Var] = field(default_factory=set[Var])
    alias: dict[Var, Var] = field(default_factory=dict[Var, Var])
    instant_of: dict[Var, int] = field(default_factory=dict[Var, int])
    hoisted: dict[tuple[Var, str], Span] = field(default_factory=dict[tuple[Var, str], Span])
    taken: list[tuple[Var, int]] = field(default_factory=list[tuple[Var, int]])
    _ended: list[tuple[Jaxpr, int]] = field(default_factory=list[tuple[Jaxpr, int]])

    @property
    def clock(self) -> int:
        return len(self.ran)

    def resolve(self, var: Var) -> Var:
        """The variable whose buffer holds ``var``."""
        roots, alias = self.bodies.borders.roots, self.alias
        while (root := roots.get(var, var)) in alias:
            var = alias[root]
        return root

    def body(
        self, jaxpr: Jaxpr, backward: bool, tail: bool, in_place: Mapping[Var, Var] | None = None
    ) -> None:
        """Runs one jaxpr. ``in_place`` is given for the whole step only."""
        if in_place is None:
            order, late = self.bodies.order(jaxpr), {}
        else:
            program = kernels(jaxpr.eqns, self.bodies.borders)
            if self.lasting is not None:
                program = aside_last(program, self.lasting)
            outputs = [self.bodies.borders.root(v) for v in jaxpr.outvars if isinstance(v, Var)]
            order, late = schedule(program, outputs, in_place), self.bodies.tails(program)
        for kernel in order:
            tail = late.get(kernel.eqn.outvars[0], tail)
            back = backward or self.bodies.is_backward(kernel.eqn)
            if kernel.is_region:
                self._region(kernel.eqn, back, tail)
            else:
                self._run(kernel, back, tail)
        self._ended.append((jaxpr, self.clock))

    def _tick(self, eqn: JaxprEqn, backward: bool, tail: bool) -> int:
        self.ran.append(eqn)
        self.backward.append(backward)
        self.tail.append(tail)
        self.instant_of.setdefault(eqn.outvars[0], self.clock - 1)
        return self.clock - 1

    def _write(self, var: Var, instant: int) -> None:
        self.starts.setdefault(self.resolve(var), instant)

    def _read(self, atom: Atom, instant: int) -> None:
        if isinstance(atom, Var):
            root = self.resolve(atom)
            self.first_use.setdefault(root, instant)
            self.last_use[root] = max(instant, self.last_use.get(root, 0))
            if not self.tail[instant]:
                self.busy.add(root)

    def _run(self, kernel: Kernel, backward: bool, tail: bool) -> None:
        instant = self._tick(kernel.eqn, backward, tail)
        for var in kernel.needs:
            self._read(var, instant)
        for var in kernel.writes:
            self._write(var, instant)

    def _region(self, eqn: JaxprEqn, backward: bool, tail: bool) -> None:
        nested = regions(eqn) or ()
        if len(nested) == 1 and nested[0].trips == 1 and not nested[0].carries:
            self._inline(eqn, nested[0], backward, tail)
        else:
            self._loop(eqn, nested, backward, tail)

    def _inline(self, eqn: JaxprEqn, region: Region, backward: bool, tail: bool) -> None:
        """A body that runs once: its inputs are the operands, its results the equation's."""
        self.instant_of[eqn.outvars[0]] = self.clock
        for link in region.inputs:
            if isinstance(link.inner, Var) and isinstance(link.outer, Var):
                self.alias[link.inner] = link.outer
        for link in region.outputs:
            inner, outer = link.inner, link.outer
            if not isinstance(inner, Var) or not isinstance(outer, Var):
                continue
            if not self._give_out(region, inner, outer) and outer not in self.alias:
                self.alias[outer] = inner  # handed through, or given out already
        self.body(region.body, backward, tail)
        for var in eqn.outvars:
            if self.resolve(var) is var:  # a literal
                self._write(var, max(0, self.clock - 1))

    def _give_out(self, region: Region, inner: Var, outer: Var) -> bool:
        """Lets a value made in the body live in the buffer of the result it becomes."""
        root = self.bodies.borders.root(inner)
        if root not in self.alias and root in self.bodies.made(region.body):
            self.alias[root] = outer
            return True
        return False

    def _loop(self, eqn: JaxprEqn, nested: tuple[Region, ...], backward: bool, tail: bool) -> None:
        """A loop or branch: its results are there from start to end."""
        start = self._tick(eqn, backward, tail)
        for var in eqn.outvars:
            self._write(var, start)
        carried = max(len(region.carries) for region in nested)
        initial = [atom for region in nested for atom in _initial_carries(region)]
        for region in nested:
            self._enter(region, carried, eqn)
            self.body(region.body, backward, tail)
            for _, out in region.carries:
                self._read(out, self.clock - 1)
            self._hoist(region, start)
        end = self._tick(eqn, backward, tail)
        for atom in initial:
            self._read(atom, start)
            if isinstance(atom, Var):
                self.taken.append((self.resolve(atom), start))
        for atom in eqn.invars:
            if not any(atom is other for other in initial):
                self._read(atom, end)

    def _hoist(self, region: Region, start: int) -> None:
        """Notes the casts made before a loop that has just run; two loops share them."""
        for stack, var in hoisted_casts(region):
            key = self.resolve(stack), str(var.aval)
            first = self.hoisted.get(key, Span(var, start, start, "hoisted", region.trips))
            self.hoisted[key] = replace(first, end=self.clock)

    def _enter(self, region: Region, carried: int, eqn: JaxprEqn) -> None:
        """Carries live in the results' buffers, other inputs in the operands'."""
        carries = [into for into, _ in region.carries]
        if carried and not carries:  # a while loop's condition: carries come last
            carries = [link.inner for link in region.inputs[-carried:]]
        position = {into: i for i, into in enumerate(carries)}
        for link in region.inputs:
            if not isinstance(link.inner, Var):
                continue
            if link.inner in position:
                self.alias[link.inner] = eqn.outvars[position[link.inner]]
            elif isinstance(link.outer, Var):
                self.alias[link.inner] = link.outer
        for link in region.outputs[len(region.carries) :]:
            if isinstance(link.inner, Var) and isinstance(link.outer, Var):
                self._give_out(region, link.inner, link.outer)

    def instants(self) -> Mapping[Var, int]:
        """The instant of every equation, by its first result; call it after ``body``.

        Equations that are no kernel have that of the first kernel they are computed in.
        """
        for jaxpr, end in self._ended:
            last = max(0, end - 1)
            reach: dict[Var, int] = {}
            for eqn in reversed(jaxpr.eqns):
                if not eqn.outvars:
                    continue
                instant = self.instant_of.get(eqn.outvars[0])
                if instant is None:
                    instant = min([reach.get(var, last) for var in eqn.outvars])
                    self.instant_of[eqn.outvars[0]] = instant
                for atom in eqn.invars:
                    if isinstance(atom, Var) and instant <= reach.get(atom, instant):
                        reach[atom] = instant
        return self.instant_of

    def spans(self, jaxpr: Jaxpr) -> Iterator[Span]:
        """The buffers, inputs first; call it after ``body``."""
        last = max(0, self.clock - 1)
        inputs = (*jaxpr.constvars, *jaxpr.invars)
        for var in inputs:
            yield Span(var, 0, last, "input")
        outputs = {self.resolve(v) for v in jaxpr.outvars if isinstance(v, Var)}
        replaces = {self.resolve(out): source for out, source in self.in_place.items()}
        taken = dict(self.taken)
        for var, start in self.starts.items():
            if var in replaces and start >= self.last_use.get(replaces[var], 0):
                continue  # written where the donated input was
            end = last if var in outputs else max(start, self.last_use.get(var, start))
            if var not in outputs and taken.get(var) == end and end > start:
                end -= 1  # it becomes the loop's carry
            yield Span(var, start, end, "value", 0.5 if var in self.bodies.borders.narrow else 1.0)
        yield from self.hoisted.values()


def _initial_carries(region: Region) -> list[Atom]:
    """The operands that a loop's carries start from."""
    inner = {into for into, _ in region.carries}
    return [link.outer for link in region.inputs if link.inner in inner]
