"""``backend="jit"``: the same program with sharding constraints where the plan needs them.

Before: the simplified jaxpr and a plan made for it. After: a function of the flat inputs that
computes the same values, whose constraints leave the compiler's partitioner no other choice where
choices matter. A constraint stands

* where the plan changes a layout: at the operand that wants another than its value has;
* at a value that several use, or that crosses the border of a loop (a hub);
* at the result of heavy work, so that the partitioner does not move the split elsewhere.

Blanket constraints on every value made the compiler add permutes; none let it invent layouts.
A partial sum cannot be written as a ``PartitionSpec``: the constraint stands where it is reduced.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding

from autopar.core.compat import manual_axes
from autopar.core.layout import Layout, is_partial, to_spec
from autopar.core.plan import Plan
from autopar.passes.lowering.context import context_of, unplaced
from autopar.passes.lowering.fences import fenced, guarded
from autopar.passes.lowering.one_hot import is_one_hot, one_hot
from autopar.passes.rules import Region, rebuild, regions
from autopar.passes.rules.borders import Border
from autopar.passes.trace import Step

ANCHORS = frozenset(("dot_general", "ragged_dot", "conv_general_dilated", "gather", "scatter-add"))
"""Primitives whose results are constrained: where work is divided."""

USERS_OWN = frozenset(("sharding_constraint", "reshard"))
"""Constraints that the user wrote, perhaps on other devices; the plan says the same on its own."""


def lower(step: Step, plan: Plan, mesh: Mesh) -> Callable[..., list[Any]]:
    """The function of flat inputs, giving flat results, that carries out ``plan`` on ``mesh``."""
    jaxpr, consts = step.jaxpr.jaxpr, step.jaxpr.consts
    layouts = {var: value.layout for var, value in zip(jaxpr.invars, plan.inputs, strict=True)}

    def run(*flat: Any) -> list[Any]:
        return _Interpreter(plan, mesh, dict(layouts)).run(jaxpr, [*consts, *flat], "")

    return run


@dataclass(slots=True)
class _Interpreter:
    """Evaluates jaxprs while tracing; ``layouts`` is how every value seen so far lies."""

    plan: Plan
    mesh: Mesh
    layouts: dict[Var, Layout]

    def run(self, jaxpr: Jaxpr, args: Sequence[Any], prefix: str) -> list[Any]:
        env: dict[Var, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), args, strict=True))
        for position, eqn in enumerate(jaxpr.eqns):
            name = f"{prefix}{position}"
            operands = [a.val if isinstance(a, Literal) else env[a] for a in eqn.invars]
            with context_of(eqn):
                nested = regions(eqn)
                if nested is None:
                    results = self._equation(name, eqn, operands)
                else:
                    results = self._nest(name, eqn, nested, operands)
            env.update(zip(eqn.outvars, results, strict=True))
        return [a.val if isinstance(a, Literal) else env[a] for a in jaxpr.outvars]

    def _equation(self, name: str, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        strategy = self.plan.strategies[name]
        ready = [
            self._operand(atom, value, layout)
            for atom, value, layout in zip(eqn.invars, operands, strategy.operands, strict=True)
        ]
        ready = ready if is_one_hot(eqn) else guarded(eqn, strategy, ready)
        fixed = fenced(eqn, strategy)
        if fixed:
            ready = list(map(self._fix, ready, strategy.operands))
        if eqn.primitive.name in USERS_OWN:
            results = list(map(self._constrain, operands, strategy.results))
        elif eqn.primitive.name == "shard_map":
            results = self._shard_map(eqn, ready)
        elif is_one_hot(eqn):
            results = [one_hot(eqn, ready)]
        else:
            results = _bind(eqn, ready, unplaced(eqn.params))
        if fixed:
            results = list(map(self._fix, results, strategy.results))
        anchor = eqn.primitive.name in ANCHORS
        for port, (var, layout) in enumerate(zip(eqn.outvars, strategy.results, strict=True)):
            hub = self.plan.hubs.get(f"{name}.{port}")
            self.layouts[var] = hub or layout
            if hub is not None or anchor:
                results[port] = self._constrain(results[port], self.layouts[var])
        return results

    def _shard_map(self, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        """The user's own, on this mesh, which has the axes of theirs."""
        body = jaxpr_as_fun(ClosedJaxpr(eqn.params["jaxpr"], ()))
        mapped = jax.shard_map(
            body,
            mesh=self.mesh,
            in_specs=tuple(eqn.params["in_specs"]),
            out_specs=list(eqn.params["out_specs"]),
            axis_names=manual_axes(eqn),
            check_vma=eqn.params["check_vma"],
        )
        return mapped(*operands)

    def _operand(self, atom: Any, value: Any, wanted: Layout) -> Any:
        if isinstance(atom, Literal) or self.layouts.get(atom, wanted) == wanted:
            return value
        return self._constrain(value, wanted)

    def _constrain(self, value: Any, layout: Layout) -> Any:
        """Fixes the layout of ``value``, unless it is partial or there is nothing to split."""
        return value if is_partial(layout) else self._fix(value, layout)

    def _fix(self, value: Any, layout: Layout) -> Any:
        """Fixes the layout of ``value``; what is partial is reduced."""
        if not np.ndim(value):
            return value
        spec = to_spec(layout, self.plan.mesh, value.ndim)
        return jax.lax.with_sharding_constraint(value, NamedSharding(self.mesh, spec))

    def _nest(
        self, name: str, eqn: JaxprEqn, nested: Sequence[Region], operands: list[Any]
    ) -> list[Any]:
        """Traces each region again with its own constraints and puts it back into its equation."""
        bodies = [self._body(name, region) for region in nested]
        results = _bind(eqn, operands, rebuild(eqn, bodies))
        layouts = Border(self.plan, name).results(nested)
        self.layouts.update(zip(eqn.outvars, layouts, strict=True))
        return list(map(self._constrain, results, layouts))

    def _body(self, name: str, region: Region) -> ClosedJaxpr:
        entries = Border(self.plan, name).entries(region)
        self.layouts.update(zip(region.body.invars, entries, strict=True))

        def run(*args: Any) -> list[Any]:
            placed = map(self._constrain, args, entries)
            results = self.run(region.body, list(placed), f"{name}/{region.name}/")
            for slot, (into, _) in enumerate(region.carries):
                results[slot] = self._constrain(results[slot], self.layouts[into])
            return results

        avals = [_struct(v.aval) for v in region.body.invars]
        return jax.make_jaxpr(run)(*avals)


def _bind(eqn: JaxprEqn, operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    return list(found) if eqn.primitive.multiple_results else [found]


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)
