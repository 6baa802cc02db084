"""Seconds of a step whose communication runs beside its computation.

Two streams a device, as GPUs and TPUs have them: *kernels* run one after another, in the order of
the program; *collectives* run one after another on the network, each as soon as what it moves is
there, of several the one that is needed first. A kernel waits for the collectives whose results it
reads, and for nothing else. So weights are gathered ahead of use, gradients reduced behind the rest
of the backward pass, and what lies between two kernels that depend on each other is exposed.

A loop's body is run twice in the simulation: what the second run adds is what every further one
takes. Work on weights alone (casts) can be done ahead, and makes no collective wait.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from autopar.cost_model.collectives import CollectiveKind, collective_line
from autopar.cost_model.compute import NOTHING, Load
from autopar.cost_model.hardware import Chip, Link
from autopar.cost_model.reshard import COALESCE_BYTES


@dataclass(frozen=True, slots=True)
class Move:
    """A collective over ``size`` devices along mesh axis number ``axis``; ``bytes`` its payload."""

    kind: CollectiveKind
    axis: int
    size: int
    bytes: int
    coalesced: bool

    def seconds(self, links: Sequence[Link]) -> float:
        """As ``Resharder`` prices it."""
        latency, per_byte = collective_line(self.kind, links[self.axis], self.size)
        share = min(1.0, self.bytes / COALESCE_BYTES) if self.coalesced else 1.0
        return latency * share + self.bytes * per_byte


@dataclass(frozen=True, slots=True)
class Task:
    """A kernel, a chain of collectives, or a loop.

    Attributes:
      load: of a kernel. moves: collectives one after another; with any, the task is the network's.
      needs: positions of tasks, earlier in the same list, whose results it reads.
      ahead: whether it depends on weights alone, and may be taken as done.
      body: a loop's tasks. trips: how often they run.
    """

    load: Load = NOTHING
    moves: tuple[Move, ...] = ()
    needs: tuple[int, ...] = ()
    ahead: bool = False
    body: tuple[Task, ...] = ()
    trips: int = 1


@dataclass(frozen=True, slots=True)
class StepTime:
    """Seconds of one step: of all kernels, of all collectives, and of both side by side."""

    step_s: float
    compute_s: float
    comm_s: float


def step_time(tasks: Sequence[Task], chip: Chip, links: Sequence[Link]) -> StepTime:
    """Simulates one step."""
    streams = _Streams(chip, links)
    streams.run(tasks)
    return StepTime(streams.drain(), streams.compute_s, streams.comm_s)


@dataclass(slots=True)
class _Pending:
    """A collective that has not begun: where it is needed, when it may begin, what it is."""

    needed: int
    ready_s: float
    index: int
    seconds: float


@dataclass(slots=True)
class _Streams:
    """The clocks of the two streams, when every task was done, and the sums of both kinds."""

    chip: Chip
    links: Sequence[Link]
    kernels_s: float = 0.0
    network_s: float = 0.0
    done: list[float] = field(default_factory=list[float])
    pending: list[_Pending] = field(default_factory=list[_Pending])
    compute_s: float = 0.0
    comm_s: float = 0.0

    def run(self, tasks: Sequence[Task]) -> None:
        """Runs the tasks after whatever ran before, up to the end of the last kernel."""
        base = len(self.done)
        needed = _first_use(tasks)
        for index, task in enumerate(tasks):
            ready = max((self._finish(base + need) for need in task.needs), default=0.0)
            if task.moves:
                seconds = sum(move.seconds(self.links) for move in task.moves)
                self.pending.append(_Pending(base + needed[index], ready, base + index, seconds))
                self.done.append(math.inf)
                self.comm_s += seconds
            elif task.body:
                self.kernels_s = max(self.kernels_s, ready)
                self._loop(task)
                self.done.append(self.kernels_s)
            elif task.ahead or task.load is NOTHING:
                self._compute(task)
                self.done.append(ready)
            else:
                self.kernels_s = max(self.kernels_s, ready)
                self._compute(task)
                self.done.append(self.kernels_s)

    def _compute(self, task: Task) -> None:
        seconds = task.load.seconds(self.chip)
        self.kernels_s += seconds
        self.compute_s += seconds

    def _finish(self, index: int) -> float:
        """When a task is done; lets the network run until then."""
        while self.done[index] == math.inf:
            self._advance()
        return self.done[index]

    def _advance(self) -> None:
        """Runs one collective: of those that can start first, the one that is needed first."""
        start = max(self.network_s, min(one.ready_s for one in self.pending))
        able = [one for one in self.pending if one.ready_s <= start]
        chosen = min(able, key=lambda one: (one.needed, one.index))
        self.pending.remove(chosen)
        self.network_s = start + chosen.seconds
        self.done[chosen.index] = self.network_s

    def drain(self) -> float:
        """When both streams are idle."""
        while self.pending:
            self._advance()
        return max(self.kernels_s, self.network_s)

    def _loop(self, task: Task) -> None:
        inner = _Streams(self.chip, self.links)
        inner.run(task.body)
        once, compute_s, comm_s = inner.kernels_s, inner.compute_s, inner.comm_s
        inner.run(task.body)
        more = max(inner.kernels_s - once, comm_s)
        self.network_s = max(self.network_s, self.kernels_s) + task.trips * comm_s
        self.kernels_s += once + (task.trips - 1) * more
        self.compute_s += task.trips * compute_s
        self.comm_s += task.trips * comm_s


def _first_use(tasks: Sequence[Task]) -> list[int]:
    """For each task, the position of the first that needs it; past the end if none does."""
    found = [len(tasks)] * len(tasks)
    for index, task in enumerate(tasks):
        for need in task.needs:
            found[need] = min(found[need], index)
    return found
