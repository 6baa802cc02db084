"""Worked problems of "How to Scale Your Model" (jax-ml.github.io/scaling-book), and Table 1 of ZeRO
(arXiv:1910.02054): the answers follow from presets, links and layouts.

The book leaves out ``(n-1)/n`` and latencies; where a formula here has them, so does the test.
"""

import math

import jax
import pytest

from autopar.core.layout import B, Split, local_shape
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Chip, Cluster, Level, Link, collective_seconds
from autopar.cost_model.compute import Load
from autopar.cost_model.topology import axis_links
from autopar.models.gpt import GPTConfig
from autopar.models.training import default_optimizer
from autopar.models.workload import make_workload
from autopar.search.baselines import placement
from autopar.search.roles import PARAMETERS


def chip(name: str) -> Chip:
    return Cluster.preset(name).chip


def links(name: str, shape: tuple[int, ...], mesh: tuple[int, ...]) -> tuple[Link, ...]:
    return Cluster.preset(name, shape).axis_links(MeshSpec.of(mesh))


def test_loading_weights_from_memory() -> None:
    # TPUs, question 1: 200 billion bf16 parameters over 32 chips of v4: "about 10 ms".
    seconds = Load(moved_bytes=2 * 200e9 / 32).seconds(chip("tpu-v4"))
    assert seconds * chip("tpu-v4").hbm_efficiency == pytest.approx(10e-3, rel=0.05)


def test_batch_that_hides_the_host() -> None:
    # TPUs, question 3: at 15 GB/s from the host, 61,000 tokens make a v6e compute bound.
    assert chip("tpu-v6e").bf16_flops / 1.5e10 == pytest.approx(61_000, rel=0.01)


def test_corner_to_corner() -> None:
    # TPUs, question 5: bf16[8, 128, 8192] across a 4x4 slice of v5e: 6 hops, two links, 188 us.
    levels = Cluster.preset("tpu-v5e", (4, 4)).levels
    assert all(not level.wrap for level in levels)
    hops = sum((level.size - 1) * level.latency_s for level in levels)
    moved = 2 * 8 * 128 * 8192 / sum(level.bandwidth for level in levels)
    assert hops == pytest.approx(6e-6)
    assert moved == pytest.approx(188e-6, rel=0.02)


def test_gather_without_a_ring() -> None:
    # Sharding, pop quiz 2: v5e 8x4 has no ring of 4: 560 us (measured 680); 3 us for 256 x 256.
    link = links("tpu-v5e", (4, 8), (4, 8))[0]
    large = collective_seconds("all-gather", 2 * 2048 * 8192, link, 4)
    assert large == pytest.approx(560e-6, rel=0.01)
    assert 3e-6 < collective_seconds("all-gather", 2 * 256 * 256, link, 4) < 6e-6


def test_copies_of_a_split_array() -> None:
    # Sharding, question 1: A[I_X, J, K] on X4 Y8 Z2 takes 16 times the bytes of one copy.
    mesh = MeshSpec.of((4, 8, 2))
    shape = (64, 32, 32)
    local = math.prod(local_shape(shape, (Split(0), B, B), mesh))
    assert local * mesh.device_count / math.prod(shape) == 16


def test_reduction_over_an_axis() -> None:
    # Sharding, question 2: AllReduce_Z of bf16[1024, 4096] on v4 4x4x4: 190 us.
    seconds = collective_seconds(
        "all-reduce", 2 * 1024 * 4096, links("tpu-v4", (4, 4, 4), (4, 4, 4))[2], 4
    )
    assert (seconds - 4e-6) * 4 / 3 == pytest.approx(190e-6, rel=0.02)


def test_compute_bound_on_tpus() -> None:
    # Training: v5p needs 2550 tokens a chip on one axis, 850 on three; F / 2550 axes of tensor
    # parallelism; 400 tokens a chip for both together at F = 32768 on two axes. Sharding, question
    # 4: gathering the weights loses to partial sums from D = 5100 on.
    flops = chip("tpu-v5p").bf16_flops
    one = flops / links("tpu-v5p", (4, 4, 4), (4, 4, 4))[0].bandwidth
    three = flops / links("tpu-v5p", (4, 4, 4), (64,))[0].bandwidth
    assert one == pytest.approx(2550, rel=0.01)
    assert three == pytest.approx(850, rel=0.01)
    assert 2 * one == pytest.approx(5100, rel=0.01)
    assert 4 * one**2 / (2 * 32768) == pytest.approx(400, rel=0.02)


def test_llama_on_a_pod() -> None:
    # Training, question 3: LLaMA-2 13B on v5p 16x16x16: its state does not fit a chip, split over
    # all it does, and 3.48 million tokens make it compute bound.
    workload = make_workload(
        "llama2:13b",
        GPTConfig(layers=40, d_model=5120, heads=40, d_ff=20480, vocab=32000, scan=True),
        optimizer=default_optimizer(),
        batch_size=1,
    )
    state = 12 * workload.parameter_count()
    assert state > chip("tpu-v5p").hbm_bytes > 100 * state / 4096
    needed = chip("tpu-v5p").bf16_flops / links("tpu-v5p", (16, 16, 16), (4096,))[0].bandwidth
    assert 4096 * needed == pytest.approx(3.48e6, rel=0.01)


