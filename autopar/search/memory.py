"""Memory of a plan: the static timeline of the step, with bytes by the layouts chosen.

``MemoryModel`` is built once a step, ``MeshMemory`` once a mesh. The peak of a full choice is
simulated exactly (copies made while re-laying a value included); a ``Limit`` says the same of one
instant as a linear constraint, without those copies, so it never forbids what would fit.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np
from jax.extend.core import Var
from numpy.typing import NDArray

from autopar.cost_model import Chip, format_bytes
from autopar.cost_model.attention import NO_ATTENTION, attention_kernels
from autopar.cost_model.fusion import all_bodies, fusion_borders
from autopar.cost_model.memory import liveness
from autopar.cost_model.tiles import convolved, padding
from autopar.cost_model.timeline import Bytes, Timeline
from autopar.passes.fold import Fold
from autopar.passes.sources import source_name
from autopar.passes.trace import Step
from autopar.search.copies import gradients, held_hubs, streamed_operands
from autopar.search.domains import State
from autopar.search.graph import Graph
from autopar.search.kernel_times import KernelTimes
from autopar.search.memory_curve import Stacked, Unfolded
from autopar.search.network import FORBIDDEN, Limit, Network
from autopar.search.problem import Problem
from autopar.search.program_memory import ProgramMemory
from autopar.search.repeats import repeated

PEAKS = 3
"""Instants limited in one round: fewer mean more rounds, more mean slower ones."""


SHOWN = 3
"""Values named where a plan does not fit."""


class MemoryModel:
    """What does not depend on the mesh: fusion, liveness, and the roles of the inputs.

    Attributes:
      timeline: when each value is there. whole: with what needs no memory (``away``, scores of
        attention that stay on the chip) as if it did.

    Args:
      fold: what of the step stands for layers that are left out of it.
      away: what a device holds of values that are on the host.
    """

    def __init__(
        self,
        step: Step,
        graph: Graph,
        roles: Sequence[str],
        chip: Chip,
        fold: Fold | None = None,
        away: Mapping[Var, float] = MappingProxyType({}),
    ) -> None:
        self.roles = tuple(roles)
        alike = fold.alike if fold else {}
        self.fusion = fusion_borders(step.jaxpr.jaxpr, step.signatures, chip.bf16_dots, alike)
        self.attention = (
            attention_kernels(step.jaxpr.jaxpr) if chip.attention_efficiency else NO_ATTENTION
        )
        self.whole = liveness(
            step.jaxpr,
            roles,
            step.donated,
            step.ties,
            borders=self.fusion,
            bf16_dots=chip.bf16_dots,
        )
        if fold is not None:
            self.whole = replace(self.whole, layers=repeated(fold, self.whole))
        shares = {**dict.fromkeys(self.attention.scores, 0.0), **away}
        self.timeline: Timeline = self.whole.scaled(shares)
        top = step.jaxpr.jaxpr
        self.chip, self.vmem_bytes, self.usable_bytes = chip, chip.vmem_bytes, chip.usable_bytes
        self.paths = dict(zip(top.invars, step.in_paths, strict=True))
        bodies = (top, *all_bodies(top.eqns))
        self.tiles = convolved(bodies) if chip.bf16_dots else {}
        self.waits = chip.bf16_dots  # seen of XLA:TPU alone
        self.padding = padding(self.tiles, self.fusion.roots)
        self.gradients = gradients(graph, self.timeline, self.fusion.sources)
        self.held = held_hubs(graph, self.timeline)
        self.streamed = streamed_operands(graph, self.timeline)

    def program(self, problem: Problem) -> ProgramMemory:
        """What the program holds on one mesh."""
        parts = (self.timeline, self.held, self.streamed, problem)
        laid = (self.tiles, self.padding, self.fusion.softmaxes, self.waits)
        times = KernelTimes(self.timeline, self.fusion, self.chip) if self.vmem_bytes else None
        return ProgramMemory(*parts, self.vmem_bytes, self.paths, self.gradients, *laid, times)

    def on(self, problem: Problem) -> MeshMemory:
        """The memory of one mesh's problem."""
        return MeshMemory(self.program(problem), self.usable_bytes)


