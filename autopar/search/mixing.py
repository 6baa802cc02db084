"""Layers that differ: some as in a plan over the memory budget, the others as in one that fits.

Where layers alike share their choices, a memory limit moves all of them at once, and a little less
memory may cost much. Prices of memory lead to the two plans on either side of the budget: at the
price at which both cost the same, bytes included, nothing costs less. The layers are then parted in
two: as many of the first as there is memory for are laid out as in the former, the others as in the
latter, so that values are re-laid for it at one border only. Bytes and seconds are near linear in
where the border is.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

import numpy as np

from autopar.search.depth import parsed
from autopar.search.draft import Draft, unfolded
from autopar.search.graph import Node
from autopar.search.memory_prices import on_chip_at_most, priced
from autopar.search.network import TICK_S, IntArray, Solution
from autopar.search.planner import Candidate
from autopar.search.prepared import Prepared
from autopar.search.solve import solve

PAYS = 0.99
"""Of the cost of what is known, what is looked for costs less than this share."""

PRICES = 4
"""Prices tried, at most."""

SAME = 0.9999
"""Share of the cost of two plans, with what their bytes cost, below which another is less."""


def mixed(alike: Draft, known_s: float) -> Draft | None:
    """A plan that takes less than ``known_s``, in which layers may differ, if that may pay and one
    is found. Its bound is one for plans whose layers are alike, if the network is.

    Args:
      alike: a plan that fits the memory, its layers alike, and the options it was found with.
    """
    began, known = time.perf_counter(), int(known_s / TICK_S)
    prepared, options = alike.prepared, alike.options
    free = prepared.free[alike.mesh]
    if prepared.step.layers is None or free.cost > PAYS * known:
        return None
    options.progress("letting layers differ")
    sides = _Sides.of(alike)
    best, prepared = sides.light, alike.prepared
    if sides.between < PAYS * min(known, best.solution.cost):
        plain, other = _parted(sides)
        if other and other.solution.cost < best.solution.cost:
            best, prepared = other, plain
    cost = best.solution.cost
    if cost >= known:
        return None
    solution = dataclasses.replace(best.solution, bound=min(cost, sides.bound), status="feasible")
    found = dataclasses.replace(best, solution=solution)
    return Draft(prepared, found, options, alike.seconds + time.perf_counter() - began)


@dataclass(slots=True)
class _Sides:
    """Two plans on either side of the budget, layers alike.

    Attributes:
      draft: the plan that was known.
      heavy, light: the one over the budget, and the one within.
      bound: plans whose layers are alike cost no less.
      deadline: in seconds of the monotonic clock.
    """

    draft: Draft
    heavy: Candidate
    light: Candidate
    bound: int
    deadline: float

    @classmethod
    def of(cls, draft: Draft) -> _Sides:
        """The nearest that prices lead to, from the best plan without a limit and a known one."""
        free = draft.prepared.free[draft.mesh]
        deadline = time.monotonic() + draft.options.time_limit_s
        sides = cls(draft, _candidate(draft, free), draft.found, free.bound, deadline)
        for _ in range(PRICES):
            if not sides._nearer():
                break
        return sides

    @property
    def budget(self) -> int:
        """Bytes a device."""
        return self.draft.options.memory_bytes or self.draft.prepared.cluster.chip.usable_bytes

    @property
    def share(self) -> float:
        """Of the way from the light plan to the heavy one, that to the budget."""
        room = self.budget - self.light.peak_bytes
        return room / (self.heavy.peak_bytes - self.light.peak_bytes)

    @property
    def between(self) -> float:
        """Ticks, at the budget on that way."""
        cost = self.light.solution.cost
        return cost - self.share * (cost - self.heavy.solution.cost)

    def _nearer(self) -> bool:
        """Takes what is best at the price at which both cost the same; whether there is another."""
        saved = self.heavy.peak_bytes - self.light.peak_bytes
        price = (self.light.solution.cost - self.heavy.solution.cost) / saved
        left = self.deadline - time.monotonic()
        if price <= 0 or left <= 0:
            return False
        problem = self.light.problem
        memory = self.draft.prepared.depth.memory_on(problem)
        instant = memory.peak(problem.states(self.light.solution.choice or ()))[0]
        found = solve(priced(memory, instant, price), left)
        if found.choice is None:
            return False
        room = self.budget + on_chip_at_most(memory.program, instant)
        self.bound = max(self.bound, math.floor(found.bound - price * room))
        other = _candidate(self.draft, found)
        costs = [one.solution.cost + price * one.peak_bytes for one in (other, self.light)]
        if costs[0] > SAME * costs[1]:
            return False
        if other.peak_bytes > self.budget:
            self.heavy = other
        else:
            self.light = other
        return True


def _candidate(draft: Draft, found: Solution) -> Candidate:
    """Of a solution of the draft's network, or of one with the same values."""
    problem = draft.found.problem
    assert found.choice is not None
    cost = problem.network.cost(found.choice)
    memory = draft.prepared.depth.memory_on(problem)
    peak = memory.peak(problem.states(found.choice))[1]
    return Candidate(problem, dataclasses.replace(found, cost=cost), peak)


def _parted(sides: _Sides) -> tuple[Prepared, Candidate | None]:
    """The cheapest plan that fits of those whose first layers are as in the heavy plan, all others
    as in the light one; what is in no layer is as in either.

    The more layers are as in the heavy plan, the less it costs and the more it holds.
    """
    folded, plain = sides.draft.prepared, sides.draft.prepared.plain()
    problem, places = plain.unrolled(sides.draft.mesh), _places(plain)
    memory = plain.depth.memory_on(problem)
    heavy, light = (_by_node(unfolded(folded, one, plain)) for one in (sides.heavy, sides.light))
    best: Candidate | None = None
    for rest in (heavy, light):
        fits, over = 0, int(places.max()) + 2
        while over - fits > 1:
            first = (fits + over) // 2
            layers = np.where(places < first, heavy, light)
            choice = tuple(np.where(places < 0, rest, layers).tolist())
            peak = memory.peak(problem.states(choice))[1]
            if peak > sides.budget:
                over = first
                continue
            fits, cost = first, problem.network.cost(choice)
            if best is None or cost < best.solution.cost:
                best = Candidate(problem, Solution(choice, cost, 0, "feasible"), peak)
    return plain, best


def _by_node(found: Candidate) -> IntArray:
    """What is chosen for every node."""
    return np.array(found.solution.choice)[list(found.problem.variables)]


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
