"""What is known of each equation before any mesh is chosen: its rule and its signature."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.passes.fingerprint import signature
from autopar.passes.rules import FactorRule, factor_rule, replicate_rule
from autopar.search.graph import Graph


@dataclass(frozen=True, slots=True)
class Operation:
    """One equation, or any other that does the same to values of the same shapes.

    Attributes:
      primitive: its name.
      rule: its factor rule; the one that cuts nothing where the primitive has none.
      has_rule: whether it has one of its own.
      signature: text equal for equations that do the same to values of the same shapes.
    """

    primitive: str
    rule: FactorRule
    has_rule: bool
    signature: str


def operations(graph: Graph) -> tuple[Operation | None, ...]:
    """The operation of every node; ``None`` of those that are no equation."""
    known: dict[str, Operation] = {}
    found: list[Operation | None] = []
    for node in graph.nodes:
        if node.eqn is None:
            found.append(None)
            continue
        key = signature(node.eqn)
        if key not in known:
            rule = factor_rule(node.eqn)
            own = rule is not None
            name = node.eqn.primitive.name
            known[key] = Operation(name, rule or replicate_rule(node.eqn), own, key)
        found.append(known[key])
    return tuple(found)


def without_rule(found: Sequence[Operation | None]) -> dict[str, int]:
    """Primitives that have no rule and are replicated, and how many equations of each there are."""
    names = Counter(op.primitive for op in found if op is not None and not op.has_rule)
    return dict(sorted(names.items()))
