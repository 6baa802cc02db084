"""Cost function networks: three solvers that share nothing agree, and shrinking loses nothing."""

from __future__ import annotations

import dataclasses
import os

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import random_network

from autopar.core.errors import OptionError
from autopar.search import integer_program
from autopar.search.network import FORBIDDEN, IntArray, Limit, Network, add_pair, times, to_ticks
from autopar.search.shrink import shrink
from autopar.search.solve import random_choice, solve
from autopar.search.solvers import EXHAUSTIVE_LIMIT, exhaustive, highs, toulbar2

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)


networks = st.builds(
    random_network,
    st.integers(0, 2**32 - 1),
    limits=st.integers(0, 2),
    forbidden=st.sampled_from([0.0, 0.1, 0.3, 0.6]),
)


@SETTINGS
@given(networks)
def test_toulbar2_equals_exhaustive(network: Network) -> None:
    truth = exhaustive(network)
    found = toulbar2(network, 10)
    assert (found.status, found.cost) == (truth.status, truth.cost)
    if truth.choice is not None:
        assert found.choice is not None
        assert network.cost(found.choice) == found.cost == found.bound


@SETTINGS
@given(networks)
def test_highs_equals_exhaustive(network: Network) -> None:
    truth = exhaustive(network)
    found = highs(network, 10)
    assert (found.status, found.cost) == (truth.status, truth.cost)
    if truth.choice is not None:
        assert found.choice is not None
        assert network.cost(found.choice) == found.cost == found.bound


@SETTINGS
@given(networks)
def test_solve_equals_exhaustive_whatever_the_solver(network: Network) -> None:
    truth = exhaustive(network)
    for solver in (exhaustive, toulbar2, highs):
        found = solve(network, 10, solver)
        assert (found.status, found.cost) == (truth.status, truth.cost), solver.__name__


@settings(max_examples=300, deadline=None, derandomize=True)
@given(networks)
def test_shrink_keeps_the_optimum(network: Network) -> None:
    truth = exhaustive(network)
    smaller, undo = shrink(network)
    found = exhaustive(smaller)
    assert found.status == truth.status
    if found.choice is not None:
        assert network.cost(undo(found.choice)) == found.cost == truth.cost


@settings(max_examples=100, deadline=None, derandomize=True)
@given(networks, st.data())
def test_undo_never_costs_more_than_the_shrunk_choice(
    network: Network, data: st.DataObject
) -> None:
    """Any allowed assignment of the shrunk network, not just the best, is one of the original."""
    smaller, undo = shrink(network)
    choice = tuple(data.draw(st.integers(0, len(costs) - 1)) for costs in smaller.unary)
    cost = smaller.cost(choice)
    if cost < FORBIDDEN // 2:
        assert network.cost(undo(choice)) == cost


@settings(max_examples=50, deadline=None, derandomize=True)
@given(networks)
def test_shrink_is_idempotent_and_settles_trees(network: Network) -> None:
    smaller, _ = shrink(network)
    again, _ = shrink(smaller)
    assert [len(c) for c in again.unary] == [len(c) for c in smaller.unary]
    chain = {(i, j): t for (i, j), t in network.pairs.items() if j == i + 1}
    tree = dataclasses.replace(network, pairs=chain, limits=())
    assert shrink(tree)[0].unary == ()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks)
def test_costs_of_seconds_are_bounded_honestly(network: Network) -> None:
    """Beyond ``RESOLUTIONS`` toulbar2 rounds down: its bound must hold for the exact costs."""
    large = dataclasses.replace(
        network,
        unary=tuple(_enlarge(costs) for costs in network.unary),
        pairs={pair: _enlarge(table) for pair, table in network.pairs.items()},
    )
    truth, found = exhaustive(large), toulbar2(large, 10)
    assert found.status == truth.status
    if truth.choice is not None:
        assert found.choice is not None
        assert found.bound <= truth.cost <= found.cost == large.cost(found.choice)
        assert found.cost - found.bound <= 1e-4 * found.cost


