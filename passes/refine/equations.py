"""How one equation is written when dimensions of its operands and results are refined.

A *form* of a value gives the extents each of its dimensions is written with: ``((8,), (3, 64))`` is
a value of ``[8, 192]`` written as ``[8, 3, 64]``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jax.extend.core import JaxprEqn

from autopar.passes.refine.cuts import stride, windows
from autopar.passes.rules import RULES, elementwise, factor_rule
from autopar.passes.rules.build import Shape, in_shapes, out_shapes

Form = tuple[tuple[int, ...], ...]
Rewriting = Callable[[JaxprEqn, Sequence[Form], Sequence[Form]], "Rewritten"]

_PLACED = ("sharding_constraint", "layout_constraint", "reshard", "device_put")
_OF_ITS_OWN_SHAPE = (*_PLACED, "bitcast_convert_type", "optimization_barrier")

POINTWISE = frozenset(
    name for name, rule in RULES.items() if rule.__module__ == elementwise.__name__
).difference(_OF_ITS_OWN_SHAPE)
"""Primitives whose results have the shape of their operands, but for scalars."""

REDUCTIONS = ("sum", "prod", "max", "min", "and", "or")
"""By what the primitives ``reduce_...`` reduce the dimensions ``axes``."""


class _NoRefinedForm(Exception):
    """The equation must be given flat values."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An equation's parameters, the forms it takes its operands in, and leaves its results in."""

    params: dict[str, Any]
    operands: tuple[Form, ...]
    results: tuple[Form, ...]


def flat(shape: Shape) -> Form:
    """The form of a value that is not refined."""
    return tuple((extent,) for extent in shape)


def written(form: Form) -> Shape:
    """The shape a value of this form is written with."""
    return tuple(itertools.chain.from_iterable(form))


def has_refined_form(eqn: JaxprEqn) -> bool:
    """Whether ``eqn`` is understood here, and says nothing of how its values lie on devices."""
    placed = any(eqn.params.get(key) is not None for key in ("sharding", "out_sharding"))
    return eqn.primitive.name in _REWRITINGS and not placed


