"""Google's TPUs. ``presets`` says what the letters beside the numbers stand for."""

from __future__ import annotations

from autopar.cost_model.fabric import Preset, Torus
from autopar.cost_model.hardware import Chip

GIB = 2**30
TERA, GIGA, MICRO = 1e12, 1e9, 1e-6

ISSUED = 0.16
"""Share of the vector units' slots that XLA's kernels fill (the compiler's cycles, v5e)."""

UNKNOWN_SHARE = 1.0
"""The same where units take 16-bit elements too. Nobody has looked; by published runs of v6e and
v7x it is more than ``ISSUED``."""

_SLICES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))  # [G]
_SLICES_3D = (
    *((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8)),
    *((4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16), (16, 16, 16)),
)  # [G]


def _tpu(
    name: str,
    *,
    bf16: float,
    int8: float | None = None,
    fp8: float | None = None,
    vector: float,
    hbm_gib: int,
    hbm: float,
    host_gib: float,
    pcie: float,
    matmul: float,
    copy: float = 0.83,  # [U] v6e
    tile: int = 128,
    vmem_mib: int = 0,
    issued: float = ISSUED,
) -> Chip:
    """Units: TFLOP/s, GiB, GB/s. An f32 matmul is one bf16 pass, at HIGHEST six [B]."""
    return Chip(
        name=name,
        bf16_flops=bf16 * TERA,
        f32_flops=bf16 * TERA,
        f32_highest_flops=bf16 * TERA / 6,
        int8_flops=(int8 or bf16) * TERA,
        fp8_flops=(fp8 or bf16) * TERA,
        vector_flops=vector * issued * TERA,
        hbm_bytes=hbm_gib * GIB,
        hbm_bandwidth=hbm * GIGA,
        host_bytes=int(host_gib * GIB),
        host_bandwidth=pcie * GIGA,
        launch_s=0.2 * MICRO,  # [E] kernels of one TPU program follow each other without the host
        matmul_efficiency=matmul,
        hbm_efficiency=copy,
        matmul_tile=tile,
        vmem_bytes=vmem_mib * 2**20,
        overlap="windowed",
    )


