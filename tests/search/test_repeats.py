"""Layers that are left out hold what they hold in the whole timeline, at all instants of others."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from autopar.cost_model.repeated import Instants, Numbers, Repeated, Spans
from autopar.search.repeats import _over, _passes

ENDS = 2
"""Layers kept at either end."""


class Pass(NamedTuple):
    """Layers one after another, each with so many kernels, in one direction or the other."""

    forward: bool
    kernels: int


class Value(NamedTuple):
    """What every layer makes at a kernel of one pass, and itself, or the next, reads in another."""

    made: tuple[int, int]
    read: tuple[int, int]
    next: bool
    size: int


@st.composite
def steps(draw: st.DrawFn) -> tuple[list[Pass], list[Value]]:
    passes = [Pass(i % 2 == 0, draw(st.integers(1, 3))) for i in range(draw(st.integers(1, 4)))]
    kernels = [(p, k) for p, one in enumerate(passes) for k in range(one.kernels)]
    values: list[Value] = []
    for size in range(1, draw(st.integers(2, 8))):
        made, read = sorted((draw(st.sampled_from(kernels)), draw(st.sampled_from(kernels))))
        values.append(Value(made, read, draw(st.booleans()), size))
    return passes, values


def timeline(
    passes: list[Pass], values: list[Value], layers: list[int]
) -> tuple[dict[tuple[int, int, int], int], list[tuple[int, int, int, int]]]:
    """The instant of each kernel of each of these layers, and the values: from, to, size, layer."""
    order = [
        (layer, number, kernel)
        for number, one in enumerate(passes)
        for layer in (layers if one.forward else layers[::-1])
        for kernel in range(one.kernels)
    ]
    at = {key: instant for instant, key in enumerate(order)}
    spans: list[tuple[int, int, int, int]] = []
    for value in values:
        step = 1 if passes[value.made[0]].forward else -1
        for place, layer in enumerate(layers):
            near = place + step if value.next else place
            reader = layers[near] if 0 <= near < len(layers) else layer
            spans.append((at[layer, *value.made], at[reader, *value.read], value.size, layer))
    return at, spans


def profile(spans: list[tuple[int, int, int, int]], instants: int) -> Numbers:
    live = np.zeros(instants)
    for start, end, size, _ in spans:
        live[start : end + 1] += size
    return live


def repeated(at: dict[tuple[int, int, int], int], generic: int, times: int) -> Repeated:
    like = np.arange(len(at))
    later = np.arange(len(at))
    for (_, *kernel), instant in at.items():
        own = at[generic, *kernel]
        like[instant], later[own] = own, max(later[own], instant)
    inside: Instants = np.array([i for (layer, *_), i in at.items() if layer == generic])
    passes = _passes(inside, later, len(at))
    return Repeated(times, passes, _over(passes, like), like, {})


@given(steps(), st.integers(3, 6))
def test_what_layers_left_out_hold_is_what_they_hold_in_the_whole(
    made: tuple[list[Pass], list[Value]], folded: int
) -> None:
    passes, values = made
    whole, every = timeline(passes, values, list(range(2 * ENDS + folded)))
    kept = [*range(ENDS + 1), *range(ENDS + folded, 2 * ENDS + folded)]
    some, left = timeline(passes, values, kept)
    layer = repeated(some, ENDS, folded - 1)
    starts, ends, sizes, _ = (np.array(column) for column in zip(*left, strict=True))
    spans = Spans(starts, ends, sizes.astype(float), starts, sizes.astype(float), len(some))
    found = profile(left, len(some)) + (folded - 1) * layer.added(spans)
    expected = profile(every, len(whole))
    for key, instant in some.items():
        if key[0] != ENDS:
            assert found[instant] == expected[whole[key]]
            counts = 1 * (starts <= instant) & (instant <= ends)
            counts = counts + (folded - 1) * layer.holds(spans, instant)
            assert (counts * sizes).sum() == found[instant]
