"""What a user does with a decorated step: calls, arguments, devices, searches, plans from files."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from steps import adam_init, adam_step, batch_of, mlp_init, sgd_step, shapes

import autopar
from autopar import Cluster, Plan
from autopar.core.errors import TraceError

KEY = jax.random.key(0)
CPU8 = Cluster.preset("cpu", 8)
PARAMS = jax.eval_shape(mlp_init, KEY)
BATCH = shapes(batch_of())
# Emulated devices are slow to talk, so that by itself the search would replicate everything: these
# make it split.
SPLIT = {"mesh": 8, "pins": {"batch/.": jax.P("data"), ".*kernel": jax.P(None, "data")}}


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def split(step: Callable[..., Any], **options: Any) -> Any:
    return autopar.parallelize(cluster=CPU8, **{**SPLIT, **options})(step)


@pytest.fixture(scope="module")
def ours() -> Any:
    """Planned, compiled once, and taking nothing from its caller."""
    return split(sgd_step, donate=())


@functools.cache
def by_one_device(size: int = 16) -> Any:
    """Parameters and loss after one step, without autopar."""
    return jax.jit(sgd_step)(mlp_init(KEY), batch_of(size))


def assert_close(found: Any, expected: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


def test_bare_decorator() -> None:
    @autopar.parallelize
    def step(params: Any, batch: Any) -> Any:
        """Trains."""
        return sgd_step(params, batch)

    assert (step.__name__, step.__doc__) == ("step", "Trains.")
    assert_close(step(mlp_init(KEY), batch_of()), by_one_device())
    assert step.plan(PARAMS, BATCH).mesh.device_count == 8


def test_decorator_with_options() -> None:
    @autopar.parallelize(cluster=CPU8, mesh={"rows": 8}, pins={"batch/.": jax.P("rows")})
    def step(params: Any, batch: Any) -> Any:
        return sgd_step(params, batch)

    plan = step.plan(PARAMS, BATCH)
    assert plan.spec_of("batch/x") == jax.P("rows")
    assert plan.mesh.names == ("rows",)


# Arguments


def test_keyword_arguments(ours: Any) -> None:
    assert_close(ours(mlp_init(KEY), batch_of()), by_one_device())
    assert_close(ours(batch=batch_of(), params=mlp_init(KEY)), by_one_device())
    assert_close(ours(mlp_init(KEY), batch=batch_of()), by_one_device())


def test_nothing_is_donated_unasked(ours: Any) -> None:
    """What is donated is deleted: see ``test_frameworks``."""
    state, batch = ours.init(mlp_init, KEY, batch=batch_of()), batch_of()
    ours(state, batch)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, batch)))


def test_bound_arguments() -> None:
    def step(params: Any, batch: Any, *, scale: float) -> Any:
        return sgd_step(params, jax.tree.map(lambda x: scale * x, batch))

    bound = functools.partial(step, scale=1.0)
    assert_close(split(bound)(mlp_init(KEY), batch_of()), by_one_device())


def test_defaults_stay_the_functions_own() -> None:
    @autopar.parallelize
    def step(x: Any, scale: Any = 3.0, name: str = "static") -> Any:
        assert name == "static"
        return x * scale

    x = np.ones((8,), np.float32)
    assert float(step(x)[0]) == 3.0
    assert float(step(x, scale=2.0)[0]) == 2.0
    with pytest.raises(TraceError, match="argument name is a str"):
        step(x, 2.0, "given")


def test_numbers_as_arguments() -> None:
    @autopar.parallelize(mesh=8, donate=())
    def scaled(x: Any, rate: float) -> Any:
        return x * rate

    x = np.arange(16, dtype=np.float32)
    for rate in (2.0, 3.0):
        np.testing.assert_array_equal(scaled(x, rate), x * np.float32(rate))


def test_arguments_without_arrays() -> None:
    @autopar.parallelize(mesh=8)
    def step(state: Any, nothing: Any, batch: Any) -> Any:
        assert nothing is None
        return {"w": state["w"] + batch.sum(), "empty": state["empty"]}

    state = {"w": jnp.zeros((16,)), "empty": ()}
    assert float(step(state, None, jnp.ones((8,)))["w"][0]) == 8.0


def test_a_function_that_returns_nothing_of_its_arguments() -> None:
    """No state, nothing tied: nothing is given up either, and nobody warns of that."""

    @autopar.parallelize(mesh=8)
    def evaluate(params: Any, batch: Any) -> Any:
        return {"error": jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)}

    params, batch = {"w": jnp.ones((32, 32))}, batch_of()
    placed = jax.device_put(params, evaluate.shardings(params, batch)[0][0])
    want = jnp.mean((batch["x"] @ params["w"] - batch["y"]) ** 2)
    for _ in range(2):
        np.testing.assert_allclose(evaluate(placed, batch)["error"], want, rtol=1e-6)
    assert not placed["w"].is_deleted()


def test_it_compiles_once(caplog: pytest.LogCaptureFixture) -> None:
    """Though the first state was never on the mesh, and the second comes from there."""
    step, state = split(sgd_step), mlp_init(KEY)
    with jax.log_compiles():
        for _ in range(3):
            state, _ = step(state, batch_of())
    compiled = [one.getMessage() for one in caplog.records if "XLA compilation" in one.getMessage()]
    assert sum("planned_step" in message for message in compiled) == 1


def test_another_batch_size_is_planned_anew_once() -> None:
    told: list[str] = []
    step = autopar.parallelize(mesh=8, progress=told.append, donate=())(sgd_step)
    sizes = (16, 32, 16, 32, 6)
    for size in sizes:
        assert_close(step(mlp_init(KEY), batch_of(size)), by_one_device(size))
    assert told.count("searching data=8") == 3
    plans = [step.plan(PARAMS, batch_of(size)) for size in sizes]
    assert [plan.inputs[-1].shape[0] for plan in plans] == list(sizes)
    assert plans[0] is plans[2]
    assert plans[1] is plans[3]
    assert len({plan.step for plan in plans}) == 3
    assert told.count("searching data=8") == 3


def test_other_arguments_are_planned_anew() -> None:
    """More of them, another structure: whatever JAX would say of these, they are new to us."""

    @autopar.parallelize(mesh=8, donate=())
    def total(x: Any, *more: Any) -> Any:
        return jax.tree.reduce(jnp.add, (x, more))

    ones = jnp.ones((16,))
    calls = ((ones,), (ones, ones), (ones, {"a": ones, "b": ones}), (ones, {"c": ones}), (ones,))
    assert [float(total(*call)[0]) for call in calls] == [1.0, 2.0, 3.0, 2.0, 1.0]


def test_arrays_that_were_put_elsewhere() -> None:
    """The advice is JAX's own; nothing is planned anew for it."""
    told: list[str] = []
    double = autopar.parallelize(mesh=8, progress=told.append)(lambda x: 2 * x)
    x = np.ones((16,), np.float32)
    double(x)
    planned_once = len(told)
    with pytest.raises(ValueError, match="does not match the sharding on the respective arg"):
        double(jax.device_put(x, jax.devices()[3]))
    assert len(told) == planned_once
    placed = jax.device_put(x, double.shardings(x)[0][0])
    assert double(placed).sharding.is_equivalent_to(double.shardings(x)[1], 1)


