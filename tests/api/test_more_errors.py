"""Input that is wrong in rarer ways than in ``test_errors.py``: never a traceback of ours."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import autopar
from autopar import Cluster, Plan
from autopar.core.errors import (
    AutoparError,
    ClusterError,
    InfeasibleError,
    OptionError,
    PinError,
    PlanError,
    TraceError,
)

P, Shape = jax.P, jax.ShapeDtypeStruct
EIGHT = Cluster.preset("cpu", 8)


def step(params: Any, batch: Any) -> Any:
    def loss_of(params: Any) -> jax.Array:
        out = batch["x"] @ params["w"]["kernel"] + params["b"]
        return jnp.mean((out - batch["y"]) ** 2)

    loss, grads = jax.value_and_grad(loss_of)(params)
    return jax.tree.map(lambda w, g: w - 0.1 * g, params, grads), loss


def batch_of(size: int) -> Any:
    return {"x": Shape((size, 16), "float32"), "y": Shape((size, 8), "float32")}


PARAMS = {"w": {"kernel": Shape((16, 8), "float32")}, "b": Shape((8,), "float32")}
BATCH = batch_of(32)


def zeros(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def planned(params: Any = PARAMS, batch: Any = BATCH, **options: Any) -> Plan:
    return autopar.plan(step, params, batch, **{"cluster": EIGHT, **options})


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(mesh=8)


def check(error: type[AutoparError], *texts: str) -> Any:
    """Expects ``error`` whose message holds ``texts`` in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, texts)))


def test_missing_and_unknown_arguments() -> None:
    decorated = autopar.parallelize(step)
    with check(TraceError, "step: ", "missing", "'batch'", "check the arguments' number"):
        decorated(zeros(PARAMS))
    with check(TraceError, "step: missing a required argument: 'batch'; pass arguments as"):
        decorated(zeros(PARAMS), bathc=zeros(BATCH))


def test_keyword_arguments_that_have_no_position() -> None:
    @autopar.parallelize
    def scaled(params: Any, batch: Any, scale: Any = 1.0, shift: Any = 0.0, *, by: Any = 0) -> Any:
        del by
        return jax.tree.map(lambda w: w * scale + shift, params), batch

    with check(TraceError, "scaled: shift cannot be put in order", "give every argument before"):
        scaled(zeros(PARAMS), zeros(BATCH), shift=1.0)  # would be taken for scale
    with check(TraceError, "scaled: by cannot be put in order", "functools.partial"):
        scaled(zeros(PARAMS), zeros(BATCH), by=3)


@pytest.mark.parametrize("thing", [3, {"data": 8}, None])
def test_what_is_no_function(thing: Any) -> None:
    with check(TraceError, "expected a function to trace, got", "pass the step itself"):
        autopar.plan(thing, PARAMS, BATCH)
    if thing is not None:  # parallelize(None) is parallelize()
        with check(OptionError, "is not a function to parallelize; options go by name: "):
            autopar.parallelize(thing)


@pytest.mark.parametrize(
    ("donate", "text"),
    [
        ((2,), "donate=(2,) names argument 2, but step was given 2; argument numbers begin at 0"),
        ((-1,), "donate=(-1,) names argument -1, but step was given 2"),
        (0, "donate=0 is no sequence of argument numbers; write donate=(0,) for the first"),
        (("params",), "donate=('params',) is no sequence of argument numbers; write"),
        ((True,), "donate=(True,) is no sequence of argument numbers"),
        (None, "donate=None is no sequence of argument numbers; write donate=(0,)"),
    ],
    ids=repr,
)  # fmt: skip
def test_bad_donate(donate: Any, text: str) -> None:
    with check(OptionError, text):
        planned(donate=donate)
    with check(OptionError, text):
        autopar.parallelize(step, donate=donate)(zeros(PARAMS), zeros(BATCH))


# Options of the search

