"""Sharding and storage weighed together: the bound is below all that fits; plans get faster."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import numpy as np
import pytest

from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster
from autopar.models import preset
from autopar.passes.trace import Step, trace
from autopar.search import planner
from autopar.search.draft import Draft
from autopar.search.memory_prices import priced
from autopar.search.network import FORBIDDEN, TICK_S, Network
from autopar.search.options import Options
from autopar.search.planner import Candidate
from autopar.search.prepared import Prepared
from autopar.search.solve import solve
from autopar.search.storage_choice import choose
from autopar.search.storage_joint import Joint, binding
from autopar.search.storage_model import StorageModel

SHARES = (0.9, 0.75, 0.6)
"""Of the memory of the best plan."""


def gpt(layers: int, **overrides: Any) -> Step:
    workload = preset("gpt:tiny", layers=layers, **overrides)
    batch = workload.abstract_batch(64)
    return trace(workload.train_step, workload.abstract_state(batch), batch)


CASES = (
    ((8,), 2),
    pytest.param(((2, 4), 2), marks=pytest.mark.slow),
    pytest.param(((8,), 16), marks=pytest.mark.slow),
)


@pytest.fixture(scope="module", params=CASES, ids=str)
def draft(request: pytest.FixtureRequest) -> Draft:
    shape, layers = request.param
    options = Options(mesh=MeshSpec.of(shape), memory_bytes=2**62)
    step = gpt(layers, d_model=64, seq=64, vocab=256)
    prepared = Prepared.folded(step, Cluster.preset("h100", 8), options)
    assert (prepared.depth.fold is None) == (layers == 2)
    return Draft(prepared, planner.best(prepared, options), options, 0.0)


def others(draft: Draft, count: int) -> list[Draft]:
    """Good layouts: the best of costs that are off by up to a fifth."""
    problem, random = draft.found.problem, np.random.default_rng(0)
    found: list[Draft] = []
    for _ in range(count):
        off = [
            np.where(c < FORBIDDEN // 2, (c * random.uniform(0.8, 1.2, c.shape)).astype(int), c)
            for c in problem.network.unary
        ]
        choice = solve(Network(tuple(off), problem.network.pairs), 10.0).choice
        assert choice is not None
        found.append(laid(draft, choice))
    return found


def laid(draft: Draft, choice: tuple[int, ...]) -> Draft:
    """The plan of an assignment."""
    problem = draft.found.problem
    peak = draft.prepared.depth.memory_on(problem).peak(problem.states(choice))[1]
    solution = dataclasses.replace(
        draft.found.solution, choice=choice, cost=problem.network.cost(choice)
    )
    return dataclasses.replace(draft, found=Candidate(problem, solution, peak))


def test_the_bound_is_below_every_step_that_fits(draft: Draft) -> None:
    """Of layouts found for other costs, and of those found on the way, the best storage."""
    model = StorageModel.of(draft.prepared, draft.found, remat=True)
    every = [draft, *others(draft, 4)]
    tried, rises = 0, 0
    for share in SHARES:
        budget = share * model.peak
        first = choose(model.values, model.base, budget)
        memory = draft.prepared.depth.memory_on(draft.found.problem)
        found = first and binding(model, first.instants, memory.known, budget)
        if not found:
            continue
        joint = Joint(draft, model, found[0], time.monotonic() + 60)
        joint.search(budget, found[1])
        bound = joint.bound_s(budget)
        rises += bound > joint.points[0].least * TICK_S
        for one in (*every, *(other for other, _ in joint.drafts())):
            own = StorageModel.of(one.prepared, one.found, remat=True)
            best = choose(own.values, own.base, budget)
            if best is not None:
                tried += 1
                cost = one.found.solution.cost * TICK_S
                assert bound <= cost + best.seconds + 1e-12
    assert tried > len(every)
    assert rises, "no price raised the bound"


def test_priced_bytes_are_those_of_the_simulation(draft: Draft) -> None:
    """What a price of a byte adds to the cost of layouts is no more than they hold."""
    problem = draft.found.problem
    memory = draft.prepared.depth.memory_on(problem)
    for one in (draft, *others(draft, 4)):
        states, choice = one.states, one.found.solution.choice
        instant, peak = memory.peak(states)
        counted = priced(memory, instant, 1.0).cost(choice or ()) - one.found.solution.cost
        assert 0.5 * peak <= counted <= peak + memory.vmem_bytes
