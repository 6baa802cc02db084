"""Solvers of cost function networks: toulbar2 (default), HiGHS (oracle, fallback), brute force.

All take a ``Network`` and give a ``Solution`` with an honest bound and status.
"""

from __future__ import annotations

import importlib.util
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from autopar.core.errors import OptionError
from autopar.search.network import FORBIDDEN, IntArray, Limit, Network, Solution
from autopar.search.shrink import shrink

Solver = Callable[[Network, float, int | None], Solution]
"""``solver(network, seconds, upper)``; ``upper`` is a cost already attained, or ``None``."""

WEIGHT_RESOLUTION = 20_000
"""A limit's weights are rounded up to its bound divided by this (0.005 %): exact enough, and the
solvers' arithmetic stays small."""


def solve(network: Network, seconds: float, solver: Solver | None = None) -> Solution:
    """Shrinks, solves what is left, and undoes the shrinking.

    Args:
      seconds: limit of the solver's own time; the best found so far is returned with its bound.
      solver: ``toulbar2`` where it is installed, else ``highs``.
    """
    smaller, undo = shrink(network)
    found = (solver or default_solver())(smaller, seconds, None)
    if found.choice is None:
        return found
    choice = undo(found.choice)
    cost = network.cost(choice)
    if cost >= FORBIDDEN // 2:
        return Solution(None, FORBIDDEN, found.bound, "infeasible")
    return Solution(choice, cost, found.bound, found.status)


def default_solver() -> Solver:
    return toulbar2 if importlib.util.find_spec("pytoulbar2") else highs


def toulbar2(network: Network, seconds: float, upper: int | None = None) -> Solution:
    """Exact branch and bound with soft local consistency (Hurley et al. 2016), by toulbar2."""
    if not network.unary:
        return Solution((), network.offset, network.offset, "optimal")
    import pytoulbar2

    cfn = pytoulbar2.CFN(upper, vac=1, seed=1)
    try:
        _post(cfn, network)
        found = cfn.Solve(timeLimit=max(1, math.ceil(seconds)))
    except (cfn.Contradiction, cfn.SolverOut):
        return Solution(None, FORBIDDEN, 0, "infeasible")
    bound = network.offset + math.ceil(cfn.GetDDualBound() - 0.5)
    if found is None:
        late = cfn.Limit is not None
        return Solution(None, FORBIDDEN, bound, "unknown" if late else "infeasible")
    choice = tuple(int(value) for value in found[0])
    cost = network.cost(choice)
    if cost >= FORBIDDEN // 2:
        return Solution(None, FORBIDDEN, bound, "infeasible")
    return Solution(choice, cost, min(bound, cost), "optimal" if bound >= cost else "feasible")


def _post(cfn: Any, network: Network) -> None:
    for i, costs in enumerate(network.unary):
        cfn.AddVariable(f"x{i}", range(len(costs)))
        cfn.AddFunction([i], costs.tolist())
    for pair, table in sorted(network.pairs.items()):
        cfn.AddFunction(list(pair), table.ravel().tolist())
    for limit in network.limits:
        _post_limit(cfn, limit)