def _enlarge(costs: IntArray) -> IntArray:
    """Nanoseconds to half milliseconds, give or take, so that rounding has something to lose."""
    return np.where(costs >= FORBIDDEN // 2, FORBIDDEN, costs * 499_979 + costs % 7)


@pytest.mark.parametrize("unproven", [1e-3, 1e-4])
@pytest.mark.parametrize("seed", [4, 7, 9])
def test_a_bound_under_limits_leaves_out_what_is_unproven(seed: int, unproven: float) -> None:
    """Assignments nearly as good as each other: what was found first is not proven the best."""
    rng = np.random.default_rng(seed)
    count, size = 14, 16

    def costs(*shape: int) -> IntArray:
        return 10**8 + rng.integers(0, 10**6, shape)

    pairs = {
        (i, j): costs(size, size)
        for i in range(count)
        for j in range(i + 1, count)
        if rng.random() < 0.5
    }
    weights = {i: rng.integers(0, 10**9, size) for i in range(count)}
    least = sum(int(w.min()) for w in weights.values())
    limit = Limit(weights, (least + sum(int(w.mean()) for w in weights.values())) // 2)
    network = Network(tuple(costs(size) * 3 for _ in range(count)), pairs, (limit,))
    found = best = toulbar2(network, 20, None, unproven)
    while (better := toulbar2(network, 20, best.cost - 1, unproven)).cost < best.cost:
        best = better
    assert found.bound <= best.cost <= found.cost
    assert found.cost - found.bound <= 2 * unproven * found.cost


@pytest.mark.parametrize("seed", range(6))
def test_larger_networks(seed: int) -> None:
    """Twenty variables: beyond brute force, so HiGHS is the oracle of toulbar2."""
    network = random_network(seed, limits=seed % 3, forbidden=0.05, most=20, density=0.25)
    left, right = solve(network, 10, toulbar2), solve(network, 30, highs)
    assert left.status == right.status != "unknown"
    assert left.cost == right.cost
    if left.choice is not None:
        assert left.bound == left.cost


IMPOSSIBLE = {
    "a value of its own": Network((np.array([FORBIDDEN, FORBIDDEN]),), {}),
    "a pair": Network(
        (np.zeros(2, np.int64), np.zeros(2, np.int64)), {(0, 1): np.full((2, 2), FORBIDDEN)}
    ),
    "a triangle": Network(  # each differs from each, with two values for three
        (np.zeros(2, np.int64),) * 3,
        {p: np.diag([FORBIDDEN, FORBIDDEN]) for p in ((0, 1), (0, 2), (1, 2))},
    ),
    "a limit": Network(
        (np.array([1, 2]), np.array([1, 2])),
        {},
        (Limit({0: np.array([3, 4]), 1: np.array([3, 4])}, 5),),
    ),
    "a limit below nothing": Network((np.array([1, 2]),), {}, (Limit({}, -1),)),
    "two limits together": Network(
        (np.array([0, 0]),),
        {},
        (Limit({0: np.array([0, 9])}, 5), Limit({0: np.array([9, 0])}, 5)),
    ),
}


@pytest.mark.parametrize("solver", [exhaustive, toulbar2, highs])
@pytest.mark.parametrize("why", IMPOSSIBLE)
def test_impossible_networks_are_infeasible(why: str, solver) -> None:
    for found in (solver(IMPOSSIBLE[why], 10), solve(IMPOSSIBLE[why], 10, solver)):
        assert (found.status, found.choice) == ("infeasible", None)


@pytest.mark.parametrize("solver", [exhaustive, toulbar2, highs])
def test_a_limit_changes_the_answer(solver) -> None:
    costs = (np.array([0, 10]), np.array([0, 7]))
    weights = {0: np.array([5, 0]), 1: np.array([5, 0])}
    assert solve(Network(costs, {}), 10, solver).choice == (0, 0)
    assert solve(Network(costs, {}, (Limit(weights, 9),)), 10, solver).choice == (0, 1)
    assert solve(Network(costs, {}, (Limit(weights, 4),)), 10, solver).choice == (1, 1)


@pytest.mark.parametrize("solver", [exhaustive, toulbar2, highs])
def test_bytes_in_a_limit_are_exact_enough(solver) -> None:
    """Budgets are of the order of 1e10 bytes: what is 1 % over must not slip through."""
    weights = {0: np.array([9 * 2**30, 1]), 1: np.array([7 * 2**30, 1])}
    network = Network(
        (np.array([0, 10]), np.array([0, 7])), {}, (Limit(weights, int(15.8 * 2**30)),)
    )
    assert solve(network, 10, solver).choice == (0, 1)
    roomy = dataclasses.replace(network, limits=(Limit(weights, int(16.2 * 2**30)),))
    assert solve(roomy, 10, solver).choice == (0, 0)


def test_no_variables() -> None:
    empty = Network((), {}, offset=7)
    for solver in (exhaustive, toulbar2, highs):
        assert solve(empty, 10, solver) == solver(empty, 10)
        assert (solve(empty, 10, solver).cost, solve(empty, 10, solver).status) == (7, "optimal")


def test_exhaustive_says_when_there_is_too_much() -> None:
    network = Network((np.zeros(10, np.int64),) * 7, {})
    assert EXHAUSTIVE_LIMIT < 10**7
    with pytest.raises(OptionError, match=r"exhaustive' would try 1e\+07.*search='optimal'"):
        exhaustive(network)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(networks, st.integers(0, 100))
def test_random_choice_is_allowed_and_repeats(network: Network, seed: int) -> None:
    found = random_choice(network, seed)
    assert found == random_choice(network, seed)
    truth = exhaustive(network)
    if truth.choice is None:
        assert (found.choice, found.status) == (None, "infeasible")
    else:
        assert found.choice is not None
        assert found.cost == network.cost(found.choice) < FORBIDDEN // 2
        assert found.bound <= truth.cost <= found.cost


def test_random_choice_draws_from_its_seed() -> None:
    network = Network(tuple(np.arange(4) for _ in range(8)), {})
    drawn = {random_choice(network, seed).choice for seed in range(10)}
    assert len(drawn) > 5


def test_ticks() -> None:
    assert to_ticks(np.array([0.0, 1e-9, 1.5e-3, np.inf])).tolist() == [
        0,
        1,
        1_500_000,
        FORBIDDEN,
    ]
    assert to_ticks(np.array([1e12])).tolist() == [FORBIDDEN]


def test_add_pair_in_either_order() -> None:
    table = np.array([[1, 2, 3], [4, 5, FORBIDDEN]])
    pairs: dict[tuple[int, int], IntArray] = {}
    add_pair(pairs, 0, 1, table)
    add_pair(pairs, 1, 0, table.T)
    assert pairs[0, 1].tolist() == [[2, 4, 6], [8, 10, FORBIDDEN]]


def test_what_is_forbidden_stays_so_however_often() -> None:
    costs = np.array([0, 7, FORBIDDEN])
    assert times(costs, 20_000).tolist() == [0, 140_000, FORBIDDEN]


def test_what_highs_prints_is_not_among_results(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def talkative(*_: object) -> str:
        os.write(1, b"tmpSolver.run();\n")
        return "solved"

    monkeypatch.setattr(integer_program, "milp", talkative)
    os.write(1, b"before\n")
    assert integer_program.solved([1.0]) == "solved"
    os.write(1, b"after\n")
    assert capfd.readouterr() == ("before\nafter\n", "")
