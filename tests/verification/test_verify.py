"""``autopar.verify``: a plan beside the program that the compiler makes of it."""

import dataclasses
import importlib.util
import json
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from typer.testing import CliRunner

import autopar
from autopar.cli import app
from autopar.core.errors import ClusterError, OptionError
from autopar.core.layout import parse
from autopar.core.plan import CollectiveUse
from autopar.cost_model import Resharder, parse_cluster
from autopar.cost_model.whole import folded, is_too_small, scatter_padding
from autopar.models import preset
from autopar.passes.trace import trace
from autopar.search.forms import Forms
from autopar.search.graph import build_graph
from autopar.verification import topology
from autopar.verification.report import predicted_traffic

TPUS = autopar.Cluster.preset("tpu-v5e", (2, 4))


def step(params: Any, x: jax.Array) -> Any:
    def loss(p: Any) -> jax.Array:
        return jnp.mean((jnp.tanh(x @ p["up"]) @ p["down"] - x) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value


PARAMS = {"up": jnp.ones((64, 256)) / 64, "down": jnp.ones((256, 64)) / 256}
ARGS = (PARAMS, jax.random.normal(jax.random.key(0), (512, 64)))


@pytest.mark.parametrize("lowering", ["jit", "shard_map"])
def test_emulated_devices_send_what_is_predicted_and_compute_the_same(lowering: str):
    plan = autopar.plan(step, *ARGS, cluster=TPUS, mesh=8, search="fsdp")
    report = autopar.verify(step, plan, *ARGS, lowering=lowering)
    assert report.compiled
    assert report.wire_error == 0
    assert report.numerics is not None
    assert report.numerics.results == 3
    assert report.numerics.metrics_error < 1e-5
    assert report.numerics.state_error < 1e-5
    assert "bytes sent" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["wire_error"] == 0
    assert not PARAMS["up"].is_deleted()


def test_a_layout_change_moves_the_value_and_not_what_it_is_made_of():
    def moved(a: jax.Array, b: jax.Array) -> Any:
        total = jnp.tanh(a) + jnp.sin(b)
        return jnp.cumsum(total, 0), jax.lax.cummax(total, 0)

    args = tuple(jax.random.normal(jax.random.key(i), (512, 256)) for i in range(2))
    pins = {"a": jax.P("data"), "b": jax.P("data")}
    plan = autopar.plan(moved, *args, cluster=TPUS, mesh=8, pins=pins, donate=())
    report = autopar.verify(moved, plan, *args, donate=())
    assert [t.kind for t in report.predicted] == ["all-to-all"]
    assert report.wire_error == 0


def test_axes_that_move_apart_do_so_one_by_one():
    def turned(x: jax.Array) -> Any:
        return jnp.cumsum(jnp.cumsum(jnp.sin(x), 1), 2)

    x = jax.random.normal(jax.random.key(0), (32, 64, 128))
    mesh = {"data": 4, "model": 2}
    pins = {"x": jax.P(None, "model", "data")}
    plan = autopar.plan(turned, x, cluster=TPUS, mesh=mesh, pins=pins, donate=())
    report = autopar.verify(turned, plan, x, donate=())
    assert {t.kind for t in report.predicted} == {t.kind for t in report.compiled} == {"all-to-all"}
    assert report.wire_error == pytest.approx(0, abs=0.2)


def test_shapes_alone_are_compiled_but_not_run():
    shapes = jax.eval_shape(lambda: ARGS)
    plan = autopar.plan(step, *shapes, cluster=TPUS, mesh=8, search="data")
    assert autopar.verify(step, plan, *shapes).numerics is None


def test_other_errors_are_said():
    plan = autopar.plan(step, *ARGS, cluster=TPUS, mesh=8, search="data")
    with pytest.raises(OptionError, match="backend='gpu' is not offered"):
        autopar.verify(step, plan, *ARGS, backend="gpu")
    gpus = autopar.plan(step, *ARGS, cluster=parse_cluster("h100:8"), search="data")
    with pytest.raises(ClusterError, match="h100:8 is made of 'h100'"):
        autopar.verify(step, gpus, *ARGS, backend="tpu")


def test_without_libtpu_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
    with pytest.raises(OptionError, match=r"install autopar\[tpu\]"):
        topology.topology_devices(TPUS)


@pytest.mark.slow
def test_tpu_compiler_refuses_slices_that_do_not_exist():
    pytest.importorskip("libtpu")
    strange = dataclasses.replace(TPUS, shape=(100000, 100000))
    with pytest.raises(ClusterError, match="refuses the topology v5e:100000x100000"):
        topology.topology_devices(strange)


@pytest.mark.slow
def test_tpu_programs_send_what_is_predicted():
    pytest.importorskip("libtpu")
    plan = autopar.plan(step, *ARGS, cluster=TPUS, mesh=8, search="data")
    report = autopar.verify(step, plan, *ARGS, backend="tpu", lowering="shard_map")
    assert report.compiled_compute_s
    assert report.wire_error == pytest.approx(0, abs=0.01)


def test_the_command_prints_a_table_or_json(tmp_path: Any):
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["verify", *arguments], catch_exceptions=False)

    tiny = ("mlp:tiny", "--batch", "64")
    saved = tmp_path / "plan.json"
    plan = (*tiny, "--cluster", "tpu-v5e:2x4", "--search", "data")
    CliRunner().invoke(app, ["plan", *plan, "--save", str(saved)])
    shown = run(*tiny, "--plan", str(saved))
    assert shown.exit_code == 0, shown.output
    assert "all-reduce over data" in shown.stdout
    assert json.loads(run(*plan, "--json").stdout)["wire_error"] == pytest.approx(0)
    refused = run(*plan, "--plan", str(saved))
    assert refused.exit_code == 2
    assert "leave out --cluster" in refused.stderr


