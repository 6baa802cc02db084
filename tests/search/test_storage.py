"""What to recompute: the choice against brute force, and whole plans that carry it out."""

from __future__ import annotations

import itertools
import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import Var

import autopar
from autopar.core import compat
from autopar.core.errors import InfeasibleError, OptionError
from autopar.core.plan_json import from_json, to_json
from autopar.cost_model import fusion_borders
from autopar.models import preset
from autopar.passes.trace import trace
from autopar.search import planner
from autopar.search.options import Options
from autopar.search.prepared import Prepared
from autopar.search.programs import search
from autopar.search.storage_attempt import Room
from autopar.search.storage_choice import Choice, choose
from autopar.search.storage_model import StorageModel
from autopar.search.storage_names import dropped_names
from autopar.search.storage_program import Link
from autopar.search.storage_values import Value


def chain(n: int, seed: int) -> tuple[list[Value], np.ndarray[Any, Any]]:
    """Checkmate's chain: each value is made of the one before; backward reads come in reverse."""
    rng = random.Random(seed)

    def value(i: int) -> Value:
        size = rng.randint(1, 9)
        var: Var = compat.new_var(jax.core.ShapedArray((1,), jnp.float32))
        return Value(
            *(var, str(i), "", (str(i),), (i - 1,) if i else ()),
            *(size, rng.randint(1, size), float(rng.randint(1, 9)), 1, i, i + 1, ""),
            first=2 * n - i,
            last=2 * n - i,
        )

    values = [value(i) for i in range(n)]
    base = np.ones(2 * n + 2)
    for one in values:
        base[one.start : one.last_forward + 1] += one.bytes
    return values, base


def peak(values: list[Value], base: Any, again: frozenset[int]) -> float:
    """Bytes of a choice, simulated instant by instant: runs of recomputed values run together."""
    live = np.array(base)
    for i, one in enumerate(values):
        start = one.last_forward + 1
        if i in again:
            last = i
            while last + 1 in again:
                last += 1
            start = values[last].first
        live[start : one.last + 1] += one.again if i in again else one.bytes
        for first, last, size in one.beside if i in again else ():
            live[first : last + 1] += size
    return float(live.max())


def brute(values: list[Value], base: Any, budget: float) -> float | None:
    """The least cost within the budget, of all choices."""
    best = None
    for bits in itertools.product((False, True), repeat=len(values)):
        again = frozenset(i for i, bit in enumerate(bits) if bit)
        if peak(values, base, again) <= budget:
            cost = sum(values[i].seconds for i in again)
            best = cost if best is None else min(best, cost)
    return best


def least(values: list[Value], base: Any, budget: float) -> float | None:
    """The same for chains of any length, by a dynamic program over what is kept so far.

    While the backward pass is at a value, what is kept up to it is there, and of the run that it is
    recomputed in, all up to it. So a chain is kept values, and runs between them; of all before,
    only the bytes kept matter.
    """
    n = len(values)
    found: list[dict[tuple[float, bool], float]] = [{} for _ in range(n + 1)]
    found[0][0.0, False] = 0.0

    def note(place: int, held: float, in_run: bool, cost: float) -> None:
        found[place][held, in_run] = min(cost, found[place].get((held, in_run), np.inf))

    def fits(i: int, held: float, again: float) -> bool:
        """In the forward pass, once nothing there reads value ``i``, and when the gradient is."""
        return max(held + base[i + 2], held + again + base[2 * n - i]) <= budget

    for i in range(n):
        for (held, after_run), cost in found[i].items():
            if fits(i, held + values[i].bytes, 0):
                note(i + 1, held + values[i].bytes, False, cost)
            again, seconds = 0.0, cost
            for last in range(i, 0 if after_run else n):  # two runs in a row would be one
                again, seconds = again + values[last].again, seconds + values[last].seconds
                if not fits(last, held, again):
                    break
                note(last + 1, held, True, seconds)
    return min(found[n].values(), default=None) if base.max() <= budget else None


