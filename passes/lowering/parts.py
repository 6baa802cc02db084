"""One equation of a program for the partitioner, of which it sees no more than the parts.

Before: operands in the layouts of the strategy, or open where those are partial. After: the result,
whose sum over devices, if it is partial, is the partitioner's to place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh

from autopar.core.layout import B, Layout, Partial, is_partial, reduced_whole, to_spec
from autopar.core.plan import Strategy
from autopar.passes.lowering.local import Site, localise


def in_parts(site: Site, mesh: Mesh, operands: Sequence[Any]) -> Any:
    """The one result of an equation, of which each device computes its part by itself.

    Operands that are partial are reduced first. Summands are stacked, and then summed.
    """
    site = replace(site, strategy=_reduced(site.strategy))
    (layout,) = site.strategy.results
    pairs = zip(site.mesh.names, layout, strict=True)
    summed = tuple(name for name, placement in pairs if isinstance(placement, Partial))

    def spec(layout: Layout, rank: int) -> jax.P:
        return to_spec(layout, site.mesh, rank)

    stacked = jax.shard_map(
        lambda *parts: localise(site, parts)[0][None],
        mesh=mesh,
        in_specs=tuple(map(spec, site.strategy.operands, map(np.ndim, operands))),
        out_specs=jax.P(summed, *spec(layout, len(site.result_shape()))),
        check_vma=False,
    )(*operands)
    return lax.reduce(stacked, np.zeros((), stacked.dtype), lax.add, (0,))


def _reduced(strategy: Strategy) -> Strategy:
    """The same, but that operands are not partial, and so neither are results for their sake."""
    early = list(map(is_partial, zip(*strategy.operands, strict=True)))
    results = tuple(
        tuple(B if e and isinstance(p, Partial) else p for e, p in zip(early, layout, strict=True))
        for layout in strategy.results
    )
    return Strategy(tuple(map(reduced_whole, strategy.operands)), results)