TPUS: dict[str, Preset] = {
    "tpu-v3": Preset(
        # One JAX device is one of the chip's two cores: half of 140 TFLOP/s, 32 GiB, 900 GB/s [B].
        _tpu(
            "tpu-v3",
            bf16=70,
            matmul=0.73,  # [E] as v4
            vector=1.9,  # [V] 8 x 128 x 2 x 0.94 GHz
            hbm_gib=16,
            hbm=450,
            host_gib=42,  # [E] 340 GiB a host of 8 cores
            pcie=8,  # [E] PCIe 3 x16 shared by two cores
        ),
        Torus(
            standard=((1, 1), (2, 2), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16), (32, 32)),  # [G]
            pod=(32, 32),  # [B]
            wrap="full",
            link=100 * GIGA,  # [B]
            hop_s=1 * MICRO,  # [B]
            dcn=3.125 * GIGA,  # [E] as v5e
            dcn_s=20 * MICRO,  # [E]
            dies=2,
            die_link=200 * GIGA,  # [E]
        ),
        ("tpu v3",),
    ),
    "tpu-v4": Preset(
        _tpu(
            "tpu-v4",
            bf16=275,  # [G]
            int8=275,  # [G]
            matmul=0.73,  # [R]
            vector=4.3,  # [V] 8 x 128 x 2 x 1.05 GHz x 2 cores
            hbm_gib=32,  # [G]
            hbm=1200,  # [G]
            host_gib=407 / 4,  # [E] host of 4 chips
            pcie=16,  # [B]
        ),
        Torus(
            standard=_SLICES_3D,
            pod=(16, 16, 16),  # [B] 4096 chips
            wrap="cubes",  # [B]
            link=45 * GIGA,  # [B]
            hop_s=1 * MICRO,  # [B]
            dcn=6.25 * GIGA,  # [B]
            dcn_s=20 * MICRO,  # [E]
        ),
        ("tpu v4",),
    ),
    "tpu-v5e": Preset(
        _tpu(
            "tpu-v5e",
            bf16=197,  # [G]
            int8=393,  # [G]
            matmul=0.8,  # [R]
            vector=6.1,  # [V] 8 x 128 x 4 x 1.5 GHz
            hbm_gib=16,  # [G]
            hbm=819,  # [G]
            host_gib=512 / 8,  # [G] host of 8 chips
            pcie=16,  # [B]
            vmem_mib=112,  # [M] of 128
        ),
        Torus(
            standard=_SLICES_2D,
            pod=(16, 16),  # [G]
            wrap="full",  # [B] only an axis of 16 wraps around
            link=45 * GIGA,  # [B] 50 nominal [G]
            hop_s=1 * MICRO,  # [B]
            dcn=3.125 * GIGA,  # [G] two 100 Gb/s ports a host of 8 chips
            dcn_s=20 * MICRO,  # [E]
        ),
        ("tpu v5 lite", "tpu v5e", "tpu v5litepod"),
    ),
    "tpu-v5p": Preset(
        _tpu(
            "tpu-v5p",
            bf16=459,  # [G]
            int8=918,  # [B]
            matmul=0.83,  # [R]
            vector=14.3,  # [V] 8 x 128 x 4 x 1.75 GHz x 2 cores
            hbm_gib=95,  # [G]
            hbm=2765,  # [G]
            host_gib=417 / 4,  # [G] 448 GB a VM of 4 chips
            pcie=16,  # [B]
        ),
        Torus(
            standard=_SLICES_3D,
            pod=(16, 20, 28),  # [G] 8960 chips
            wrap="cubes",  # [G]
            link=90 * GIGA,  # [B] 100 nominal [G]
            hop_s=1 * MICRO,  # [B] (stated for v4 and v5e)
            dcn=6.25 * GIGA,  # [G] 50 Gb/s a chip
            dcn_s=20 * MICRO,  # [E]
        ),
        ("tpu v5p", "tpu v5"),
    ),
    "tpu-v6e": Preset(
        _tpu(
            "tpu-v6e",
            bf16=918,  # [G]
            int8=1836,  # [G]
            matmul=0.58,  # [R]; 0.90 in isolation [U]
            vector=14.3,  # [E] as v5p
            hbm_gib=32,  # [G]
            hbm=1638,  # [G]
            host_gib=1536 / 8,  # [G] host of 8 chips
            pcie=32,  # [B]
            tile=256,  # [B] 256 x 256 systolic array
            issued=UNKNOWN_SHARE,
            vmem_mib=112,  # [E] as v5e
        ),
        Torus(
            standard=_SLICES_2D,
            pod=(16, 16),  # [G]
            wrap="full",  # [B]
            link=90 * GIGA,  # [B] 100 nominal [G]
            hop_s=1 * MICRO,  # [B] (stated for v4 and v5e)
            dcn=12.5 * GIGA,  # [G] 100 Gb/s a chip
            dcn_s=20 * MICRO,  # [E]
        ),
        ("tpu v6 lite", "tpu v6e"),
    ),
    "tpu-v7x": Preset(
        # One JAX device is one of the chip's two dies: half of 2307 (fp8 4614) TFLOP/s, 192 GiB and
        # 7380 GB/s [G]. The shape counts chips, as Google's topology names do.
        _tpu(
            "tpu-v7x",
            bf16=2307 / 2,
            int8=4614 / 2,  # [E] as fp8
            fp8=4614 / 2,
            matmul=0.8,  # [R]; 0.83 in isolation [U]
            vector=14.3,  # [E] as v6e, a die
            hbm_gib=96,
            hbm=7380 / 2,
            host_gib=894 / 8,  # [G] 960 GB a VM of 4 chips
            pcie=16,  # [E] as v6e, shared by two dies
            tile=256,  # [E] as v6e
            issued=UNKNOWN_SHARE,
        ),
        Torus(
            standard=_SLICES_3D,
            pod=(16, 24, 24),  # [G] 9216 chips
            wrap="cubes",  # [G]
            link=100 * GIGA,  # [G] 1200 GB/s a chip, both ways, over 6 ports
            hop_s=1 * MICRO,  # [B] (stated for v4 and v5e)
            dcn=12.5 * GIGA,  # [G]
            dcn_s=20 * MICRO,  # [E]
            dies=2,
            die_link=600 * GIGA,  # [G] "six times a 1D ICI link"
        ),
        ("tpu7x", "tpu v7x", "tpu v7"),
    ),
}
