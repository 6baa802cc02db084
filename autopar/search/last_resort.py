"""Where limits leave no plan: the one of least memory, or the honest 'no'."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

from autopar.core.errors import InfeasibleError
from autopar.core.mesh import MeshSpec
from autopar.cost_model import format_bytes
from autopar.search.memory import MeshMemory
from autopar.search.memory_prices import priced
from autopar.search.network import Limit, Solution
from autopar.search.options import Options
from autopar.search.problem import Problem
from autopar.search.solve import AxisChoices, solve

LIGHTEST_ROUNDS = 6
"""Peak instants taken into account, at most, in the search for the plan of least memory."""

PRICES = (1.0, 4.0, 16.0, 64.0)
"""Of a byte there, in what the memory of the best plan without a limit costs if all of the step is
paid for it."""


def lightest(
    problem: Problem,
    axes: AxisChoices,
    model: MeshMemory,
    limits: Mapping[int, Limit],
    free: Solution | None,
    least: int,
    budget: int,
    options: Options,
) -> tuple[Solution, int]:
    """A plan of little memory, and its peak.

    Args:
      limits: at the instants that bind. free: the best plan without any.
      least: bytes of the lightest plan known.

    Raises:
      InfeasibleError: none was found that fits, or in time.
    """
    options.progress("looking for the plan of least memory")
    seconds = options.time_limit_s / (LIGHTEST_ROUNDS + len(PRICES))
    parts = problem, axes, model
    best: tuple[int, Solution] | None = None
    for peak, found in itertools.chain(
        _priced(*parts, free, seconds), _light(*parts, limits, seconds)
    ):
        if best is None or peak < best[0]:
            best = peak, found
        if peak <= budget:
            break
    if best is None:
        raise InfeasibleError(
            f"no plan was found on the mesh {problem.mesh} in time_limit={options.time_limit_s:g} "
            "seconds; give more, or a mesh of fewer axes"
        )
    peak, found = best
    assert found.choice is not None
    if peak > budget:
        heaviest = model.heaviest(problem.states(found.choice))
        raise too_big(options.search, problem.mesh, min(least, peak), budget, heaviest)
    cost = problem.network.cost(found.choice)
    return Solution(found.choice, cost, 0, "feasible"), peak


def _priced(
    problem: Problem, axes: AxisChoices, model: MeshMemory, free: Solution | None, seconds: float
) -> Iterator[tuple[int, Solution]]:
    """Plans that rising prices of the bytes at the peak make, and their peaks. What is light by its
    bytes alone may move much, and hold the copies; what a price makes stays fast.
    """
    if free is None or free.choice is None:
        return
    instant, peak = model.peak(problem.states(free.choice))
    unit = free.cost / max(1, peak)
    for price in PRICES:
        found = solve(priced(model, instant, price * unit), seconds, axes=axes)
        if found.choice is None:
            return
        instant, peak = model.peak(problem.states(found.choice))
        yield peak, found


def _light(
    problem: Problem,
    axes: AxisChoices,
    model: MeshMemory,
    limits: Mapping[int, Limit],
    seconds: float,
) -> Iterator[tuple[int, Solution]]:
    """Plans of the least bytes, and their peaks. Bytes at one instant, or at several together,
    stand in for the peak; which is best depends.
    """
    waiting = [tuple(sorted(limits)), *((instant,) for instant in limits)]  # grows meanwhile
    for instants in itertools.islice(waiting, LIGHTEST_ROUNDS):
        found = solve(model.lightest(instants), seconds, axes=axes)
        if found.choice is None and found.status == "infeasible":
            raise InfeasibleError(f"the pins leave no plan on the mesh {problem.mesh}; relax one")
        if found.choice is None:
            continue
        instant, peak = model.peak(problem.states(found.choice))
        yield peak, found
        if (instant,) not in waiting:
            waiting.append((instant,))


def too_big(search: str, mesh: MeshSpec, least: int, budget: int, heaviest: str) -> InfeasibleError:
    """The honest 'no': bytes of the lightest plan found, and what fills them."""
    return InfeasibleError(
        f"no plan fits {format_bytes(budget)} a device: the least found on mesh {mesh} with "
        f"search={search!r} needs {format_bytes(least)}, at its peak above all for {heaviest}; "
        "give more memory, more devices or a smaller batch, or have activations recomputed: "
        "remat='auto' with search='optimal', or jax.checkpoint in the model",
        least,
        heaviest,
    )
