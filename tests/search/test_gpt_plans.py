"""What experts do by hand to a GPT, unasked: ZeRO, ZeRO-3, Megatron with sequence parallelism.

Four layers of GPT-3's 6.7B shape with AdamW; bf16 compute, f32 parameters. Every assertion is about
layouts and kinds of collectives, none about seconds.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from reading import Reading, read

from autopar.core.layout import Split
from autopar.cost_model import Cluster
from autopar.models import GPTConfig, Workload, make_workload
from autopar.models.training import default_optimizer

MODEL = GPTConfig(layers=4, d_model=4096, heads=32, vocab=32000, seq=1024)
KERNELS = r"params/block_\d/(attn|mlp)/.*/kernel$"
MOMENTS = r"opt_state/0/(mu|nu)/"
COLUMN, ROW = r"GPT/block_\d/(attn/[qkv]|mlp/up)", r"GPT/block_\d/(attn/out|mlp/down)"
ALL_BLOCK_KERNELS = 6 * MODEL.layers
MEBIBYTE = 2**20


def gpt(batch: int, config: GPTConfig = MODEL) -> Workload:
    return make_workload("gpt", config, optimizer=default_optimizer(), batch_size=batch)


def planned(batch: int, cluster: Cluster, config: GPTConfig = MODEL, **options: Any) -> Reading:
    work = gpt(batch, config)
    example = work.abstract_batch()
    return read(work.train_step, work.abstract_state(example), example, cluster=cluster, **options)


def kernel_bytes(reading: Reading, path: str = KERNELS) -> int:
    """Of the whole kernels, in the compute dtype."""
    return sum(
        2 * math.prod(v.shape) for v in reading.plan.inputs if v.path in reading.inputs(path)
    )


V5E = Cluster.preset("tpu-v5e", (4, 4))


@pytest.fixture(scope="module")
def ample() -> Reading:
    """Four sequences a device, and memory for anything."""
    return planned(64, V5E, mesh=16, memory="500GiB")


@pytest.fixture(scope="module")
def tight(ample: Reading) -> Reading:
    """The same where hardly any gathered kernel can stay from its forward to its backward use."""
    budget = ample.plan.predicted.peak_bytes - int(0.85 * kernel_bytes(ample))
    return planned(64, V5E, mesh=16, memory=budget, remat="none", offload="none")


@pytest.fixture(scope="module", params=["tpu-v5e", "h100"])
def narrow(request: pytest.FixtureRequest) -> Reading:
    """Fewer sequences than devices."""
    cluster = V5E if request.param == "tpu-v5e" else Cluster.preset("h100", 8)
    return planned(4, cluster, mesh=(cluster.device_count,))


def test_large_batch_is_data_parallel(ample: Reading) -> None:
    assert ample.plan.solver.status == "optimal"
    assert ample.written(rf"({COLUMN}|{ROW})/dot_general") == {"S(0) B -> S(0)"}
    assert ample.layouts("batch/targets") == {"S(0)"}


def test_large_batch_splits_the_optimizer_state(ample: Reading) -> None:
    """ZeRO-1/2: nobody asked for it."""
    whole = [path for path, layout in ample.inputs(MOMENTS).items() if str(layout[0]) == "B"]
    assert whole == []


def test_large_batch_scatters_gradients_and_gathers_weights_once(ample: Reading) -> None:
    assert ample.counts(r"block_\d.*dot_general \(grad\)", MEBIBYTE) == {
        "reduce-scatter": ALL_BLOCK_KERNELS
    }
    gathers = [use for use in ample.collectives(r"block_\d", MEBIBYTE) if use.kind == "all-gather"]
    assert sum(use.count for use in gathers) == ALL_BLOCK_KERNELS
    # In the dtype they are computed with, not the one they are kept in.
    assert sum(use.bytes * use.count for use in gathers) == kernel_bytes(ample)
    assert "all-reduce" not in ample.counts(least_bytes=MEBIBYTE)


def test_tight_memory_keeps_data_parallelism(tight: Reading) -> None:
    assert tight.written(rf"({COLUMN}|{ROW})/dot_general") == {"S(0) B -> S(0)"}


def test_tight_memory_keeps_weights_split_at_rest(ample: Reading, tight: Reading) -> None:
    """ZeRO-3: kernels are gathered for each use, forward and again backward."""
    assert tight.plan.predicted.peak_bytes < ample.plan.predicted.peak_bytes
    assert "B" not in tight.layouts(KERNELS) | tight.layouts(MOMENTS + ".*kernel$")
    forward = tight.collectives(r"operand of .*block_\d/.*/dot_general$", MEBIBYTE)
    backward = tight.collectives(r"operand of .*block_\d/.*/dot_general \(grad\)$", MEBIBYTE)
    for uses in (forward, backward):
        moved = sum(use.bytes * use.count for use in uses if use.kind == "all-gather")
        assert moved >= 0.75 * kernel_bytes(tight)
    gathered_again = {use.value.removesuffix(" (grad)") for use in backward}
    assert gathered_again == {use.value for use in forward}


def test_tight_memory_costs_work(ample: Reading, tight: Reading) -> None:
    assert tight.plan.solver.objective_s > ample.plan.solver.objective_s
    assert tight.plan.predicted.comm_s > ample.plan.predicted.comm_s


def test_small_batch_is_megatron(narrow: Reading) -> None:
    assert narrow.plan.solver.status == "optimal"
    assert narrow.written(rf"{COLUMN}/dot_general") == {"B S(1) -> S(2)"}
    assert narrow.written(rf"{ROW}/dot_general") == {"S(2) S(0) -> P"}


def test_small_batch_splits_attention_by_heads(narrow: Reading) -> None:
    """Scores [B, H, S, S] and their product with the values."""
    scores, mixed = r"core/bqh\.\.\.d,bkhd->bh\.\.\.qk", r"core/bh\.\.\.qk,bkhd->bqh\.\.\.d"
    assert narrow.written(rf"GPT/block_\d/attn/{scores}/dot_general") == {"S(2) S(2) -> S(1)"}
    assert narrow.written(rf"GPT/block_\d/attn/{mixed}/dot_general") == {"S(2) S(1) -> S(1)"}


def test_small_batch_rests_as_it_is_used(narrow: Reading) -> None:
    assert narrow.layouts(r"params/block_\d/(attn/[qkv]|mlp/up)/kernel$") == {"S(1)"}
    assert narrow.layouts(r"params/block_\d/(attn/out|mlp/down)/kernel$") == {"S(0)"}
    assert narrow.layouts(rf"{MOMENTS}block_\d/(attn/out|mlp/down)/kernel$") == {"S(0)"}
    moved = narrow.collectives(rf"params|({COLUMN}|{ROW})/convert_element_type", MEBIBYTE)
    assert moved == []


def test_small_batch_is_sequence_parallel(narrow: Reading) -> None:
    """Between the blocks the residual stream is split along the sequence, and so are the norms."""
    assert narrow.hubs(r"GPT/block_\d/add") == {"S(1)"}
    assert narrow.written(r"GPT/block_\d/ln_mlp/sub") <= {"S(1) S(1) -> S(1)"}


def test_small_batch_pairs_gathers_with_scatters(narrow: Reading) -> None:
    """Megatron's all-reduces come as reduce-scatter and all-gather."""
    blocks, whole = narrow.counts(r"block_\d", MEBIBYTE), narrow.counts("", MEBIBYTE)
    assert blocks["reduce-scatter"] == 4 * MODEL.layers  # attention, mlp; forward, backward
    assert whole["all-gather"] == whole["reduce-scatter"] == blocks["reduce-scatter"] + 1  # lm_head
    assert "all-reduce" not in whole