# Plans, and what is made of them


def test_plan_from_a_file(tmp_path: Path) -> None:
    """Its specs are nested by path, until it meets its step."""
    path = tmp_path / "plan.json"
    plan = autopar.plan(sgd_step, PARAMS, BATCH, cluster=CPU8, **SPLIT)
    plan.save(path)
    loaded = Plan.load(path)
    assert loaded.in_specs["params"]["layer_0"]["kernel"] == plan.spec_of("layer_0/kernel")
    again = autopar.parallelize(plan=str(path))(sgd_step)
    found = again.plan(PARAMS, BATCH)
    assert found == plan
    assert found.solver == loaded.solver
    assert found.in_specs == plan.in_specs
    assert_close(again(mlp_init(KEY), batch_of()), by_one_device())


def test_ahead_of_time(ours: Any) -> None:
    assert ours.trace(PARAMS, BATCH).jaxpr.eqns
    assert "stablehlo" in ours.lower(PARAMS, BATCH).as_text()
    compiled = ours.compile(PARAMS, BATCH)
    assert "planned_step" in compiled.as_text()
    state = ours.init(mlp_init, KEY, batch=BATCH)
    (_, batch_sharding), _ = ours.shardings(PARAMS, BATCH)
    assert_close(compiled(state, jax.device_put(batch_of(), batch_sharding)), by_one_device())


