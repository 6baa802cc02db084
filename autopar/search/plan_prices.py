"""What a plan makes of each value and equation: bytes on a device, seconds of running it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.core.layout import Layout, local_shape, local_shapes, replicated
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan, Strategy, ValuePlan
from autopar.cost_model import Cluster, FusionBorders, Resharder, equation_seconds, work
from autopar.cost_model.work import itemsize, shape_of
from autopar.passes.rules import regions
from autopar.passes.rules.borders import Border
from autopar.passes.trace import Step
from autopar.search.memory import heaviest
from autopar.search.prepared import Prepared


@dataclass(frozen=True, slots=True)
class Layouts:
    """What prices depend on of a plan; see there."""

    mesh: MeshSpec
    inputs: tuple[ValuePlan, ...]
    strategies: Mapping[str, Strategy]
    hubs: Mapping[str, Layout]


class PlanPrices:
    """Bytes and seconds of one step under one plan.

    Args:
      step: the program that the plan is for.
    """

    def __init__(self, step: Step, plan: Plan | Layouts, cluster: Cluster) -> None:
        self.plan, self.chip = plan, cluster.chip
        self.resharder = Resharder(plan.mesh, cluster.axis_links(plan.mesh))
        self.layouts: dict[Var, Layout] = {}
        self.rest: dict[Var, Layout] = {}
        jaxpr = step.jaxpr.jaxpr
        self.layouts.update((var, replicated(plan.mesh)) for var in jaxpr.constvars)
        for i, (var, value) in enumerate(zip(jaxpr.invars, plan.inputs, strict=True)):
            self.rest[var] = value.layout
            self.layouts[var] = plan.hubs.get(f"in:{i}", value.layout)
        self._walk(jaxpr, "")

    def bytes_of(self, var: Var) -> int:
        """Of the value as it is held, an input as it rests."""
        layout = self.rest.get(var, self.layouts[var])
        local = local_shape(shape_of(var.aval), layout, self.plan.mesh)
        return math.prod(local) * itemsize(var.aval)

    def seconds(self, name: str, eqn: JaxprEqn, borders: FusionBorders) -> float:
        """Of one run of an equation, bringing its operands into their layouts included."""
        nested = regions(eqn)
        if nested is not None:
            return sum(
                region.trips
                * sum(
                    self.seconds(f"{name}/{region.name}/{position}", inner, borders)
                    for position, inner in enumerate(region.body.eqns)
                )
                for region in nested
            )
        strategy = self.plan.strategies[name]
        total = equation_seconds(
            work(eqn),
            self._parts(eqn.invars, strategy.operands),
            self._parts(eqn.outvars, strategy.results),
            self.chip,
            *borders.of(eqn),
        )
        for atom, wanted in zip(eqn.invars, strategy.operands, strict=True):
            if isinstance(atom, Var) and self.layouts[atom] != wanted:
                total += self._moved(atom, self.layouts[atom], wanted)
        for port, (var, left) in enumerate(zip(eqn.outvars, strategy.results, strict=True)):
            hub = self.plan.hubs.get(f"{name}.{port}", left)
            total += self._moved(var, left, hub) if hub != left else 0.0
        return total

    def _parts(
        self, atoms: Sequence[Var | Literal], layouts: Sequence[Layout]
    ) -> tuple[tuple[int, ...], ...]:
        return local_shapes([shape_of(atom.aval) for atom in atoms], layouts, self.plan.mesh)

    def _moved(self, var: Var, left: Layout, right: Layout) -> float:
        path = self.resharder.path(shape_of(var.aval), itemsize(var.aval), left, right)
        return sum(one.seconds for one in path)

    def _walk(self, jaxpr: Jaxpr, prefix: str) -> None:
        for position, eqn in enumerate(jaxpr.eqns):
            name = f"{prefix}{position}"
            nested = regions(eqn)
            if nested is None:
                for port, var in enumerate(eqn.outvars):
                    own = self.plan.strategies[name].results[port]
                    self.layouts[var] = self.plan.hubs.get(f"{name}.{port}", own)
            else:
                border = Border(self.plan.hubs, name)
                for region in nested:
                    self.layouts.update(
                        zip(region.body.invars, border.entries(region), strict=True)
                    )
                    self._walk(region.body, f"{name}/{region.name}/")
                self.layouts.update(zip(eqn.outvars, border.results(nested), strict=True))


def heaviest_of(prepared: Prepared, plan: Plan) -> str:
    """The largest values at the peak, by name and size."""
    step, cluster = prepared.step, prepared.cluster
    timeline = prepared.memory.timeline
    prices = PlanPrices(step, plan, cluster)
    sizes = {buffer.var: prices.bytes_of(buffer.var) for buffer in timeline.buffers}
    instant, _ = timeline.peak(sizes, vmem_bytes=cluster.chip.vmem_bytes)
    paths = dict(zip(step.jaxpr.jaxpr.invars, step.in_paths, strict=True))
    return heaviest(timeline, sizes, instant, paths)
