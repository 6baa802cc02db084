"""Bad requests: every message says what was wrong, where, and what to do."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from steps import adam_init, adam_step, batch_of, mlp_init, sgd_step, shapes

import autopar
from autopar import Cluster
from autopar.core import errors
from autopar.core.errors import (
    AutoparError,
    ClusterError,
    InfeasibleError,
    OptionError,
    PinError,
    TraceError,
)

P = jax.P
CPU8 = Cluster.preset("cpu", 8)
PARAMS = jax.eval_shape(mlp_init, jax.random.key(0))
BATCH = shapes(batch_of())
KERNEL = "layer_0/kernel"


def planned(params: Any = PARAMS, batch: Any = BATCH, **options: Any) -> autopar.Plan:
    return autopar.plan(sgd_step, params, batch, **{"cluster": CPU8, "mesh": 8, **options})


def check(error: type[AutoparError], *texts: str) -> Any:
    """Expects ``error`` whose message holds ``texts`` in this order."""
    return pytest.raises(error, match="(?s)" + ".*".join(map(re.escape, texts)))


def test_every_error_is_an_autopar_error() -> None:
    found = [thing for name, thing in vars(errors).items() if name.endswith("Error")]
    assert len(found) > 8
    assert all(issubclass(error, AutoparError) for error in found)


# Steps and arguments


def test_python_decides_on_a_value() -> None:
    def step(params: Any, batch: Any) -> Any:
        params, loss = sgd_step(params, batch)
        if loss > 1:  # the culprit
            return params, loss
        return params, loss * 2

    culprit = f"{__file__}:{step.__code__.co_firstlineno + 2}, in "
    with check(TraceError, culprit, "step", "jnp.where", "jax.lax.cond"):
        autopar.plan(step, PARAMS, BATCH, cluster=CPU8)


def test_shapes_that_do_not_fit() -> None:
    wrong = {**BATCH, "x": jax.ShapeDtypeStruct((16, 7), jnp.float32)}
    with pytest.raises(TraceError, match=r"(?s)steps\.py:\d+, in sgd_step.*check the arguments"):
        planned(batch=wrong)


def test_argument_that_is_no_array() -> None:
    with check(TraceError, "argument batch/x is a str, not an array", "functools.partial"):
        planned(batch={**BATCH, "x": "images"})


def test_missing_and_unknown_arguments() -> None:
    decorated = autopar.parallelize(sgd_step)
    texts = ("sgd_step: ", "missing 1 required positional argument: 'batch'", "check the arg")
    with check(TraceError, *texts):
        decorated(PARAMS)
    with check(TraceError, *texts):
        autopar.plan(sgd_step, PARAMS, cluster=CPU8)
    with check(TraceError, "sgd_step: missing a required argument: 'batch'; pass arguments as"):
        decorated(PARAMS, bathc=BATCH)


def test_keyword_arguments_that_have_no_position() -> None:
    @autopar.parallelize
    def scaled(params: Any, batch: Any, scale: Any = 1.0, shift: Any = 0.0, *, by: Any = 0) -> Any:
        del by
        return jax.tree.map(lambda w: w * scale + shift, params), batch

    with check(TraceError, "scaled: shift cannot be put in order", "give every argument before"):
        scaled(PARAMS, BATCH, shift=1.0)  # would be taken for scale
    with check(TraceError, "scaled: by cannot be put in order", "functools.partial"):
        scaled(PARAMS, BATCH, by=3)


@pytest.mark.parametrize("thing", [3, {"data": 8}, "14GiB", None])
def test_what_is_no_function(thing: Any) -> None:
    with check(TraceError, "expected a function to trace, got", "pass the step itself"):
        autopar.plan(thing, PARAMS, BATCH)
    if thing is not None:  # parallelize(None) is parallelize()
        with check(OptionError, "is not a function to parallelize; options go by name: "):
            autopar.parallelize(thing)


@pytest.mark.parametrize(
    ("donate", "text"),
    [
        ((2,), "donate=(2,) names argument 2, but sgd_step was given 2; argument numbers begin at"),
        ((-1,), "donate=(-1,) names argument -1, but sgd_step was given 2"),
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
        autopar.parallelize(sgd_step, donate=donate)(PARAMS, BATCH)


# Options of the search

OPTIONS: list[tuple[dict[str, Any], type[AutoparError], str]] = [
    ({"microbatches": 4}, OptionError,
     "microbatches=4 is not offered yet: the step runs its batch whole; leave it out, or give"),
    ({"microbatches": "four"}, OptionError, "microbatches='four' is not offered yet"),
    ({"search": "optimum"}, OptionError,
     "search='optimum' is not offered; choose one of optimal, exhaustive, random, replicated"),
    ({"time_limit": 0}, OptionError, "time_limit=0 leaves no time to search; give seconds above"),
    ({"time_limit": -1.5}, OptionError, "time_limit=-1.5 leaves no time"),
    ({"time_limit": float("nan")}, OptionError, "time_limit=nan leaves no time"),
    ({"time_limit": "60"}, OptionError, "time_limit='60' leaves no time"),
    ({"seed": -1}, OptionError, "seed=-1 is no whole number from 0 on; give one"),
    ({"seed": "x"}, OptionError, "seed='x' is no whole number"),
    ({"memory": 0}, ClusterError, "memory: 0 is no memory at all; write e.g. '14GiB'"),
    ({"memory": "0 GiB"}, ClusterError, "memory: '0 GiB' is no memory at all; write e.g. '14GiB'"),
    ({"memory": "-1GiB"}, ClusterError, "memory: '-1GiB' is negative"),
    ({"memory": "14 GIB"}, ClusterError, "memory: unknown unit 'GIB' in '14 GIB'; did you mean"),
    ({"memory": "14 parsecs"}, ClusterError, "memory: unknown unit 'parsecs' in '14 parsecs'"),
    ({"memory": "much"}, ClusterError, "memory: 'much' is not a quantity; write e.g. '14GiB'"),
    ({"cluster": "cpu:8"}, OptionError,
     "cluster='cpu:8' is no Cluster; write Cluster.preset('tpu-v5e', (4, 4)), or"),
    ({"mesh": {"data": 8, "model": 0}}, ClusterError,
     "mesh axis 'model' has size 0; every axis needs at least one device"),
    ({"mesh": (2, -4)}, ClusterError, "mesh axis 'model' has size -4; every axis needs"),
    ({"mesh": (2.0, 4)}, ClusterError, "mesh axis 'data' has size 2.0; every axis needs"),
    ({"mesh": (2, 2, 2, 1, 1)}, ClusterError,
     "mesh (2, 2, 2, 1, 1) has 5 axes but only 4 have default names; give a dict"),
    ({"mesh": {}}, ClusterError,
     "mesh={} holds no sizes of axes; write (4, 2) or {'data': 4, 'model': 2}"),
    ({"mesh": "4x2"}, ClusterError, "mesh='4x2' holds no sizes of axes; write (4, 2)"),
    ({"mesh": 0.5}, ClusterError, "mesh=0.5 holds no sizes of axes"),
    ({"mesh": 4}, ClusterError,
     "mesh data=4 has 4 devices, the cluster cpu:8 has 8; choose sizes that multiply to that"),
    ({"mesh": (4, 4)}, ClusterError, "mesh data=4 x model=4 has 16 devices, the cluster cpu:8"),
    ({"mesh": {"data": 3}}, ClusterError, "mesh data=3 has 3 devices, the cluster cpu:8 has 8"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "error", "text"), OPTIONS, ids=lambda x: str(x)[:30])
def test_bad_options(options: dict[str, Any], error: type[AutoparError], text: str) -> None:
    with check(error, text):
        planned(**options)


def test_the_decorator_says_the_same() -> None:
    for options, error, text in OPTIONS[::5]:
        decorated = autopar.parallelize(**options)(sgd_step)
        with check(error, text):
            decorated(PARAMS, BATCH)


def test_decorator_with_an_unknown_option() -> None:
    with pytest.raises(OptionError, match=r"no option \['memroy'\]; it takes cache, .*memory"):
        autopar.parallelize(memroy="14GiB")


def test_a_mesh_of_jax_is_no_mesh_of_ours() -> None:
    with check(ClusterError, "holds no sizes of axes", "of a jax.sharding.Mesh, dict(mesh.shape)"):
        planned(mesh=jax.make_mesh((8,), ("data",)))


@pytest.mark.parametrize("shape", [0, (0,), (2, 0), ()])
def test_zero_devices(shape: Any) -> None:
    with check(ClusterError, "at least one device"):
        Cluster.preset("cpu", shape)


@pytest.mark.parametrize(
    ("name", "nearest"), [("tpu-v5", "tpu-v5"), ("h10", "'h100'"), ("v5e", "'tpu-v5e'")]
)
def test_unknown_preset_suggests_the_nearest(name: str, nearest: str) -> None:
    with check(ClusterError, f"unknown cluster preset '{name}'; did you mean ", nearest):
        Cluster.preset(name)


# What cannot be done


@pytest.mark.parametrize("search", ["data", "fsdp"])
def test_batch_that_no_axis_divides(search: str) -> None:
    with check(
        InfeasibleError,
        "'batch/x' of shape (13, 32) cannot be split over the mesh data=8",
        "use a larger batch, fewer devices, or search='optimal'",
    ):
        planned(batch=shapes(batch_of(13)), search=search)


@pytest.mark.parametrize("search", ["optimal", "megatron"])
def test_batch_that_need_not_be_divided(search: str) -> None:
    assert planned(batch=shapes(batch_of(13)), search=search, mesh=None).predicted.step_s > 0


def test_memory_that_nothing_fits() -> None:
    state = jax.eval_shape(adam_init, jax.random.key(0))
    with check(
        InfeasibleError,
        "no plan fits 4.00 KiB a device: the least",
        "with all recomputed that helps",
        "at its peak above all for ",
        "give more memory, more devices or a smaller batch",
    ) as caught:
        autopar.plan(adam_step, state, BATCH, cluster=CPU8, memory="4KiB")
    assert str(caught.value).startswith("no plan fits")
    least = caught.value.least_bytes
    assert least is not None  # and enough:
    plan = autopar.plan(adam_step, state, BATCH, cluster=CPU8, memory=least)
    assert plan.predicted.peak_bytes <= least
    with pytest.raises(InfeasibleError) as of_one_mesh:
        autopar.plan(adam_step, state, BATCH, cluster=CPU8, memory="4KiB", mesh=8)
    assert least <= (of_one_mesh.value.least_bytes or 0)


def test_baseline_that_does_not_fit() -> None:
    with check(InfeasibleError, "search='replicated' needs"):
        planned(search="replicated", memory="4KiB")


# Pins

PINS: list[tuple[dict[str, Any], Any, tuple[str, ...]]] = [
    ({KERNEL: P("data"), "layer_./kernel": P(None, "data")}, 8,
     ("pins contradict each other: 'params/layer_0/kernel' is pinned to ", f" by '{KERNEL}' and ",
      "to ", " by 'layer_./kernel'; make one of the patterns narrower, or remove it")),
    ({"layer_7/kernel": P("data")}, 8,
     ("pin 'layer_7/kernel' names no input of the step, and no operation; the nearest names are ",
      "params/layer_")),
    ({"layer_0/bias": P(None, "data")}, 8,
     ("pin 'layer_0/bias' = P(None, 'data') on 'params/layer_0/bias' of shape (32,): the spec has "
      "2 entries, the value 1 dimensions",)),
    ({"layer_0/bias": P("model")}, (2, 3),
     ("pin 'layer_0/bias' = ", "the mesh data=2 x model=3 does not divide it evenly; splits must")),
    ({"batch/x": P("expert")}, None,
     ("the pins speak of mesh axes ['expert'], which no mesh tried has; name the mesh yourself",)),
    ({KERNEL: P("expert")}, 8, ("'expert' names no axis of the mesh data=8",)),
    ({KERNEL: P("data", "data")}, 8, ("mesh axis 'data' is used twice",)),
    ({KERNEL: P(("model", "data"))}, (4, 2), ("must list its axes in mesh order",)),
    ({KERNEL: P(3)}, 8, (f"pin '{KERNEL}' = ", "3 is not a mesh axis name")),
    ({"layer_(": P("data")}, 8, ("pin 'layer_(' is not a regular expression: ",)),
    ({KERNEL: "data"}, 8,
     (f"pin '{KERNEL}' = 'data' on 'params/layer_0/kernel': no input and no operation is named ",
      "'data'", "to split over a mesh axis, write jax.P('data')")),
    ({KERNEL: "kernel"}, 8, ("'kernel' is the end of several names: params/layer_0/kernel, ",)),
    ({KERNEL: "layer_0/bias"}, 8,
     ("they lie alike only if they have as many dimensions; 'params/layer_0/bias' has the ",)),
    ({KERNEL: r"\1/bias"}, 8, ("invalid group reference 1",)),
    ({KERNEL: P("data"), "layer_1/kernel": P(None, "data"), "(layer_1)/kernel": KERNEL}, 8,
     ("pins contradict each other: pin '(layer_1)/kernel' = like ", "remove one of the three")),
    ({KERNEL: None}, 8, (f"pin '{KERNEL}' = None is no PartitionSpec",)),
]  # fmt: skip


@pytest.mark.parametrize(("pins", "mesh", "texts"), PINS, ids=lambda x: str(x)[:40])
def test_bad_pins(pins: dict[str, Any], mesh: Any, texts: tuple[str, ...]) -> None:
    count = 6 if mesh == (2, 3) else 8
    with check(PinError, *texts):
        planned(pins=pins, mesh=mesh, cluster=Cluster.preset("cpu", count))


def test_pins_that_no_mesh_divides() -> None:
    with check(PinError, "pin 'layer_0/bias' = ", "the mesh data=3 does not divide it evenly"):
        planned(pins={"layer_0/bias": P("data")}, mesh=None, cluster=Cluster.preset("cpu", 3))


def test_meshes_that_do_not_suit_the_pins_are_passed_over() -> None:
    found = planned(
        batch=shapes(batch_of(8)),
        pins={"batch/x": P("data")},
        mesh=None,
        cluster=Cluster.preset("cpu", 16),
    )
    assert found.spec_of("batch/x") == P("data")
    assert dict(zip(found.mesh.names, found.mesh.sizes, strict=True))["data"] <= 8
