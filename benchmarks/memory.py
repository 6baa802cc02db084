"""Memory and time of plans that recompute, beside what is written by hand, judged by the compiler.

    python benchmarks/memory.py [--only TEXT] [--budgets 100,80,60,40,30,20] [--json FILE]

Every row is one program, compiled ahead of time for one TPU v5e with libtpu (no TPU is needed): its
peak memory, and the compiler's own estimate of its cycles. Written by hand: as it is; ``nn.remat``
of every block, where the model has blocks; and JAX's policies over the whole model. Planned: for
budgets in percent of the peak of the program as it is (of the chip's memory, if it does not fit).
A plan whose program is compiled to more than its budget is made again for as much less. Rows in the
file are not done again; it may be stopped at any time. A compilation takes minutes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
from _common import require_tpu_compiler, write_json
from rich.console import Console
from rich.table import Table

from autopar.core.errors import InfeasibleError
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster, format_bytes
from autopar.models import preset
from autopar.models.training import make_train_step
from autopar.models.workload import Workload
from autopar.passes.trace import Step, trace
from autopar.runtime import PlannedStep
from autopar.search.options import Options
from autopar.search.programs import search
from autopar.verification.hlo import read_program
from autopar.verification.topology import compiler_environment, topology_devices


@dataclass(frozen=True)
class Case:
    """One model's training step on one device."""

    name: str
    model: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