def test_shardings_are_those_of_the_plan(ours: Any) -> None:
    ins, outs = ours.shardings(PARAMS, BATCH)
    plan = ours.plan(PARAMS, BATCH)
    assert jax.tree.map(lambda s: s.spec, ins) == plan.in_specs
    assert jax.tree.map(lambda s: s.spec, outs) == plan.out_specs
    assert jax.tree.structure(ins) == jax.tree.structure((PARAMS, BATCH))
    assert plan.in_specs[0]["layer_0"]["kernel"] == jax.P(None, "data")
    assert isinstance(ins[1]["x"], NamedSharding)
    assert ins[1]["x"].mesh.axis_names == ("data",)


@pytest.mark.parametrize("search", ["optimal", "data"])
@pytest.mark.parametrize(("count", "size"), [(1, 6), (3, 6), (5, 6), (7, 14)])
def test_any_number_of_devices(count: int, size: int, search: str) -> None:
    """Those that are given; a batch that they do not divide is no obstacle to the search."""
    if search == "data" and size % count:
        return
    devices, cluster = jax.devices()[-count:], Cluster.preset("cpu", count)
    step = autopar.parallelize(cluster=cluster, devices=devices, search=search)(sgd_step)
    found = step(mlp_init(KEY), batch_of(size))
    assert_close(found, by_one_device(size))
    assert all(leaf.devices() == set(devices) for leaf in jax.tree.leaves(found))
    plan = step.plan(PARAMS, batch_of(size))
    assert plan.mesh.sizes == (count,)
    if search == "data":
        assert plan.spec_of("batch/x") == jax.P("data")


def test_a_mesh_of_one() -> None:
    one = Cluster.preset("cpu", 1)
    plan = autopar.plan(sgd_step, PARAMS, BATCH, cluster=one, mesh=(1,))
    assert plan.predicted.comm_s == 0
    assert plan.predicted.collectives == ()
    assert_close(autopar.apply(sgd_step, plan)(mlp_init(KEY), batch_of()), by_one_device())


@pytest.mark.parametrize("search", ["data", "random", "optimal"])
def test_every_search_gives_a_step_that_runs(search: str) -> None:
    """And is compiled once. ``fsdp`` runs in ``test_frameworks``."""
    step = autopar.parallelize(cluster=CPU8, mesh=8, search=search, seed=3)(adam_step)
    state = step.init(adam_init, KEY, batch=batch_of())
    expected, want = adam_init(KEY), jax.jit(adam_step)
    for seed in range(3):
        state, loss = step(state, batch_of(seed=seed))
        expected, wanted = want(expected, batch_of(seed=seed))
        np.testing.assert_allclose(loss, wanted, rtol=2e-5)
    assert_close(state, expected)
    assert step._bound.call._cache_size() == 1


PROGRAM = """
import sys
import jax
from steps import adam_init, adam_step, batch_of, shapes
import autopar

state = jax.eval_shape(adam_init, jax.random.key(0))
plan = autopar.plan(
    adam_step, state, shapes(batch_of(256)), cluster=autopar.Cluster.preset("h100", 8)
)
plan.save(sys.argv[1])
"""


def test_same_plan_byte_for_byte(tmp_path: Path) -> None:
    """In two processes whose sets and dicts of text are ordered differently."""
    texts: list[bytes] = []
    for seed in ("1", "2"):
        path = tmp_path / f"plan{seed}.json"
        folder = str(Path(__file__).parent)
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": folder, "JAX_PLATFORMS": "cpu"}
        subprocess.run([sys.executable, "-c", PROGRAM, str(path)], env=env, check=True)
        texts.append(path.read_bytes())
    assert len(texts[0]) > 1000
    assert texts[0] == texts[1]
