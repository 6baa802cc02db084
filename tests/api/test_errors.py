"""Bad input: every message says what was wrong, where, and what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from steps import adam_init, adam_step, batch_of, mlp_init, sgd_step, shapes

import autopar
from autopar.core.errors import (
    AutoparError,
    ClusterError,
    InfeasibleError,
    OptionError,
    PinError,
    PlanError,
    TraceError,
)

PARAMS = jax.eval_shape(mlp_init, jax.random.key(0))
BATCH = shapes(batch_of())
CPU8 = autopar.Cluster.preset("cpu", 8)


def planned(**options: Any) -> autopar.Plan:
    return autopar.plan(sgd_step, PARAMS, BATCH, **{"cluster": CPU8, "mesh": 8, **options})


@pytest.fixture(scope="module")
def plan() -> autopar.Plan:
    return planned()


def test_python_decides_on_a_value() -> None:
    def step(params: Any, batch: Any) -> Any:
        params, loss = sgd_step(params, batch)
        if loss > 1:  # the culprit
            return params, loss
        return params, loss * 2

    with pytest.raises(TraceError) as caught:
        autopar.plan(step, PARAMS, BATCH, cluster=CPU8)
    message = str(caught.value)
    culprit = step.__code__.co_firstlineno + 2
    assert f"{__file__}:{culprit}, in " in message
    assert "step" in message
    assert "jnp.where" in message
    assert "jax.lax.cond" in message


def test_shapes_that_do_not_fit() -> None:
    wrong = {**BATCH, "x": jax.ShapeDtypeStruct((16, 7), jnp.float32)}
    with pytest.raises(TraceError, match=r"(?s)steps\.py:\d+, in sgd_step.*check the arguments"):
        autopar.plan(sgd_step, PARAMS, wrong, cluster=CPU8)


def test_argument_that_is_no_array() -> None:
    with pytest.raises(
        TraceError, match=r"argument batch/x is a str, not an array.*functools.part"
    ):
        autopar.plan(sgd_step, PARAMS, {**BATCH, "x": "images"}, cluster=CPU8)


def test_too_few_arguments() -> None:
    with pytest.raises(TraceError, match=r"sgd_step.*missing 1 required positional argument"):
        autopar.plan(sgd_step, PARAMS, cluster=CPU8)


def test_batch_that_no_axis_divides() -> None:
    odd = shapes(batch_of(13))
    with pytest.raises(
        InfeasibleError, match=r"'batch/x' of shape \(13, 32\) cannot be split"
    ) as e:
        autopar.plan(sgd_step, PARAMS, odd, cluster=CPU8, search="data")
    assert "data=8" in str(e.value)
    assert "larger batch, fewer devices, or search='optimal'" in str(e.value)
    autopar.plan(sgd_step, PARAMS, odd, cluster=CPU8)  # which is true


@pytest.mark.parametrize("shape", [0, (0,), (2, 0), ()])
def test_zero_devices(shape: Any) -> None:
    with pytest.raises(ClusterError, match="at least one device"):
        autopar.Cluster.preset("cpu", shape)


def test_mesh_of_zero() -> None:
    with pytest.raises(ClusterError, match="'model' has size 0; every axis needs at least one dev"):
        planned(mesh={"data": 8, "model": 0})


def test_memory_that_nothing_fits() -> None:
    state = jax.eval_shape(adam_init, jax.random.key(0))
    with pytest.raises(InfeasibleError) as caught:
        autopar.plan(adam_step, state, BATCH, cluster=CPU8, memory="4KiB")
    error = caught.value
    assert error.least_bytes is not None
    message = str(error)
    assert message.startswith("no plan fits 4.00 KiB a device: the least")
    assert "give more memory, more devices or a smaller batch" in message
    assert "jax.checkpoint" in message
    # The least it names is enough.
    plan = autopar.plan(adam_step, state, BATCH, cluster=CPU8, memory=error.least_bytes)
    assert plan.predicted.peak_bytes <= error.least_bytes


def test_baseline_that_does_not_fit() -> None:
    with pytest.raises(InfeasibleError, match="search='replicated' needs"):
        planned(search="replicated", memory="4KiB")


@pytest.mark.parametrize(
    ("name", "nearest"), [("tpu-v5", "tpu-v5"), ("h10", "'h100'"), ("v5e", "'tpu-v5e'")]
)
def test_unknown_preset_suggests_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(
        ClusterError, match=f"unknown cluster preset '{name}'; did you mean .*{nearest}"
    ):
        autopar.Cluster.preset(name)


def cut(text: str) -> str:
    return text[: len(text) // 2]


def newer(text: str) -> str:
    return json.dumps({**json.loads(text), "schema": 99})


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "truncated": (cut, r"not JSON at line \d+, column \d+ \(it seems to be cut short\)"),
    "empty": (lambda _: "", "not JSON at line 1"),
    "of another schema": (newer, "schema 99"),
    "something else": (lambda _: '{"a": 1}', "format"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_plan_file(plan: autopar.Plan, tmp_path: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    path = tmp_path / "plan.json"
    plan.save(path)
    path.write_text(change(path.read_text()))
    with pytest.raises(PlanError, match=message) as caught:
        autopar.Plan.load(path)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(PlanError, match=message):
        autopar.parallelize(plan=path)(sgd_step)


def test_plan_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none\.json: no such file"):
        autopar.Plan.load(tmp_path / "none.json")


def test_plan_for_other_shapes(plan: autopar.Plan) -> None:
    step = autopar.apply(sgd_step, plan)
    with pytest.raises(
        PlanError, match=r"its input 'batch/x' is float32\[16, 32\], here float32\[24"
    ):
        step(mlp_init(jax.random.key(0)), batch_of(24))


def test_plan_for_a_deeper_model(plan: autopar.Plan) -> None:
    deeper = jax.eval_shape(lambda key: mlp_init(key, layers=3), jax.random.key(0))
    with pytest.raises(PlanError, match=r"this step has an input 'params/layer_2/\w+' \(float32"):
        autopar.apply(sgd_step, plan).lower(deeper, BATCH)


def test_plan_for_a_shallower_model(plan: autopar.Plan) -> None:
    params = jax.eval_shape(lambda key: mlp_init(key, layers=1), jax.random.key(0))
    with pytest.raises(PlanError, match=r"it has an input 'params/layer_1/\w+' .* this step lacks"):
        autopar.apply(sgd_step, plan).lower(params, BATCH)


def test_plan_for_another_computation(plan: autopar.Plan) -> None:
    def step(params: Any, batch: Any) -> Any:
        return sgd_step(params, jax.tree.map(jnp.sin, batch))

    with pytest.raises(
        PlanError, match=r"made for another step: .*the computation between"
    ) as caught:
        autopar.apply(step, plan).lower(PARAMS, BATCH)
    assert "plan this step again" in str(caught.value)


def test_pins_that_contradict() -> None:
    pins = {"layer_0/kernel": jax.P("data"), "layer_./kernel": jax.P(None, "data")}
    with pytest.raises(
        PinError, match="pins contradict each other: 'params/layer_0/kernel' is pinned"
    ):
        planned(pins=pins)


def test_pin_that_names_nothing() -> None:
    with pytest.raises(PinError, match=r"'layer_7/kernel' names no input.*params/layer_\d/kernel"):
        planned(pins={"layer_7/kernel": jax.P("data")})


BAD_PINS: dict[str, tuple[str, Any, str]] = {
    "no expression": ("layer_(", jax.P("data"), "is not a regular expression"),
    "no axis": ("layer_0/kernel", jax.P("rows"), "rows"),
    "too long": ("layer_0/bias", jax.P("data", None), "2 entries, the value 1 dimensions"),
    "one axis twice": ("layer_0/kernel", jax.P("data", "data"), "used twice"),
    "no spec": ("layer_0/kernel", "data", "is no PartitionSpec"),
}


@pytest.mark.parametrize("why", BAD_PINS)
def test_bad_pins(why: str) -> None:
    pattern, spec, message = BAD_PINS[why]
    with pytest.raises(PinError, match=message):
        planned(pins={pattern: spec})


def test_pin_that_does_not_divide() -> None:
    odd = shapes(batch_of(12))
    with pytest.raises(
        PinError, match=r"on 'batch/x' of shape \(12, 32\): the mesh data=8 does not"
    ):
        autopar.plan(sgd_step, PARAMS, odd, cluster=CPU8, mesh=8, pins={"batch/x": jax.P("data")})


def test_pin_to_an_axis_no_mesh_has() -> None:
    with pytest.raises(PinError, match=r"axes \['rows'\], which no mesh tried has.*name the mesh"):
        planned(mesh=None, pins={"batch/x": jax.P("rows")})


def test_fewer_devices_than_the_plan() -> None:
    plan = autopar.plan(sgd_step, PARAMS, BATCH, cluster=autopar.Cluster.preset("cpu", 16), mesh=16)
    step = autopar.apply(sgd_step, plan)
    with pytest.raises(
        ClusterError, match=r"the plan needs 16 devices \(data=16\), but there are 8"
    ):
        step.lower(PARAMS, BATCH)
    with pytest.raises(ClusterError, match=r'"jax_num_cpu_devices", 16'):
        step(mlp_init(jax.random.key(0)), batch_of())


def test_devices_given_are_too_few(plan: autopar.Plan) -> None:
    with pytest.raises(ClusterError, match=r"needs 8 devices .*it was given 2; give more"):
        autopar.apply(sgd_step, plan, devices=jax.devices()[:2]).lower(PARAMS, BATCH)


def test_device_given_twice(plan: autopar.Plan) -> None:
    with pytest.raises(ClusterError, match="not distinct devices"):
        autopar.apply(sgd_step, plan, devices=jax.devices()[:4] * 2).lower(PARAMS, BATCH)


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "microbatches": ({"microbatches": 4}, "microbatches=4 is not offered yet.*leave it out"),
    "search": ({"search": "magic"}, "search='magic' is not offered; choose one of optimal, ex"),
    "time_limit": ({"time_limit": 0}, "time_limit=0 leaves no time to search"),
    "seed": ({"seed": -1}, "seed=-1 is no whole number"),
    "donate": ({"donate": (5,)}, r"donate=\(5,\) names argument 5, but sgd_step was given 2"),
    "cluster": ({"cluster": "h100:8"}, "cluster='h100:8' is no Cluster; write Cluster.preset"),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_option_of_a_wrong_value(option: str) -> None:
    changed, message = OPTIONS[option]
    with pytest.raises(OptionError, match=message):
        planned(**changed)


@pytest.mark.parametrize("memory", [0, "0 GiB", "14 parsecs", "much"])
def test_memory_that_is_none(memory: int | str) -> None:
    with pytest.raises(AutoparError, match=rf"memory.*{memory}.*write e\.g\. '14GiB'"):
        planned(memory=memory)


@pytest.mark.parametrize("mesh", [4, (4, 4), {"data": 3}])
def test_mesh_that_is_not_the_clusters(mesh: Any) -> None:
    with pytest.raises(ClusterError, match=r"mesh .* has \d+ devices, the cluster cpu:8 has 8; ch"):
        planned(mesh=mesh)


def test_unknown_backend(plan: autopar.Plan) -> None:
    with pytest.raises(OptionError, match="backend='pmap' is not offered; choose one of jit"):
        autopar.apply(sgd_step, plan, backend="pmap")


def test_decorator_with_an_unknown_option() -> None:
    with pytest.raises(OptionError, match=r"no option \['memroy'\]; it takes cluster, .*memory"):
        autopar.parallelize(memroy="14GiB")


def test_decorator_with_an_option_in_place_of_a_step() -> None:
    with pytest.raises(OptionError, match="is not a function to parallelize; options go by name"):
        autopar.parallelize("14GiB")  # pyright: ignore


def test_decorator_with_a_plan_and_a_search(plan: autopar.Plan) -> None:
    with pytest.raises(OptionError, match="nothing is searched, so memory would do nothing"):
        autopar.parallelize(plan=plan, memory="1GiB")


def test_every_error_is_an_autopar_error() -> None:
    for error in (TraceError, ClusterError, InfeasibleError, PinError, PlanError, OptionError):
        assert issubclass(error, AutoparError)
