"""Solving a network: reductions first, and large ones by way of smaller ones.

A network on three mesh axes has domains of hundreds of values and tables of tens of millions of
entries, more than a solver can be handed. It is solved in three steps:

* *blocks*: two axes are searched exactly while the others stay as they are, pair by pair until no
  pair improves. It begins with axes that do the same. Measured on a GPT of eight layers on 2x4x8,
  both starts tried end in what the third step proves optimal;
* *bounds* (``bounds.py``): what that plan's cost rules out goes;
* what is left is small enough to be solved exactly, and proves the plan or betters it.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autopar.search.bounds import tightened
from autopar.search.network import FORBIDDEN, IntArray, Network, Solution
from autopar.search.shrink import Undo, shrink
from autopar.search.solvers import Solver, default_solver

LARGE = 3_000_000
"""Table entries above which a shrunk network is not handed to a solver as it is."""

AxisChoices = Sequence[IntArray]
"""For each variable, ``[value, mesh axis]``: a number for what the value does on the axis."""


def solve(
    network: Network,
    seconds: float,
    solver: Solver | None = None,
    axes: AxisChoices = (),
    large: int = LARGE,
) -> Solution:
    """Shrinks, solves what is left, and undoes the shrinking.

    Args:
      seconds: limit of the solver's own time; the best found so far is returned with its bound.
      solver: ``toulbar2`` where it is installed, else ``highs``.
      axes: what each value does on each of three mesh axes or more, to take a large network apart
        by; none to solve it whole.
      large: entries of a shrunk network from which on it is taken apart.
    """
    solver = solver or default_solver()
    smaller, undo = shrink(network)
    if axes and smaller.entries > large:
        parts = _Parts(network, axes, solver, time.monotonic() + seconds)
        return _by_parts(parts, smaller, undo, large)
    found = solver(smaller, seconds)
    if found.choice is None:
        return found
    return _undone(network, undo(found.choice), found)


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
    found = solve(noisy, 60.0)
    if found.choice is None:
        return found
    return Solution(found.choice, network.cost(found.choice), 0, "feasible")


@dataclass(frozen=True, slots=True)
class _Parts:
    """A network that is searched a part at a time."""

    network: Network
    axes: AxisChoices
    solver: Solver
    deadline: float

    @property
    def left(self) -> float:
        """Seconds until the deadline; one at least, as solvers want some."""
        return max(1.0, self.deadline - time.monotonic())

    def best_of(self, masks: Sequence[NDArray[np.bool_]]) -> Solution:
        """The best assignment of these values only."""
        values = [np.flatnonzero(mask) for mask in masks]
        found = solve(self.network.restricted(values), self.left, self.solver)
        return found if found.choice is None else _renamed(found, values)


def _by_parts(parts: _Parts, smaller: Network, undo: Undo, large: int) -> Solution:
    best = _by_blocks(parts)
    if best.choice is None:
        return best
    rest = tightened(smaller, best.cost, large // 2, parts.left * 2 / 3)
    if rest.network.entries > large:
        return dataclasses.replace(best, bound=rest.bound)
    last = solve(rest.network, parts.left, parts.solver)
    bound = min(best.cost, max(rest.bound, last.bound))
    if last.choice is not None and last.cost <= best.cost:
        choice = _renamed(last, rest.values).choice
        assert choice is not None
        return _undone(parts.network, undo(choice), dataclasses.replace(last, bound=bound))
    if last.status in ("optimal", "infeasible"):  # what is left is no better
        return dataclasses.replace(best, bound=best.cost, status="optimal")
    return dataclasses.replace(best, bound=bound)


def _by_blocks(parts: _Parts) -> Solution:
    """A good assignment: two axes at a time, from one in which all but one do the same."""
    everything = range(parts.axes[0].shape[1])
    best = Solution(None, FORBIDDEN, 0, "unknown")
    for alone in reversed(everything):
        others = [axis for axis in everything if axis != alone]
        best = parts.best_of([_tied(choices, others) for choices in parts.axes])
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
        found = parts.best_of(masks)
        failed = 0 if found.cost < best.cost else failed + 1
        best = min(best, found, key=lambda one: one.cost)
    status = "unknown" if best.choice is None else "feasible"
    return dataclasses.replace(best, bound=0, status=status)


def _tied(choices: IntArray, axes: Sequence[int]) -> NDArray[np.bool_]:
    """The values that do the same on these axes; all values if none does."""
    same = (choices[:, axes] == choices[:, axes[:1]]).all(axis=1)
    return same if same.any() else np.ones_like(same)


def _renamed(found: Solution, values: Sequence[IntArray]) -> Solution:
    """A solution of a restricted network, in the values of the whole."""
    assert found.choice is not None
    choice = tuple([int(v[c]) for v, c in zip(values, found.choice, strict=True)])
    return dataclasses.replace(found, choice=choice)


def _undone(network: Network, choice: tuple[int, ...], found: Solution) -> Solution:
    cost = network.cost(choice)
    if cost >= FORBIDDEN // 2:
        return Solution(None, FORBIDDEN, found.bound, "infeasible")
    return Solution(choice, cost, found.bound, found.status)