OPTIONS: list[tuple[dict[str, Any], type[AutoparError], tuple[str, ...]]] = [
    ({"microbatches": 4}, OptionError,
     ("microbatches=4 is not offered yet: the step runs its batch whole; leave it out, or give",)),
    ({"microbatches": "four"}, OptionError, ("microbatches='four' is not offered yet",)),
    ({"search": "optimum"}, OptionError,
     ("search='optimum' is not offered; choose one of optimal, exhaustive, random, replicated",)),
    ({"time_limit": 0}, OptionError,
     ("time_limit=0 leaves no time to search; give seconds above zero",)),
    ({"time_limit": -1.5}, OptionError, ("time_limit=-1.5 leaves no time",)),
    ({"time_limit": float("nan")}, OptionError, ("time_limit=nan leaves no time",)),
    ({"time_limit": "60"}, OptionError, ("time_limit='60' leaves no time",)),
    ({"seed": -1}, OptionError, ("seed=-1 is no whole number from 0 on; give one",)),
    ({"seed": "x"}, OptionError, ("seed='x' is no whole number",)),
    ({"memory": 0}, ClusterError, ("memory: 0 is no memory at all; write e.g. '14GiB'",)),
    ({"memory": "-1GiB"}, ClusterError, ("memory: '-1GiB' is negative",)),
    ({"memory": "14 GIB"}, ClusterError, ("memory: unknown unit 'GIB' in '14 GIB'; did you mean",)),
    ({"memory": "much"}, ClusterError, ("memory: 'much' is not a quantity; write e.g. '14GiB'",)),
    ({"cluster": "cpu:8"}, OptionError,
     ("cluster='cpu:8' is no Cluster; write Cluster.preset('tpu-v5e', (4, 4)), or",)),
    ({"mesh": {"data": 0}}, ClusterError,
     ("mesh axis 'data' has size 0; every axis needs at least one device",)),
    ({"mesh": (2, -4)}, ClusterError, ("mesh axis 'model' has size -4; every axis needs",)),
    ({"mesh": (2.0, 4)}, ClusterError, ("mesh axis 'data' has size 2.0; every axis needs",)),
    ({"mesh": (2, 2, 2, 1, 1)}, ClusterError,
     ("mesh (2, 2, 2, 1, 1) has 5 axes but only 4 have default names; give a dict",)),
    ({"mesh": {}}, ClusterError,
     ("mesh={} holds no sizes of axes; write (4, 2) or {'data': 4, 'model': 2}",)),
    ({"mesh": "4x2"}, ClusterError, ("mesh='4x2' holds no sizes of axes; write (4, 2)",)),
    ({"mesh": 0.5}, ClusterError, ("mesh=0.5 holds no sizes of axes",)),
    ({"mesh": 4}, ClusterError,
     ("mesh data=4 has 4 devices, the cluster cpu:8 has 8; choose sizes that multiply to that",)),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "texts"), OPTIONS, ids=lambda x: str(x)[:30])
def test_bad_options(
    options: dict[str, Any], error: type[AutoparError], texts: tuple[str, ...]
) -> None:
    with check(error, *texts):
        planned(**options)


def test_the_decorator_says_the_same() -> None:
    for options, error, texts in OPTIONS[::5]:
        decorated = autopar.parallelize(**options)(step)
        with check(error, *texts):
            decorated(zeros(PARAMS), zeros(BATCH))


def test_a_mesh_of_jax_is_no_mesh_of_ours() -> None:
    with check(ClusterError, "holds no sizes of axes", "of a jax.sharding.Mesh, dict(mesh.shape)"):
        planned(mesh=jax.make_mesh((8,), ("data",)))


# Clusters and models by name


# What cannot be done


@pytest.mark.parametrize("search", ["data", "fsdp", "megatron"])
def test_a_batch_that_no_axis_divides(search: str) -> None:
    if search == "megatron":  # does not split the batch
        assert planned(batch=batch_of(6), search=search).predicted.step_s > 0
        return
    with check(
        InfeasibleError,
        "'batch/x' of shape (6, 16) cannot be split over the mesh data=8",
        "use a larger batch, fewer devices, or search='optimal'",
    ):
        planned(batch=batch_of(6), search=search)


def test_the_least_is_that_of_the_best_mesh() -> None:
    with pytest.raises(InfeasibleError) as one:
        planned(memory=800, mesh=8)
    with pytest.raises(InfeasibleError) as any_mesh:
        planned(memory=800)
    assert one.value.least_bytes is not None
    assert any_mesh.value.least_bytes is not None
    assert any_mesh.value.least_bytes <= one.value.least_bytes


# Pins

PINS: list[tuple[dict[str, Any], Any, tuple[str, ...]]] = [
    ({"kernel": P("data"), "w/kernel": P(None, "data")}, 8,
     ("pins contradict each other: 'params/w/kernel' is pinned to ", " by 'kernel' and to ",
      " by 'w/kernel'; make one of the patterns narrower, or remove it")),
    ({"kernal": P("data")}, 8,
     ("pin 'kernal' names no input of the step; the nearest paths are params/w/kernel",)),
    ({"b": P(None, "data")}, 8,
     ("pin 'b' = P(None, 'data') on 'params/b' of shape (8,): the spec has 2 entries, the value "
      "1 dimensions",)),
    ({"b": P("model")}, (2, 3),
     ("pin 'b' = ", "the mesh data=2 x model=3 does not divide it evenly; splits must be even")),
    ({"b": P("expert")}, None,
     ("the pins speak of mesh axes ['expert'], which no mesh tried has; name the mesh yourself",)),
    ({"b": P("expert")}, 8, ("'expert' names no axis of the mesh data=8",)),
    ({"kernel": P("data", "data")}, 8, ("mesh axis 'data' is used twice",)),
    ({"kernel": P(("model", "data"))}, (4, 2), ("must list its axes in mesh order",)),
    ({"kernel": P(3)}, 8, ("pin 'kernel' = ", "3 is not a mesh axis name")),
    ({"(kernel": P("data")}, 8, ("pin '(kernel' is not a regular expression: ",)),
    ({"kernel": "data"}, 8,
     ("pin 'kernel' = 'data' is no PartitionSpec; name a mesh axis or None for each dimension",)),
    ({"kernel": None}, 8, ("pin 'kernel' = None is no PartitionSpec",)),
]  # fmt: skip


