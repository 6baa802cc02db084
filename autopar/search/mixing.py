"""Layers that differ: some as the best plan without a limit has them, the others as one that fits.

Where layers alike share their choices, a memory limit moves all of them at once, and a little less
memory may cost much. So the layers are parted in two, the first ``k`` and the others: a value is
then re-laid for it at one border only. Each part has variables of its own, and each variable the
two values that it has in the best plan without a limit and in the best that fits. Bytes grow with
the number of layers laid out as in the former, and so does what is saved: where a plan between the
two is expected to be as much faster as ``PAYS`` says, parts are searched around the ``k`` at which
the memory would be full.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from dataclasses import dataclass

import numpy as np

from autopar.core.errors import InfeasibleError
from autopar.core.mesh import MeshSpec
from autopar.search.depth import parsed
from autopar.search.domains import State
from autopar.search.draft import Draft, unfolded
from autopar.search.graph import Node
from autopar.search.network import TICK_S, IntArray
from autopar.search.options import Options
from autopar.search.planner import Candidate, fit
from autopar.search.prepared import Prepared

PAYS = 0.99
"""Of the cost of what is known, what is expected of layers that differ is less than this share."""


def mixed(alike: Draft, known_s: float) -> Draft | None:
    """A plan that takes less than ``known_s``, some of its layers as in ``alike`` and some as in
    the best plan of that mesh without a limit, if there is one.

    Args:
      alike: a plan that fits the memory, its layers alike, and the options it was found with.
    """
    began = time.perf_counter()
    prepared, options = alike.prepared, alike.options
    budget = options.memory_bytes or prepared.cluster.chip.usable_bytes
    free = _free(alike)
    layers = prepared.step.layers
    if layers is None or not alike.solver.layers_alike or free.peak_bytes <= budget:
        return None
    share = (free.peak_bytes - budget) / (free.peak_bytes - alike.peak_bytes)
    cost = free.solution.cost
    if cost + share * (alike.found.solution.cost - cost) > PAYS * known_s / TICK_S:
        return None
    options.progress("letting layers differ")
    parts = _Parts.of(prepared.plain(), alike, free)
    found = parts.best(round((1 - share) * parts.count), int(known_s / TICK_S))
    if found is None:
        return None
    bound = min(found.solution.cost, free.solution.bound)
    solution = dataclasses.replace(found.solution, bound=bound, status="feasible")
    found = dataclasses.replace(found, solution=solution)
    return Draft(parts.prepared, found, options, alike.seconds + time.perf_counter() - began)


def _free(alike: Draft) -> Candidate:
    """The best plan on the same mesh without a limit."""
    problem = alike.found.problem
    solution = alike.prepared.free[problem.mesh]
    assert solution.choice is not None
    memory = alike.prepared.depth.memory_on(problem)
    return Candidate(problem, solution, memory.peak(problem.states(solution.choice))[1])


def _places(prepared: Prepared) -> IntArray:
    """The layer of every node of a step that is not folded, in their order; -1 for none."""
    layers = prepared.step.layers
    assert layers is not None
    flow, places = layers.flow, layers.places()

    def code(node: Node) -> int:
        kind, position, _ = parsed(node)
        if kind == "out:":
            return int(flow.outputs[position])
        return {"in:": flow.count + position, "const:": -1}.get(kind, position)

    return places[[code(node) for node in prepared.graph.nodes]]


@dataclass(frozen=True, slots=True)
class _Parts:
    """The layers in two parts, and the layouts either may have.

    Attributes:
      prepared: not folded.
      places: the layer of each node, or -1.
      variables: of each node, where layers are alike.
      choices: of these variables: without a limit, and in a plan that fits.
      over: the states of all nodes in the former.
      deadline: in seconds of the monotonic clock.
    """

    prepared: Prepared
    mesh: MeshSpec
    places: IntArray
    variables: tuple[int, ...]
    choices: tuple[tuple[int, ...], ...]
    over: tuple[State, ...]
    options: Options
    deadline: float

    @classmethod
    def of(cls, plain: Prepared, alike: Draft, free: Candidate) -> _Parts:
        """Of the same plans, with no layers folded."""
        both = [unfolded(alike.prepared, one, plain) for one in (free, alike.found)]
        choices = tuple([one.solution.choice or () for one in both])
        problem, options = both[0].problem, alike.options
        given = (plain, problem.mesh, _places(plain), problem.variables, choices)
        over, deadline = problem.states(choices[0]), time.monotonic() + options.time_limit_s
        return cls(*given, over, options, deadline)

    @property
    def count(self) -> int:
        """Of layers."""
        return int(self.places.max()) + 1

    def best(self, near: int, known: int) -> Candidate | None:
        """The best plan that costs less than ``known`` with ``near`` layers in the first part, or
        more, or fewer, as long as that gains.
        """
        best: Candidate | None = None
        for ways in (range(max(near, 1), self.count), range(near - 1, 0, -1)):
            for first in ways:
                found = self._parted(first, best.solution.cost if best else known)
                if found is None:
                    break
                best = found
        return best

    def _parted(self, first: int, known: int) -> Candidate | None:
        """The best plan that costs less than ``known`` with so many layers in the first part."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            return None
        groups = np.digitize(self.places, (0, first))
        problem = self.prepared.grouped(self.mesh, groups.tolist())
        whole = dict(zip(problem.variables, self.variables, strict=True))
        values = [np.unique([one[whole[v]] for one in self.choices]) for v in range(len(whole))]
        small = problem.restricted(values)
        options = dataclasses.replace(self.options, time_limit_s=left)
        with contextlib.suppress(InfeasibleError):
            found = fit(self.prepared, small, options, known, over=self.over)
            return found if found and found.solution.cost < known else None
        return None
