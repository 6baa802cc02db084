"""Solving a network: reductions first, and large ones by closing in on the optimum.

A network on three mesh axes has domains of hundreds of values and tables of tens of millions of
entries, more than a solver can be handed; one on two axes takes it most of a second. So bounds
(``bounds.py``) come before:

* sweeps raise the bound until it settles; assignments decoded on the way rule values out;
* what is left is searched for an assignment that costs at most a little more than the bound:
  what only dearer ones have goes, and the bound of what is left is raised in turn, until little is
  left or nothing, which is a proof that there is none;
* the exact solver gets the little. If it finds nothing either, the room above the bound is doubled.

Bounds know nothing of limits, which make most plans little dearer. Where they make it dearer than
what is searched first, the solver gets the whole, or what is no dearer than a plan by *blocks*: two
axes are searched exactly while the others stay as they are, pair by pair until no pair improves. It
begins with axes that do the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.search.bounds import Messages
from autopar.search.network import FORBIDDEN, IntArray, Network, Solution
from autopar.search.shrink import Undo, shrink
from autopar.search.solvers import Solver, default_solver, descend

SMALL = 50_000
"""Table entries of a network up to which a solver gets it as it is."""

LARGE = 3_000_000
"""Table entries of a shrunk network with limits up to which a solver gets it as it is."""

SETTLED = 1e-3
"""Share by which a round raises a bound that has yet to settle."""

NEAR = 5e-4
"""Share of the bound by which the cost first aimed at is above it, at least."""

NEXT = 2e-3
"""The same, where limits leave nothing so near."""

PART = 16
"""What is aimed at is no nearer than this part of the way to the best assignment yet: where that is
far from the bound, the bound is far from the optimum too."""

ENOUGH = 6
"""Times ``SMALL``: entries of what is left of a larger network from which on a solver gets it. Most
of its values are ruled out, so that it is settled sooner than one of that size as it is."""

FEW = 0.0125
"""Share of a network's entries that is enough too: of forty million, half a million."""

UNPROVEN, CLOSE = 9e-4, 1e-4
"""Shares of the cost that may stay unproven under limits: of a network that is solved whole, of one
from which what is dear has been ruled out. To the latter, the former may take a minute."""

AxisChoices = Callable[[], Sequence[IntArray]]
"""For each variable, ``[value, mesh axis]``: a number for what the value does on the axis; asked
for only where it is needed."""


def solve(
    network: Network,
    seconds: float,
    solver: Solver | None = None,
    axes: AxisChoices = tuple,
    known: int = FORBIDDEN,
    small: int = SMALL,
    large: int = LARGE,
) -> Solution:
    """Shrinks, solves what is left, and undoes the shrinking.

    Args:
      seconds: limit of the solver's own time; the best found so far is returned with its bound.
      solver: ``toulbar2`` where it is installed, else ``highs``.
      axes: what each value does on each of three mesh axes or more, to take a large network with
        limits apart by, and for something better than what was decoded when time is up; none to
        solve it whole.
      known: what is sought costs less than this; ``infeasible`` is then that nothing does.
      small, large: see ``SMALL`` and ``LARGE``.
    """
    if all(len(costs) == 1 for costs in network.unary):
        return _only(network, known)
    solver = solver or default_solver()
    deadline = time.monotonic() + seconds
    if network.entries <= small:
        return _whole(network, known, seconds, solver)
    if network.limits:
        return _limited(network, known, _Parts(network, axes(), solver, deadline), small, large)
    smaller, undo = shrink(network, dead_ends=False)  # bounds will find them, and more
    found = _undone(network, undo, _closing_in(smaller, known, solver, deadline, small))
    if found.status == "stopped" and (choices := axes()):  # what was decoded may be far off
        tied = _Parts(network, choices, solver, deadline).tied(range(choices[0].shape[1]))
        better = min((found, tied), key=lambda one: one.cost)
        found = dataclasses.replace(better, bound=found.bound, status="stopped")
    return found


def _whole(network: Network, known: int, seconds: float, solver: Solver) -> Solution:
    """What the solver makes of all that shrinking leaves."""
    smaller, undo = shrink(network)
    most = None if known >= FORBIDDEN else known - 1
    return _undone(network, undo, solver(smaller, seconds, most, UNPROVEN))


