"""The bodies whose values may be kept or recomputed: the step itself, and its forward loops."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from jax.extend.core import ClosedJaxpr, JaxprEqn, Var

from autopar.cost_model import FusionBorders, Timeline, fusion_borders
from autopar.passes.remat import is_backward, partners


@dataclass(slots=True)
class Body:
    """A forward body: its equations, by position, and who reads its values in the backward pass.

    ``reads``: value to instants of the backward kernels that read it. Of a loop, ``borders`` are as
    if it stacked nothing; ``carries`` are as its body gets them; ``buffers``: its results that the
    backward loops read; ``span``: from where it begins to where the last backward loop ends.
    """

    name: str
    eqns: dict[int, JaxprEqn]
    trips: int
    makers: dict[Var, int]
    reads: dict[Var, list[int]]
    borders: FusionBorders
    carries: tuple[Var, ...] = ()
    buffers: tuple[Var, ...] = ()
    span: tuple[int, int] | None = None

    def named(self, position: int) -> str:
        return f"{self.name}{position}"


def bodies_of(closed: ClosedJaxpr, borders: FusionBorders, timeline: Timeline) -> Iterator[Body]:
    """The step, then every forward loop that backward loops go over the stacks of."""
    eqns = closed.jaxpr.eqns
    late = _after_backward(eqns)
    paired = {i: partners(eqns, i) for i in range(len(eqns))}
    reads = reads_of((e for e in eqns if is_backward(e)), borders, timeline)
    forward = {i: e for i, e in enumerate(eqns) if i not in late and not paired[i]}
    makers = {var: i for i, e in enumerate(eqns) if i not in late for var in e.outvars}
    yield Body("", forward, 1, makers, reads, borders)
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
    eqn, count = eqns[position], eqns[position].params["num_carry"]
    inner = eqn.params["jaxpr"].jaxpr
    alone = fusion_borders(inner.replace(outvars=inner.outvars[:count]))
    made = {var for one in inner.eqns for var in one.outvars}
    values = dict(zip(eqn.outvars[count:], inner.outvars[count:], strict=True))
    reads: dict[Var, list[int]] = defaultdict(list)
    stacks: dict[Var, None] = {}
    end = 0
    for back in backs:
        other = eqns[back]
        body = other.params["jaxpr"].jaxpr
        # What is recomputed is recomputed first thing in the body.
        begin = min(timeline.instant_of[e.outvars[0]] for e in body.eqns if e.outvars)
        found = reads_of(body.eqns, borders, timeline)
        for var, outer in zip(body.invars, other.invars, strict=True):
            atom = values.get(outer) if isinstance(outer, Var) else None
            if isinstance(outer, Var) and isinstance(atom, Var):
                reads[atom] += [begin, *found.get(var, [])]
                if atom in made:
                    stacks[outer] = None
        end = max(end, max(i for i, e in enumerate(timeline.kernels) if e is other))
    forward = dict(enumerate(inner.eqns))
    makers = {var: i for i, e in forward.items() for var in e.outvars}
    consts = eqn.params["num_consts"]
    return Body(
        f"{position}/body/",
        *(forward, eqn.params["length"], makers, reads, alone),
        carries=tuple(inner.invars[consts : consts + count]),
        buffers=tuple(stacks),
        span=(timeline.instant_of[eqn.outvars[0]], end),
    )


def _after_backward(eqns: Sequence[JaxprEqn]) -> frozenset[int]:
    """The backward pass, and what follows from it: the optimiser."""
    late: set[int] = set()
    made: set[object] = set()
    for position, eqn in enumerate(eqns):
        if is_backward(eqn) or not made.isdisjoint(map(id, eqn.invars)):
            late.add(position)
            made.update(map(id, eqn.outvars))
    return frozenset(late)


def reads_of(
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
