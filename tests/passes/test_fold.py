"""Layers that repeat: found, numbered, and left out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr

from autopar.passes.fingerprint import Signatures, fingerprint
from autopar.passes.fold.runs import FEWEST, find_runs
from autopar.passes.trace import Step, trace

WIDTH = 16


def layers(count: int) -> list[Any]:
    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    return [{"bias": leaf(WIDTH), "kernel": leaf(WIDTH, WIDTH)} for _ in range(count)]


def forward(params: Any, x: Any) -> Any:
    for layer in params:
        x = x + jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return jnp.mean(x**2)


def stepped(loss: Any, params: Any, *, clip: bool = False) -> Step:
    def step(params: Any, x: Any) -> Any:
        gradients = jax.grad(loss)(params, x)
        if clip:
            norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradients)))
            gradients = jax.tree.map(lambda leaf: leaf / jnp.maximum(1.0, norm), gradients)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    return trace(step, params, jax.ShapeDtypeStruct((8, WIDTH), jnp.float32))


def printed(program: ClosedJaxpr) -> str:
    return fingerprint(program, (), Signatures())


@pytest.mark.parametrize("clip", [False, True])
def test_what_is_left_is_the_step_of_fewer_layers(clip: bool) -> None:
    fold = stepped(forward, layers(30), clip=clip).fold
    assert fold is not None
    (group,) = fold.groups
    fewer = stepped(forward, layers(30 - len(group.folded) + 1), clip=clip)
    assert printed(fold.part.jaxpr) == printed(fewer.jaxpr)


@pytest.mark.parametrize("clip", [False, True])
def test_everything_is_stood_for_once(clip: bool) -> None:
    step = stepped(forward, layers(24), clip=clip)
    fold = step.fold
    assert fold is not None
    for standings, count in (
        (fold.equations, len(step.jaxpr.eqns)),
        (fold.inputs, len(step.in_paths)),
        (fold.outputs, len(step.out_paths)),
    ):
        found = [position for one in standings for position in one.positions]
        assert sorted(found) == list(range(count))
    for one in fold.equations:
        assert len({step.signatures.of(step.jaxpr.eqns[i]) for i in one.positions}) == 1
    sources = {i: one.positions for one in fold.inputs for i in one.positions}
    results = {i: one.positions for one in fold.outputs for i in one.positions}
    for out, source in step.ties:
        assert len(sources[source]) == len(results[out])


def test_a_layer_stands_for_equations_of_its_own_kind() -> None:
    step = stepped(forward, layers(24))
    fold = step.fold
    assert fold is not None
    for one in fold.inputs:
        kinds = {step.in_paths[i].rpartition("/")[2] for i in one.positions}
        assert len(kinds) == 1
    assert [len(one.positions) for one in fold.inputs].count(len(fold.groups[0].folded)) == 2


def all_layers_at_once(params: Any, x: Any) -> Any:
    seen = []
    for layer in params:
        x = x + jnp.tanh(x @ layer["kernel"] + layer["bias"])
        seen.append(x)
    return jnp.mean(jnp.concatenate(seen) ** 2)


def unlike(params: Any, x: Any) -> Any:
    for number, layer in enumerate(params):
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"]) ** (number + 2)
    return jnp.mean(x**2)


@pytest.mark.parametrize(("shown", "folds"), [(12, False), (39, True)])
def test_a_layer_whose_value_is_a_result_is_not_left_out(shown: int, folds: bool) -> None:
    def step(params: Any, x: Any) -> Any:
        seen: list[Any] = []
        for layer in params:
            x = x + jnp.tanh(x @ layer["kernel"] + layer["bias"])
            seen.append(x)
        return seen[shown], jnp.mean(x**2)

    batch = jax.ShapeDtypeStruct((8, WIDTH), jnp.float32)
    assert (trace(step, layers(40), batch, donate=()).fold is not None) == folds


@pytest.mark.parametrize(("loss", "count"), [(forward, 5), (all_layers_at_once, 30), (unlike, 30)])
def test_what_does_not_repeat_is_not_folded(loss: Any, count: int) -> None:
    assert stepped(loss, layers(count)).fold is None


def test_a_step_without_equations_has_no_runs() -> None:
    assert find_runs(np.array([], np.int64)) == []


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(FEWEST, 20), st.data())
def test_runs_repeat_themselves_and_lie_apart(
    period: list[int], count: int, data: st.DataObject
) -> None:
    ends = st.lists(st.integers(0, 9), max_size=8)
    before, after = data.draw(ends), data.draw(ends)
    kinds = np.array([*before, *(period * count), *after], np.int64)
    runs = find_runs(kinds)
    for run in runs:
        pieces = kinds[run.start : run.stop].reshape(run.count, run.period)
        assert (pieces == pieces[0]).all()
    stops = [0, *(run.stop for run in runs)]
    assert all(run.start >= stop for run, stop in zip(runs, stops, strict=False))
    assert max(run.stop - run.start for run in runs) > len(period) * (count - 1)
