"""One equation as one device sees it, and the table of how each primitive is localised.

Before: operands hold the local part of each value in the layout that the strategy names (a summand,
where that is partial). After: results do. Where parameters hold shapes, those are made local.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax import lax
from jax.extend.core import JaxprEqn

from autopar.core.errors import LoweringError
from autopar.core.layout import B, Layout, Partial, Split, local_shape
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Strategy
from autopar.passes.rules.build import shape_of
from autopar.passes.sources import source_line

Values = Sequence[Any]
Localiser = Callable[["Site", Values], list[Any]]

LOCAL: dict[str, Localiser] = {}
"""Primitive name to localiser. Filled by the modules of this package when it is imported."""


def local(*primitives: str) -> Callable[[Localiser], Localiser]:
    """Registers the localiser of the named primitives, one each."""

    def register(function: Localiser) -> Localiser:
        for name in primitives:
            if name in LOCAL:
                raise LoweringError(f"primitive {name!r} is localised twice")
            LOCAL[name] = function
        return function

    return register


@dataclass(frozen=True, slots=True)
class Site:
    """An equation, the strategy it follows, and the mesh it runs on."""

    eqn: JaxprEqn
    strategy: Strategy
    mesh: MeshSpec

    def whole_shape(self, index: int) -> tuple[int, ...]:
        """The shape of an operand in the step."""
        return shape_of(self.eqn.invars[index])

    def operand_shape(self, index: int) -> tuple[int, ...]:
        """The local shape of an operand."""
        layout = self.strategy.operands[index]
        return local_shape(self.whole_shape(index), layout, self.mesh)

    def result_shape(self, port: int = 0) -> tuple[int, ...]:
        """The local shape of a result."""
        layout = self.strategy.results[port]
        return local_shape(shape_of(self.eqn.outvars[port]), layout, self.mesh)

    @property
    def replicated(self) -> bool:
        """Whether every device does the whole of it."""
        layouts = (*self.strategy.operands, *self.strategy.results)
        return all(placement == B for layout in layouts for placement in layout)

    def offset(self, layout: Layout, dim: int, extent: int) -> Any:
        """Where this device's part of ``dim``, of local ``extent``, begins in the whole."""
        position: Any = 0
        for placement, axis in zip(layout, self.mesh.axes, strict=True):
            if placement == Split(dim):
                position = position * axis.size + lax.axis_index(axis.name)
        return position * extent

    def first(self, layout: Layout) -> Any:
        """Whether this device stands at position 0 along every axis where ``layout`` is partial."""
        found: Any = True
        for placement, axis in zip(layout, self.mesh.axes, strict=True):
            if isinstance(placement, Partial):
                found = (lax.axis_index(axis.name) == 0) & found
        return found

    def bind(self, operands: Values, **changes: Any) -> list[Any]:
        """The equation itself, with some parameters changed."""
        return bind(self.eqn, operands, {**self.eqn.params, **changes})


def bind(eqn: JaxprEqn, operands: Values, params: dict[str, Any]) -> list[Any]:
    """Applies the primitive of ``eqn``; a list of results in any case."""
    found = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(params))
    return list(found) if eqn.primitive.multiple_results else [found]


def localise(site: Site, operands: Values) -> list[Any]:
    """The local results of an equation.

    Raises:
      LoweringError: nobody has said how to cut this primitive, or what was said is wrong.
    """
    name = site.eqn.primitive.name
    function = LOCAL.get(name)
    if function is None:
        if not site.replicated:
            raise LoweringError(
                f"{_where(site)}: backend='shard_map' does not know how to cut {name!r} as "
                f"{site.strategy}; use backend='jit' for this plan"
            )
        return bind(site.eqn, operands, site.eqn.params)
    results = function(site, operands)
    for port, result in enumerate(results):
        wanted = site.result_shape(port)
        made = tuple(getattr(result, "shape", ()))
        if made != wanted:
            raise LoweringError(
                f"{_where(site)}: {name} as {site.strategy} should make {wanted} on each device, "
                f"but makes {made}; this is an error in autopar"
            )
    return results


def _where(site: Site) -> str:
    return source_line(site.eqn) or "in the step"