SHARES = (1.0, 0.8, 0.6, 0.5, 0.4)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 10])
def test_the_dynamic_program_is_as_good_as_brute_force(n: int) -> None:
    """The two oracles of the tests share nothing but the chain."""
    for seed, share in itertools.product(range(4), SHARES):
        values, base = chain(n, seed)
        budget = share * peak(values, base, frozenset())
        assert least(values, base, budget) == brute(values, base, budget)


@pytest.mark.parametrize(
    ("n", "seeds"),
    [
        *((n, 3) for n in (2, 4, 7, 10)),
        *((n, 1) for n in (16, 24, 32)),
        *(pytest.param(n, 4, marks=pytest.mark.slow) for n in range(11, 33)),
    ],
)
def test_chains_are_solved_as_well_as_by_exhaustion(n: int, seeds: int) -> None:
    """Checkmate's: 2 to 32 values, at budgets of 100 to 40 % of what keeping all takes."""
    for seed, share in itertools.product(range(seeds), SHARES):
        values, base = chain(n, seed)
        budget = share * peak(values, base, frozenset())
        wanted, found = least(values, base, budget), choose(values, base, budget)
        if wanted is None:
            assert found is None
            continue
        assert found is not None
        assert found.seconds == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        assert found.peak == peak(values, base, frozenset(found.recomputed)) <= budget


def test_what_else_recomputing_changes_is_counted() -> None:
    rng = random.Random(0)
    for seed, share in itertools.product(range(8), SHARES):
        values, base = chain(6, seed)
        for one in values:
            size = rng.randint(1, 3)  # less in memory for a while, then more for a shorter one
            one.beside = (one.last_forward, one.last, -size), (one.last, one.last, size + 1)
        base += sum(3 for _ in values)
        budget = share * peak(values, base, frozenset())
        wanted, found = brute(values, base, budget), choose(values, base, budget)
        assert (found is None) == (wanted is None)
        if found is not None:
            assert found.seconds == pytest.approx(wanted, rel=1e-3, abs=1e-5)
            assert found.peak == peak(values, base, frozenset(found.recomputed)) <= budget


MEBI, TRIPS, WINDOW = 2**20, 4, 3.0


def brute_with_host(values: list[Value], base: Any, budget: float, room: float) -> float | None:
    """The least cost of keeping (0), recomputing (1) or offloading (2) each, of all choices."""
    best = None
    for chosen in itertools.product(range(3), repeat=len(values)):
        again = frozenset(i for i, way in enumerate(chosen) if way == 1)
        live, crossing = np.array(base), 0.0
        for i, (one, way) in enumerate(zip(values, chosen, strict=True)):
            last = next(j for j in range(i, len(values) + 1) if j + 1 not in again)
            start = values[last].first if way == 1 else one.start
            live[start : one.last + 1] += (TRIPS * one.bytes, one.again, 2 * one.bytes)[way]
            crossing += TRIPS * one.bytes / MEBI if way == 2 else 0.0
        if live.max() <= budget and crossing <= room:
            cost = sum(TRIPS * values[i].seconds for i in again)
            cost += crossing + max(0.0, crossing - WINDOW)
            best = cost if best is None else min(best, cost)
    return best


def test_a_loop_with_a_host_is_solved_as_well_as_by_brute_force() -> None:
    """Every byte crosses twice; of copying out, what is no longer than the loop costs nothing."""
    fits = 0
    for seed, share, room in itertools.product(range(4), (0.9, 0.7, 0.5), (4.0, 100.0)):
        values, base = chain(5, seed)
        for one in values:
            one.bytes, one.again = one.bytes * MEBI, one.again * MEBI
            one.body, one.trips = "0/body/", TRIPS
        budget = share * (base.max() + TRIPS * sum(one.bytes for one in values))
        wanted = brute_with_host(values, base, budget, room)
        link = Link(float(MEBI), room * MEBI, {"0/body/": WINDOW})
        found = choose(values, base, budget, link)
        assert (found is None) == (wanted is None)
        if found is not None:
            assert found.seconds == pytest.approx(wanted, rel=1e-3, abs=1e-5)
            fits += bool(found.away)
    assert fits > 3


LAYERS = 4


