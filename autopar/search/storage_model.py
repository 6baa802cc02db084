"""What the choice of storage needs to know of one program under one plan's layouts."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from jax.extend.core import Var
from numpy.typing import NDArray

from autopar.cost_model import Timeline
from autopar.cost_model.timeline import Extra
from autopar.passes.fold import Fold, NotFoldable
from autopar.search import record
from autopar.search.depth import Depth
from autopar.search.domains import State
from autopar.search.memory import MemoryModel
from autopar.search.memory_curve import Unfolded
from autopar.search.plan_prices import Layouts, PlanPrices
from autopar.search.planner import Candidate
from autopar.search.prepared import Prepared
from autopar.search.program_memory import ProgramMemory
from autopar.search.storage_bodies import Body
from autopar.search.storage_layers import Unrolled
from autopar.search.storage_program import Profile
from autopar.search.storage_values import Value, storage_values

NOTHING_AWAY: Mapping[Var, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Rest:
    """Bytes of all that is no choice: of buffers, and extra ones."""

    timeline: Timeline
    sizes: Mapping[Var, int]
    extras: tuple[Extra, ...]
    vmem_bytes: int

    def profile(self, shares: Mapping[Var, float] = NOTHING_AWAY) -> Profile:
        """At every instant, with only ``shares`` of some values on the device."""
        timeline = self.timeline.scaled(shares)
        return timeline.profile(self.sizes, self.extras, self.vmem_bytes)

    def unfolded(self, unfolded: Unfolded) -> Profile:
        """At every instant of the whole step, where layers are folded."""
        held = self.timeline.layered(self.sizes, self.extras, self.vmem_bytes)
        return unfolded.bytes(held)


@dataclass(frozen=True, slots=True)
class StorageModel:
    """The choices of one program under one plan's layouts.

    Attributes:
      base: bytes at each instant that no choice changes. peak: of the program as it is written.
      own: the values of the program that is looked at; ``streamed``: what must lie in memory if a
        product is scattered, and the number of the one of these that it is there with.
      places: of each instant, that of the program that is looked at.
      windows: seconds that each forward loop takes, by body.
      rest: what ``base`` is made of; ``None`` where layers are folded.
    """

    values: tuple[Value, ...]
    bodies: tuple[Body, ...]
    base: Profile
    peak: float
    own: tuple[Value, ...]
    streamed: Mapping[Var, int]
    places: NDArray[np.intp]
    windows: Mapping[str, float]
    rest: Rest | None

    @classmethod
    def of(cls, prepared: Prepared, found: Candidate, remat: bool) -> StorageModel:
        """``found``: a plan for the program that is ``prepared``. ``remat``: whether there is a
        choice.

        Raises:
          NotFoldable: layers are folded in which the choices of all cannot be told.
        """
        depth, chip = prepared.depth, prepared.cluster.chip
        states = found.problem.states(found.solution.choice or ())
        prices = PlanPrices(depth.step, _layouts(depth, found, states), prepared.cluster)
        memory = depth.memory_on(found.problem)
        streams = dict.fromkeys(_streamed(memory.program), 0.0)
        streams.update((var, size) for var, (_, _, size) in memory.program.streams(states))
        values, bodies = (), ()
        # On several, the bound of sharding and storage together counts what is beside all the same.
        alone = found.problem.mesh.device_count == 1
        attached: dict[Var, int] = {}
        if remat:
            values, bodies, attached = storage_values(
                *(depth.step.jaxpr, depth.fusion, depth.memory.whole),
                *(prices.seconds, prices.bytes_of, chip.hbm_bandwidth, streams),
                dict(memory.program.casts(states)) if alone else None,
            )
        counted = _Counted(prices, _buffers(values, bodies), attached, chip.vmem_bytes)
        full, rest = counted.of(depth.memory, memory.program, states)
        if depth.fold is not None:
            return cls._unrolled(depth, depth.fold, values, bodies, attached, full, rest)
        windows = {b.name: b.trips * _seconds(b, prices) for b in bodies if b.span}
        peak = float(full.profile().max())
        places = np.arange(memory.program.timeline.instants)
        own = values, attached, places
        return cls(values, bodies, np.zeros(0), peak, *own, windows, rest).lighter({})

    @classmethod
    def _unrolled(
        cls,
        depth: Depth,
        fold: Fold,
        values: Sequence[Value],
        bodies: Sequence[Body],
        streamed: Mapping[Var, int],
        full: Rest,
        rest: Rest,
    ) -> StorageModel:
        """Of the whole step. ``full``, ``rest``: see ``_Counted.of``."""
        if any(body.span for body in bodies):
            raise NotFoldable  # loops within layers
        timeline = depth.memory.whole
        unfolded = Unfolded.of(timeline)
        peak, base = float(full.unfolded(unfolded).max()), rest.unfolded(unfolded)
        unrolled = Unrolled(depth.whole, fold, timeline, unfolded)
        every = unrolled.values(values)
        whole = tuple(map(unrolled.body, bodies))
        own = tuple(values), streamed, unfolded.places
        return cls(every, whole, _with_forward(base, every), peak, *own, {}, None)

    @property
    def gain_s(self) -> float:
        """Seconds, not above zero, that all recomputing that saves time would save."""
        return sum(min(0.0, v.seconds) * v.trips for v in self.values if v.droppable)

    def lighter(self, shares: Mapping[Var, float]) -> StorageModel:
        """The same with only shares of some values on the device. If there are any, no layers may
        be folded.
        """
        if self.rest is None:
            assert not shares
            return self
        base = _with_forward(self.rest.profile(shares), self.values)
        return dataclasses.replace(self, base=base)

    def unseen(self, peak_bytes: int) -> float:
        """Bytes of the simulated peak that this model leaves out."""
        return max(0.0, peak_bytes - self.peak)


@dataclass(frozen=True, slots=True)
class _Counted:
    """What programs hold. ``chosen``: what choices hold; ``attached``: streams that go with it."""

    prices: PlanPrices
    chosen: frozenset[Var]
    attached: Mapping[Var, int]
    vmem_bytes: int

    def of(
        self, model: MemoryModel, program: ProgramMemory, states: Sequence[State]
    ) -> tuple[Rest, Rest]:
        """All that is there, and what of it is no choice."""
        timeline = model.whole
        sizes = {buffer.var: self.prices.bytes_of(buffer.var) for buffer in timeline.buffers}
        rest = {var: 0 if var in self.chosen else size for var, size in sizes.items()}
        copies, streams = list(program.copies(states)), list(program.streams(states))
        every = (*copies, *(extra for _, extra in streams))
        fixed = (*copies, *(extra for var, extra in streams if var not in self.attached))
        return (
            Rest(timeline, sizes, every, self.vmem_bytes),
            Rest(timeline, rest, fixed, self.vmem_bytes),
        )


def _buffers(values: Sequence[Value], bodies: Sequence[Body]) -> frozenset[Var]:
    return frozenset(var for one in (*values, *bodies) for var in one.buffers)


def _streamed(program: ProgramMemory) -> Iterator[Var]:
    """All that a scatter may have in memory."""
    for _, operands in program.streamed.values():
        yield from (program.timeline.root(one.var) for one in operands)


def _layouts(depth: Depth, found: Candidate, states: Sequence[State]) -> Layouts:
    """Those of the program that is looked at."""
    part = dataclasses.replace(depth, whole=depth.step, fold=None)
    values = record.inputs(part, record.borders(part, states))
    laid = record.strategies(part, states), record.hubs(part, states)
    return Layouts(found.problem.mesh, values, *laid)


def _with_forward(base: Profile, values: Sequence[Value]) -> Profile:
    """With what the forward pass holds of each value, whatever is chosen."""
    base = base.copy()
    for value in values:
        if not value.body:
            base[value.start : value.last_forward + 1] += value.bytes
    return base


def _seconds(body: Body, prices: PlanPrices) -> float:
    """Of a trip."""
    eqns = body.eqns.items()
    return sum(prices.seconds(body.named(place), eqn, body.borders) for place, eqn in eqns)
