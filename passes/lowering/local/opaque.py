"""What says itself how one device does its part: a ``shard_map`` or custom partitioning of the
step's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, Var
from jax.sharding import AbstractMesh, NamedSharding

from autopar.core.compat import manual_axes
from autopar.core.errors import LoweringError
from autopar.core.layout import to_spec
from autopar.passes.lowering.context import context_of
from autopar.passes.lowering.local.site import Site, Values, bind, local
from autopar.passes.rules import Region, rebuild, regions
from autopar.passes.rules.build import shape_of
from autopar.passes.simplify import simplify
from autopar.passes.sources import source_line

UNTYPED: dict[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "pvary": lambda value, params: value,
    "psum_invariant": lambda value, params: lax.psum(value, params["axes"]),
    "all_gather_invariant": lambda value, params: lax.all_gather(
        value, params["axis_name"], axis=params["all_gather_dimension"], tiled=params["tiled"]
    ),
}
"""What is left of operations on types that say along which axes values vary: ours do not."""


@local("shard_map")
def _shard_map(site: Site, operands: Values) -> list[Any]:
    """The plan lays operands and results as its specs say, on axes of the same names and sizes."""
    left = [name for name in site.eqn.params["mesh"].shape if name not in manual_axes(site.eqn)]
    if left:
        raise LoweringError(
            f"{source_line(site.eqn) or 'in the step'}: the shard_map leaves {', '.join(left)} to "
            "a partitioner, of which backend='shard_map' has none; use backend='jit', or name all "
            "axes of its mesh in axis_names"
        )
    body = simplify(ClosedJaxpr(site.eqn.params["jaxpr"], ()))
    return _run(body.jaxpr, (*body.consts, *operands))


@local("custom_partitioning")
def _custom_partitioning(site: Site, operands: Values) -> list[Any]:
    """Its partition function is asked how one device does its part."""
    if site.replicated:
        return site.bind(operands)
    eqn, mesh = site.eqn, AbstractMesh(site.mesh.sizes, site.mesh.names)
    in_tree, out_tree = eqn.params["in_tree"], eqn.params["out_tree"]
    ins, outs = (
        [
            _placed(mesh, to_spec(lies, site.mesh, len(shape_of(atom))), atom)
            for atom, lies in values
        ]
        for values in (
            zip(eqn.invars, site.strategy.operands, strict=True),
            zip(eqn.outvars, site.strategy.results, strict=True),
        )
    )
    _, on_one_device, out_answers, in_answers = eqn.params["partition"](
        *eqn.params["static_args"], mesh, in_tree.unflatten(ins), out_tree.unflatten(outs)
    )
    answers = (*in_tree.flatten_up_to(in_answers), *out_tree.flatten_up_to(out_answers))
    for asked, answer in zip((*ins, *outs), answers, strict=True):
        if not answer.is_equivalent_to(asked.sharding, len(asked.shape)):
            raise LoweringError(
                f"{source_line(eqn) or 'in the step'}: asked for {asked.sharding.spec}, which its "
                "sharding_rule allows, the partition function of the custom_partitioning answers "
                f"{answer.spec}; correct one of the two"
            )
    return jax.tree.leaves(on_one_device(*in_tree.unflatten(operands)))


def _placed(mesh: AbstractMesh, spec: jax.P, atom: Any) -> jax.ShapeDtypeStruct:
    aval = atom.aval
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=NamedSharding(mesh, spec))


def _run(jaxpr: Jaxpr, args: Sequence[Any]) -> list[Any]:
    env: dict[Var, Any] = dict(zip((*jaxpr.constvars, *jaxpr.invars), args, strict=True))
    for eqn in jaxpr.eqns:
        operands = [a.val if isinstance(a, Literal) else env[a] for a in eqn.invars]
        with context_of(eqn):
            nested = regions(eqn)
            untyped = UNTYPED.get(eqn.primitive.name)
            if untyped is not None:
                results = [untyped(operands[0], eqn.params)]
            else:
                params = rebuild(eqn, list(map(_body, nested))) if nested else eqn.params
                results = bind(eqn, operands, params)
        env.update(zip(eqn.outvars, results, strict=True))
    return [a.val if isinstance(a, Literal) else env[a] for a in jaxpr.outvars]


def _body(region: Region) -> ClosedJaxpr:
    like = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in region.body.invars]  # pyright: ignore
    return jax.make_jaxpr(lambda *args: _run(region.body, args))(*like)