@pytest.mark.parametrize(("pins", "mesh", "texts"), PINS, ids=lambda x: str(x)[:40])
def test_bad_pins(pins: dict[str, Any], mesh: Any, texts: tuple[str, ...]) -> None:
    count = 6 if mesh == (2, 3) else 8
    with check(PinError, *texts):
        planned(pins=pins, mesh=mesh, cluster=Cluster.preset("cpu", count))


def test_pins_that_no_mesh_divides() -> None:
    with check(PinError, "pin 'b' = ", "the mesh data=3 does not divide it evenly"):
        planned(pins={"b": P("data")}, cluster=Cluster.preset("cpu", 3))


def test_meshes_that_do_not_suit_the_pins_are_passed_over() -> None:
    found = planned(pins={"b": P("data")}, cluster=Cluster.preset("cpu", 16))
    assert found.spec_of("b") == P("data")
    assert dict(zip(found.mesh.names, found.mesh.sizes, strict=True))["data"] <= 8


# Plans, and the devices to carry them out on


def test_what_is_no_plan(plan: Plan) -> None:
    with check(OptionError, "plan=3 is neither a Plan nor the path of one"):
        autopar.parallelize(plan=3)(step)  # pyright: ignore
    with check(OptionError, "'plan.json' is not a Plan; read one with autopar.Plan.load(path)"):
        autopar.apply(step, "plan.json")  # pyright: ignore
    with check(OptionError, "with plan= nothing is searched, so memory, mesh would do nothing"):
        autopar.parallelize(plan=plan, mesh=4, memory="1GiB")


def test_a_path_that_names_no_input_of_the_plan(plan: Plan) -> None:
    with check(PlanError, "'kernal' names 0 inputs of this plan"):
        plan.spec_of("kernal")


def renamed(params: Any, batch: Any) -> Any:
    return step({"w": {"kernel": params["weights"]}, "b": params["b"]}, batch)


def ascending(params: Any, batch: Any) -> Any:
    down, loss = step(params, batch)
    return jax.tree.map(lambda w, d: w + w - d, params, down), loss


def with_metrics(params: Any, batch: Any) -> Any:
    params, loss = step(params, batch)
    return params, {"loss": loss, "double": 2 * loss}


NAMED = {"weights": PARAMS["w"]["kernel"], "b": PARAMS["b"]}


@pytest.mark.parametrize(
    ("other", "params", "batch", "text"),
    [
        (step, PARAMS, batch_of(64),
         "its input 'batch/x' is float32[32, 16], here float32[64, 16]"),
        (renamed, NAMED, BATCH,
         "it has an input 'params/w/kernel' (float32[16, 8]) that this step lacks"),
        (step, PARAMS, {**BATCH, "z": Shape((3,), "float32")},
         "this step has an input 'batch/z' (float32[3]) that it lacks"),
        (with_metrics, PARAMS, BATCH, "it has 3 results, this step 4"),
        (ascending, PARAMS, BATCH, "same inputs and outputs, but the computation between them, or"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["jit", "shard_map"])
def test_a_plan_for_another_step(
    plan: Plan, other: Any, params: Any, batch: Any, text: str, backend: str
) -> None:
    applied = autopar.apply(other, plan, backend=backend)
    what_to_do = "plan this step again (autopar.plan), or apply the plan to the step it was made"
    with check(PlanError, "this plan was made for another step: " + text, what_to_do):
        applied(zeros(params), zeros(batch))


def test_donation_is_part_of_the_plan(plan: Plan) -> None:
    with check(PlanError, "same inputs and outputs, but the computation between them, or what is"):
        autopar.apply(step, plan, donate=())(zeros(PARAMS), zeros(BATCH))


@pytest.mark.parametrize("repeated", [False, True])
def test_what_are_no_devices(plan: Plan, repeated: bool) -> None:
    devices: Any = jax.devices()[:1] * 8 if repeated else "cpu"
    with check(ClusterError, "are not distinct devices; give some of jax.devices(), each once"):
        autopar.apply(step, plan, devices=devices)(zeros(PARAMS), zeros(BATCH))
