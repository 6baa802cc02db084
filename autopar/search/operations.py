"""What is known of each equation before any mesh is chosen: its rule and its kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from jax.extend.core import JaxprEqn

from autopar.core.errors import RuleError
from autopar.cost_model.work import shape_of
from autopar.passes.fingerprint import Signatures
from autopar.passes.rules import FactorRule, factor_rule, replicate_rule
from autopar.passes.sources import source_line
from autopar.search.graph import Graph


@dataclass(frozen=True, slots=True)
class Operation:
    """One equation, or any other that does the same to values of the same shapes.

    Attributes:
      primitive: its name.
      rule: its factor rule; the one that cuts nothing where the primitive has none.
      has_rule: whether it has one of its own, or no need of any.
      kind: the same number for equations that do the same to values of the same shapes.
    """

    primitive: str
    rule: FactorRule
    has_rule: bool
    kind: int


def operations(graph: Graph, signatures: Signatures | None = None) -> tuple[Operation | None, ...]:
    """The operation of every node; ``None`` of those that are no equation.

    Raises:
      RuleError: a rule does not match its equation; names the line of the step.
    """
    signatures = signatures or Signatures()
    known: dict[str, Operation] = {}
    found: list[Operation | None] = []
    for node in graph.nodes:
        if node.eqn is None:
            found.append(None)
            continue
        key = signatures.of(node.eqn)
        if key not in known:
            rule = _rule(node.eqn)
            own = rule is not None or _loses_nothing(node.eqn)
            name = node.eqn.primitive.name
            known[key] = Operation(name, rule or replicate_rule(node.eqn), own, len(known))
        found.append(known[key])
    return tuple(found)


def _rule(eqn: JaxprEqn) -> FactorRule | None:
    try:
        return factor_rule(eqn)
    except RuleError as error:
        where = source_line(eqn) or "in the step"
        name = eqn.primitive.name
        raise RuleError(f"{where}: {error}; correct the rule of {name!r} (passes/rules)") from None


def _loses_nothing(eqn: JaxprEqn) -> bool:
    """Whether there is nothing to cut, or the author of ``eqn`` says how it is cut."""
    sizes = [size for atom in (*eqn.invars, *eqn.outvars) for size in shape_of(atom.aval)]
    return eqn.primitive.name == "shard_map" or all(size <= 1 for size in sizes)


def without_rule(found: Sequence[Operation | None], copies: Sequence[int]) -> dict[str, int]:
    """Primitives that have no rule and are replicated, and how many equations of each there are.

    Args:
      copies: how many each operation stands for.
    """
    names = Counter[str]()
    for op, count in zip(found, copies, strict=True):
        if op is not None and not op.has_rule:
            names[op.primitive] += count
    return dict(sorted(names.items()))
