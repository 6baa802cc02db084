"""What the step itself says of layouts: sharding constraints, reshards, and specs of shard_maps.

They bind the search. Each names axes of a mesh that its author had in mind; the plan's mesh must
have those axes, by name and size. A shard_map's operands and results lie as its specs say. A
constraint fixes every dimension but those left ``P.UNCONSTRAINED``; a reshard speaks of explicit
axes alone. What names no axis means the same on any mesh, and a mesh of one device says nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import JaxprEqn
from jax.sharding import AxisType, NamedSharding

from autopar.core.compat import manual_axes
from autopar.core.errors import PinError
from autopar.core.layout import Layout, layouts_of
from autopar.core.mesh import MeshSpec
from autopar.passes.sources import source_line
from autopar.search.domains import Domain, State, refines
from autopar.search.graph import Graph, Node
from autopar.search.pinned import Pinned

NAMES = {
    "sharding_constraint": "the sharding constraint",
    "reshard": "the reshard",
    "shard_map": "the shard_map",
}
"""Primitives by which a step speaks of layouts."""


@dataclass(frozen=True, slots=True)
class OwnSharding:
    """What one equation says.

    Attributes:
      node: the index of its node.
      eqn: the equation.
      mesh: size of each axis of the mesh it speaks of.
      axes: those axes that the plan's mesh must have.
      operands: the spec of each operand.
      results: the spec of each result.
      open: axes of which it says nothing.
    """

    node: int
    eqn: JaxprEqn
    mesh: Mapping[str, int]
    axes: frozenset[str]
    operands: tuple[jax.P, ...]
    results: tuple[jax.P, ...]
    open: frozenset[str] = frozenset()

    def __str__(self) -> str:
        name = NAMES[self.eqn.primitive.name]
        spec = f"in_specs {self.operands}, out_specs {self.results}"
        said = spec if name.endswith("shard_map") else str(self.results[0])
        return f"{source_line(self.eqn) or 'in the step'}: {name} {said}"


def own_shardings(graph: Graph) -> tuple[OwnSharding, ...]:
    """All that the step says of layouts.

    Raises:
      PinError: a constraint is no ``NamedSharding``, and names several devices.
    """
    found = (_read(node, node.eqn) for node in graph.nodes if node.eqn is not None)
    return tuple(own for own in found if own is not None)


def own_mesh(said: Sequence[OwnSharding]) -> MeshSpec | None:
    """The mesh that the step speaks of; ``None`` if it names no axis.

    Raises:
      PinError: it speaks of several, none of which has all axes named.
    """
    naming = [own for own in said if own.axes]
    if not naming:
        return None
    for own in naming:
        if all(_missing(other, own.mesh) is None for other in naming):
            return MeshSpec.of(own.mesh)
    first = naming[0]
    other = next(own for own in naming if _missing(own, first.mesh) is not None)
    raise PinError(
        f"{first} is for the mesh {_show(first.mesh)}, but {other} for {_show(other.mesh)}; "
        "write both for one mesh, or remove one"
    )


def states(
    said: Sequence[OwnSharding],
    graph: Graph,
    mesh: MeshSpec,
    pins: Mapping[int, Pinned],
) -> dict[int, Domain]:
    """For each node that the step speaks of, the states it may take on ``mesh``.

    Raises:
      PinError: the mesh lacks an axis or does not divide a value, or a pin says otherwise.
    """
    found: dict[int, Domain] = {}
    for own in said:
        found[own.node] = _states(own, mesh)
    sources = {edge.dst: edge.src for edge in graph.edges if edge.dst in found}
    for own in said:
        source = sources.get(own.node, -1)
        if own.eqn.primitive.name == "shard_map" or source not in pins:
            continue
        wish, layouts = pins[source].wish, pins[source].layouts
        if graph.nodes[source].kind == "input" and not _agrees(layouts, found[own.node]):
            raise PinError(
                f"{own} contradicts the pin {wish.pattern!r} = {wish.said} on {wish.name!r}, the "
                "very value it lays otherwise; remove one of them. (An input may be pinned to a "
                "finer split than it is used in, and is then gathered.)"
            )
    return found


def _agrees(pinned: Sequence[Layout], domain: Domain) -> bool:
    """Whether some state uses the value as pinned, or with some axes gathered."""
    return any(refines(layout, state.operands[0]) for state in domain for layout in pinned)


def _read(node: Node, eqn: JaxprEqn) -> OwnSharding | None:
    name = eqn.primitive.name
    if name == "shard_map":
        return _read_shard_map(node, eqn)
    if name not in NAMES:
        return None
    sharding: Any = eqn.params["sharding" if name == "sharding_constraint" else "dst_sharding"]
    if not isinstance(sharding, NamedSharding):
        if len(sharding.device_set) == 1:
            return None
        raise PinError(
            f"{source_line(eqn) or 'in the step'}: {NAMES[name]} is a {type(sharding).__name__}; "
            "autopar reads only specs over named axes: use jax.NamedSharding(mesh, jax.P(...))"
        )
    sizes = dict(sharding.mesh.shape)
    kinds = zip(sharding.mesh.axis_names, sharding.mesh.axis_types, strict=True)
    free = frozenset(axis for axis, kind in kinds if kind != AxisType.Explicit)
    free = free if name == "reshard" else frozenset[str]()
    if math.prod(sizes.values()) == 1 or free == frozenset(sizes):
        return None
    entries = list(sharding.spec) + [None] * (len(_shape(eqn)) - len(sharding.spec))
    for dim in eqn.params.get("unconstrained_dims") or ():
        entries[dim] = jax.P.UNCONSTRAINED
    spec = jax.P(*entries)
    named = frozenset(axis for dims in map(_names, spec) for axis in dims or ())
    return OwnSharding(node.index, eqn, sizes, named, (spec,), (spec,), free)


def _read_shard_map(node: Node, eqn: JaxprEqn) -> OwnSharding:
    mesh, params = eqn.params["mesh"], eqn.params
    return OwnSharding(
        node.index,
        eqn,
        dict(mesh.shape),
        manual_axes(eqn),
        tuple(params["in_specs"]),
        tuple(params["out_specs"]),
    )


def _shape(eqn: JaxprEqn) -> tuple[int, ...]:
    """The shape of the one result of a constraint."""
    return tuple(getattr(eqn.outvars[0].aval, "shape", ()))


def _states(own: OwnSharding, mesh: MeshSpec) -> Domain:
    missing = _missing(own, dict(zip(mesh.names, mesh.sizes, strict=True)))
    if missing is not None:
        sizes = ", ".join(f"{name!r}: {size}" for name, size in own.mesh.items())
        raise PinError(
            f"{own} is for the mesh {_show(own.mesh)}, but the plan's mesh {mesh} has no axis "
            f"{missing}={own.mesh[missing]}; plan with mesh={{{sizes}}}, or remove it"
        )
    ends = ((own.operands, own.eqn.invars), (own.results, own.eqn.outvars))
    ins, outs = (
        [_layouts(own, spec, atom.aval, mesh) for spec, atom in zip(specs, atoms, strict=True)]
        for specs, atoms in ends
    )
    if own.eqn.primitive.name != "shard_map":
        return tuple(State((layout,), (layout,)) for layout in outs[0])
    return (State(tuple(one[0] for one in ins), tuple(one[0] for one in outs)),)


def _layouts(own: OwnSharding, spec: jax.P, aval: Any, mesh: MeshSpec) -> tuple[Layout, ...]:
    """The layouts that ``spec`` allows, the one with the fewest splits first."""
    shape = tuple(getattr(aval, "shape", ()))
    if getattr(spec, "unreduced", None) or getattr(spec, "reduced", None):
        raise PinError(
            f"{own}: unreduced values are not for a program to name here; return the sum"
        )
    for entry in spec:
        order = [mesh.names.index(name) for name in _names(entry) or ()]
        if order != sorted(order):
            raise PinError(
                f"{own}: {entry!r} lists its axes in another order than the plan's mesh {mesh}, "
                "whose earlier axis is the major one; reorder one of them"
            )
    found = layouts_of(spec, shape, mesh, own.open)
    if not found:
        raise PinError(
            f"{own}: the mesh {mesh} does not divide a value of shape {shape} evenly in this way; "
            "splits must be even: change the spec, the shape or the mesh"
        )
    return found


def _names(entry: Any) -> tuple[str, ...] | None:
    """The axes that split a dimension; ``None`` where that is left open."""
    if entry is jax.P.UNCONSTRAINED:
        return None
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)


def _missing(own: OwnSharding, mesh: Mapping[str, int]) -> str | None:
    """The first axis that ``own`` needs and ``mesh`` lacks, in this size."""
    return next((name for name in sorted(own.axes) if mesh.get(name) != own.mesh[name]), None)


def _show(mesh: Mapping[str, int]) -> str:
    return " x ".join(f"{name}={size}" for name, size in mesh.items())
