"""Where XLA errs, and what is kept from it (as of JAX 0.10)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import JaxprEqn

from autopar.core.layout import B, Layout, Partial, Split, divides, is_partial, reduced_whole
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Strategy
from autopar.passes.rules.build import shape_of

_ALWAYS = ("select_and_gather_add", "select_and_scatter_add", "custom_partitioning")


def fenced(eqn: JaxprEqn, strategy: Strategy) -> bool:
    """Whether the partitioner must be given no choice, as it makes wrong ones.

    It pads wrongly, or dies, where it cuts a dimension with negative or inner padding; and it may
    slice a gather's operand for good that is cut along one axis while another leaves it open, or
    look up in one part of it alone. On windows that select, cut where the rule keeps them whole, it
    dies. Convolutions whose operands it cuts in space, each along another axis, it sums twice. A
    partial value that is split in blocks it may take for one of the blocks, and then XLA rejects
    the program it made. Of a custom partitioning it may choose another strategy than was priced.
    """
    if eqn.primitive.name in _ALWAYS:
        return True
    if eqn.primitive.name == "gather":
        return any(map(is_partial, (*strategy.operands, *strategy.results)))
    if eqn.primitive.name in ("conv_general_dilated", "split"):
        return any(map(is_partial, strategy.operands))
    return eqn.primitive.name == "pad" and any(
        min(low, high) < 0 or inside for low, high, inside in eqn.params["padding_config"]
    )


def is_grouped(eqn: JaxprEqn) -> bool:
    """Whether this is a convolution in groups, which the partitioner must not see.

    What it sums in groups of the batch, as in gradients of kernels, it sums over all devices, also
    over those that hold the same. Groups of several features it may compute whole on each
    device (openxla/xla#47945).
    """
    return eqn.primitive.name == "conv_general_dilated" and (
        eqn.params["feature_group_count"] > 1 or eqn.params["batch_group_count"] > 1
    )


def guarded(eqn: JaxprEqn, strategy: Strategy, operands: Sequence[Any]) -> list[Any]:
    """``operands``, such that XLA may simplify the equation together with a change of layout.

    Of a slice of a slice it adds the starts, even where the inner one is out of bounds and should
    have been clamped first. So starts are clamped here. A small scatter becomes slices too, for
    which places in another device's part are out of bounds: it must not see that its operand is
    such a part. A reduction of pieces put together becomes one of each piece, and counts the
    initial value as often: it must not see the pieces.
    """
    name, first, rest = eqn.primitive.name, operands[:1], operands[1:]
    if name == "dynamic_slice":
        lasts = _lasts(eqn)
        return [*first, *map(_clamped, rest, lasts)]
    if name == "gather" and eqn.params["mode"] == lax.GatherScatterMode.CLIP:
        lasts = _lasts(eqn)
        indexed = eqn.params["dimension_numbers"].start_index_map
        return [*first, _clamped(rest[0], [lasts[d] for d in indexed])]
    if name.startswith("scatter"):
        indexed = eqn.params["dimension_numbers"].scatter_dims_to_operand_dims
        if any(Split(d) in strategy.operands[0] for d in indexed):
            return [lax.optimization_barrier(operands[0]), *rest]
    if name == "reduce":
        return list(lax.optimization_barrier(tuple(operands)))
    return list(operands)


def pinned(eqn: JaxprEqn, strategy: Strategy) -> Layout | None:
    """Splits of the result that the partitioner must not change as it computes the equation.

    Of a product that is summed along one axis, it may take batches that are split along another
    for whole ones, if the result is to be split otherwise along them.
    """
    if eqn.primitive.name != "dot_general" or not is_partial(strategy.results[0]):
        return None
    _, (batch, _) = eqn.params["dimension_numbers"]
    splits = {Split(dim) for dim in range(len(batch))}
    kept = tuple(p if p in splits else B for p in strategy.results[0])
    return kept if any(p != B for p in kept) else None


def reduced(shape: Sequence[int], layout: Layout, wanted: Layout, mesh: MeshSpec) -> Layout:
    """Where a partial value is reduced on its way to ``wanted``, if not there; others stay.

    Over several dimensions at once the partitioner only reduces it whole. So it is scattered over
    one. And a product that is scattered along one axis it computes wrongly if several others come
    to lie in another order: it numbers the devices of a group, within which nothing is summed, by
    the operands' layout, and reads the numbers by the result's (as of XLA in JAX 0.10,
    ``GetDotGroupPartitionContractingOutputShardings``). So others that move do so afterwards.
    """
    if not is_partial(layout):
        return layout
    through = _scattered(shape, layout, wanted, mesh)
    if not _reorders(layout, wanted):
        return through
    pairs = zip(layout, through, strict=True)
    held = reduced_whole(tuple(new if isinstance(old, Partial) else old for old, new in pairs))
    return held if divides(shape, held, mesh) else reduced_whole(layout)


def unreduced(layout: Layout, wanted: Layout) -> Layout:
    """What a change from ``layout`` leaves: no constraint can say ``wanted`` while it is partial.

    So what a plan reduces one axis after another is reduced at once, with the last.
    """
    if not is_partial(wanted):
        return wanted
    pairs = zip(layout, wanted, strict=True)
    return tuple(old if isinstance(old, Partial) else new for old, new in pairs)


def _scattered(shape: Sequence[int], layout: Layout, wanted: Layout, mesh: MeshSpec) -> Layout:
    """``wanted``, but that what is partial is split in one dimension only, if it can be."""
    cut = [
        isinstance(old, Partial) and isinstance(new, Split)
        for old, new in zip(layout, wanted, strict=True)
    ]
    parts = list(itertools.compress(wanted, cut))
    through = tuple(parts[0] if c else new for c, new in zip(cut, wanted, strict=True))
    return through if divides(shape, through, mesh) else wanted


def _reorders(layout: Layout, wanted: Layout) -> bool:
    """Whether an axis that is not partial moves, not only cuts its part, and there is a third.

    An operand that is partial is whole here, so that more axes count than those that are not.
    """
    kept = [axis for axis, placement in enumerate(layout) if not isinstance(placement, Partial)]
    return len(layout) > 2 and any(_moves(axis, layout, wanted) for axis in kept)


def _moves(axis: int, layout: Layout, wanted: Layout) -> bool:
    old, new = layout[axis], wanted[axis]
    return old != new and (old != B or (isinstance(new, Split) and new in layout[axis + 1 :]))


def _lasts(eqn: JaxprEqn) -> list[int]:
    """The last start in bounds, for each dimension."""
    shape, sizes = shape_of(eqn.invars[0]), eqn.params["slice_sizes"]
    return [n - size for n, size in zip(shape, sizes, strict=True)]


def _clamped(start: Any, last: Any) -> Any:
    start = jnp.asarray(start)
    last = np.minimum(last, jnp.iinfo(start.dtype).max)
    return jnp.clip(start, 0, jnp.asarray(last, start.dtype))
