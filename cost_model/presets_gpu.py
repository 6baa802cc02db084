"""NVIDIA's and AMD's GPUs. ``presets`` says what the letters beside the numbers stand for."""

from __future__ import annotations

from autopar.cost_model.fabric import Island, Nodes, Preset
from autopar.cost_model.hardware import Chip

GIB = 2**30
TERA, GIGA, MICRO = 1e12, 1e9, 1e-6


def _gpu(
    name: str,
    *,
    bf16: float,
    f32: float,
    f32_highest: float,
    int8: float,
    fp8: float | None = None,
    vector: float,
    hbm_gib: float,
    hbm: float,
    host_gib: float,
    pcie: float,
    matmul: float,
) -> Chip:
    """Units: TFLOP/s, GiB, GB/s. ``f32`` is TF32 where the chip has it: JAX's default precision."""
    return Chip(
        name=name,
        bf16_flops=bf16 * TERA,
        f32_flops=f32 * TERA,
        f32_highest_flops=f32_highest * TERA,
        int8_flops=int8 * TERA,
        fp8_flops=(fp8 or bf16) * TERA,
        vector_flops=vector * TERA,
        hbm_bytes=int(hbm_gib * GIB),
        hbm_bandwidth=hbm * GIGA,
        host_bytes=int(host_gib * GIB),
        host_bandwidth=pcie * GIGA,
        launch_s=2 * MICRO,  # [E] a kernel launch on a stream that is kept full
        matmul_efficiency=matmul,
        hbm_efficiency=0.85,  # [R]
        matmul_tile=64,  # [E] rows or columns of one warp group's tile
    )


def _hgx(*, link: float, reached: float, size: int = 8) -> Nodes:
    """An NVLink island. GB/s, one way, per GPU: nominal, and what collectives reach."""
    return Nodes(
        (Island("nvlink", size, min(link, reached) * GIGA, 10 * MICRO),),  # latency [C]
        egress=0.9 * 50 * GIGA,  # [B] one 400 Gb/s port a GPU; 90 % [C]
        egress_s=20 * MICRO,  # [C]
        network="infiniband",
    )


def _cube_mesh(*, link: float) -> tuple[Island, ...]:
    """A DGX-1's hybrid cube mesh [N]: six NVLinks a GPU, one to its neighbour, three to the other
    two of its quad, two to its like in the other quad. A group reaches what its own links carry.
    """
    hop = 5 * MICRO  # [E]
    return (
        Island("nvlink2", 2, 2 * link, hop, "torus"),
        Island("nvlink1", 2, 3 * link, hop, "torus"),
        Island("nvlink0", 2, link, hop, "torus"),
    )


