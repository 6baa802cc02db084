"""The programs of ``memory.py``: one training step, made by hand or planned, and compiled."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
from _early import compile_early
from jax.sharding import SingleDeviceSharding
from rich.console import Console

from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.core.plan_json import from_json, to_json
from autopar.cost_model import Cluster
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
