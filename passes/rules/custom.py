"""Operations whose author says how they may be cut: `custom_partitioning` with a `sharding_rule`.

Its factors are ours, but for those that its author calls special (reduced, permuted, or in need of
the whole), compound ones, and those that only operands or only results have: these are not cut.
Without a rule, or with one that is computed from a mesh, it is opaque.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from jax.experimental.custom_partitioning import BATCHING, SdyShardingRule
from jax.extend.core import JaxprEqn

from autopar.passes.rules.build import Factors, Shape, in_shapes, out_shapes
from autopar.passes.rules.factors import FactorRule
from autopar.passes.rules.registry import rule


@rule("custom_partitioning")
def _custom_partitioning(eqn: JaxprEqn) -> FactorRule | None:
    """As its `sharding_rule` says."""
    said: Any = eqn.params["sharding_rule"]
    if not isinstance(said, SdyShardingRule):
        return None
    ins = list(map(_names, said.operand_mappings, in_shapes(eqn)))
    outs = list(map(_names, said.result_mappings, out_shapes(eqn)))
    special = (said.reduction_factors, said.need_replication_factors, said.permutation_factors)
    cut = {n for dims in ins for n in dims} & {n for dims in outs for n in dims}
    cut -= {None, *itertools.chain(*special)}
    factors, ours = Factors(), dict[str | None, str | None]()
    for dims, shape in zip(ins, in_shapes(eqn), strict=True):
        for name, size in zip(dims, shape, strict=True):
            if name in cut and name not in ours:
                ours[name] = factors.new(size)
    return factors.rule(
        [tuple(ours.get(name) for name in dims) for dims in ins],
        [tuple(ours.get(name) for name in dims) for dims in outs],
    )


def _names(mapping: Sequence[Any], shape: Shape) -> tuple[str | None, ...]:
    """What the author calls each dimension; `None` of those he merges."""
    return tuple(_expanded(mapping, len(shape)))


def _expanded(mapping: Sequence[Any], rank: int) -> Iterator[str | None]:
    for name in mapping:
        if not isinstance(name, str):
            yield None
        elif name.startswith(BATCHING):  # leading dimensions, as many as are left
            group = name[len(BATCHING) :] or "0"
            yield from (f"{BATCHING}{group}.{i}" for i in range(rank - len(mapping) + 1))
        else:
            yield name
