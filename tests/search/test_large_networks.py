"""Networks too large to be solved whole: what is ruled out was not needed; parts find the best."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CHOICES, dense, random_network

from autopar.search.bounds import Messages
from autopar.search.network import FORBIDDEN, IntArray, Network
from autopar.search.solve import SMALL, solve
from autopar.search.solvers import Solver, descend, highs, toulbar2

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)


def every_axis() -> list[IntArray]:
    return [CHOICES] * 6


def swept(network: Network, sweeps: int) -> Messages:
    work = Messages(network)
    for turn in range(2 * sweeps):
        work.sweep(turn % 2 == 1)
    return work


@SETTINGS
@given(SEEDS, st.integers(0, 1000))
def test_the_optimum_is_never_ruled_out(seed: int, slack: int) -> None:
    network = dense(seed, limited=False)
    truth = toulbar2(network, 10)
    if truth.choice is None:
        return
    work = swept(network, 4)
    for _ in range(4):
        assert work.rule_out(truth.cost + slack)
        work.sweep(back=False)
        work.sweep(back=True)
    assert work.bound <= truth.cost
    assert all(value in kept for value, kept in zip(truth.choice, work.values, strict=True))
    assert toulbar2(work.left(), 10).cost == truth.cost


@SETTINGS
@given(SEEDS)
def test_what_is_ruled_out_whole_does_not_exist(seed: int) -> None:
    network = dense(seed, limited=False)
    truth = toulbar2(network, 10)
    work, before = swept(network, 8), network.entries
    while work.rule_out(truth.cost - 1) and work.entries < before:
        before = work.entries
        work.sweep(back=False)
        work.sweep(back=True)
    left = toulbar2(work.left(), 10, truth.cost - 1) if all(map(len, work.values)) else None
    assert left is None or left.status == "infeasible"


@SETTINGS
@given(SEEDS, st.booleans(), st.sampled_from([*[toulbar2] * 9, highs]))
def test_closing_in_finds_the_optimum_and_proves_it(
    seed: int, limited: bool, solver: Solver
) -> None:
    network = dense(seed, limited)
    truth = toulbar2(network, 10)
    found = solve(network, 10, solver, every_axis, small=10, large=10)
    if found.choice is None:  # blocks that find no way in prove nothing
        assert found.status == ("unknown" if limited else truth.status)
        return
    assert found.bound <= truth.cost <= found.cost == network.cost(found.choice)
    if found.status == "optimal":
        assert found.cost == truth.cost


def test_without_time_there_is_an_assignment_and_a_bound() -> None:
    seen: set[str] = set()
    for seed in range(20):
        network = dense(seed, limited=False)
        truth = toulbar2(network, 10)
        if truth.choice is None:
            continue
        found = solve(network, 1e-9, small=10)
        assert found.choice is not None
        assert 0 < found.bound <= truth.cost <= found.cost == network.cost(found.choice)
        seen.add(found.status)
    assert seen == {"stopped", "optimal"}


def test_without_time_it_is_no_dearer_than_what_does_the_same_on_all_axes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def poor(network: Network, start: list[int]) -> list[int]:
        """In networks so small what is decoded is never dearer, so take a dearer one."""
        rng = np.random.default_rng(0)
        sizes = [len(costs) for costs in network.unary]
        drawn = [start, *rng.integers(0, sizes, (300, len(sizes))).tolist()]
        return max(
            [one for one in drawn if network.cost(one) < FORBIDDEN // 2],
            key=network.cost,
            default=start,
        )

    monkeypatch.setattr("autopar.search.solve.descend", poor)
    better = 0
    for seed in range(20):
        network = dense(seed, limited=False)
        found = solve(network, 1e-9, small=10)
        tied = toulbar2(network.restricted([np.flatnonzero(np.ptp(CHOICES, axis=1) == 0)] * 6), 10)
        if found.status != "stopped" or tied.choice is None:
            continue
        with_axes = solve(network, 1e-9, axes=every_axis, small=10)
        assert with_axes.choice is not None
        assert with_axes.cost == network.cost(with_axes.choice) == min(found.cost, tied.cost)
        assert (with_axes.bound, with_axes.status) == (found.bound, "stopped")
        better += tied.cost < found.cost
    assert better


@settings(max_examples=25, deadline=None, derandomize=True)
@given(SEEDS, st.booleans(), st.sampled_from([(0, 0), (0, 10**6), (10**6, 0)]))
def test_only_what_is_better_than_a_known_cost_is_sought(
    seed: int, limited: bool, sizes: tuple[int, int]
) -> None:
    network, (small, large) = dense(seed, limited), sizes
    best = solve(network, 10.0)
    if best.choice is None:
        return
    again = solve(network, 10.0, None, every_axis, best.cost + 1, small, large)
    assert (again.cost, again.status) == (best.cost, "optimal")
    none = solve(network, 10.0, None, every_axis, best.cost, small, large)
    assert (none.choice, none.status) == (None, "infeasible")


def test_a_large_tree_leaves_nothing_to_bound() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 10**6, (2, 300, 300))
    network = Network((np.zeros(300, np.int64),) * 3, {(0, 1): first, (1, 2): second})
    assert network.entries > SMALL
    found = solve(network, 10)
    assert found.choice is not None
    assert found.status == "optimal"
    assert found.cost == network.cost(found.choice)
    assert found.cost == (first.min(axis=0) + second.min(axis=1)).min()


def test_a_solve_leaves_nothing_behind_for_the_next() -> None:
    """In the first, toulbar2 changes an option by itself; kept, it made the second wrong."""
    second = random_network(4, limits=1, forbidden=0.05, most=20, density=0.25)
    want = highs(second, 30).cost
    for seed in range(8):
        solve(dense(seed, limited=seed % 2 == 1), 10, toulbar2, every_axis, small=10, large=10)
        assert solve(second, 10, toulbar2).cost == want


def test_a_bound_alone_is_close_and_so_is_what_is_decoded() -> None:
    below: list[float] = []
    above: list[float] = []
    for seed in range(20):
        network = dense(seed, limited=False)
        truth = toulbar2(network, 10)
        work = swept(network, 20)
        found = descend(network, work.decoded(back=False))
        work.rule_out(truth.cost)
        below.append(1 - work.bound / truth.cost)
        above.append(network.cost(found) / truth.cost - 1)
    assert np.median(below) < 0.5
    assert min(above) == 0 < np.median(above) < 0.3