def test_padding_is_sent_and_sent_back():
    slice_ = autopar.Cluster.preset("tpu-v5e", (2, 2))
    plan = autopar.plan(step, *ARGS, cluster=slice_, mesh=(4,), search="data")
    uses = (CollectiveUse("reduce-scatter", "data", 1600, 2, 0.0, "up", padding=8),)
    predicted = dataclasses.replace(plan.predicted, collectives=uses)
    plan = dataclasses.replace(plan, predicted=predicted)
    jit, exact = (
        {t.kind: (t.wire_bytes, t.count) for t in predicted_traffic(plan, tpu=how)}
        for how in ("jit", "shard_map")
    )
    assert jit == {"reduce-scatter": (2400, 2)}
    assert exact == {
        "reduce-scatter": (2 * (1600 + 4 * 8) * 3 / 4, 2),
        "collective-permute": (48, 2),
    }


def test_traffic_follows_the_forms_under_jit_and_the_slice_under_shard_map():
    slice_ = autopar.Cluster.preset("tpu-v5e", (4, 4))
    plan = autopar.plan(step, *ARGS, cluster=slice_, mesh=(16,), search="data")
    uses = (
        CollectiveUse("reduce-scatter", "data", 1600, 1, 0.0, "up", "windowed"),
        CollectiveUse("reduce-scatter", "data", 320, 1, 0.0, "down", "whole"),
        CollectiveUse("reduce-scatter", "data", 32, 1, 0.0, "bias", "small"),
        CollectiveUse("all-gather", "data", 160, 1, 0.0, "norm"),
        CollectiveUse("all-to-all", "data", 160, 1, 0.0, "heads"),
        CollectiveUse("all-to-all", "data", 160, 1, 0.0, "heads", "joined"),
    )
    predicted = dataclasses.replace(plan.predicted, collectives=uses)
    plan = dataclasses.replace(plan, predicted=predicted)
    plain, jit, exact = (
        {t.kind: t.wire_bytes for t in predicted_traffic(plan, tpu=how)}
        for how in (None, "jit", "shard_map")
    )
    assert plain == {"reduce-scatter": 1830, "all-gather": 150, "all-to-all": 300}
    assert jit == {"reduce-scatter": 1700, "all-reduce": 660, "all-gather": 150, "all-to-all": 150}
    assert exact == {"all-reduce": 3660, "all-gather": 150, "all-to-all": 300}


@pytest.mark.parametrize(
    ("left", "right", "forms"),
    [
        ("S(0),S(0)", "S(1),S(1)", ["", "joined", "joined"]),
        ("S(0),S(1)", "S(1),S(2)", ["", ""]),
        ("S(0),S(0)", "S(0),S(1)", [""]),
    ],
)
def test_axes_that_leave_one_dimension_for_another_are_exchanged_at_once(left, right, forms):
    slice_ = autopar.Cluster.preset("tpu-v5e", (4, 4))
    mesh = autopar.MeshSpec.of((4, 4))
    shape = (64, 1024, 1024)
    traced = trace(lambda x: x + 1, jax.ShapeDtypeStruct(shape, jnp.bfloat16), donate=())
    graph = build_graph(traced)
    src, dst = parse(left), parse(right)
    path = Resharder(mesh, slice_.axis_links(mesh)).path(shape, 2, src, dst)
    assert [one.kind for one in path] == ["all-to-all"] * len(forms)
    assert list(Forms(graph, mesh, slice_.levels).of(path, graph.edges[0], src)) == forms