def test_adding_vectors() -> None:
    # GPUs, quiz 1, question 7: 2^30 floats on an H100: 3.84 ms at the peak, 4.1 ms measured.
    h100 = chip("h100")
    seconds = Load(moved_bytes=3 * 4 * 2**30).seconds(h100)
    assert seconds * h100.hbm_efficiency == pytest.approx(3.84e-3, rel=0.01)
    assert seconds == pytest.approx(4.1e-3, rel=0.15)


NODE, NODES = 450e9, 50e9
"""The book's nominal rates of NVLink and of a GPU's port, bytes/s."""


def nominal(nodes: int) -> Link:
    levels = (
        Level("network", nodes, "switch", NODES, 0.0),
        Level("nvlink", 8, "switch", NODE, 0.0),
    )
    return axis_links(levels, MeshSpec.of((8 * nodes,)))[0]


def test_gather_over_two_nodes() -> None:
    # GPUs, quiz 4, question 5: bound by the node, B / 514e9, not by the network, B / 800e9.
    assert collective_seconds("all-gather", 514e9, nominal(2), 16) == pytest.approx(1.0, rel=1e-3)
    alone = axis_links((Level("network", 2, "switch", NODES, 0.0),), MeshSpec.of((2,)))[0]
    assert collective_seconds("all-gather", 8 * 800e9 / 8, alone, 2) / 8 == pytest.approx(1.0)


def test_compute_bound_on_gpus() -> None:
    # GPUs: 2200 tokens a GPU in a node, 2475 across many, 1237 by the network of two, 79,200 for an
    # MoE of 128 experts, 4 at work. Quiz 5: a B200 5625 across nodes, F / 2500 ways in one.
    h100, b200 = chip("h100").bf16_flops, chip("b200").bf16_flops
    across = h100 * collective_seconds("all-gather", 1.0, nominal(2**12), 8 * 2**12)
    assert h100 / NODE == pytest.approx(2200, rel=0.01)
    assert across == pytest.approx(2475, rel=0.01)
    assert across / 2 == pytest.approx(1237, rel=0.01)
    assert across * 128 / 4 == pytest.approx(79_200, rel=0.01)
    assert b200 / (8 * NODES) == pytest.approx(5625, rel=0.01)
    assert b200 / (2 * NODE) == pytest.approx(2500, rel=0.01)


ZERO = {
    # Billions of parameters, and a GPT of about as many: devices to GB a device, stages 1, 2 and 3.
    (7.5, 36, 4096): {
        1: (120, 120, 120),
        4: (52.5, 41.3, 30),
        16: (35.6, 21.6, 7.5),
        64: (31.4, 16.6, 1.88),
        256: (30.4, 15.4, 0.47),
        1024: (30.1, 15.1, 0.12),
    },
    (128.0, 70, 12288): {
        1: (2048, 2048, 2048),
        4: (896, 704, 512),
        16: (608, 368, 128),
        64: (536, 284, 32),
        256: (518, 263, 8),
        1024: (513, 257, 2),
    },
    (1000.0, 128, 25600): {
        1: (16000, 16000, 16000),
        4: (7000, 5500, 4000),
        16: (4750, 2875, 1000),
        64: (4187, 2218, 250),
        256: (4046, 2054, 62.5),
        1024: (4011, 2013, 15.6),
    },
}


@pytest.mark.parametrize("model", ZERO, ids=lambda model: f"{model[0]:g}B")
def test_zero_table_1(model: tuple[float, int, int]) -> None:
    # 2 bytes of weights and 2 of gradients a parameter, 12 of f32 weights and moments; what a stage
    # splits rests as `placement` has it.
    billions, layers, width = model
    config = GPTConfig(layers=layers, d_model=width, heads=32, vocab=51200, scan=True)
    workload = make_workload("zero", config, optimizer=default_optimizer(), batch_size=1)
    params = jax.tree.leaves_with_path(workload.abstract_state().params)
    scale = billions / workload.parameter_count()

    def held(mesh: MeshSpec, split: int) -> float:
        place = placement(mesh, (0,), (0,) if split and mesh.device_count > 1 else ())
        return scale * sum(
            math.prod(local_shape(leaf.shape, place(str(path), leaf.shape, PARAMETERS), mesh))
            for path, leaf in params
        )

    for devices, row in ZERO[model].items():
        mesh = MeshSpec.of((devices,))
        for splits, expected in zip(((0, 0, 1), (0, 1, 1), (1, 1, 1)), row, strict=True):
            weights, gradients, state = (held(mesh, split) for split in splits)
            found = 2 * weights + 2 * gradients + 12 * state
            assert found == pytest.approx(expected, rel=0.02, abs=0.005), devices  # two digits
