"""Networks too large to be solved whole: what is ruled out was not needed; parts find the best."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import CHOICES, dense, random_network

from autopar.search.bounds import tightened
from autopar.search.solve import solve
from autopar.search.solvers import highs, toulbar2

SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
SEEDS = st.integers(0, 2**32 - 1)


@SETTINGS
@given(SEEDS, st.integers(0, 1000))
def test_the_optimum_is_never_ruled_out(seed: int, slack: int) -> None:
    network = dense(seed, limited=False)
    truth = toulbar2(network, 10)
    if truth.choice is None:
        return
    rest = tightened(network, truth.cost + slack, 0, 0.05)
    assert rest.bound <= truth.cost
    assert all(value in kept for value, kept in zip(truth.choice, rest.values, strict=True))
    assert toulbar2(rest.network, 10).cost == truth.cost


@SETTINGS
@given(SEEDS, st.booleans())
def test_parts_find_the_optimum_and_prove_it(seed: int, limited: bool) -> None:
    network = dense(seed, limited)
    truth = toulbar2(network, 10)
    found = solve(network, 10, toulbar2, [CHOICES] * 6, large=10)
    if found.choice is None:
        assert found.status == "unknown"  # blocks found no way in; they prove nothing
        return
    assert found.bound <= truth.cost <= found.cost == network.cost(found.choice)
    if found.status == "optimal":
        assert found.cost == truth.cost


def test_a_solve_leaves_nothing_behind_for_the_next() -> None:
    """In the first, toulbar2 changes an option by itself; kept, it made the second wrong."""
    second = random_network(4, limits=1, forbidden=0.05, most=20, density=0.25)
    want = highs(second, 30).cost
    for seed in range(8):
        solve(dense(seed, limited=seed % 2 == 1), 10, toulbar2, [CHOICES] * 6, large=10)
        assert solve(second, 10, toulbar2).cost == want


def test_a_bound_alone_is_close() -> None:
    gaps: list[float] = []
    for seed in range(20):
        network = dense(seed, limited=False)
        truth = toulbar2(network, 10)
        gaps.append(1 - tightened(network, truth.cost, 0, 0.2).bound / truth.cost)
    assert np.median(gaps) < 0.5
