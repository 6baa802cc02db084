"""What the published rows leave to be known of their machines and frameworks, with sources."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from autopar.cost_model.hardware import Overlap

Row = Mapping[str, Any]

ACCELERATORS = {
    **{f"TPU-{name}": f"tpu-{name}" for name in ("v3", "v4", "v5e", "v5p", "v6e", "v7x")},
    "V100-16GB": "v100",
    "A100-40GB": "a100-40",
    "A100-80GB": "a100-80",
    "H100-80GB": "h100",
    "H100-96GB-HBM2e-500W": "h100",
    "H200": "h200",
    "MI250X-GCD": "mi250x",
    "MI300X": "mi300x",
    "B200": "b200",
    "GB200": "gb200",
}
"""The preset that describes each accelerator."""

_CLOCK = (500 / 700) ** (1 / 3)  # power rises with the cube of the clock

VARIANTS: Mapping[str, Mapping[str, float]] = {
    "H100-96GB-HBM2e-500W": {
        "hbm_bytes": 96 * 2**30,
        "hbm_bandwidth": 2.4e12,
        "vector_flops": 66.9e12 * _CLOCK,
        "bf16_flops": 989.4e12 * _CLOCK,
        "fp8_flops": 1979e12 * _CLOCK,
    }
}
"""What is otherwise than in the preset."""

ATTENTION: Mapping[str, Mapping[str, float]] = {
    "none": {},
    # FlashAttention-2 (arXiv:2307.08691): its predecessor reaches 25 to 40 % of an A100.
    "triton": {"a100-40": 0.35, "a100-80": 0.35, "h100": 0.2, "h200": 0.2},
    # FlashAttention-3 (arXiv:2407.08608): FlashAttention-2 reaches 35 % of an H100.
    "flash-2": {"a100-40": 0.5, "a100-80": 0.5, "h100": 0.35, "h200": 0.35, "mi250x": 0.2},
    # The same paper's figures, forward and backward, causal, heads of 128.
    "cudnn": {"a100-40": 0.5, "a100-80": 0.5, "h100": 0.5, "h200": 0.5},
    "splash": {
        "tpu-v3": 0.3,
        "tpu-v4": 0.3,
        "tpu-v5e": 0.35,
        "tpu-v5p": 0.5,
        "tpu-v6e": 0.5,
        "tpu-v7x": 0.25,
    },
}
"""Kernel of attention to the share of its peak that it reaches on each chip."""

KERNELS = {
    **dict.fromkeys(("Megatron-LM", "OneFlow-GPT", "DeepSpeed ZeRO-3 in Megatron-LM"), "none"),
    **dict.fromkeys(
        ("Megatron-Core", "NeMo/Megatron-Core", "NeMo/Megatron-Core 24.03.01"), "cudnn"
    ),
    **dict.fromkeys(("torchtitan", "torchtitan FSDP2"), "flash-2"),
    "llm-foundry / Composer FSDP": "triton",
}
"""Frameworks on GPUs to the kernel; the rows of the first three are older than such kernels."""


def was_fitted(row: Row) -> bool:
    """Whether the constants of the row's accelerator were chosen with it in sight.

    A100: by seven rows of four other papers, not by llm-foundry's. H100: by llm-foundry's 16-bit
    rows alone. V100: by Megatron's rows, not OneFlow's. TPUs: by all but one paper's v5p row.
    """
    framework = str(row.get("framework"))
    accelerator = str((row.get("hardware") or {}).get("accelerator"))
    if accelerator.startswith("TPU"):
        return not (accelerator == "TPU-v5p" and "recipes" in row["source"])
    foundry = framework.startswith("llm-foundry")
    if accelerator.startswith("A100"):
        return not foundry and not framework.startswith("DeepSpeed")
    if accelerator == "H100-80GB":
        return foundry and linear_type(row) == "bf16"
    return framework == "Megatron-LM"


def attention_kernel(row: Row) -> str:
    """The kernel that ran the row's attention."""
    framework = str(row.get("framework"))
    if framework in KERNELS:
        return KERNELS[framework]
    if str((row.get("hardware") or {}).get("accelerator")).startswith("TPU"):
        return "splash"
    if framework.startswith("Pax") and "TE" not in str(row.get("precision")):
        return "none"
    return "cudnn"  # JAX on GPUs, through Transformer Engine


POLICIES: Mapping[str, tuple[bool, tuple[str, ...]]] = {
    # Name to: whether layers are recomputed, and which of their values are kept all the same.
    "none": (False, ()),
    "selective (attention core)": (False, ()),
    "full": (True, ()),
    "per layer": (True, ()),
    "selective layer": (True, ()),  # torchtitan, every layer: the rows are of frequency 1
    # torchtitan saves every other matmul, and attention's result.
    "selective (op)": (True, ("q", "v", "mixed", "gate", "down")),
    "selective": (True, ("q", "v", "mixed", "gate", "down")),
    # MaxText's policies: what they keep, on the device or on the host.
    "minimal": (True, ("q", "k", "v", "out", "gate", "up", "down")),
    "minimal_flash": (True, ("q", "k", "v", "mixed", "out", "gate", "up", "down")),
    "minimal_with_context": (True, ("q", "k", "v", "mixed", "out", "gate", "up", "down")),
    "qkv_proj_offloaded": (True, ("q", "k", "v")),
}

NAMES = {
    "query_proj": "q",
    "key_proj": "k",
    "value_proj": "v",
    "context": "mixed",
    "out_proj": "out",
    "mlpwi_0": "gate",
    "mlpwi_1": "up",
    "mlpwi": "up",
    "mlpwo": "down",
}
"""MaxText's names of what a layer keeps, in ours."""


def linear_type(row: Row) -> str:
    text = str(row.get("precision")).lower().replace(" ", "")
    if "int8" in text:
        return "int8"
    return "fp8" if "fp8" in text or "float8" in text else "bf16"


def cast_bytes(row: Row) -> float:
    """What an operand of eight bits costs each product that it enters, in bytes an element.

    It is read for its largest value and read to be cast (16 bits each), and written twice, once
    transposed, as the products of the backward pass want it. Every value enters two products;
    Transformer Engine casts it once for both.
    """
    engine = "NeMo" in str(row.get("framework")) or "TE" in str(row.get("precision"))
    return 3.0 if engine or "amp_fp8" in str(row.get("precision")) else 6.0


def overlap(row: Row) -> Overlap:
    """Windowed: XLA:TPU, Megatron-Core, and torchtitan where it says so.

    None: Megatron-LM of 2021, which reduces gradients at the end, and OneFlow's GPT if it is tensor
    parallel, whose collectives are then on the stream of the kernels (nccl_use_compute_stream;
    Oneflow-Inc/OneFlow-Benchmark, LanguageModeling/GPT/oneflow_gpt/training.py).
    """
    framework, parallel = str(row.get("framework")), row.get("parallel") or {}
    if framework == "Megatron-LM" or (framework == "OneFlow-GPT" and (parallel.get("tp") or 1) > 1):
        return "none"
    on_tpu = str((row.get("hardware") or {}).get("accelerator")).startswith("TPU")
    async_tp = bool(parallel.get("async_tp"))
    return "windowed" if on_tpu or async_tp or "Megatron-Core" in framework else "async"
