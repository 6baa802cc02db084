"""Memory and time of plans that recompute, beside what is written by hand, judged by the compiler.

    python benchmarks/memory.py [--only TEXT] [--budgets 100,80,60,40,30,20] [--early] [--json FILE]

Every row is one program, compiled ahead of time for one TPU v5e with libtpu (no TPU is needed): its
peak memory, and the compiler's own estimate of its cycles. Written by hand: as it is; ``nn.remat``
of every block, where the model has blocks; and JAX's policies over the whole model. Planned: for
budgets in percent of the peak of the program as it is (of the chip's memory, if it does not fit).
A plan whose program is compiled to more than its budget is made again for as much less, as
``confirm=`` does. Rows in the file are not done again; it may be stopped at any time. A compilation
takes minutes (programs that are alike are compiled once); with ``--early`` tens of seconds: it is
stopped once memory is assigned, so there are no cycles. ``time`` is cycles at the chip's clock, and
what crosses the link to the host; beside a plan, that of the best way by hand in its budget.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
from _common import require_tpu_compiler, write_json
from _early import compile_early
from jax.sharding import SingleDeviceSharding
from rich.console import Console
from rich.table import Table

from autopar.core.errors import InfeasibleError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.core.plan_json import from_json, to_json
from autopar.cost_model import Cluster, format_bytes
from autopar.models import preset
from autopar.models.training import make_train_step
from autopar.models.workload import Workload
from autopar.passes.trace import Step, trace
from autopar.runtime import PlannedStep
from autopar.search.options import Options
from autopar.search.programs import search
from autopar.verification.confirm import compiled_peak, confirmed, peak_bytes
from autopar.verification.hlo import read_program
from autopar.verification.topology import clock_hz, compiler_environment, topology_devices


@dataclass(frozen=True)
class Case:
    """One model's training step on one device."""

    name: str
    model: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


GPT = {"d_model": 1024, "heads": 16, "vocab": 8192, "seq": 1024, "batch_size": 16}
SMALL = {"d_model": 512, "heads": 8, "vocab": 8192, "seq": 1024, "batch_size": 8}
LOOP = {"layers": 4, "scan": True}
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
    # Small enough to be compiled whole, for each budget, in a minute or two.
    Case("small GPT", "gpt:125m", {**SMALL, "layers": 2}),
    Case("small ResNet", "resnet:50", {"stages": (1, 1), "batch_size": 64}),
    Case(
        "small LLaMA-like",
        "llama3:8b",
        {**SMALL, **LOOP, "kv_heads": 4, "d_ff": 1408, "remat": False},
    ),
    Case("small ViT", "vit:b16", {**LOOP, "d_model": 512, "heads": 8, "batch_size": 64}),
    Case("small MoE", "moe:27b", {**SMALL, **LOOP, "experts": 8, "experts_every": 1}),
)
POLICIES: Mapping[str, Callable[..., Any] | None] = {
    "as it is": None,
    "remat blocks": None,
    "dots saveable": jax.checkpoint_policies.dots_saveable,
    "dots without batch dims saveable": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "offload dots": jax.checkpoint_policies.offload_dot_with_no_batch_dims("device", "pinned_host"),
}
OFFLOADED = "offload dots"
CHIP = Cluster.preset("tpu-v5e", (1, 1))
AMPLE = 2**45


@dataclass(frozen=True)
class Row:
    """One program.

    Attributes:
      budget_bytes: of a plan; 0 without.
      peak_bytes, cycles: as compiled; no cycles if memory was read early. predicted_bytes,
        predicted_s: the plan's.
      recomputed: values that the plan recomputes. host_bytes, link_s: what it keeps on the host,
        and the time that this takes, which cycles leave out.
      first_bytes: what the first plan for the budget was compiled to.
      program: of the compiled program; equal ones are alike.
    """

    case: str
    variant: str
    budget_bytes: int
    peak_bytes: int
    cycles: int
    predicted_bytes: int = 0
    predicted_s: float = 0.0
    recomputed: int = 0
    host_bytes: int = 0
    link_s: float = 0.0
    first_bytes: int = 0
    program: str = ""

    @property
    def seconds(self) -> float:
        """Of a step, as compiled, and of the link."""
        return self.cycles / clock_hz(CHIP) + self.link_s


