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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, jaxpr_as_fun
from jax.sharding import Mesh, NamedSharding

from autopar.core.compat import manual_axes
from autopar.core.layout import B, Layout, is_partial, shifted, to_spec
from autopar.core.plan import Plan, Strategy
from autopar.cost_model import Cluster, Resharder
from autopar.passes.lowering.context import context_of, unplaced
from autopar.passes.lowering.fences import fenced, guarded, is_grouped, pinned, reduced, unreduced
from autopar.passes.lowering.gradients import in_order, transposed_products
from autopar.passes.lowering.host import OnHost, loop, on_host, stream
from autopar.passes.lowering.local import Site
from autopar.passes.lowering.one_hot import is_one_hot, one_hot
from autopar.passes.lowering.parts import in_parts
from autopar.passes.offload import is_on_host, to_host
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
    links = Cluster.from_dict(plan.cluster).axis_links(plan.mesh)
    resharder = Resharder(plan.mesh, links)
    products = transposed_products(jaxpr)

    host = on_host(step, plan)

    def run(*flat: Any) -> list[Any]:
        return _Interpreter(plan, mesh, resharder, {}, set(products), host).step(
            jaxpr, consts, flat
        )

    return run


@dataclass(slots=True)
class _Interpreter:
    """Evaluates jaxprs while tracing.

    Attributes:
      layouts: how every value seen so far lies.
      resharder: by what steps layouts change.
      products: gradients whose order in memory is to be fixed, once they are not partial.
    """

    plan: Plan
    mesh: Mesh
    resharder: Resharder
    layouts: dict[Var, Layout]
    products: set[Var]
    host: OnHost

    def step(self, jaxpr: Jaxpr, consts: Sequence[Any], flat: Sequence[Any]) -> list[Any]:
        """The whole step. An input may be used in another layout than the one it rests in."""
        ready: list[Any] = []
        for i, (var, value, plan) in enumerate(
            zip(jaxpr.invars, flat, self.plan.inputs, strict=True)
        ):
            if i in self.host.inputs:
                self.layouts[var] = plan.layout
                ready.append(to_host(value))
                continue
            used = self.layouts[var] = self.plan.hubs.get(f"in:{i}", plan.layout)
            ready.append(value if used == plan.layout else self._constrain(value, used))
        results = self.run(jaxpr, [*consts, *ready], "")
        wanted = [value.layout for value in self.plan.outputs]
        return list(map(self._operand, jaxpr.outvars, results, wanted))

    def run(self, jaxpr: Jaxpr, args: Sequence[Any], prefix: str) -> list[Any]:
        env: dict[Var, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), args, strict=True))
        for position, eqn in enumerate(jaxpr.eqns):
            if not prefix and position in self.host.members:
                if position in self.host.updates:
                    env.update(self._stream(jaxpr, position, env))
                continue
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
        elif is_grouped(eqn):
            results = [in_parts(Site(eqn, strategy, self.plan.mesh), self.mesh, ready)]
        else:
            results = _bind(eqn, ready, unplaced(eqn.params))
        if fixed:
            results = list(map(self._fix, results, strategy.results))
        pins = pinned(eqn, strategy)
        if pins is not None:
            results = [self._pin(results[0], pins)]
        anchor = eqn.primitive.name in ANCHORS
        for port, (var, layout) in enumerate(zip(eqn.outvars, strategy.results, strict=True)):
            hub = self.plan.hubs.get(f"{name}.{port}")
            made = layout if fixed else self._made(eqn, strategy, layout)
            wanted = layout if hub is None else hub
            self.layouts[var] = unreduced(made, wanted)
            if hub is not None or anchor:
                results[port] = self._moved(results[port], made, wanted)
            if eqn.primitive.name == "convert_element_type" and self._is_product(eqn.invars[0]):
                self.products.add(var)
            results[port] = self._in_order(var, results[port], self.layouts[var])
        return results

    def _made(self, eqn: JaxprEqn, strategy: Strategy, layout: Layout) -> Layout:
        """A result's layout as the partitioner has it: summands of a lone operand pass through."""
        if len(eqn.invars) != 1 or not isinstance(var := eqn.invars[0], Var):
            return layout
        (read,) = strategy.operands
        return unreduced(unreduced(self.layouts.get(var, read), read), layout)

    def _is_product(self, atom: Any) -> bool:
        return isinstance(atom, Var) and atom in self.products

    def _in_order(self, var: Any, value: Any, layout: Layout) -> Any:
        """``value``, whose order in memory is fixed if it is a gradient that is not partial."""
        if not self._is_product(var) or is_partial(layout):
            return value
        spec = to_spec(layout, self.plan.mesh, value.ndim)
        return jax.shard_map(
            in_order, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False
        )(value)

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

    def _stream(self, jaxpr: Jaxpr, position: int, env: Mapping[Var, Any]) -> dict[Var, Any]:
        """The results of an update that streams state from the host, each device its part."""
        one = self.host.updates[position]
        update, layout = one.update, one.layout
        arrays = [self._operand(var, env[var], layout) for var in update.operands]
        spec = to_spec(layout, self.plan.mesh, len(update.shape))
        mapped = jax.shard_map(
            lambda *values: stream(one, jaxpr, values),
            mesh=self.mesh,
            in_specs=(*[spec] * len(arrays), *[jax.P()] * len(update.scalars)),
            out_specs=[spec] * len(update.results),
            check_vma=False,
        )
        with context_of(jaxpr.eqns[position]):
            results = mapped(*arrays, *(env[var] for var in update.scalars))
        made = [jaxpr.outvars[out] for out in update.results]
        return dict(zip(made, results, strict=True))  # pyright: ignore[reportReturnType]

    def _operand(self, atom: Any, value: Any, wanted: Layout) -> Any:
        if isinstance(atom, Literal) or self.layouts.get(atom, wanted) == wanted:
            return value
        if is_on_host(value):  # changed where it is fetched
            return value
        return self._in_order(atom, self._moved(value, self.layouts[atom], wanted), wanted)

    def _moved(self, value: Any, layout: Layout, wanted: Layout) -> Any:
        """``value`` in another layout. Both ends are fixed, lest the change moves up or down.

        But for what is only cut up: that may as well be made in pieces.
        """
        through = reduced(np.shape(value), layout, wanted, self.plan.mesh)
        changes = {(old, new) for old, new in zip(through, wanted, strict=True) if old != new}
        if (changes and is_partial(layout)) or any(old != B for old, _ in changes):
            value = self._constrain(value, through)
        if len(changes) > 1 and not is_partial(through):
            # Of axes that move apart the partitioner makes nothing but a gather of the whole.
            dtype = jax.dtypes.result_type(value)
            for step in self.resharder.path(np.shape(value), dtype.itemsize, through, wanted):
                value = self._constrain(value, step.layout)
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

    def _pin(self, value: Any, splits: Layout) -> Any:
        """Fixes the dimensions of ``value`` that are split so, and leaves the others open."""
        spec = to_spec(splits, self.plan.mesh, value.ndim)
        free = [jax.P.UNCONSTRAINED] * (value.ndim - len(spec))
        spec = jax.P(*(names or jax.P.UNCONSTRAINED for names in spec), *free)
        return jax.lax.with_sharding_constraint(value, NamedSharding(self.mesh, spec))

    def _nest(
        self, name: str, eqn: JaxprEqn, nested: Sequence[Region], operands: list[Any]
    ) -> list[Any]:
        """Traces each region again with its own constraints and puts it back into its equation."""
        border = Border(self.plan.hubs, name)
        if eqn.primitive.name != "while":  # whose operands are those of two regions, one by one
            first = 1 if eqn.primitive.name == "cond" else 0
            entries = zip(border.entries(nested[0]), nested[0].inputs, strict=True)
            outside = [shifted(layout, int(link.stacked)) for layout, link in entries]
            operands[first:] = map(self._operand, eqn.invars[first:], operands[first:], outside)
        if any(map(is_on_host, operands)) or not self.host.stacks.isdisjoint(eqn.outvars):
            results = loop(eqn, operands, self.host.stacks, self._running(name, nested[0]))
        else:
            bodies = [self._body(name, region) for region in nested]
            results = _bind(eqn, operands, rebuild(eqn, bodies))
        layouts = border.results(nested)
        self.layouts.update(zip(eqn.outvars, layouts, strict=True))
        pairs = zip(results, layouts, strict=True)
        return [x if is_on_host(x) else self._constrain(x, layout) for x, layout in pairs]

    def _body(self, name: str, region: Region) -> ClosedJaxpr:
        run = self._running(name, region)
        avals = [_struct(v.aval) for v in region.body.invars]
        return jax.make_jaxpr(lambda *args: run(args))(*avals)

    def _running(self, name: str, region: Region) -> Callable[[Sequence[Any]], list[Any]]:
        """The body of a region with its constraints, as a function to trace."""
        border = Border(self.plan.hubs, name)
        entries, exits = border.entries(region), border.exits(region)
        self.layouts.update(zip(region.body.invars, entries, strict=True))

        def run(args: Sequence[Any]) -> list[Any]:
            placed = map(self._constrain, args, entries)
            results = self.run(region.body, list(placed), f"{name}/{region.name}/")
            if region.outputs:
                results = list(map(self._operand, region.body.outvars, results, exits))
            for slot, (into, _) in enumerate(region.carries):
                results[slot] = self._constrain(results[slot], self.layouts[into])
            return results

        return run


def _bind(eqn: JaxprEqn, operands: Sequence[Any], params: dict[str, Any]) -> list[Any]:
    found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    return list(found) if eqn.primitive.multiple_results else [found]


def _struct(aval: Any) -> jax.ShapeDtypeStruct:
    weak = getattr(aval, "weak_type", False)
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=weak)
