"""Factor rules: how the loops of an equation may be cut across a mesh axis.

A rule gives an equation *loop factors*, as Shardy does, and says which dimension of which operand
and result each factor drives::

    dot_general: ([i, k], [k, j]) -> [i, j] {i=4, j=8, k=16} sum={k}

One mesh axis may be given to one factor, or to none. A factor that reaches a result splits it; a
factor that does not is reduced, and leaves the result partial. An equation that is linear in some
operands also lets partial sums of those operands pass through. ``axis_strategies`` lists all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

from autopar.core.errors import RuleError
from autopar.core.layout import B, Partial, Placement, Split

Dims = tuple[str | None, ...]
"""One factor name per dimension; ``None`` where the dimension cannot be cut."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Partial values (reduced by ``op``) of all ``operands`` together pass to all results."""

    operands: tuple[int, ...]
    op: str = "add"


@dataclass(frozen=True, slots=True)
class FactorRule:
    """The loop factors of one equation.

    Attributes:
      operands: for each operand, the factor of each dimension.
      results: for each result, the factor of each dimension.
      sizes: each factor and its extent; a factor may be cut ``n`` ways when ``n`` divides it. For a
        dimension that merges several (a reshape) this is the extent of the major one.
      reduce: factors that reach no result, each with the reduction that combines the pieces.
      linear: sets of operands in which the equation is jointly linear (see ``Linear``).
      joins: ``(factor, operand)`` pairs: while ``factor`` is cut, that operand, which lacks the
        factor, must itself be partial (a scatter's accumulator), not broadcast.
    """

    operands: tuple[Dims, ...]
    results: tuple[Dims, ...]
    sizes: tuple[tuple[str, int], ...]
    reduce: tuple[tuple[str, str], ...] = ()
    linear: tuple[Linear, ...] = ()
    joins: tuple[tuple[str, int], ...] = ()

    def size(self, factor: str) -> int:
        return dict(self.sizes)[factor]

    def __str__(self) -> str:
        """Factor notation, one line."""
        ins = ", ".join(_show_dims(dims) for dims in self.operands)
        outs = ", ".join(_show_dims(dims) for dims in self.results)
        parts = [f"({ins}) -> {outs}"]
        if self.sizes:
            parts.append("{" + ", ".join(f"{name}={size}" for name, size in self.sizes) + "}")
        for op in sorted({op for _, op in self.reduce}):
            names = ", ".join(name for name, o in self.reduce if o == op)
            parts.append(f"{'sum' if op == 'add' else op}={{{names}}}")
        for linear in self.linear:
            name = "linear" if linear.op == "add" else f"linear[{linear.op}]"
            parts.append(f"{name}={{{', '.join(map(str, linear.operands))}}}")
        for factor, operand in self.joins:
            parts.append(f"join={{{factor}:{operand}}}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True)
class AxisStrategy:
    """What one mesh axis does at one equation: a placement for every operand and result.

    ``factor`` is the loop the axis cuts, or ``None`` when every position does the whole work.
    """

    factor: str | None
    operands: tuple[Placement, ...]
    results: tuple[Placement, ...]


def axis_strategies(rule: FactorRule) -> tuple[AxisStrategy, ...]:
    """Every way one mesh axis can serve the equation: replicate first, factors, then linearity."""
    found = [
        AxisStrategy(None, tuple(B for _ in rule.operands), tuple(B for _ in rule.results)),
        *(_cut(rule, factor) for factor, size in rule.sizes if size > 1),
    ]
    for linear in rule.linear:
        partial = Partial(linear.op)
        ins = tuple(partial if i in linear.operands else B for i in range(len(rule.operands)))
        found.append(AxisStrategy(None, ins, tuple(partial for _ in rule.results)))
    return tuple(dict.fromkeys(found))


def _cut(rule: FactorRule, factor: str) -> AxisStrategy:
    op = dict(rule.reduce).get(factor)

    def operand(index: int, dims: Dims) -> Placement:
        if factor in dims:
            return Split(dims.index(factor))
        return Partial(op or "add") if (factor, index) in rule.joins else B

    def result(dims: Dims) -> Placement:
        if factor in dims:
            return Split(dims.index(factor))
        return Partial(op) if op else B

    return AxisStrategy(
        factor,
        tuple(operand(i, dims) for i, dims in enumerate(rule.operands)),
        tuple(result(dims) for dims in rule.results),
    )


def check_rule(
    rule: FactorRule,
    operand_shapes: tuple[tuple[int, ...], ...],
    result_shapes: tuple[tuple[int, ...], ...],
    where: str,
) -> None:
    """Raises ``RuleError`` unless the factors of ``rule`` match the shapes of its equation."""
    sizes = dict(rule.sizes)
    for kind, table, shapes in (
        ("operand", rule.operands, operand_shapes),
        ("result", rule.results, result_shapes),
    ):
        if len(table) != len(shapes):
            raise RuleError(
                f"{where}: the rule has {len(table)} {kind}s, the equation {len(shapes)}"
            )
        for index, (dims, shape) in enumerate(zip(table, shapes, strict=True)):
            if len(dims) != len(shape):
                raise RuleError(f"{where}: {kind} {index} has shape {shape}, the rule says {dims}")
            for name, extent in zip(dims, shape, strict=True):
                if name is not None and (name not in sizes or extent % sizes[name]):
                    raise RuleError(
                        f"{where}: factor {name}={sizes.get(name)} of {kind} {index} does not "
                        f"divide the dimension of {extent}"
                    )
    reached = {name for dims in rule.results for name in dims}
    for name, _ in rule.reduce:
        if name in reached:
            raise RuleError(f"{where}: factor {name} is reduced, yet reaches a result")


def _show_dims(dims: Dims) -> str:
    return "[" + ", ".join(name or "_" for name in dims) + "]"
