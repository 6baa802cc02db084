"""Solvers of cost function networks: toulbar2 (default), HiGHS (oracle, fallback), brute force.

All give a ``Solution`` with an honest bound and status. ``solve.py`` is what the search calls.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import itertools
import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from autopar.core.errors import OptionError
from autopar.search.integer_program import HIGHS_TICKS, IntegerProgram
from autopar.search.network import FORBIDDEN, IntArray, Limit, Network, Solution

Solver = Callable[[Network, float, int | None, float], Solution]
"""``solver(network, seconds, upper, unproven)``: the best it finds in that time, with its bound. It
may leave out what costs more than ``upper``; ``infeasible`` is then that nothing costs less or as
much. Such a share of the cost may stay unproven under limits."""

WEIGHT_RESOLUTION = 20_000
"""A limit's weights are rounded up to its bound divided by this (0.005 %); with a tenth of that a
proof was seen to take seven times as long."""


def default_solver() -> Solver:
    """``toulbar2`` where it is installed, else ``highs``."""
    return toulbar2 if importlib.util.find_spec("pytoulbar2") else highs


RESOLUTIONS = (20_000, 5_000_000)
"""Units into which toulbar2's objective is divided, pass by pass: the first finds a plan, the last
proves it or betters it. Its bounds tighten by halving a threshold, so whole nanoseconds cost 20 s
where this costs 0.4; and a good plan to beat saves nine tenths where most costs are latencies."""

FIRST = 1e-3
"""Share of the objective that may stay unproven, at least, where any plan is welcome."""

EXACT = 10_000
"""Table entries of a network with limits up to which nothing stays unproven."""

TRWS_ACCURACY = 1e-3
"""Relative progress of message passing at which the search begins; ten times that where the search
has yet to find a plan."""


def toulbar2(
    network: Network, seconds: float, upper: int | None = None, unproven: float = 0.0
) -> Solution:
    """Branch and bound with soft local consistency (Hurley et al. 2016), by toulbar2.

    Costs are rounded *down* to a unit, a share of the objective, so the bound holds for the exact
    costs too; the choice found is then improved under the exact costs. ``optimal`` means proven
    best under the rounded costs; ``bound`` says what that leaves open. Of a small network nothing
    stays ``unproven``.
    """
    if not network.unary:
        return Solution((), network.offset, network.offset, "optimal")
    if upper is not None:  # a plan to beat, if not the plan itself
        most = upper - network.offset
        unit = max(1, most // RESOLUTIONS[-1])
        return _pass(network, unit, None, most // unit, seconds, unproven)
    start = descend(network, [int(costs.argmin()) for costs in network.unary])
    deadline = time.monotonic() + seconds
    best, bound = Solution(None, FORBIDDEN, 0, "unknown"), 0
    for turn, resolution in enumerate(RESOLUTIONS):
        unit = max(1, _in_units(network, best.choice or start, 1) // resolution)
        left = (deadline - time.monotonic()) / (len(RESOLUTIONS) - turn)
        most = None if best.choice is None else _in_units(network, best.choice, unit)
        share = max(unproven, 0.0 if turn else FIRST)
        best = _pass(network, unit, best.choice, most, left, share)
        bound = max(bound, best.bound)
        if best.status == "infeasible" or unit == 1:
            break
    return dataclasses.replace(best, bound=min(bound, best.cost))


def _pass(
    network: Network,
    unit: int,
    known: tuple[int, ...] | None,
    most: int | None,
    seconds: float,
    unproven: float,
) -> Solution:
    """One run of toulbar2, costs in ``unit``, for what costs no more than ``most`` of them;
    ``known`` is an assignment that does.
    """
    import pytoulbar2

    limit_s = max(1, math.ceil(seconds))
    began = time.process_time()
    # Options outlive a network; one that toulbar2 had set by itself made the next solve wrong.
    importlib.import_module("pytoulbar2.pytb2").init()
    scale = RESOLUTIONS[0] if most is None else most
    close = int(unproven * scale) if network.limits and network.entries > EXACT else 0
    # It looks for nothing that is less than ``close`` better than what it has.
    cfn = pytoulbar2.CFN(None if most is None else most + 1 + close, vac=1, seed=1)
    cfn.Option.absgap = close
    cfn.Option.trwsAccuracy = TRWS_ACCURACY * (10 if most is None else 1)
    try:
        _post(cfn, network, unit)
        found = cfn.Solve(timeLimit=limit_s)
    except cfn.Contradiction:
        return Solution(None, FORBIDDEN, 0, "infeasible")
    except cfn.SolverOut:
        return Solution(None, FORBIDDEN, 0, "unknown")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)  # its timer would go on, and end the process
    ended = time.process_time() - began < limit_s  # nothing else stops it; it counts so too
    bound = network.offset + math.ceil(cfn.GetDDualBound() - 0.5) * unit
    if found is None and known is None:
        return Solution(None, FORBIDDEN, bound, "infeasible" if ended else "unknown")
    rounded = network.offset + round(found[1] if found else most or 0) * unit
    proven = rounded - close * unit  # what is nearer has been given up, and counts as searched
    # At the end of its search what it reports may be older.
    bound = proven if ended else min(bound, proven)
    choice = descend(network, [int(value) for value in found[0]] if found else known or ())
    cost = network.cost(choice)
    if cost >= FORBIDDEN // 2:
        return Solution(None, FORBIDDEN, bound, "infeasible")
    status = "optimal" if bound >= rounded else "feasible" if ended else "stopped"
    return Solution(choice, cost, min(bound, cost), status)


def _in_units(network: Network, choice: Sequence[int], unit: int) -> int:
    """The objective in units, term by term, without its constant and what is forbidden."""
    terms = [int(costs[value]) for costs, value in zip(network.unary, choice, strict=True)]
    terms += [int(table[choice[i], choice[j]]) for (i, j), table in network.pairs.items()]
    return sum(term // unit for term in terms if term < FORBIDDEN // 2)


_NEVER = 1000 * FORBIDDEN
"""More than any sum of forbidden costs."""


def descend(network: Network, start: Sequence[int]) -> tuple[int, ...]:
    """Improves one variable at a time until none can (iterated conditional modes; Besag 1986)."""
    choice = list(start)
    around: list[list[tuple[int, IntArray]]] = [[] for _ in choice]
    for (i, j), table in network.pairs.items():
        around[i].append((j, table))
        around[j].append((i, table.T))
    loads = [sum(int(w[choice[i]]) for i, w in lim.weights.items()) for lim in network.limits]
    improved = True
    while improved:
        improved = False
        for i, costs in enumerate(network.unary):
            total = costs + sum(table[:, choice[j]] for j, table in around[i])
            for limit, load in zip(network.limits, loads, strict=True):
                if i in limit.weights:
                    after = load + limit.weights[i] - limit.weights[i][choice[i]]
                    total = np.where(after > max(limit.bound, load), _NEVER, total)
            best = int(total.argmin())
            if total[best] < total[choice[i]]:
                for k, limit in enumerate(network.limits):
                    if i in limit.weights:
                        loads[k] += int(limit.weights[i][best] - limit.weights[i][choice[i]])
                choice[i] = best
                improved = True
    return tuple(choice)


def _post(cfn: Any, network: Network, unit: int) -> None:
    for i, costs in enumerate(network.unary):
        cfn.AddVariable(f"x{i}", range(len(costs)))
        cfn.AddFunction([i], (costs // unit).tolist())
    for pair, table in sorted(network.pairs.items()):
        cfn.AddFunction(list(pair), (table // unit).ravel().tolist())
    for limit in network.limits:
        _post_limit(cfn, limit)


def _post_limit(cfn: Any, limit: Limit) -> None:
    """``sum w <= bound`` as the solver's own text form of ``sum -w >= -bound``: posting it through
    the wrapper's list of triples is quadratic.
    """
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


def highs(
    network: Network, seconds: float, upper: int | None = None, unproven: float = 0.0
) -> Solution:
    r"""The same problem as an integer program, by HiGHS: $\min c^T z$ over indicators.

    One binary $z_{iv}$ per value, one $z_{ijvw} \ge 0$ per pair of values, with the marginals
    $\sum_w z_{ijvw} = z_{iv}$ (the local polytope; Koster et al. 1998).
    """
    del upper, unproven
    model = IntegerProgram()
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


def _read_highs(
    network: Network, model: IntegerProgram, starts: list[int], seconds: float
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
    bound = network.offset + math.floor((result.mip_dual_bound or 0.0) * HIGHS_TICKS)
    return Solution(choice, cost, min(bound, cost), "stopped")


EXHAUSTIVE_LIMIT = 2_000_000


def exhaustive(
    network: Network, seconds: float = 0.0, upper: int | None = None, unproven: float = 0.0
) -> Solution:
    """Tries every assignment. The oracle of the tests: shares nothing with the other solvers.

    Raises:
      OptionError: more than ``EXHAUSTIVE_LIMIT`` assignments.
    """
    del seconds, upper, unproven
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