@dataclass(frozen=True)
class _Checkpointed:
    """A model whose forward pass keeps what a policy says."""

    model: Any
    policy: Callable[..., Any]

    def apply(self, variables: Any, *inputs: Any, **options: Any) -> Any:
        run = lambda v, *x: self.model.apply(v, *x, **options)  # noqa: E731
        return jax.checkpoint(run, policy=self.policy)(variables, *inputs)


def step_function(workload: Workload, policy: Callable[..., Any] | None) -> Callable[..., Any]:
    """The training step, under a policy if there is one."""
    if policy is None:
        return workload.train_step
    family = workload.config.family()
    model: Any = _Checkpointed(workload.model, policy)
    return make_train_step(model, workload.optimizer, family.loss, inputs=family.inputs)


def step_of(case: Case, variant: str) -> Step | None:
    """The training step of a variant; ``None`` if the model does not offer it."""
    overrides = dict(case.overrides)
    if variant == "remat blocks":
        if "remat" not in {f.name for f in dataclasses.fields(preset(case.model).config)}:
            return None
        overrides["remat"] = True
    workload = preset(case.model, **overrides)
    function = step_function(workload, POLICIES.get(variant))
    return trace(function, workload.abstract_state(), workload.abstract_batch())


@dataclass(frozen=True)
class Compiler:
    """Compiles plans for one variant of a case. ``early``: until memory is assigned.

    ``known``: peaks and cycles, by program.
    """

    case: Case
    variant: str
    step: Step
    early: bool
    known: Mapping[str, tuple[int, int]]

    def measured(self, plan: Plan) -> tuple[int, int]:
        """Peak in bytes and cycles, of which there are none early."""
        if (name := program_of(plan)) in self.known:
            return self.known[name]
        if self.early:
            return compile_early(_peak, self.case, self.variant, to_json(plan)).peak_bytes, 0
        bound = PlannedStep(self.step, plan, topology_devices(CHIP))
        args = self.step.in_tree.unflatten(self.step.in_avals)
        with compiler_environment():
            program = bound.call.lower(*args).compile()
        peak = peak_bytes(program.memory_analysis(), True)
        return peak, read_program(program.as_text(), plan.mesh).cycles or 0

    def row(self, plan: Plan, measured: tuple[int, int]) -> Row:
        """The row of a plan."""
        return Row(
            *(self.case.name, self.variant, 0, *measured),
            predicted_bytes=plan.predicted.peak_bytes,
            predicted_s=plan.predicted.step_s,
            recomputed=sum(one.count for one in plan.recomputed),
            host_bytes=plan.predicted.host_bytes,
            link_s=sum(one.seconds for one in plan.offloaded),
            program=program_of(plan),
        )


def program_of(plan: Plan) -> str:
    """Equal for plans of one device that are compiled to the same program."""
    away = [(one.value, one.stack) for one in plan.offloaded]
    return hashlib.sha256(json.dumps([plan.step, away]).encode()).hexdigest()[:16]


def _peak(case: Case, variant: str, plan: str) -> int:
    """What the compiler gives a plan, in a process of its own."""
    step = step_of(case, variant)
    assert step is not None
    return compiled_peak(step, from_json(plan), "jit")


def by_hand(case: Case, variant: str, early: bool) -> Row | None:
    """The row of a hand-written variant; ``None`` if the model does not offer it, or the compiler
    refuses it.
    """
    if variant == OFFLOADED:
        return None if early else offloaded(case)
    step = step_of(case, variant)
    if step is None:
        return None
    options = Options(mesh=MeshSpec.of(1), memory_bytes=AMPLE, remat="none", offload="none")
    compiler, plan = Compiler(case, variant, step, early, {}), search(step, CHIP, options)
    try:
        return compiler.row(plan, compiler.measured(plan))
    except jax.errors.JaxRuntimeError as error:  # more than the chip has
        Console(stderr=True).print(f"{case.name}, {variant}: {str(error)[:200]}")
        return None


