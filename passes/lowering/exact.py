"""``backend="shard_map"``: the exact plan, with nothing left to a partitioner.

Before: the simplified jaxpr and a plan made for it. After: a function of the flat inputs that is
one ``jax.shard_map`` over the whole mesh. Its body interprets the jaxpr on local parts:

* a value is held in the layout its producer left, or its hub names; partial ones as local summands;
* where an equation wants another, explicit collectives change it (``redistribute``), by the steps
  that the cost model priced; what is cast to fewer bytes is moved after;
* each equation computes on parts (``local``), its shape parameters made local;
* loops, branches and rematerialised bodies are interpreted in turn, with hubs at their borders.
  Whatever decides how often or where control flows is made whole first, so that all devices agree;
* a primitive without a rule is planned whole, and so runs whole on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var
from jax.sharding import Mesh

from autopar.core.errors import PlanError
from autopar.core.layout import Layout, local_shape, replicated, shifted
from autopar.core.plan import Plan, Strategy
from autopar.cost_model import Cluster, Resharder
from autopar.cost_model.reshard import casts_first
from autopar.passes.lowering.context import context_of
from autopar.passes.lowering.gradients import in_order, transposed_products
from autopar.passes.lowering.host import OnHost, on_host, stream
from autopar.passes.lowering.local import Site, bind, localise
from autopar.passes.lowering.redistribute import Redistributor
from autopar.passes.offload import to_host
from autopar.passes.rules import Region, rebuild, regions
from autopar.passes.rules.borders import Border
from autopar.passes.trace import Step


def lower_exact(step: Step, plan: Plan, mesh: Mesh) -> Callable[..., list[Any]]:
    """The function of flat inputs, giving flat results, that is ``plan`` on ``mesh``."""
    jaxpr, consts = step.jaxpr.jaxpr, step.jaxpr.consts
    links = Cluster.from_dict(plan.cluster).axis_links(plan.mesh)
    redistribute = Redistributor(Resharder(plan.mesh, links))

    products = transposed_products(jaxpr)
    host = on_host(step, plan)
    if host.stacks or host.weights:
        weights = (step.in_paths[i] for i in host.weights)
        what = min((*weights, *(one.value for one in plan.offloaded if one.stack)))
        raise PlanError(
            f"{what} rests on the host, and loops fetch it, which backend='shard_map' does not "
            "offer; use backend='jit', or plan with offload='none'"
        )

    def local(*args: Any) -> list[Any]:
        interpreter = _Interpreter(plan, redistribute, {}, products, host)
        return interpreter.step(jaxpr, args[: len(consts)], args[len(consts) :])

    in_specs = tuple(jax.P() for _ in consts) + tuple(v.spec(plan.mesh) for v in plan.inputs)
    out_specs = [value.spec(plan.mesh) for value in plan.outputs]
    mapped = jax.shard_map(
        local, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False
    )
    return lambda *flat: mapped(
        *consts, *(to_host(x) if i in host.inputs else x for i, x in enumerate(flat))
    )


@dataclass(slots=True)
class _Interpreter:
    """Evaluates jaxprs on local parts; ``layouts`` is how every value seen so far lies."""

    plan: Plan
    redistribute: Redistributor
    layouts: dict[Var, Layout]
    products: frozenset[Var]
    host: OnHost

    def step(self, jaxpr: Jaxpr, consts: Sequence[Any], flat: Sequence[Any]) -> list[Any]:
        """The whole step. An input may be used in another layout than the one it rests in."""
        whole = replicated(self.plan.mesh)
        self.layouts.update((var, whole) for var in jaxpr.constvars)
        ready: list[Any] = []
        for i, (var, value, plan) in enumerate(
            zip(jaxpr.invars, flat, self.plan.inputs, strict=True)
        ):
            rests = i in self.host.inputs  # its update takes it as it is
            used = plan.layout if rests else self.plan.hubs.get(f"in:{i}", plan.layout)
            ready.append(self.redistribute(value, var.aval, plan.layout, used))
            self.layouts[var] = used
        wanted = [value.layout for value in self.plan.outputs]
        return self.run(jaxpr, [*consts, *ready], "", wanted)

    def run(
        self, jaxpr: Jaxpr, args: Sequence[Any], prefix: str, wanted: Sequence[Layout]
    ) -> list[Any]:
        """The results of ``jaxpr`` in the layouts ``wanted``."""
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
        outs = [a.val if isinstance(a, Literal) else env[a] for a in jaxpr.outvars]
        return self._all(jaxpr.outvars, outs, wanted)

    def _stream(self, jaxpr: Jaxpr, position: int, env: Mapping[Var, Any]) -> dict[Var, Any]:
        """The results of an update that streams state from the host."""
        one = self.host.updates[position]
        read = (*one.update.operands, *one.update.scalars)
        whole = replicated(self.plan.mesh)
        wanted = [one.layout if var in one.update.operands else whole for var in read]
        values = self._all(read, [env[var] for var in read], wanted)
        made = [jaxpr.outvars[out] for out in one.update.results]
        self.layouts.update((var, one.layout) for var in made if isinstance(var, Var))
        with context_of(jaxpr.eqns[position]):
            return dict(zip(made, stream(one, jaxpr, values), strict=True))  # pyright: ignore

    def _all(
        self, atoms: Sequence[Any], values: Sequence[Any], wanted: Sequence[Layout]
    ) -> list[Any]:
        return [
            self.redistribute(value, atom.aval, self._layout(atom), layout)
            for atom, value, layout in zip(atoms, values, wanted, strict=True)
        ]

    def _layout(self, atom: Any) -> Layout:
        return replicated(self.plan.mesh) if isinstance(atom, Literal) else self.layouts[atom]

    def _equation(self, name: str, eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
        strategy = self.plan.strategies[name]
        carried = self._carried(eqn, strategy)
        ready = self._all(eqn.invars, operands, carried.operands)
        results = localise(Site(eqn, carried, self.plan.mesh), ready)
        ends = zip(eqn.outvars, carried.results, strategy.results, strict=True)
        for port, (var, layout, planned) in enumerate(ends):
            hub = self.plan.hubs.get(f"{name}.{port}", planned)
            results[port] = self.redistribute(results[port], var.aval, layout, planned)
            results[port] = self.redistribute(results[port], var.aval, planned, hub)
            self.layouts[var] = hub
            if var in self.products:
                results[port] = in_order(results[port])
        return results

    def _carried(self, eqn: JaxprEqn, strategy: Strategy) -> Strategy:
        """How an equation is carried out: a cast to fewer bytes before what it reads is moved."""
        here = self._layout(eqn.invars[0]) if eqn.invars else ()
        early = casts_first(eqn, strategy.operands, strategy.results, here)
        return Strategy((here,), (here,)) if early else strategy

    def _nest(
        self, name: str, eqn: JaxprEqn, nested: Sequence[Region], operands: list[Any]
    ) -> list[Any]:
        """Interprets the regions of an equation, and puts them back into it."""
        border = Border(self.plan.hubs, name)
        self.layouts.update(zip(eqn.outvars, border.results(nested), strict=True))
        if eqn.primitive.name == "while":
            return self._while(name, eqn, nested, operands)
        first = 1 if eqn.primitive.name == "cond" else 0
        whole = replicated(self.plan.mesh)
        ready = self._all(eqn.invars[:first], operands[:first], [whole] * first)
        # Branches take the same operands: those of one are converted, where others differ, inside.
        entry = border.entries(nested[0])
        outer = [
            shifted(layout, int(link.stacked))
            for layout, link in zip(entry, nested[0].inputs, strict=True)
        ]
        ready += self._all(eqn.invars[first:], operands[first:], outer)
        bodies = [self._body(name, region, entry) for region in nested]
        return bind(eqn, ready, rebuild(eqn, bodies))

    def _while(
        self, name: str, eqn: JaxprEqn, nested: Sequence[Region], operands: list[Any]
    ) -> list[Any]:
        """The condition sees the carries as the body leaves them, and is decided by all alike."""
        cond, body = nested
        border = Border(self.plan.hubs, name)
        n_cond = eqn.params["cond_nconsts"]
        into_cond = border.entries(cond)[:n_cond]
        into_body = border.entries(body)
        ready = self._all(eqn.invars, operands, [*into_cond, *into_body])
        carried = into_body[eqn.params["body_nconsts"] :]
        bodies = [
            self._body(name, cond, [*into_cond, *carried], [replicated(self.plan.mesh)]),
            self._body(name, body, into_body),
        ]
        return bind(eqn, ready, rebuild(eqn, bodies))

    def _body(
        self,
        name: str,
        region: Region,
        entry: Sequence[Layout],
        wanted: Sequence[Layout] | None = None,
    ) -> ClosedJaxpr:
        """One region on local parts, whose inputs come in the layouts ``entry``."""
        border = Border(self.plan.hubs, name)
        exits = border.exits(region) if wanted is None else wanted
        invars = region.body.invars
        inside = border.entries(region)
        self.layouts.update(zip(invars, inside, strict=True))

        def run(*args: Any) -> list[Any]:
            ready = [
                self.redistribute(value, var.aval, here, there)
                for value, var, here, there in zip(args, invars, entry, inside, strict=True)
            ]
            return self.run(region.body, ready, f"{name}/{region.name}/", exits)

        mesh = self.plan.mesh
        parts = [_part(v.aval, layout, mesh) for v, layout in zip(invars, entry, strict=True)]
        return jax.make_jaxpr(run)(*parts)


def _part(aval: Any, layout: Layout, mesh: Any) -> jax.ShapeDtypeStruct:
    shape = local_shape(aval.shape, layout, mesh)
    return jax.ShapeDtypeStruct(shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))
