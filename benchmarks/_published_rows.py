"""Published measurements, read: what each row's program, machine and strategy are.

A row that cannot be expressed is an ``Unpriced`` with the reason.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from typing import Any

from _published_facts import (
    ACCELERATORS,
    ATTENTION,
    NAMES,
    POLICIES,
    VARIANTS,
    Row,
    attention_kernel,
    cast_bytes,
    linear_type,
    overlap,
    was_fitted,
)

from autopar.cost_model import PRESETS, Cluster
from autopar.cost_model.fabric import Nodes, Preset, Torus
from autopar.models.gpt import GPTConfig
from autopar.models.llama import LlamaConfig


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
      flat: in how many parts the state is split further. Frameworks split flat buffers; layouts
        split dimensions, so that of 48 shards of a width of 7168 here 3 are replicas.
      cluster: its chip's ``overlap`` and ``attention_efficiency`` are those of the framework.
      linear: operands of the linear layers: ``bf16``, ``fp8`` or ``int8``.
      cast_bytes, fitted: see the facts of these names. measured_s: seconds of one step, if known.
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
    flat: int
    linear: str
    cast_bytes: float
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
    linear = linear_type(row)
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
    whole = math.gcd(shards, config.d_model)
    return Case(
        id=row["id"],
        source=row["source"],
        config=config,
        cluster=cluster,
        batch=sequences // count,
        microbatches=count,
        replicas=replicas * shards // whole,
        shards=whole,
        model=model,
        flat=shards // whole,
        linear=linear,
        cast_bytes=cast_bytes(row),
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
    chip = dataclasses.replace(cluster.chip, overlap=overlap(row), **changes)
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
    return None
