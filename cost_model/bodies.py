"""What the walk asks of a step's bodies, which does not depend on the order of its kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from jax.extend.core import Jaxpr, JaxprEqn, Var

from autopar.cost_model.fusion import FusionBorders, all_bodies
from autopar.cost_model.schedule import Kernel, kernels, schedule
from autopar.cost_model.work import KINDS, itemsize
from autopar.passes.remat import is_backward
from autopar.passes.rules import Region, regions

_HEAVY_KINDS = frozenset(("dot", "conv", "gather", "linalg"))


@dataclass
class Bodies:
    """What is known of the bodies of a step, worked out once for each."""

    borders: FusionBorders
    _orders: dict[int, tuple[Kernel, ...]] = field(default_factory=dict[int, tuple[Kernel, ...]])
    _made: dict[int, frozenset[Var]] = field(default_factory=dict[int, frozenset[Var]])
    _backward: dict[int, bool] = field(default_factory=dict[int, bool])
    _tails: dict[Var, bool] = field(default_factory=dict[Var, bool])

    def order(self, body: Jaxpr) -> tuple[Kernel, ...]:
        """The kernels of a nested body, in the order they run."""
        if id(body) not in self._orders:
            outputs = [self.borders.root(v) for v in body.outvars if isinstance(v, Var)]
            self._orders[id(body)] = schedule(kernels(body.eqns, self.borders), outputs, {})
        return self._orders[id(body)]

    def made(self, body: Jaxpr) -> frozenset[Var]:
        """The values that a body's equations make."""
        if id(body) not in self._made:
            self._made[id(body)] = frozenset([v for eqn in body.eqns for v in eqn.outvars])
        return self._made[id(body)]

    def is_backward(self, eqn: JaxprEqn) -> bool:
        """Whether an equation belongs to the backward pass."""
        stack = eqn.source_info.name_stack
        if id(stack) not in self._backward:
            self._backward[id(stack)] = is_backward(eqn)
        return self._backward[id(stack)]

    def tails(self, program: tuple[Kernel, ...]) -> Mapping[Var, bool]:
        """For each kernel's first result, whether nothing heavy reads what it leads to.

        ``program``: the whole step, in any order in which it can run.
        """
        if not self._tails:
            used: dict[Var, bool] = {}
            for kernel in reversed(program):
                late = all(used.get(v, True) for v in kernel.writes) and not is_heavy(kernel.eqn)
                self._tails[kernel.eqn.outvars[0]] = late
                for var in kernel.needs:
                    used[var] = used.get(var, True) and late
        return self._tails


def aside_last(program: tuple[Kernel, ...], lasting: frozenset[Var]) -> tuple[Kernel, ...]:
    """The program, with kernels that nothing lasting needs after all others."""
    needed = set(lasting)
    kept: set[int] = set()
    for index in reversed(range(len(program))):
        if not needed.isdisjoint(program[index].writes):
            kept.add(index)
            needed.update(program[index].needs)
    main = [kernel for index, kernel in enumerate(program) if index in kept]
    return (*main, *(kernel for index, kernel in enumerate(program) if index not in kept))


def is_heavy(eqn: JaxprEqn) -> bool:
    """Whether it is, or holds, a matmul, a convolution, a gather or the like."""
    inner = (e for body in all_bodies((eqn,)) for e in body.eqns)
    return any(
        KINDS.get(e.primitive.name) in _HEAVY_KINDS or e.primitive.name == "scatter-add"
        for e in (eqn, *inner)
    )


def hoisted_casts(region: Region) -> list[tuple[Var, Var]]:
    """Stacks that a body does nothing with but to narrow each slice, and the results of that."""
    stacks = {link.inner: link.outer for link in region.inputs if link.stacked}
    users: dict[Var, list[JaxprEqn]] = {}
    for var, eqn in _uses(region.body, {}):
        users.setdefault(var, []).append(eqn)
    return [
        (stack, found[0].outvars[0])
        for inner, stack in stacks.items()
        if isinstance(inner, Var)
        and isinstance(stack, Var)
        and len(found := users.get(inner, [])) == 1
        if found[0].primitive.name == "convert_element_type"
        and itemsize(found[0].outvars[0].aval) < itemsize(found[0].invars[0].aval)
    ]


def _uses(body: Jaxpr, outside: Mapping[Var, Var]) -> Iterator[tuple[Var, JaxprEqn]]:
    """What each equation reads, those of bodies that run once and always (``remat``) included.

    ``outside``: inputs of the body that are known by another name.
    """
    for eqn in body.eqns:
        nested = regions(eqn) or ()
        if len(nested) == 1 and nested[0].trips == 1 and not nested[0].carries:
            names = {
                link.inner: outside.get(link.outer, link.outer)
                for link in nested[0].inputs
                if isinstance(link.inner, Var) and isinstance(link.outer, Var)
            }
            yield from _uses(nested[0].body, names)
        else:
            for atom in eqn.invars:
                if isinstance(atom, Var):
                    yield outside.get(atom, atom), eqn
