"""The accelerators autopar knows, with a source beside every constant.

Sources, by the letter that stands beside a number:

* [G] Google Cloud TPU documentation, the system-architecture page of that generation.
* [B] "How to Scale Your Model" (jax-ml.github.io/scaling-book), chapters TPUs, Sharding and GPUs.
  Its ICI rates (45, 90 GB/s a link) are about 10 % below Google's nominal 50 and 100, and are what
  is reached.
* [N] NVIDIA datasheets. [A] AMD datasheets. [P] Narayanan et al., arXiv:2104.04473 (PTD-P).
* [C] Calculon's system files (github.com/calculon-ai/calculon), latencies and efficiencies.
* [O] OLCF Frontier user guide. [L] MLPerf system descriptions; Azure ND96isr MI300X v5.
* [V] computed: 8 x 128 lanes x ALUs x clock x cores of the vector unit ([B], chapter TPUs).
* [U] AI-Hypercomputer/tpu-recipes, microbenchmarks. [R] fitted to published training runs,
  docs/cost_model.md.
* [M] measured for this project, see docs/cost_model.md. [E] an estimate; calibrate it.
"""

from __future__ import annotations

import difflib
import os

from autopar.core.errors import ClusterError
from autopar.cost_model.fabric import Preset, SharedMemory
from autopar.cost_model.hardware import Chip
from autopar.cost_model.presets_gpu import GPUS
from autopar.cost_model.presets_tpu import TPUS

CPU = Preset(
    # Emulated devices on one machine. Rough: only good for ranking plans in tests. All [E].
    Chip(
        name="cpu",
        bf16_flops=2e10,
        f32_flops=5e10,
        f32_highest_flops=5e10,
        int8_flops=5e10,
        fp8_flops=2e10,
        vector_flops=5e9,
        hbm_bytes=4 * 2**30,  # replaced by the machine's memory over the devices
        hbm_bandwidth=5e9,
        host_bytes=4 * 2**30,
        host_bandwidth=5e9,
        launch_s=5e-6,
        matmul_efficiency=1.0,
        hbm_efficiency=1.0,
        matmul_tile=8,
        matmul_half_k=8,
        overlap="none",  # emulated devices move data with the cores that compute
    ),
    SharedMemory(bandwidth=2e9, latency_s=5e-5),
    ("cpu",),
)

PRESETS: dict[str, Preset] = {**TPUS, **GPUS, "cpu": CPU}


def find_preset(name: str) -> Preset:
    """The preset called ``name``; ``ClusterError`` with the nearest names if there is none."""
    if name in PRESETS:
        return PRESETS[name]
    near = difflib.get_close_matches(name.lower(), PRESETS, n=2, cutoff=0.4)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ClusterError(f"unknown cluster preset {name!r}{hint} (presets: {', '.join(PRESETS)})")


def preset_for_device(device_kind: str) -> str | None:
    """The preset whose chip JAX calls ``device_kind``; the longest matching name wins."""
    kind = device_kind.lower()
    found = [
        (len(known), name)
        for name, preset in PRESETS.items()
        for known in preset.device_kinds
        if kind.startswith(known)
    ]
    return max(found)[1] if found else None


def machine_bytes() -> int:
    """This machine's memory, rounded down to whole GiB so that plans made here keep fitting."""
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return max(1, pages * size >> 30) << 30