@pytest.mark.slow
def test_mesh_is_found_too() -> None:
    """With nothing fixed at all: eight GPUs, sixteen sequences, the chip's own memory."""
    reading = planned(16, Cluster.preset("h100", 8))
    assert reading.plan.solver.status == "optimal"
    assert "B" not in set(reading.layouts(MOMENTS))


@pytest.mark.slow
def test_two_axes_share_a_small_batch() -> None:
    """Four sequences on 4 x 4: attention over batch x heads, and no axis idle anywhere."""
    reading = planned(4, V5E, mesh=(4, 4))
    (column,) = reading.written(r"GPT/block_\d/attn/[qkv]/dot_general")
    (row,) = reading.written(r"GPT/block_\d/attn/out/dot_general")
    assert (column, row) in {
        ("S(0),B B,S(1) -> S(0),S(2)", "S(0),S(2) B,S(0) -> S(0),P"),
        ("B,S(0) S(1),B -> S(2),S(0)", "S(2),S(0) S(0),B -> P,S(0)"),
    }
    for strategy in reading.strategies(rf"({COLUMN}|{ROW})/dot_general( \(grad\))?"):
        work = zip(*strategy.operands, strict=True)
        assert all(any(isinstance(p, Split) for p in axis) for axis in work)


@pytest.mark.slow
def test_scan_splits_stacked_kernels_alike() -> None:
    """The same model as a loop over stacked layers, whose loop dimension is never cut."""
    reading = planned(4, V5E, dataclasses.replace(MODEL, scan=True), mesh=16)
    assert reading.layouts(r"params/blocks/(attn/[qkv]|mlp/up)/kernel$") == {"S(2)"}
    assert reading.layouts(r"params/blocks/mlp/down/kernel$") == {"S(1)"}
    assert reading.layouts(r"blocks/.*/kernel$") <= {"S(1)", "S(2)"}