def rewritten(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten | None:
    """``eqn`` on values of these forms; ``None`` if it must be given flat ones."""
    if not has_refined_form(eqn):
        return None
    try:
        return _REWRITINGS[eqn.primitive.name](eqn, operands, results)
    except _NoRefinedForm:
        return None


def _agree(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> None:
    """Each loop of the equation must be written alike everywhere, and what is no loop flat."""
    rule = factor_rule(eqn)
    assert rule is not None
    loops: dict[str, tuple[int, ...]] = {}
    for form, dims in zip((*operands, *results), (*rule.operands, *rule.results), strict=True):
        for extents, name in zip(form, dims, strict=True):
            loop = name if name and math.prod(extents) == rule.size(name) else None
            if len(extents) > 1 if loop is None else loops.setdefault(loop, extents) != extents:
                raise _NoRefinedForm


def _spread(form: Form, dims: Sequence[int]) -> tuple[int, ...]:
    """Where the dimensions ``dims`` are written."""
    starts = [0, *itertools.accumulate(map(len, form))]
    return tuple(place for d in dims for place in range(starts[d], starts[d + 1]))


def _following(parameters: Callable[[JaxprEqn, Sequence[Form], Form], dict[str, Any]]) -> Rewriting:
    """An equation that needs other parameters only: ``parameters`` gives those that change."""

    def rewriting(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten:
        _agree(eqn, operands, results)
        changed = parameters(eqn, operands, results[0])
        return Rewritten({**eqn.params, **changed}, tuple(operands), tuple(results))

    return rewriting


def _pointwise(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten:
    """A dimension of 1 that is repeated along a refined one is two."""
    _agree(eqn, operands, results)
    (result,) = results
    if any(len(form) not in (0, len(result)) for form in operands):
        raise _NoRefinedForm
    alike = tuple(
        tuple(r if d == r else (1,) * len(r) for d, r in zip(form, result, strict=False))
        for form in operands
    )
    return Rewritten(eqn.params, alike, (result,))


def _dot_general(eqn: JaxprEqn, operands: Sequence[Form], result: Form) -> dict[str, Any]:
    del result
    numbers = tuple(
        tuple(_spread(form, dims) for form, dims in zip(operands, pair, strict=True))
        for pair in eqn.params["dimension_numbers"]
    )
    return {"dimension_numbers": numbers}


def _spread_out(key: str) -> Rewriting:
    """The parameter ``key`` is a list of dimensions of the operand."""
    return _following(lambda eqn, operands, result: {key: _spread(operands[0], eqn.params[key])})


def _broadcast(eqn: JaxprEqn, operands: Sequence[Form], result: Form) -> dict[str, Any]:
    """A dimension of 1 that is repeated along a refined one goes to the last of its two."""
    if len(operands) > 1:
        raise _NoRefinedForm
    places = (
        _spread(result, (d,))[-len(extents) :]
        for d, extents in zip(eqn.params["broadcast_dimensions"], operands[0], strict=True)
    )
    dims = tuple(itertools.chain.from_iterable(places))
    return {"shape": written(result), "broadcast_dimensions": dims}


def _reshape(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten:
    if eqn.params["dimensions"] is not None or len(operands) > 1:
        raise _NoRefinedForm
    params = {**eqn.params, "new_sizes": written(results[0])}
    return Rewritten(params, tuple(operands), tuple(results))


def _part(whole: Form, shape: Shape) -> Form:
    """The form of a part of a value of form ``whole``: of a refined dimension, some blocks."""
    return tuple(
        (_blocks(extents, size), *extents[1:]) for extents, size in zip(whole, shape, strict=True)
    )


def _blocks(extents: tuple[int, ...], size: int) -> int:
    """How many blocks of a dimension of these extents ``size`` elements are."""
    blocks, rest = divmod(int(size), math.prod(extents[1:]))
    if rest:
        raise _NoRefinedForm
    return blocks


def _concatenate(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten:
    del operands
    (whole,) = results
    params = {**eqn.params, "dimension": _spread(whole, (eqn.params["dimension"],))[0]}
    return Rewritten(params, tuple(_part(whole, s) for s in in_shapes(eqn)), (whole,))


def _split(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten:
    del results
    (whole,), axis = operands, eqn.params["axis"]
    sizes = tuple(_blocks(whole[axis], size) for size in eqn.params["sizes"])
    params = {**eqn.params, "axis": _spread(whole, (axis,))[0], "sizes": sizes}
    return Rewritten(params, (whole,), tuple(_part(whole, s) for s in out_shapes(eqn)))


def _stacking(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten:
    """``stack`` and ``unstack``: the parts lack the dimension, which must be flat."""
    axis, stacks = eqn.params["axis"], eqn.primitive.name == "stack"
    (whole,) = results if stacks else operands
    if len(whole[axis]) > 1:
        raise _NoRefinedForm
    params = {**eqn.params, "axis": _spread(whole, (axis,))[0]}
    parts = (whole[:axis] + whole[axis + 1 :],) * whole[axis][0]
    return Rewritten(params, parts, (whole,)) if stacks else Rewritten(params, (whole,), parts)


def _slice(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten:
    del results
    (whole,) = operands
    starts: list[int] = []
    stops: list[int] = []
    strides: list[int] = []
    for d, (extents, (start, stop, _)) in enumerate(zip(whole, windows(eqn), strict=True)):
        if len(extents) > 1 and stride(eqn, d) != 1:
            raise _NoRefinedForm
        starts += (_blocks(extents, start), *(0 for _ in extents[1:]))
        stops += (_blocks(extents, stop), *extents[1:])
        strides += (stride(eqn, d), *(1 for _ in extents[1:]))
    params = dict(
        eqn.params,
        start_indices=tuple(starts),
        limit_indices=tuple(stops),
        strides=eqn.params["strides"] and tuple(strides),
    )
    return Rewritten(params, (whole,), (_part(whole, out_shapes(eqn)[0]),))


def _pad(eqn: JaxprEqn, operands: Sequence[Form], results: Sequence[Form]) -> Rewritten:
    del operands
    (whole,) = results
    config: list[tuple[int, int, int]] = []
    for extents, (low, high, interior) in zip(whole, eqn.params["padding_config"], strict=True):
        if len(extents) > 1 and interior:
            raise _NoRefinedForm
        config.append((_blocks(extents, low), _blocks(extents, high), interior))
        config.extend((0, 0, 0) for _ in extents[1:])
    params = {**eqn.params, "padding_config": tuple(config)}
    return Rewritten(params, (_part(whole, in_shapes(eqn)[0]), ()), (whole,))


_REWRITINGS: dict[str, Rewriting] = {
    **dict.fromkeys(POINTWISE, _pointwise),
    **{f"reduce_{name}": _spread_out("axes") for name in REDUCTIONS},
    "dot_general": _following(_dot_general),
    "transpose": _spread_out("permutation"),
    "squeeze": _spread_out("dimensions"),
    "broadcast_in_dim": _following(_broadcast),
    "reshape": _reshape,
    "concatenate": _concatenate,
    "split": _split,
    "stack": _stacking,
    "unstack": _stacking,
    "slice": _slice,
    "pad": _pad,
}
"""One function per primitive that has a refined form."""