@pytest.mark.parametrize(
    ("part", "slice_", "shape", "alone"),
    [
        ((1024,), (2, 4), (1024,), True),  # one tile, whichever way it is folded
        ((2048,), (2, 4), (16, 128), False),
        ((2048,), (2, 2), (16, 128), True),  # two tiles are few there
        ((4096,), (2, 2), (32, 128), False),
        ((4, 4, 128), (2, 4), (16, 128), False),
        ((3, 700), (2, 4), (3, 700), True),  # no rows of 128
        ((64, 32), (2, 2), (64, 32), False),
        ((9, 128), (2, 4), (9, 128), False),
    ],
)
def test_parts_are_scattered_if_they_fill_tiles(part, slice_, shape, alone):
    """As in as many small programs compiled for v5e."""
    levels = autopar.Cluster.preset("tpu-v5e", slice_).levels
    assert folded(part) == shape
    assert is_too_small(levels, math.prod(slice_), folded(part)) == alone


@pytest.mark.parametrize(
    ("tiles", "slice_", "padded"),
    [
        (512, (2, 2), 512),
        (700, (2, 2), 704),
        (1000, (2, 2), 1008),
        (1024, (2, 2), 1032),
        (1056, (2, 2), 1056),
        (2048, (2, 2), 2060),
        (2056, (2, 2), 2060),
        (4096, (2, 2), 4104),
        (1024, (2, 4), 1024),
    ],
)
def test_parts_are_padded_to_numbers_of_tiles(tiles, slice_, padded):
    """As in as many small programs of bf16 compiled for v5e."""
    levels = autopar.Cluster.preset("tpu-v5e", slice_).levels
    added = scatter_padding(levels, math.prod(slice_), (tiles * 8, 128), 2)
    assert added == (padded - tiles) * 8 * 128 * 2


@pytest.mark.parametrize(
    ("shape", "rows", "form"),
    [((4, 4), 8192, "windowed"), ((4, 4), 4096, "whole"), ((2, 4), 4096, "")],
)
def test_gradients_are_scattered_in_the_form_that_the_compiler_gives_them(shape, rows, form):
    slice_ = autopar.Cluster.preset("tpu-v5e", shape)
    args = (PARAMS, jax.ShapeDtypeStruct((rows, 64), jnp.float32))
    mesh = shape[0] * shape[1]
    plan = autopar.plan(step, *args, cluster=slice_, mesh=mesh, search="fsdp")
    scattered = [one for one in plan.predicted.collectives if one.kind == "reduce-scatter"]
    assert {one.form for one in scattered if "dot_general" in one.value} == {form}


def test_explicit_programs_gather_what_is_predicted_and_casts_come_first():
    """Biases in f32, used in bf16, are cast before they are gathered; the norms' are not cast."""
    small = {"layers": 1, "d_model": 256, "heads": 4, "seq": 64, "vocab": 512}
    workload = preset("gpt:125m", **small)
    batch = workload.abstract_batch(16)
    args = (workload.abstract_state(batch), batch)
    plan = autopar.plan(workload.train_step, *args, cluster=TPUS, mesh=(8,), search="fsdp")
    text = autopar.apply(workload.train_step, plan, backend="shard_map").lower(*args).as_text()
    found = re.findall(r'"stablehlo.all_gather".*-> tensor<([\dx]+)x[a-z]+(\d+)>', text)
    sent = [math.prod(map(int, s.split("x"))) * int(bits) // 8 for s, bits in found]
    gathered = [one for one in plan.predicted.collectives if one.kind == "all-gather"]
    assert sorted(sent) == sorted(one.bytes for one in gathered for _ in range(one.count))
    biases = {one.value: one.bytes for one in gathered if one.value.endswith("bias")}
    assert biases["state/params/block_0/attn/q/bias"] == 2 * 256
    assert biases["state/params/ln_out/bias"] == 4 * 256