def _only(network: Network, known: int) -> Solution:
    """The one assignment there is, if it is allowed and costs less than ``known``."""
    choice = (0,) * len(network.unary)
    cost = network.cost(choice)
    if cost >= min(known, FORBIDDEN // 2):
        return Solution(None, FORBIDDEN, cost, "infeasible")
    return Solution(choice, cost, cost, "optimal")


def _undone(network: Network, undo: Undo, found: Solution) -> Solution:
    if found.choice is None:
        return found
    choice = undo(found.choice)
    cost = network.cost(choice)
    if cost >= FORBIDDEN // 2:
        return Solution(None, FORBIDDEN, found.bound, "infeasible")
    return Solution(choice, cost, found.bound, found.status)


def _closing_in(
    network: Network, known: int, solver: Solver, deadline: float, small: int
) -> Solution:
    """The best assignment that costs less than ``known``, which another one costs.

    Without one the status says whether that is proven (``infeasible``) or not (``unknown``).
    """
    work = Messages(network)
    enough = max(ENOUGH * small, int(FEW * work.entries))
    best = _settled(work, Solution(None, min(known, FORBIDDEN // 2), 0, "infeasible"), deadline)
    excess = 0 if best.choice is None else best.cost - work.bound
    bound, room = work.bound, max(1, int(NEAR * work.bound), excess // PART)
    aim = bound + room
    while bound < best.cost:
        target = best.cost - 1 if best.cost <= aim + room else aim
        found = _within(work.copy(), target, solver, deadline, enough)
        if found.choice is not None and found.cost < best.cost:
            best = found
        if found.status not in ("optimal", "infeasible"):  # out of time
            status = "unknown" if best.choice is None else "stopped"
            return dataclasses.replace(best, bound=max(bound, found.bound), status=status)
        bound = max(bound, found.bound)
        if found.choice is not None:
            break
        aim += room
        room *= 2
    status = best.status if best.choice is None else "optimal"
    return dataclasses.replace(best, bound=min(bound, best.cost), status=status)


def _limited(network: Network, known: int, parts: _Parts, small: int, large: int) -> Solution:
    """The same under limits, of which bounds know nothing: most make an assignment little dearer,
    so what is ``NEAR`` the bound is searched first, what is ``NEXT`` then. Where nothing is, a
    large network is searched for what is better than what blocks find, any other whole.
    """
    solver, deadline = parts.solver, parts.deadline
    smaller, undo = shrink(network, dead_ends=False)
    work = Messages(smaller)
    _settled(work, Solution(None, min(known, FORBIDDEN // 2), 0, "infeasible"), deadline)
    for share, unproven in ((NEAR, CLOSE), (NEXT, UNPROVEN)):
        near = min(known - 1, math.floor((1 + share) * work.bound))
        found = _within(work.copy(), near, solver, deadline, small, unproven)
        if found.choice is not None or near == known - 1:
            found = dataclasses.replace(found, bound=max(found.bound, work.bound))
            return _undone(network, undo, found)
    if known < FORBIDDEN and not work.rule_out(known - 1):
        return Solution(None, FORBIDDEN, known, "infeasible")
    if not (parts.axes and work.entries > large):
        if known >= FORBIDDEN:
            return _whole(network, known, parts.left, solver)
        found = _within(work, known - 1, solver, deadline, small, UNPROVEN)
        found = dataclasses.replace(found, bound=max(found.bound, work.bound))
        return _undone(network, undo, found)
    first = _by_blocks(parts, known)
    if first.choice is None and known >= FORBIDDEN:
        return first
    found = _within(work, min(known, first.cost) - 1, solver, deadline, small, UNPROVEN)
    if found.cost < first.cost or first.choice is None:
        return _undone(network, undo, found)
    status = "optimal" if found.status == "infeasible" else "stopped"
    return dataclasses.replace(first, bound=min(found.bound, first.cost), status=status)


def _settled(work: Messages, best: Solution, deadline: float) -> Solution:
    """Raises the bound until it settles; the best assignment decoded, if it is better. However
    little time there is, one is decoded.
    """
    work.round()  # after one all is far off, unless there is something to beat
    if best.cost < FORBIDDEN // 2 and not work.rule_out(best.cost):
        return best
    settled = False
    while not settled:
        before = work.bound
        work.round()
        choice = descend(work.network, work.decoded(back=False))
        if (cost := work.network.cost(choice)) < best.cost:
            best = Solution(choice, cost, 0, "feasible")
        possible = work.rule_out(best.cost)
        risen = work.bound - before > SETTLED * work.bound
        settled = not (possible and risen and time.monotonic() < deadline)
    return best


def _within(
    work: Messages,
    target: int,
    solver: Solver,
    deadline: float,
    enough: int,
    unproven: float = 0.0,
) -> Solution:
    """The best assignment that costs at most ``target``. ``bound`` holds for all others too."""
    entries, possible = work.entries + 1, work.rule_out(target)
    while possible and enough < work.entries < entries:
        if time.monotonic() > deadline:  # to hand over all this would take many times as long
            return Solution(None, FORBIDDEN, min(target, work.bound), "unknown")
        entries = work.entries
        work.round()
        possible = work.rule_out(target)
    if not possible:
        return Solution(None, FORBIDDEN, target + 1, "infeasible")
    smaller, undo = shrink(work.left())
    found = solver(smaller, max(1.0, deadline - time.monotonic()), target, unproven)
    if found.status == "infeasible" or found.bound > target:
        return Solution(None, FORBIDDEN, target + 1, "infeasible")
    if found.choice is None:
        return found
    choice = _numbered(undo(found.choice), work.values)
    return Solution(choice, work.network.cost(choice), min(target, found.bound), found.status)


def random_choice(network: Network, seed: int) -> Solution:
    """Any allowed assignment, drawn from ``seed``: random costs, same impossibilities."""
    rng = np.random.default_rng(seed)

    def scramble(costs: IntArray) -> IntArray:
        noise = rng.integers(0, 10**6, costs.shape)
        return np.where(costs >= FORBIDDEN // 2, FORBIDDEN, noise)

    noisy = Network(
        tuple(scramble(costs) for costs in network.unary),
        {
            pair: np.where(table >= FORBIDDEN // 2, FORBIDDEN, 0)
            for pair, table in network.pairs.items()
        },
        network.limits,
    )
    found = solve(noisy, 60.0, small=noisy.entries)
    if found.choice is None:
        return found
    return Solution(found.choice, network.cost(found.choice), 0, "feasible")


@dataclass(frozen=True, slots=True)
class _Parts:
    """A network that is searched a part at a time."""

    network: Network
    axes: Sequence[IntArray]
    solver: Solver
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the deadline; one at least, as solvers want some."""
        return max(1.0, self.deadline - time.monotonic())

    def best_of(self, masks: Sequence[NDArray[np.bool_]], known: int) -> Solution:
        """The best assignment of these values only, if it costs less than ``known``."""
        values = [np.flatnonzero(mask) for mask in masks]
        found = solve(self.network.restricted(values), self.left, self.solver, known=known)
        if found.choice is None:
            return found
        return dataclasses.replace(found, choice=_numbered(found.choice, values))

    def tied(self, axes: Sequence[int], known: int = FORBIDDEN) -> Solution:
        """The same of values that do the same on these axes."""
        return self.best_of([_tied(choices, axes) for choices in self.axes], known)


def _by_blocks(parts: _Parts, known: int) -> Solution:
    """A good assignment of less than ``known``: two axes at a time, from one in which all but one
    do the same.
    """
    everything = range(parts.axes[0].shape[1])
    best = Solution(None, FORBIDDEN, 0, "unknown")
    for alone in reversed(everything):
        others = [axis for axis in everything if axis != alone]
        best = parts.tied(others, known)
        if best.choice is not None:
            break
    blocks = tuple(itertools.combinations(everything, 2))
    failed, turn = 0, itertools.cycle(blocks)
    while best.choice is not None and failed < len(blocks) and time.monotonic() < parts.deadline:
        block = next(turn)
        fixed = [axis for axis in everything if axis not in block]
        masks = [
            (choices[:, fixed] == choices[value, fixed]).all(axis=1)
            for choices, value in zip(parts.axes, best.choice, strict=True)
        ]
        found = parts.best_of(masks, best.cost)
        failed = failed + 1 if found.choice is None else 0
        best = best if found.choice is None else found
    status = "unknown" if best.choice is None else "feasible"
    return dataclasses.replace(best, bound=0, status=status)


def _tied(choices: IntArray, axes: Sequence[int]) -> NDArray[np.bool_]:
    """The values that do the same on these axes; all values if none does."""
    same = (choices[:, axes] == choices[:, axes[:1]]).all(axis=1)
    return same if same.any() else np.ones_like(same)


def _numbered(choice: Sequence[int], values: Sequence[IntArray]) -> tuple[int, ...]:
    """A choice among ``values``, in the numbers of the whole."""
    return tuple([int(v[c]) for v, c in zip(values, choice, strict=True)])