def _post_limit(cfn: Any, limit: Limit) -> None:
    """``sum w <= bound`` as the solver's own text form of ``sum -w >= -bound``: posting it through
    the wrapper's list of triples is quadratic."""
    unit = max(1, limit.bound // WEIGHT_RESOLUTION)
    text = [str(-(limit.bound // unit))]
    scope = sorted(i for i, weights in limit.weights.items() if weights.any())
    for i in scope:
        scaled = [(value, -int(-w // unit)) for value, w in enumerate(limit.weights[i].tolist())]
        text.append(str(len(scaled)))
        text.extend(f"{value} {-weight}" for value, weight in scaled)
    if scope:
        cfn.CFN.wcsp.postKnapsackConstraint(scope, " ".join(text), kp=True)
    elif limit.bound < 0:
        raise cfn.Contradiction


def highs(network: Network, seconds: float, upper: int | None = None) -> Solution:
    r"""The same problem as an integer program, by HiGHS: $\min c^T z$ over indicators.

    One binary $z_{iv}$ per value, one $z_{ijvw} \ge 0$ per pair of values, with the marginals
    $\sum_w z_{ijvw} = z_{iv}$ (the local polytope; Koster et al. 1998).
    """
    del upper
    model = _IntegerProgram()
    starts = [model.columns(costs, integer=True) for costs in network.unary]
    for costs, start in zip(network.unary, starts, strict=True):
        model.row([(start + v, 1.0) for v in range(len(costs))], 1.0, 1.0)
    for (i, j), table in sorted(network.pairs.items()):
        pair = model.columns(table.ravel(), integer=False)
        rows, cols = table.shape
        for v in range(rows):
            terms = [(pair + v * cols + w, 1.0) for w in range(cols)]
            model.row([*terms, (starts[i] + v, -1.0)], 0.0, 0.0)
        for w in range(cols):
            terms = [(pair + v * cols + w, 1.0) for v in range(rows)]
            model.row([*terms, (starts[j] + w, -1.0)], 0.0, 0.0)
    for limit in network.limits:
        unit = max(limit.bound, 1)
        terms = [
            (starts[i] + v, float(weight) / unit)
            for i, weights in limit.weights.items()
            for v, weight in enumerate(weights)
        ]
        model.row(terms, -np.inf, limit.bound / unit)
    return _read_highs(network, model, starts, seconds)


class _IntegerProgram:
    """Rows and columns of a mixed integer program, gathered in order."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.integer: list[bool] = []
        self.entries: list[tuple[int, int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def columns(self, costs: IntArray, integer: bool) -> int:
        start = len(self.costs)
        self.costs.extend(costs.tolist())
        self.integer.extend([integer] * len(costs))
        return start

    def row(self, terms: list[tuple[int, float]], low: float, high: float) -> None:
        self.entries.extend((len(self.low), column, value) for column, value in terms)
        self.low.append(low)
        self.high.append(high)

    def solve(self, seconds: float):  # type: ignore[no-untyped-def]
        costs = np.array(self.costs)
        allowed = costs < FORBIDDEN / 2
        rows, cols, values = zip(*self.entries, strict=True)
        matrix = coo_array((values, (rows, cols)), shape=(len(self.low), len(costs)))
        return milp(
            np.where(allowed, costs, 0.0) / 1e6,  # milliseconds
            integrality=np.array(self.integer, int),
            bounds=Bounds(0.0, np.where(allowed, 1.0, 0.0)),
            constraints=LinearConstraint(matrix.tocsc(), np.array(self.low), np.array(self.high)),
            options={"time_limit": float(seconds), "mip_rel_gap": 0.0},
        )


def _read_highs(
    network: Network, model: _IntegerProgram, starts: list[int], seconds: float
) -> Solution:
    if not starts:
        return Solution((), network.offset, network.offset, "optimal")
    result = model.solve(seconds)
    if result.x is None:
        return Solution(None, FORBIDDEN, 0, "infeasible" if result.status == 2 else "unknown")
    choice = tuple(
        int(np.argmax(result.x[start : start + len(costs)]))
        for start, costs in zip(starts, network.unary, strict=True)
    )
    cost = network.cost(choice)
    if result.status == 0:
        return Solution(choice, cost, cost, "optimal")
    bound = network.offset + math.floor((result.mip_dual_bound or 0.0) * 1e6)
    return Solution(choice, cost, min(bound, cost), "feasible")


EXHAUSTIVE_LIMIT = 2_000_000


def exhaustive(network: Network, seconds: float = 0.0, upper: int | None = None) -> Solution:
    """Tries every assignment. The oracle of the tests: shares nothing with the other solvers.

    Raises:
      OptionError: more than ``EXHAUSTIVE_LIMIT`` assignments.
    """
    del seconds, upper
    sizes = [len(costs) for costs in network.unary]
    count = math.prod(sizes)
    if count > EXHAUSTIVE_LIMIT:
        raise OptionError(
            f"search='exhaustive' would try {count:.2g} assignments; it is for graphs of at most "
            f"{EXHAUSTIVE_LIMIT:,}. Use search='optimal', which proves the same optimum"
        )
    best, least = None, FORBIDDEN
    for choice in itertools.product(*(range(size) for size in sizes)):
        cost = network.cost(choice)
        if cost < min(least, FORBIDDEN // 2):
            best, least = choice, cost
    status = "infeasible" if best is None else "optimal"
    return Solution(best, least, least, status)


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
