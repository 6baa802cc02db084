"""Published measurements, read: what each row's program, machine and strategy are.

A row that cannot be expressed is an ``Unpriced`` with the reason.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autopar.cost_model import PRESETS, Cluster
from autopar.cost_model.fabric import Nodes, Preset, Torus
from autopar.models.gpt import GPTConfig
from autopar.models.llama import LlamaConfig

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
        return foundry and _linear(row) == "bf16"
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


class Unpriced(Exception):
    """Why a row cannot be expressed."""


@dataclass(frozen=True)
class Case:
    """A row, ready to be priced.

    Attributes:
      config: of the model. batch: sequences of one microbatch, of all devices. microbatches: a
        step.
      replicas, shards, model: devices of the mesh by what they split: the batch alone, the batch
        and the state, and the layers (Megatron's tensor parallelism). Outermost first.
      linear: operands of the linear layers: ``bf16``, ``fp8`` or ``int8``.
      windowed: whether collectives run beside the matmuls that make or take their values, chunk by
        chunk. serial: whether nothing overlaps. fitted: see ``was_fitted``.
      measured_s: seconds of one step.
    """

    id: str
    source: str
    config: GPTConfig | LlamaConfig
    cluster: Cluster
    batch: int
    microbatches: int
    replicas: int
    shards: int
    model: int
    linear: str
    windowed: bool
    serial: bool
    fitted: bool
    measured_s: float | None

    @property
    def mesh(self) -> dict[str, int]:
        """Axes above one device, outermost first."""
        sizes = {"replica": self.replicas, "data": self.shards, "model": self.model}
        return {name: size for name, size in sizes.items() if size > 1} or {"data": 1}


def parse(row: Row) -> Case:
    """Raises ``Unpriced``."""
    parallel = row.get("parallel") or {}
    hardware, batch = row.get("hardware") or {}, row.get("batch") or {}
    if (parallel.get("pp") or 1) > 1:
        raise Unpriced("pipeline parallelism")
    if (parallel.get("cp") or 1) > 1:
        raise Unpriced("context parallelism")
    linear = _linear(row)
    config = _config(row)
    cluster = _cluster(hardware, row)
    replicas, shards, model = _mesh(parallel, cluster.device_count, hardware)
    sequences = _sequences(row, cluster.device_count)
    per_replica = batch.get("micro_seqs") or batch.get("local_batch_per_dp_rank")
    ways = replicas * shards
    if per_replica and sequences % (per_replica * ways) == 0:
        count = sequences // (per_replica * ways)
    else:
        count = int(batch.get("grad_accum") or 1)
    if sequences % (ways * count):
        raise Unpriced(f"{sequences} sequences do not divide over {ways} replicas")
    return Case(
        id=row["id"],
        source=row["source"],
        config=config,
        cluster=cluster,
        batch=sequences // count,
        microbatches=count,
        replicas=replicas,
        shards=shards,
        model=model,
        linear=linear,
        windowed=_is_windowed(row),
        serial=row.get("framework") == "Megatron-LM",  # of 2021: gradients are reduced at the end
        fitted=was_fitted(row),
        measured_s=_measured(row, sequences, cluster.device_count),
    )


def _config(row: Row) -> GPTConfig | LlamaConfig:
    model = row.get("model") or {}
    name = str(model.get("name"))
    if any(word in name.lower() for word in ("gemma", "deepseek", "mixtral", "moe", "t5", "oss")):
        raise Unpriced(f"no such architecture among the models: {name}")
    if model.get("n_experts") or "A22B" in name.upper() or "llama4" in name.lower():
        raise Unpriced(f"no such architecture among the models: {name}")
    if not all(model.get(key) for key in ("hidden", "layers", "heads", "vocab", "seq")):
        raise Unpriced("dimensions not published")
    remat, kept = _policy(row)
    shape: dict[str, Any] = {
        "layers": model["layers"],
        "d_model": model["hidden"],
        "heads": model["heads"],
        "kv_heads": model.get("kv_heads"),
        "d_head": model.get("head_dim"),
        "d_ff": model.get("ffn"),
        "vocab": model["vocab"],
        "seq": model["seq"],
        "scan": True,
        "remat": remat,
        "kept": kept,
        "remat_attention": attention_kernel(row) != "none"
        or "attention core" in str(row.get("recompute")),
    }
    if model.get("gated_mlp"):
        return LlamaConfig(**shape)
    tied = bool(model.get("tied_embeddings", attention_kernel(row) == "none"))
    return GPTConfig(**shape, tied=tied, use_bias=not name.startswith("mpt"))


def _policy(row: Row) -> tuple[bool, tuple[str, ...]]:
    found = row.get("recompute")
    described = str((row.get("parallel") or {}).get("desc", ""))
    if found is None and "remat custom" in described:
        named = re.findall(r"[a-z_]+|[qkv](?=[,\s])", described.split("remat custom:")[1])
        known = {"q", "k", "v", "context", "mlpwo"}
        return True, tuple(NAMES.get(n, n) for n in named if n in known)
    if isinstance(found, dict):
        if found.get("policy") != "custom":
            found = found.get("policy")
        else:
            kept = [NAMES[k] for k, how in found.items() if k in NAMES and how != "remat"]
            return True, tuple(kept)
    if found is None:
        return False, ()
    if found not in POLICIES:
        raise Unpriced(f"recomputation {found!r}")
    return POLICIES[found]


def _linear(row: Row) -> str:
    text = str(row.get("precision")).lower().replace(" ", "")
    if "int8" in text:
        return "int8"
    return "fp8" if "fp8" in text or "float8" in text else "bf16"


def _is_windowed(row: Row) -> bool:
    """XLA:TPU does it, Megatron-Core does, and torchtitan where it says so."""
    framework = str(row.get("framework"))
    on_tpu = str((row.get("hardware") or {}).get("accelerator")).startswith("TPU")
    async_tp = bool((row.get("parallel") or {}).get("async_tp"))
    return on_tpu or async_tp or "Megatron-Core" in framework


def _cluster(hardware: Row, row: Row) -> Cluster:
    accelerator, count = hardware.get("accelerator"), hardware.get("n_devices")
    if accelerator not in ACCELERATORS or not count:
        raise Unpriced(f"accelerator {accelerator!r}")
    name = ACCELERATORS[accelerator]
    preset = PRESETS[name]
    slices = hardware.get("slices") or 1
    if isinstance(preset.fabric, Torus):
        chips = count // slices
        shapes = [shape for shape in preset.fabric.standard if math.prod(shape) == chips]
        if not shapes:
            raise Unpriced(f"no standard slice of {chips} chips")
        shape = (slices, *shapes[0]) if slices > 1 else shapes[0]
    else:
        shape = (count,)
    cluster = Cluster.preset(name, shape)
    egress = _egress(str(hardware.get("cluster")), hardware.get("devices_per_node") or 8, preset)
    levels = tuple(
        dataclasses.replace(level, bandwidth=egress)
        if egress and isinstance(preset.fabric, Nodes) and level.name == preset.fabric.network
        else level
        for level in cluster.levels
    )
    share = ATTENTION[attention_kernel(row)].get(name, 0.0)
    changes = {**VARIANTS.get(accelerator, {}), "attention_efficiency": share}
    chip = dataclasses.replace(cluster.chip, **changes)
    return dataclasses.replace(cluster, chip=chip, levels=levels)


def _egress(text: str, per_node: int, preset: Preset) -> float | None:
    """bytes/s of a device's share of its node's network, 90 % reached; ``None`` if not told."""
    if not isinstance(preset.fabric, Nodes):
        return None
    if "GCP A3" in text:
        return 0.9 * 25e9  # eight 200 Gb/s ports a node
    if found := re.search(r"([\d.]+)\s*Gb/s.*per GPU", text):
        return 0.9 * float(found[1]) / 8 * 1e9
    if found := re.match(r"([\d.]+)\s*Gb/s IB", text):
        return 0.9 * float(found[1]) / 8 / per_node * 1e9
    return None


def _mesh(parallel: Row, devices: int, hardware: Row) -> tuple[int, int, int]:
    def size(*names: str) -> int:
        found = [int(parallel[name]) for name in names if parallel.get(name) not in (None, "-1")]
        return math.prod(size for size in found if size > 0)

    model = size("tp", "ici_tensor_parallelism")
    shards = size("fsdp", "dcn_fsdp_parallelism", "ici_fsdp_parallelism")
    replicas = size("dp", "dp_dcn")
    described = str(parallel.get("desc", ""))
    zero = parallel.get("zero_stage") or 0
    slices = hardware.get("slices") or 1
    if "-1" in [str(parallel.get(f"ici_fsdp{kind}_parallelism")) for kind in ("", "_transpose")]:
        within = 1 if parallel.get("dcn_fsdp_parallelism") else slices
        replicas, shards = within, devices // (within * model)
    elif described.startswith("fsdp=all"):
        replicas, shards = 1, devices // model
    elif described:
        raise Unpriced(f"strategy {described!r}")
    elif zero and "fsdp" not in parallel:
        replicas, shards = 1, replicas
    if replicas * shards * model != devices:
        raise Unpriced(f"{replicas} x {shards} x {model} devices are not {devices}")
    return replicas, shards, model


def _sequences(row: Row, devices: int) -> int:
    batch, model = row.get("batch") or {}, row["model"]
    if batch.get("global_seqs"):
        return int(batch["global_seqs"])
    if batch.get("tokens_per_step"):
        return round(batch["tokens_per_step"] / model["seq"])
    per_device = batch.get("per_device_seqs") or batch.get("local_batch_per_dp_rank")
    if not per_device:
        raise Unpriced("batch size not published")
    return round(per_device * devices)


def _measured(row: Row, sequences: int, devices: int) -> float | None:
    """Seconds of a step: as printed, or from tokens or samples per second, or from FLOP/s."""
    measured, derived = row.get("measured") or {}, row.get("derived") or {}
    tokens = sequences * row["model"]["seq"]
    if measured.get("step_time_s"):
        return float(measured["step_time_s"])
    if measured.get("tokens_per_s_per_device"):
        chips = row["hardware"]["n_devices"]
        return tokens / (chips * measured["tokens_per_s_per_device"])
    if measured.get("samples_per_s"):
        return sequences / measured["samples_per_s"]
    if derived.get("step_time_s"):
        return float(derived["step_time_s"])
    if row.get("kind") in ("throughput", "throughput+memory", "planner_baseline"):
        raise Unpriced("nothing measured from which a step's time follows")
    return None
