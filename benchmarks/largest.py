"""The largest GPT that trains on some chips: plain, rematerialised by hand, planned, with a host.

    python benchmarks/largest.py [--chips 1] [--widths 2048,4096] [--early] [--json FILE]

AdamW, f32 weights, bf16 compute, batch 8 x 2048 tokens, heads of 128, vocabulary 32768, layers in a
``scan``; TPU v5e of 16 GiB: 1, 4 or 16 of them, on which what is written by hand is under FSDP (on
16, which the batch is too small for, with tensor parallelism in pairs). For every width and way the
most layers are sought, by bisection, whose predicted memory fits.
``--confirm`` compiles the largest of each way ahead of time (libtpu, no TPU; minutes each), and
tells what the compiler says of its memory; ``--early``, what it assigns (tens of seconds).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from _common import require_tpu_compiler, write_json
from _early import compile_early
from rich.console import Console
from rich.table import Table

from autopar.core.errors import InfeasibleError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.cost_model import Cluster, format_bytes
from autopar.models import preset
from autopar.models.workload import Workload
from autopar.passes.trace import Step, trace
from autopar.search.options import Options
from autopar.search.programs import search
from autopar.verification.confirm import compiled_peak

CLUSTERS = {n * n: Cluster.preset("tpu-v5e", (n, n)) for n in (1, 2, 4)}
"""By the number of chips."""

HOST = 128 * 2**30
"""Of each chip."""

BATCH = 8
"""Sequences."""

MOST_LAYERS = 160
"""On one chip."""

WAYS: Mapping[str, tuple[bool, dict[str, Any]]] = {
    # Way: whether every block is under nn.remat; options of the search.
    "plain jit": (False, {"remat": "none", "offload": "none"}),
    "nn.remat of every block": (True, {"remat": "none", "offload": "none"}),
    "planned, device alone": (False, {"offload": "none"}),
    "planned, 128 GiB of host": (False, {"host_bytes": HOST}),
}


@dataclass(frozen=True)
class Row:
    """The largest model of one way. ``compiled_bytes``: 0 if the compiler was not asked."""

    chips: int
    way: str
    width: int
    layers: int
    parameters: int
    device_bytes: int
    host_bytes: int
    step_s: float
    compiled_bytes: int = 0


def workload(width: int, layers: int, remat: bool) -> Workload:
    """The model, and its training step."""
    shape = {"d_model": width, "heads": width // 128, "layers": layers, "vocab": 32768, "seq": 2048}
    return preset("gpt:125m", **shape, batch_size=BATCH, scan=True, remat=remat)


def planned(chips: int, way: str, width: int, layers: int) -> tuple[Step, Plan] | None:
    """A plan within the chips' memory, if there is one."""
    remat, given = WAYS[way]
    options = dict(given)
    mesh = MeshSpec.of({"data": chips})
    if "remat" in options and chips > 1:
        options["search"] = "fsdp"
        if chips > BATCH:
            options["search"] = "fsdp+megatron"
            mesh = MeshSpec.of({"data": BATCH, "model": chips // BATCH})
    made = workload(width, layers, remat)
    step = trace(made.train_step, made.abstract_state(), made.abstract_batch())
    try:
        return step, search(step, CLUSTERS[chips], Options(mesh=mesh, **options))
    except InfeasibleError:
        return None


def largest(chips: int, way: str, width: int) -> Row | None:
    """The most layers of this width that fit; ``None`` if not one does."""
    fits, beyond, best = 0, chips * MOST_LAYERS + 1, None
    while beyond - fits > max(1, fits // 16):
        layers = (fits + beyond) // 2 if fits else max(1, min(8 * chips, beyond // 2))
        found = planned(chips, way, width, layers)
        if found is None:
            beyond = layers
            continue
        fits, predicted = layers, found[1].predicted
        count = workload(width, layers, False).parameter_count()
        sizes = (predicted.peak_bytes, predicted.host_bytes, predicted.step_s)
        best = Row(chips, way, width, layers, count, *sizes)
    return best


def compiled(row: Row) -> int:
    """What the compiler makes of it: bytes a device."""
    found = planned(row.chips, row.way, row.width, row.layers)
    assert found is not None
    return compiled_peak(*found, "jit")


def main() -> None:
    """Seeks, confirms if asked to, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", default="1024,2048,4096")
    parser.add_argument("--only", default="", help="the ways whose name has this in it")
    parser.add_argument("--confirm", action="store_true", help="compile the largest of each way")
    parser.add_argument("--early", action="store_true", help="what memory the compiler assigns it")
    parser.add_argument("--chips", type=int, default=1, choices=tuple(CLUSTERS))
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/largest.json"))
    options = parser.parse_args()
    if options.confirm or options.early:
        require_tpu_compiler()
    rows: list[Row] = []
    for way in (way for way in WAYS if options.only in way):
        found = [largest(options.chips, way, int(width)) for width in options.widths.split(",")]
        best = max((row for row in found if row), key=lambda row: row.parameters, default=None)
        if best is None:
            continue
        if options.early:
            best = replace(best, compiled_bytes=compile_early(compiled, best).peak_bytes)
        elif options.confirm:
            best = replace(best, compiled_bytes=compiled(best))
        rows.append(best)
        Console().print(rows[-1])
        write_json(options.json, [asdict(row) for row in rows])
    Console(width=110).print(_table(rows))


def _table(rows: list[Row]) -> Table:
    names = ("way", "width", "layers", "parameters", "device", "host", "compiled", "step")
    table = Table(*names)
    for row in rows:
        table.add_row(
            *(row.way, str(row.width), str(row.layers), f"{row.parameters / 1e9:.2f} G"),
            *map(format_bytes, (row.device_bytes, row.host_bytes, row.compiled_bytes)),
            f"{row.step_s:.1f} s",
        )
    return table


if __name__ == "__main__":
    main()