GPT = {"d_model": 1024, "heads": 16, "vocab": 8192, "seq": 1024, "batch_size": 16}
CASES = (
    Case("GPT, 4 layers", "gpt:125m", {**GPT, "layers": 4}),
    Case("GPT, 3 layers", "gpt:125m", {**GPT, "layers": 3}),
    Case("GPT, scan of 8", "gpt:125m", {**GPT, "layers": 8, "scan": True}),
    Case(
        "LLaMA-like, 3 layers",
        "llama3:8b",
        {**GPT, "layers": 3, "kv_heads": 4, "d_ff": 2816, "remat": False},
    ),
    Case("ViT-B, 3 layers", "vit:b16", {"layers": 3, "batch_size": 64}),
    Case("MoE, 2 layers", "moe:27b", {**GPT, "layers": 2, "experts": 8, "batch_size": 8}),
    Case("ResNet-50", "resnet:50", {"batch_size": 64}),
)
POLICIES: Mapping[str, Callable[..., Any] | None] = {
    "as it is": None,
    "remat blocks": None,
    "dots saveable": jax.checkpoint_policies.dots_saveable,
    "dots without batch dims saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
ATTEMPTS = 3
"""Plans made for one budget, until one is compiled to no more."""

CHIP = Cluster.preset("tpu-v5e", (1, 1))
BOARD = Cluster.preset("tpu-v5e", (2, 2))
"""The smallest slice that the compiler knows; one of its chips is used."""

AMPLE = 2**45


@dataclass(frozen=True)
class Row:
    """One program.

    Attributes:
      budget_bytes: of a plan; 0 without.
      peak_bytes, cycles: as compiled. predicted_bytes, predicted_s: the plan's.
      recomputed: values that the plan recomputes.
    """

    case: str
    variant: str
    budget_bytes: int
    peak_bytes: int
    cycles: int
    predicted_bytes: int = 0
    predicted_s: float = 0.0
    recomputed: int = 0


@dataclass(frozen=True)
class _Checkpointed:
    """A model whose forward pass keeps what a policy says."""

    model: Any
    policy: Callable[..., Any]

    def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any:
        run = lambda v, *x: self.model.apply(v, *x, **options)  # noqa: E731
        return jax.checkpoint(run, policy=self.policy)(variables, *inputs)


def traced(workload: Workload, policy: Callable[..., Any] | None = None) -> Step:
    """The training step, under a policy if there is one."""
    step = workload.train_step
    if policy is not None:
        family = workload.config.family()
        model: Any = _Checkpointed(workload.model, policy)
        step = make_train_step(model, workload.optimizer, family.loss, inputs=family.inputs)
    return trace(step, workload.abstract_state(), workload.abstract_batch())


def compiled(step: Step, budget: int, remat: str) -> Row:
    """Plans a step for one device and compiles what comes of it."""
    options = Options(mesh=MeshSpec.of(1), memory_bytes=budget, remat=remat)
    plan = search(step, CHIP, options)
    bound = PlannedStep(step, plan, topology_devices(BOARD)[:1])
    args = step.in_tree.unflatten(step.in_avals)
    with compiler_environment():
        program = bound.call.lower(*args).compile()
    memory: Any = program.memory_analysis()
    return Row(
        case="",
        variant="",
        budget_bytes=0,
        peak_bytes=memory.peak_memory_in_bytes,
        cycles=read_program(program.as_text(), plan.mesh).cycles or 0,
        predicted_bytes=plan.predicted.peak_bytes,
        predicted_s=plan.predicted.step_s,
        recomputed=sum(one.count for one in plan.recomputed),
    )


def by_hand(case: Case, variant: str) -> Row | None:
    """The row of a hand-written variant; ``None`` if the model does not offer it, or the compiler
    refuses it.
    """
    overrides = dict(case.overrides)
    if variant == "remat blocks":
        if "remat" not in {f.name for f in dataclasses.fields(preset(case.model).config)}:
            return None
        overrides["remat"] = True
    step = traced(preset(case.model, **overrides), POLICIES[variant])
    try:
        row = compiled(step, AMPLE, "none")
    except jax.errors.JaxRuntimeError as error:  # more than the chip has
        Console(stderr=True).print(f"{case.name}, {variant}: {str(error)[:200]}")
        return None
    return dataclasses.replace(row, case=case.name, variant=variant)


def planned(case: Case, budget: int, variant: str) -> Row:
    """The row of a plan within ``budget`` as compiled.

    Raises:
      InfeasibleError: there is none.
    """
    step = traced(preset(case.model, **case.overrides))
    row, attempts = compiled(step, budget, "auto"), 1
    while row.peak_bytes > budget and attempts < ATTEMPTS:
        asked = int(row.predicted_bytes * budget / row.peak_bytes * 0.99)
        row, attempts = compiled(step, asked, "auto"), attempts + 1
    return dataclasses.replace(row, case=case.name, variant=variant, budget_bytes=budget)


def rows(case: Case, shares: list[int], known: dict[tuple[str, str], Row]) -> Iterator[Row]:
    """The rows of a case that are not known yet."""
    for variant in POLICIES:
        if (case.name, variant) not in known:
            row = by_hand(case, variant)
            if row is not None:
                known[case.name, variant] = row
                yield row
    whole = CHIP.chip.usable_bytes
    if (case.name, "as it is") in known:
        whole = known[case.name, "as it is"].peak_bytes
    for share in shares:
        variant = f"planned, {share} %"
        if (case.name, variant) in known:
            continue
        try:
            yield planned(case, whole * share // 100, variant)
        except InfeasibleError as error:
            Console(stderr=True).print(f"{case.name}, {variant}: {error}")


def main() -> None:
    """Runs what is missing, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the cases whose name has this in it")
    parser.add_argument("--budgets", default="100,80,60,40,30,20", help="percent")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/memory.json"))
    options = parser.parse_args()
    require_tpu_compiler()
    found = _read(options.json)
    shares = [int(share) for share in options.budgets.split(",")] if options.budgets else []
    for case in (case for case in CASES if options.only in case.name):
        for row in rows(case, shares, {(r.case, r.variant): r for r in found}):
            found.append(row)
            write_json(options.json, [asdict(r) for r in found])
    Console(width=120).print(_table(found))


def _read(path: Path) -> list[Row]:
    return [Row(**one) for one in json.loads(path.read_text())] if path.exists() else []


def _table(found: list[Row]) -> Table:
    table = Table("step", "variant", "budget", "peak", "predicted", "Mcycles", "recomputed")
    for row in sorted(found, key=lambda row: row.case):
        budget = format_bytes(row.budget_bytes) if row.budget_bytes else ""
        predicted = format_bytes(row.predicted_bytes)
        table.add_row(
            *(row.case, row.variant, budget, format_bytes(row.peak_bytes), predicted),
            *(f"{row.cycles / 1e6:.1f}", str(row.recomputed)),
        )
    return table


if __name__ == "__main__":
    main()
