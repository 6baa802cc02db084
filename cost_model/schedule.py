"""The order in which the kernels of one jaxpr run.

Program order, but after every kernel, any later kernel that is ready and does not raise the live
bytes runs at once (so XLA:TPU schedules: an optimiser's update follows its gradient unless
something global, such as clipping by the global norm, holds it back). Loops and branches never move
forward.

A kernel raises the live bytes by what it writes, less the values it is the last to read. Writing a
result in place of its dead donated input is free. Values of up to ``SMALL_BYTES`` do not count.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from jax.extend.core import JaxprEqn, Literal, Var

from autopar.cost_model.fusion import FusionBorders
from autopar.cost_model.work import KINDS, aval_bytes

SMALL_BYTES = 256


@dataclass(frozen=True, slots=True)
class Kernel:
    """An equation at which a fused group ends: what it writes, and needs from memory."""

    eqn: JaxprEqn
    writes: tuple[Var, ...]
    needs: tuple[Var, ...]

    @property
    def is_region(self) -> bool:
        return KINDS.get(self.eqn.primitive.name) == "region"


def kernels(eqns: Sequence[JaxprEqn], borders: FusionBorders) -> tuple[Kernel, ...]:
    """The kernels among ``eqns``, in program order."""
    found: list[Kernel] = []
    for eqn in eqns:
        if eqn.outvars and eqn.outvars[0] in borders.sources:
            writes = tuple(var for var in eqn.outvars if var in borders.writes)
            found.append(Kernel(eqn, writes, borders.sources[eqn.outvars[0]]))
    return tuple(found)


def schedule(
    program: Sequence[Kernel],
    outputs: Sequence[Var | Literal],
    in_place: Mapping[Var, Var],
    size: Callable[[Var], int] = lambda var: aval_bytes(var.aval),
) -> tuple[Kernel, ...]:
    """The kernels in the order they run.

    Args:
      program: the kernels in program order.
      outputs: results of the whole, looked through views: they never die.
      in_place: results that replace a donated input, and that input.
      size: bytes of a value; whole ones will do, as only differences matter.
    """
    return _Scheduler(
        program, frozenset(v for v in outputs if isinstance(v, Var)), in_place, size
    ).run()


@dataclass
class _Scheduler:
    program: Sequence[Kernel]
    outputs: frozenset[Var]
    in_place: Mapping[Var, Var]
    size: Callable[[Var], int]
    order: list[Kernel] = field(default_factory=list[Kernel])

    def __post_init__(self) -> None:
        self.done = [False] * len(self.program)
        made = {var: i for i, kernel in enumerate(self.program) for var in kernel.writes}
        self.made = frozenset(made)
        self.users: dict[Var, list[int]] = defaultdict(list)
        self.missing = [0] * len(self.program)
        for index, kernel in enumerate(self.program):
            for var in kernel.needs:
                self.users[var].append(index)
                self.missing[index] += var in made
        # Readers still to run, and the sum of their indices: of the last one, its index.
        self.left = {var: len(users) for var, users in self.users.items()}
        self.last = {var: sum(users) for var, users in self.users.items()}

    def run(self) -> tuple[Kernel, ...]:
        for index in range(len(self.program)):
            if self.done[index]:
                continue
            waiting = self._execute(index)
            heapq.heapify(waiting)
            while waiting:
                early = heapq.heappop(waiting)
                if self._may_run_early(early):
                    for found in self._execute(early):
                        heapq.heappush(waiting, found)
        return tuple(self.order)

    def _execute(self, index: int) -> list[int]:
        """Runs a kernel; returns those for which something changed."""
        kernel = self.program[index]
        self.done[index] = True
        self.order.append(kernel)
        changed: list[int] = []
        for var in kernel.writes:
            for user in self.users.get(var, ()):
                self.missing[user] -= 1
                changed.append(user)
        for var in kernel.needs:
            self.left[var] -= 1
            self.last[var] -= index
            if self.left[var] == 1:
                changed.append(self.last[var])
        return changed

    def _may_run_early(self, index: int) -> bool:
        kernel = self.program[index]
        if self.done[index] or self.missing[index] or kernel.is_region:
            return False
        raised = sum(self._written_bytes(var, kernel) for var in kernel.writes)
        freed = sum(
            self.size(var)
            for var in kernel.needs
            if self.left[var] == 1 and var in self.made and var not in self.outputs
        )
        return raised <= freed

    def _written_bytes(self, var: Var, kernel: Kernel) -> int:
        replaced = self.in_place.get(var)
        if replaced is not None and self.left.get(replaced, 0) <= (replaced in kernel.needs):
            return 0
        size = self.size(var)
        return size if size > SMALL_BYTES else 0
