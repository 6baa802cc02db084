"""Plans that are damaged, or carried out on what they were not made for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from steps import batch_of, mlp_init, sgd_step, shapes

import autopar
from autopar.core.errors import AutoparError, ClusterError, OptionError, PlanError

PARAMS = jax.eval_shape(mlp_init, jax.random.key(0))
BATCH = shapes(batch_of())
CPU8 = autopar.Cluster.preset("cpu", 8)


@pytest.fixture(scope="module")
def plan() -> autopar.Plan:
    return autopar.plan(sgd_step, PARAMS, BATCH, cluster=CPU8, mesh=8)


def check(error: type[AutoparError], *texts: str) -> Any:
    """Expects ``error`` whose message holds ``texts`` in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, texts)))


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


def test_what_is_no_plan(plan: autopar.Plan) -> None:
    with check(OptionError, "plan=3 is neither a Plan nor the path of one"):
        autopar.parallelize(plan=3)(sgd_step)  # pyright: ignore
    with check(OptionError, "'plan.json' is not a Plan; read one with autopar.Plan.load(path)"):
        autopar.apply(sgd_step, "plan.json")  # pyright: ignore
    with check(OptionError, "with plan= nothing is searched, so memory, mesh would do nothing"):
        autopar.parallelize(plan=plan, mesh=4, memory="1GiB")


def test_a_path_that_names_no_input_of_the_plan(plan: autopar.Plan) -> None:
    with check(PlanError, "'kernal' names 0 inputs of this plan"):
        plan.spec_of("kernal")


# Other steps


def renamed(params: Any, batch: Any) -> Any:
    return sgd_step({f"layer_{i}": layer for i, layer in enumerate(params)}, batch)


def ascending(params: Any, batch: Any) -> Any:
    down, loss = sgd_step(params, batch)
    return jax.tree.map(lambda w, d: w + w - d, params, down), loss


def with_metrics(params: Any, batch: Any) -> Any:
    params, loss = sgd_step(params, batch)
    return params, {"loss": loss, "double": 2 * loss}


def layers(count: int) -> Any:
    return jax.eval_shape(lambda key: mlp_init(key, layers=count), jax.random.key(0))


LIST = list(PARAMS.values())
WIDER = {**BATCH, "z": jax.ShapeDtypeStruct((3,), jnp.float32)}


@pytest.mark.parametrize(
    ("other", "params", "batch", "text"),
    [
        (sgd_step, PARAMS, shapes(batch_of(24)),
         r"its input 'batch/x' is float32\[16, 32\], here float32\[24, 32\]"),
        (renamed, LIST, BATCH,
         r"it has an input 'params/layer_0/bias' \(float32\[32\]\) that this step lacks"),
        (sgd_step, layers(1), BATCH, r"it has an input 'params/layer_1/\w+' .* this step lacks"),
        (sgd_step, layers(3), BATCH, r"this step has an input 'params/layer_2/\w+' \(float32"),
        (sgd_step, PARAMS, WIDER, r"this step has an input 'batch/z' \(float32\[3\]\) that it lac"),
        (with_metrics, PARAMS, BATCH, "it has 5 results, this step 6"),
        (ascending, PARAMS, BATCH, "same inputs and outputs, but the computation between them, or"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["jit", "shard_map"])
def test_a_plan_for_another_step(
    plan: autopar.Plan, other: Any, params: Any, batch: Any, text: str, backend: str
) -> None:
    applied = autopar.apply(other, plan, backend=backend)
    what_to_do = r".*plan this step again \(autopar\.plan\), or apply the plan to the step it was"
    with pytest.raises(
        PlanError, match="this plan was made for another step: " + text + what_to_do
    ):
        applied.lower(params, batch)


def test_a_call_with_another_batch(plan: autopar.Plan) -> None:
    step = autopar.apply(sgd_step, plan)
    with check(PlanError, "its input 'batch/x' is float32[16, 32], here float32[24"):
        step(mlp_init(jax.random.key(0)), batch_of(24))


def test_donation_is_part_of_the_plan(plan: autopar.Plan) -> None:
    with check(PlanError, "same inputs and outputs, but the computation between them, or what is"):
        autopar.apply(sgd_step, plan, donate=()).lower(PARAMS, BATCH)


# Backends and devices


def test_unknown_backend(plan: autopar.Plan) -> None:
    with check(OptionError, "backend='pmap' is not offered; choose one of jit"):
        autopar.apply(sgd_step, plan, backend="pmap")


def test_fewer_devices_than_the_plan() -> None:
    plan = autopar.plan(sgd_step, PARAMS, BATCH, cluster=autopar.Cluster.preset("cpu", 16), mesh=16)
    step = autopar.apply(sgd_step, plan)
    texts = ("the plan needs 16 devices (data=16), but there are 8", '"jax_num_cpu_devices", 16')
    with check(ClusterError, *texts):
        step.lower(PARAMS, BATCH)
    with check(ClusterError, *texts):
        step(mlp_init(jax.random.key(0)), batch_of())


def test_devices_given_are_too_few(plan: autopar.Plan) -> None:
    with check(ClusterError, "needs 8 devices", "it was given 2; give more"):
        autopar.apply(sgd_step, plan, devices=jax.devices()[:2]).lower(PARAMS, BATCH)


@pytest.mark.parametrize("repeated", [False, True])
def test_what_are_no_devices(plan: autopar.Plan, repeated: bool) -> None:
    devices: Any = jax.devices()[:4] * 2 if repeated else "cpu"
    with check(ClusterError, "are not distinct devices; give some of jax.devices(), each once"):
        autopar.apply(sgd_step, plan, devices=devices).lower(PARAMS, BATCH)