@dataclass(slots=True)
class MeshMemory:
    """What a step holds on one mesh.

    Where layers are folded, bytes are linear in the number of layers at every instant of a layer
    that is kept, and between these in the others: so the peak lies in one that is kept.
    """

    program: ProgramMemory
    usable_bytes: int
    _known: NDArray[np.intp] = field(init=False)

    def __post_init__(self) -> None:
        known = np.ones(self.program.timeline.instants, np.bool_)
        for layer in self.program.timeline.layers:
            known &= ~layer.inside
        self._known = np.flatnonzero(known)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Which instants are of layers that are kept, and so exact."""
        return np.isin(np.arange(self.program.timeline.instants), self._known)

    @property
    def vmem_bytes(self) -> int:
        """Of on-chip memory."""
        return self.program.vmem_bytes

    def peak(self, states: Sequence[State], pieces: bool = True) -> tuple[int, int]:
        """``(instant, bytes)`` at which a choice holds the most; ``pieces``: see ``Streamed``."""
        live = self._live(states, pieces)
        place = int(np.argmax(live))
        return int(self._known[place]), int(live[place])

    def over(self, states: Sequence[State], budget: int) -> list[tuple[int, int, int]]:
        """``(instant, bytes, bytes of copies)`` of the ``PEAKS`` highest peaks above ``budget``.

        A peak is no lower than its neighbours, so that one limit stands for those around it. The
        copies are what a limit leaves out, less what it counts though it is on the chip.
        """
        live = self._live(states)
        padded = np.concatenate(([0.0], live, [0.0]))
        is_peak = (live > budget) & (live >= padded[:-2]) & (live > padded[2:])
        found = sorted(np.flatnonzero(is_peak), key=lambda i: (-live[i], i))[:PEAKS]
        known = [(int(self._known[i]), int(live[i])) for i in found]
        return [(i, size, size - self.program.load(i, states)) for i, size in known]

    def _live(self, states: Sequence[State], pieces: bool = True) -> Bytes:
        """Bytes at the instants known. Gradients wait as long as the chip has room for them."""
        full = self.program.live(states, pieces)[self._known]
        if full.max(initial=0) <= self.usable_bytes:
            return full
        least = self.program.live(states, pieces, waiting=False)[self._known]
        return np.maximum(least, np.minimum(full, self.usable_bytes))

    def limit(self, instant: int, budget: int) -> Limit:
        """``live bytes at instant <= budget`` as a linear constraint over the variables."""
        weights = self.program.weights(instant)
        room = budget + self.vmem_bytes  # short-lived values may lie on the chip
        return Limit({v: w for v, w in sorted(weights.items()) if w.any()}, room)

    def lightest(self, instants: Iterable[int]) -> Network:
        """The same choices, with bytes at these instants for an objective.

        A kibibyte weighs as much as a microsecond, so that among light plans a fast one is found.
        """
        network = self.program.problem.network
        unary = [np.where(c < FORBIDDEN // 2, c // 1000, FORBIDDEN) for c in network.unary]
        for instant in instants:
            for variable, weight in self.limit(instant, 0).weights.items():
                unary[variable] = np.minimum(unary[variable] + weight // 1024, FORBIDDEN)
        pairs = {
            pair: np.where(table < FORBIDDEN // 2, table // 1000, FORBIDDEN)
            for pair, table in network.pairs.items()
        }
        return Network(tuple(unary), pairs)

    def heaviest(self, states: Sequence[State]) -> str:
        """The largest values at the peak, by name and size."""
        program = self.program
        bytes_of = program.bytes_of(states)
        return heaviest(program.timeline, bytes_of, self.peak(states)[0], program.paths)

    def stacked(self, states: Sequence[State]) -> Stacked:
        """Bytes at every instant of the step, by category."""
        program = self.program
        unfolded = Unfolded.of(program.timeline)

        def parts(waiting: bool) -> dict[str, Bytes]:
            held = program.stacked(states, waiting)
            return {name: unfolded.bytes(one) for name, one in held.items()}

        full = parts(waiting=True)
        total = np.sum(list(full.values()), axis=0)
        if total.max(initial=0) > self.usable_bytes:  # what waits has what room is left
            least = parts(waiting=False)
            before = np.sum(list(least.values()), axis=0)
            wanted = np.maximum(before, np.minimum(total, self.usable_bytes)) - before
            share = np.divide(wanted, total - before, np.zeros_like(total), where=total > before)
            full = {name: least[name] + share * (full[name] - least[name]) for name in full}
        places = unfolded.places
        return Stacked(program.timeline, full, places, np.isin(places, self._known))


def heaviest(
    timeline: Timeline, bytes_of: Mapping[Var, int], instant: int, paths: Mapping[Var, str]
) -> str:
    """The largest values at an instant, by name and size; ``paths`` are the names of inputs."""
    sizes: dict[str, int] = defaultdict(int)
    for buffer, count in timeline.live_at(instant):
        made = paths.get(buffer.var) or source_name(timeline.kernels[buffer.start])
        sizes[made] += int(count * buffer.scale * bytes_of[buffer.var])
    largest = sorted(sizes.items(), key=lambda one: (-one[1], one[0]))[:SHOWN]
    return ", ".join(f"{name} ({format_bytes(size)})" for name, size in largest)
