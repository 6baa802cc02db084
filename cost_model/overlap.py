"""Seconds of a step whose communication runs beside its computation.

Two streams a device, as GPUs and TPUs have them: *kernels* run one after another, in the order of
the program; *collectives* run one after another on the network, each as soon as what it moves is
there, of several the one that is needed first. A kernel waits for the collectives whose results it
reads, and for nothing else. So weights are gathered ahead of use, gradients reduced behind the rest
of the backward pass, and what lies between two kernels that depend on each other is exposed.

* Work on weights alone (casts) can be done ahead, and makes no collective wait. Light work that no
  matmul waits for (casts of gradients, the update) is put off, and makes no kernel wait.
* A loop's body is run twice in the simulation: what the second run adds is what every further one
  takes.
* Where ``Chip.overlap`` is ``none``, nothing runs beside anything: a step is the sum of both.
* *Windowed* collectives (Wang et al., ASPLOS 2023, as XLA:TPU has them) run chunk by chunk beside a
  matmul, a chunk a device: one that reads what is gathered begins with its first chunk, a
  reduce-scatter with the first chunk of the matmul that makes its operand, and either ends no
  earlier than a chunk after the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from autopar.cost_model.collectives import CollectiveKind, collective_line
from autopar.cost_model.compute import NOTHING, Load
from autopar.cost_model.hardware import Chip, Link
from autopar.cost_model.layout_tables import COALESCE_BYTES


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


class Task(NamedTuple):
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
    streams = _Streams(chip, links, chip.overlap == "windowed")
    streams.run(tasks)
    both_s = streams.compute_s + streams.comm_s
    step_s = both_s if chip.overlap == "none" else streams.drain()
    return StepTime(step_s, streams.compute_s, streams.comm_s)


@dataclass(slots=True)
class _Pending:
    """A collective that has not begun: where it is needed, when it may begin, what it is.

    ``whole_s`` is when all that it moves is there, ``last_s`` what it takes from then on, and
    ``first_s`` after what time a windowed matmul may begin.
    """

    needed: int
    ready_s: float
    whole_s: float
    index: int
    seconds: float
    first_s: float
    last_s: float


@dataclass(slots=True)
class _Streams:
    """The clocks of the two streams, and the sums of both kinds.

    ``done`` says when every task was done, ``begun`` when its first chunk was.
    """

    chip: Chip
    links: Sequence[Link]
    windowed: bool
    kernels_s: float = 0.0
    network_s: float = 0.0
    done: list[float] = field(default_factory=list[float])
    begun: list[float] = field(default_factory=list[float])
    pending: list[_Pending] = field(default_factory=list[_Pending])
    seconds: dict[int, float] = field(default_factory=dict[int, float])
    compute_s: float = 0.0
    comm_s: float = 0.0

    def run(self, tasks: Sequence[Task]) -> None:
        """Runs the tasks after whatever ran before, up to the end of the last kernel."""
        base = len(self.done)
        needed, late = _first_use(tasks), _put_off(tasks)
        for index, task in enumerate(tasks):
            needs = [base + need for need in task.needs] if base else task.needs
            if late[index]:
                self._later(task, needs)
            elif task.moves:
                self._send(task, needs, base + needed[index])
            else:
                self._kernel(task, needs)

    def _later(self, task: Task, needs: Sequence[int]) -> None:
        """A kernel put off until what it reads is there: it takes its time, and nothing waits."""
        self._compute(task.load)
        done = self.kernels_s
        for need in needs:
            if done < self.done[need] < math.inf:
                done = self.done[need]
        self._ended(done)

    def _there(self, needs: Sequence[int]) -> tuple[float, float]:
        """When all that is needed is there, and its first chunks; the network runs until then."""
        whole = may = 0.0
        done, begun = self.done, self.begun
        for need in needs:
            done_s = done[need] if done[need] < math.inf else self._finish(need)
            if done_s > whole:
                whole = done_s
            if begun[need] > may:
                may = begun[need]
        return whole, may

    def _send(self, task: Task, needs: Sequence[int], needed: int) -> None:
        seconds = sum(move.seconds(self.links) for move in task.moves)
        whole, may = self._there(needs)
        first, last, ready = seconds, seconds, whole
        if self.windowed and len(task.moves) == 1:
            (move,) = task.moves
            if move.kind == "all-gather":
                first = seconds / move.size
            elif move.kind == "reduce-scatter":
                last, ready = seconds / move.size, may
        index = len(self.done)
        self.pending.append(_Pending(needed, ready, whole, index, seconds, first, last))
        self._ended(math.inf)
        self.comm_s += seconds

    def _kernel(self, task: Task, needs: Sequence[int]) -> None:
        whole, may = self._there(needs)
        if task.body:
            self.kernels_s = max(self.kernels_s, whole)
            self._loop(task)
            self._ended(self.kernels_s)
        elif task.load is NOTHING:
            self._ended(whole, may)
        elif task.ahead or not self._seconds(task.load):
            self._compute(task.load)
            self._ended(whole, may)
        elif self.windowed and task.load.matmul is not None:
            start = max(self.kernels_s, may)
            self.kernels_s = start
            chunk = self._compute(task.load) / CHUNKS
            if may < whole:
                self.kernels_s = max(self.kernels_s, whole + chunk)
            self._ended(self.kernels_s, start + chunk)
        else:
            self.kernels_s = max(self.kernels_s, whole)
            self._compute(task.load)
            self._ended(self.kernels_s)

    def _compute(self, load: Load) -> float:
        seconds = self._seconds(load)
        self.kernels_s += seconds
        self.compute_s += seconds
        return seconds

    def _seconds(self, load: Load) -> float:
        seconds = self.seconds.get(id(load))  # tasks share their loads
        if seconds is None:
            seconds = self.seconds[id(load)] = load.seconds(self.chip)
        return seconds

    def _ended(self, done_s: float, begun_s: float | None = None) -> None:
        self.done.append(done_s)
        self.begun.append(done_s if begun_s is None else begun_s)

    def _finish(self, index: int) -> float:
        """When a task is done; lets the network run until then."""
        while self.done[index] == math.inf:
            self._advance()
        return self.done[index]

    def _advance(self) -> None:
        """Runs one collective: of those that can start first, the one that is needed first."""
        start = max(self.network_s, min([one.ready_s for one in self.pending]))
        able = [one for one in self.pending if one.ready_s <= start]
        chosen = min(able, key=lambda one: (one.needed, one.index))
        self.pending.remove(chosen)
        end = max(start + chosen.seconds, chosen.whole_s + chosen.last_s)
        self.network_s = end
        self.done[chosen.index] = end
        self.begun[chosen.index] = end - chosen.seconds + chosen.first_s

    def drain(self) -> float:
        """When both streams are idle."""
        while self.pending:
            self._advance()
        return max(self.kernels_s, self.network_s)

    def _loop(self, task: Task) -> None:
        inner = _Streams(self.chip, self.links, self.windowed)
        inner.run(task.body)
        once, compute_s, comm_s = inner.kernels_s, inner.compute_s, inner.comm_s
        inner.run(task.body)
        more = max(inner.kernels_s - once, comm_s)
        self.network_s = max(self.network_s, self.kernels_s) + task.trips * comm_s
        self.kernels_s += once + (task.trips - 1) * more
        self.compute_s += task.trips * compute_s
        self.comm_s += task.trips * comm_s


CHUNKS = 8
"""Into how many a matmul beside a windowed collective is cut, for want of the axis it is cut by."""


def _first_use(tasks: Sequence[Task]) -> list[int]:
    """For each task, the position of the first that needs it; past the end if none does."""
    found = [len(tasks)] * len(tasks)
    for index in range(len(tasks) - 1, -1, -1):
        for need in tasks[index].needs:
            found[need] = index
    return found


def _put_off(tasks: Sequence[Task]) -> list[bool]:
    """Whether a task is light, and whatever waits for it is put off too."""
    waited = [False] * len(tasks)
    found = [False] * len(tasks)
    for index in reversed(range(len(tasks))):
        task = tasks[index]
        heavy = bool(task.body) or task.load.matmul is not None
        found[index] = not (heavy or waited[index] or task.moves)
        if heavy or waited[index]:
            for need in task.needs:
                waited[need] = True
    return found