def step(params: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    def loss(p: Any) -> jax.Array:
        y = x
        for w in p:
            hidden = jnp.tanh(y @ w)
            y = y + jnp.sin(hidden) @ w.T
        return jnp.mean(y**2)

    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


def scan_step(params: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    """The same as a loop."""

    def loss(p: Any) -> jax.Array:
        body = lambda y, w: (y + jnp.sin(jnp.tanh(y @ w)) @ w.T, None)  # noqa: E731
        return jnp.mean(jax.lax.scan(body, x, p)[0] ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    return params - 0.1 * grads, value


def arguments() -> tuple[Any, jax.Array]:
    keys = jax.random.split(jax.random.key(0), LAYERS)
    return [jax.random.normal(k, (16, 64)) / 8 for k in keys], jnp.ones((256, 16))


def plan(share: float, cluster: str = "cpu:1", **options: Any) -> autopar.Plan:
    """A plan for ``share`` of the memory that the fastest one needs."""
    args = arguments()
    target = autopar.cost_model.parse_cluster(cluster)
    free = autopar.plan(step, *args, cluster=target, memory=2**40, **options)
    budget = int(free.predicted.peak_bytes * share)
    return autopar.plan(step, *args, cluster=target, memory=budget, **options)


def test_what_fits_is_left_alone() -> None:
    assert not plan(1.0).recompute


def test_what_does_not_fit_is_recomputed_and_the_plan_says_so() -> None:
    found = plan(0.8)
    assert found.recompute
    assert found.recomputed
    assert "recomputed" in str(found)
    assert found.solver.status == "feasible"
    assert found.solver.bound_s < found.solver.objective_s
    assert from_json(to_json(found)) == found


def test_what_is_proven_on_one_device_is_more_than_that_all_memory_would_not_be_enough() -> None:
    free, found = plan(1.0).solver, plan(0.8).solver
    assert free.objective_s < found.bound_s <= found.objective_s


def test_the_next_choice_has_what_the_last_one_left_or_half_of_what_is_between() -> None:
    def took(peak: float) -> Choice:
        return Choice((), (), (), 0.0, 0.0, peak)

    room = Room(budget=100.0, next=100.0)
    room.learn(took(96.0), needed=105.0)
    assert room.next == 91.0
    room.learn(took(91.0), needed=92.0)
    assert room.next == 93.5  # 99 would be more than what is known to be too much
    room.learn(took(93.0), needed=110.0)
    assert room.next == 92.0


def test_a_choice_that_fits_leaves_the_next_somewhat_less_than_it_left_free() -> None:
    room = Room(budget=100.0, next=100.0)
    room.learn(Choice((), (), (), 0.0, 0.0, 98.0), needed=50.0)
    assert 98.0 < room.next < room.whole == 148.0


def test_a_budget_below_the_least_names_what_fills_it() -> None:
    with pytest.raises(
        InfeasibleError, match=r"least found on mesh .* needs .*above all for \w+ \("
    ):
        plan(0.05)


def test_none_recomputes_nothing() -> None:
    with pytest.raises(InfeasibleError):
        plan(0.8, remat="none")
    with pytest.raises(OptionError, match="remat='some' is not offered"):
        plan(0.8, remat="some")


@pytest.mark.parametrize("backend", ["jit", "shard_map"])
def test_eight_devices_agree_with_one(backend: str) -> None:
    found = plan(0.8, "cpu:8", pins={"params/.*": jax.P(), "x": jax.P("data")}, mesh={"data": 8})
    assert found.recompute
    wanted = jax.jit(step)(*arguments())
    args = arguments()
    got = autopar.apply(step, found, backend=backend)(*args)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def attend(w: Any, x: jax.Array) -> tuple[Any, jax.Array]:
    """Two rounds of self-attention; rows of 64."""

    def loss(w: Any) -> jax.Array:
        y = x
        for layer in w:
            scores = jnp.einsum("bqd,bkd->bqk", y @ layer, y)
            scores = scores.astype(jnp.float32) * 2
            y = jnp.einsum("bqk,bkd->bqd", jax.nn.softmax(scores), y)
            y = y.astype(x.dtype)
        return jnp.mean(y.astype(jnp.float32) ** 2)

    value, grads = jax.value_and_grad(loss)(w)
    return jax.tree.map(lambda p, g: p - 0.1 * g, w, grads), value


def test_a_softmax_is_recomputed_from_the_maximum_of_its_rows() -> None:
    """Then the exponential, in f32, is never whole in memory: only the scores, in bf16."""
    args = ([jnp.eye(8, dtype=jnp.bfloat16)] * 2, jnp.ones((4, 64, 8), jnp.bfloat16))
    target = autopar.cost_model.parse_cluster("cpu:1")
    traced = trace(attend, *args, donate=(0,))
    ample = Options(memory_bytes=2**40)
    prepared = Prepared.of(traced, target, ample)
    found = planner.best(prepared, ample)
    model = StorageModel.of(prepared, found, remat=True)
    scores = 4 * 64 * 64
    found = [v for v in model.values if v.label.endswith("exp")]
    assert [(v.bytes, v.again) for v in found] == [(4 * scores, 2 * scores)] * 2
    assert not any(v.droppable for v in model.values if v.label.endswith("reduce_max"))
    names = dropped_names(model.values, model.bodies, [model.values.index(v) for v in found])
    again = fusion_borders(traced.rematerialised(names).jaxpr)
    assert len(again.softmaxes) == 2  # of the forward pass alone


@pytest.mark.parametrize("share", [0.55, 0.45])
def test_a_choice_on_one_device_needs_what_it_expects(share: float) -> None:
    """Casts of weights, made again, and gradients of scores, fused otherwise, are in the model."""
    size = {"layers": 2, "d_model": 1024, "heads": 16, "vocab": 8192, "seq": 1024}
    workload = preset("gpt:125m", **size)
    traced = trace(workload.train_step, workload.abstract_state(), workload.abstract_batch(16))
    target, ample = autopar.cost_model.parse_cluster("tpu-v5e:1"), Options(memory_bytes=2**45)
    prepared = Prepared.of(traced, target, ample)
    found = planner.best(prepared, ample)
    model = StorageModel.of(prepared, found, remat=True)
    choice = choose(model.values, model.base, share * found.peak_bytes)
    assert choice is not None
    names = dropped_names(model.values, model.bodies, choice.recomputed)
    again = planner.best(Prepared.of(traced.rematerialised(names), target, ample), ample)
    assert again.peak_bytes == pytest.approx(choice.peak, rel=1e-2)


def test_a_loop_stacks_less() -> None:
    args = (jnp.stack(arguments()[0]), arguments()[1])
    target = autopar.cost_model.parse_cluster("cpu:8")
    options: dict[str, Any] = {"cluster": target, "mesh": {"data": 8}}
    options["pins"] = {"params": jax.P(), "x": jax.P("data")}
    free = autopar.plan(scan_step, *args, memory=2**40, **options)
    budget = int(free.predicted.peak_bytes * 0.7)
    found = autopar.plan(scan_step, *args, memory=budget, **options)
    assert found.recompute
    assert found.predicted.peak_bytes <= budget
    wanted = jax.jit(scan_step)(*args)
    got = autopar.apply(scan_step, found, backend="shard_map")(*args)
    for one, other in zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_a_loop_that_fits_stacks_no_more_than_pays() -> None:
    """A hundredth of the step is given for less memory, at most."""
    workload = preset("gpt:tiny", layers=4, seq=256, scan=True)
    traced = trace(workload.train_step, workload.abstract_state(), workload.abstract_batch(8))
    target = autopar.cost_model.parse_cluster("tpu-v5e:1")
    found, written = (
        search(traced, target, Options(memory_bytes=2**40, remat=remat))
        for remat in ("auto", "none")
    )
    assert found.recompute
    assert not written.recompute
    assert found.predicted.peak_bytes < 0.9 * written.predicted.peak_bytes
    assert found.solver.objective_s <= 1.01 * written.solver.objective_s
    assert (found.solver.status, found.solver.bound_s) == ("feasible", 0.0)  # nothing is proven