GPUS: dict[str, Preset] = {
    "v100": Preset(
        _gpu(
            "v100",
            bf16=125,  # [N] fp16; Volta has no bf16
            f32=15.7,  # [N] no TF32
            f32_highest=15.7,  # [N]
            int8=62,  # [N] dp4a
            matmul=0.5,  # [R]
            vector=15.7,  # [N]
            hbm_gib=16,  # [N]
            hbm=900,  # [N]
            host_gib=488 / 8,  # [E] AWS p3.16xlarge
            pcie=16,  # [N] PCIe 3 x16
        ),
        Nodes(
            _cube_mesh(link=0.85 * 25 * GIGA),  # [N]; 85 % [E]
            egress=0.9 * 1.5625 * GIGA,  # [E] one 100 Gb/s port a node; 90 % [C]
            egress_s=20 * MICRO,  # [C]
            network="infiniband",
        ),
        ("tesla v100", "v100"),
    ),
    "a100-40": Preset(
        _gpu(
            "a100-40",
            bf16=312,  # [N]
            f32=156,  # [N] TF32
            f32_highest=19.5,  # [N]
            int8=624,  # [N]
            matmul=0.66,  # [R]
            vector=19.5,  # [N]
            hbm_gib=40,  # [N]
            hbm=1555,  # [N]
            host_gib=1024 / 8,  # [E]
            pcie=32,  # [N] PCIe 4 x16
        ),
        Nodes(
            (Island("nvlink", 8, 0.65 * 300 * GIGA, 10 * MICRO),),  # [N] 300; 65 %, latency [C]
            egress=0.9 * 25 * GIGA,  # 1600 Gb/s a node (github.com/mosaicml/llm-foundry); 90 % [C]
            egress_s=20 * MICRO,  # [C]
            network="infiniband",
        ),
        ("nvidia a100-sxm4-40gb", "nvidia a100-pcie-40gb"),
    ),
    "a100-80": Preset(
        _gpu(
            "a100-80",
            bf16=312,  # [N]
            f32=156,  # [N] TF32
            f32_highest=19.5,  # [N]
            int8=624,  # [N]
            matmul=0.66,  # [R]
            vector=19.5,  # [N]
            hbm_gib=80,  # [N]
            hbm=2039,  # [N]
            host_gib=2048 / 8,  # [E]
            pcie=32,  # [N] PCIe 4 x16
        ),
        Nodes(
            (Island("nvlink", 8, 0.65 * 300 * GIGA, 10 * MICRO),),  # [N] 300; 65 %, latency [C]
            egress=0.9 * 25 * GIGA,  # [P] eight 200 Gb/s adapters a node; 90 % [C]
            egress_s=20 * MICRO,  # [C]
            network="infiniband",
        ),
        ("nvidia a100-sxm4-80gb", "nvidia a100 80gb"),
    ),
    "h100": Preset(
        _gpu(
            "h100",
            bf16=989.4,  # [N]
            f32=494.7,  # [N] TF32
            f32_highest=66.9,  # [N]
            int8=1979,  # [N]
            fp8=1979,  # [N]
            matmul=0.53,  # [R]
            vector=66.9,  # [N]
            hbm_gib=80,  # [N]
            hbm=3350,  # [N]
            host_gib=2048 / 8,  # [E] DGX H100: 2 TB
            pcie=64,  # [N] PCIe 5 x16
        ),
        _hgx(link=450, reached=370),  # [N]; "hard to exceed 370" [B]
        ("nvidia h100", "nvidia h100 80gb hbm3"),
    ),
    "h200": Preset(
        _gpu(
            "h200",
            bf16=989.4,  # [N]
            f32=494.7,  # [N] TF32
            f32_highest=66.9,  # [N]
            int8=1979,  # [N]
            fp8=1979,  # [N]
            matmul=0.53,  # [E] as h100
            vector=66.9,  # [N]
            hbm_gib=131.3,  # [N] 141 GB
            hbm=4800,  # [N]
            host_gib=2048 / 8,  # AWS p5en.48xlarge
            pcie=64,  # [N] PCIe 5 x16
        ),
        _hgx(link=450, reached=370),  # [N]; as H100 [B]
        ("nvidia h200",),
    ),
    "b200": Preset(
        _gpu(
            "b200",
            bf16=2250,  # [N] HGX, 1000 W
            f32=1125,  # [N] TF32
            f32_highest=75,  # [N]
            int8=4500,  # [N]
            fp8=4500,  # [N]
            matmul=0.53,  # [E] as h100
            vector=75,  # [N]
            hbm_gib=167.6,  # [N] 180 GB usable of 192
            hbm=8000,  # [N]
            host_gib=2048 / 8,  # [E]
            pcie=64,  # [E] PCIe 5 x16
        ),
        _hgx(link=900, reached=740),  # [N]; the H100's ratio [E]
        ("nvidia b200",),
    ),
    "gb200": Preset(
        _gpu(
            "gb200",
            bf16=2500,  # [N] 1200 W
            f32=1250,  # [N] TF32
            f32_highest=80,  # [N]
            int8=5000,  # [N]
            fp8=5000,  # [N]
            matmul=0.53,  # [E] as h100
            vector=80,  # [N]
            hbm_gib=173.2,  # [L] 186 GB
            hbm=8000,  # [N]
            host_gib=1741 / 4,  # [L] 1.87 TB a node of 4
            pcie=225,  # [N] NVLink-C2C, 450 GB/s a Grace, two GPUs each
        ),
        _hgx(link=900, reached=740, size=72),  # [N] NVL72; the H100's ratio [E]
        ("nvidia gb200",),
    ),
    "mi250x": Preset(
        # One JAX device is one of the module's two dies.
        _gpu(
            "mi250x",
            bf16=191.5,  # [A] 383 a module
            f32=47.9,  # [A]
            f32_highest=47.9,  # [A]
            int8=191.5,  # [A]
            matmul=0.5,  # [E]
            vector=23.9,  # [A]
            hbm_gib=64,  # [O]
            hbm=1600,  # [A] 3200 a module
            host_gib=512 / 8,  # [O]
            pcie=36,  # [O]
        ),
        Nodes(
            (
                Island("xgmi", 4, 50 * GIGA, 10 * MICRO),  # [O] 50 to 100 between modules
                Island("module", 2, 0.75 * 200 * GIGA, 10 * MICRO),  # [O] 200; 75 % [E]
            ),
            egress=0.9 * 12.5 * GIGA,  # [O] four 25 GB/s ports a node of 8 dies; 90 % [C]
            egress_s=20 * MICRO,  # [C]
            network="slingshot",
        ),
        ("amd instinct mi250x", "mi250x"),
    ),
    "mi300x": Preset(
        _gpu(
            "mi300x",
            bf16=1307.4,  # [A]
            f32=163.4,  # [A]
            f32_highest=163.4,  # [A]
            int8=2614.9,  # [A]
            fp8=2614.9,  # [A]
            matmul=0.5,  # [E]
            vector=163.4,  # [A]
            hbm_gib=178.8,  # [L] 192 GB
            hbm=5300,  # [A]
            host_gib=1850 / 8,  # [L]
            pcie=64,  # [L] PCIe 5 x16
        ),
        Nodes(
            # [A] 7 links of 64 GB/s to the 7 others; 75 % [E]
            (Island("xgmi", 8, 0.75 * 448 * GIGA, 10 * MICRO),),
            egress=0.9 * 50 * GIGA,  # [L] 8 x 400 Gb/s a node; 90 % [C]
            egress_s=20 * MICRO,  # [C]
            network="infiniband",
        ),
        ("amd instinct mi300x", "mi300x"),
    ),
}