def offloaded(case: Case) -> Row | None:
    """The row of JAX's policy that puts products on the host, under plain ``jit``."""
    workload = preset(case.model, **dict(case.overrides))
    place = SingleDeviceSharding(topology_devices(CHIP)[0])
    step = jax.jit(step_function(workload, POLICIES[OFFLOADED]), donate_argnums=0)
    args = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        (workload.abstract_state(), workload.abstract_batch()),
    )
    try:
        with compiler_environment():
            program: Any = step.lower(*args).compile()
    except jax.errors.JaxRuntimeError as error:
        Console(stderr=True).print(f"{case.name}, {OFFLOADED}: {str(error)[:200]}")
        return None
    memory = program.memory_analysis()
    cycles = read_program(program.as_text(), MeshSpec.of(1)).cycles or 0
    host = memory.host_temp_size_in_bytes
    row = Row(case.name, OFFLOADED, 0, peak_bytes(memory, True), cycles, host_bytes=host)
    return dataclasses.replace(row, link_s=2 * host / CHIP.chip.host_bandwidth)


def planned(
    case: Case, budget: int, variant: str, early: bool, known: Mapping[str, tuple[int, int]]
) -> Row:
    """The row of a plan within ``budget`` as compiled. ``known``: see ``Compiler``.

    Raises:
      InfeasibleError: there is none.
    """
    step = step_of(case, variant)
    assert step is not None
    compiler, found = Compiler(case, variant, step, early, known), list[tuple[int, int]]()

    def peak_of(plan: Plan) -> int:
        found.append(compiler.measured(plan))
        return found[-1][0]

    say = Console(stderr=True).print
    options = Options(
        mesh=MeshSpec.of(1),
        memory_bytes=budget,
        progress=lambda text: say(text) if "compiled" in text else None,
    )
    plan = confirmed(CHIP, options, lambda given: search(step, CHIP, given), peak_of)
    row = compiler.row(plan, found[-1])
    return dataclasses.replace(row, budget_bytes=budget, first_bytes=found[0][0])


def rows(
    case: Case, shares: list[int], known: dict[tuple[str, str], Row], early: bool
) -> Iterator[Row]:
    """The rows of a case that are not known yet."""
    for variant in POLICIES:
        if (case.name, variant) not in known:
            row = by_hand(case, variant, early)
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
        measured = {
            row.program: (row.peak_bytes, row.cycles)
            for (name, _), row in known.items()
            if name == case.name and row.program
        }
        try:
            row = planned(case, whole * share // 100, variant, early, measured)
            known[case.name, variant] = row
            yield row
        except InfeasibleError as error:
            Console(stderr=True).print(f"{case.name}, {variant}: {error}")


def main() -> None:
    """Runs what is missing, prints a table, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="the cases whose name has this in it")
    parser.add_argument("--budgets", default="100,80,60,40,30,20", help="percent")
    parser.add_argument("--early", action="store_true", help="no cycles, but soon")
    parser.add_argument("--json", type=Path, default=Path("build/benchmarks/memory.json"))
    options = parser.parse_args()
    require_tpu_compiler()
    found = _read(options.json)
    shares = [int(share) for share in options.budgets.split(",")] if options.budgets else []
    for case in (case for case in CASES if options.only in case.name):
        for row in rows(case, shares, {(r.case, r.variant): r for r in found}, options.early):
            found.append(row)
            write_json(options.json, [asdict(r) for r in found])
    Console(width=120).print(_table(found))


def _read(path: Path) -> list[Row]:
    return [Row(**one) for one in json.loads(path.read_text())] if path.exists() else []


def _table(found: list[Row]) -> Table:
    table = Table("step", "variant", "budget", "first", "peak", "predicted")
    for name in ("Mcycles", "recomputed", "link", "time", "by hand"):
        table.add_column(name)
    for row in sorted(found, key=lambda row: row.case):
        budget = format_bytes(row.budget_bytes) if row.budget_bytes else ""
        first = format_bytes(row.first_bytes) if row.first_bytes else ""
        table.add_row(
            *(row.case, row.variant, budget, first),
            *map(format_bytes, (row.peak_bytes, row.predicted_bytes)),
            *(f"{row.cycles / 1e6:.1f}", str(row.recomputed), f"{row.link_s * 1e3:.0f} ms"),
            *(f"{row.seconds * 1e3:.1f} ms", _best_by_hand(row, found)),
        )
    return table


def _best_by_hand(row: Row, found: list[Row]) -> str:
    """The least time of what was written by hand for the case and fits the row's budget."""
    ways = [one for one in found if one.case == row.case and not one.budget_bytes]
    times = [one.seconds for one in ways if one.peak_bytes <= row.budget_bytes]
    return f"{min(times) * 1e3:.1f} ms" if times else ""


if __name__ == "__main__":
    main()
