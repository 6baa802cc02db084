"""A rematerialised program computes the same bits, and keeps less."""

from __future__ import annotations

import random
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, check_jaxpr, jaxpr_as_fun
from remat_steps import batch, checkpointed_loss, flat_loss, init, scan_loss, step_of

from autopar.core.errors import PlanError
from autopar.cost_model.memory import liveness
from autopar.passes.remat import droppable, is_backward, rematerialise
from autopar.passes.trace import Step, trace

LOSSES = {"flat": flat_loss, "scan": scan_loss, "checkpointed": checkpointed_loss}


def traced(name: str) -> tuple[Step, list[Any]]:
    args = (init(name == "scan"), batch())
    return trace(step_of(LOSSES[name]), *args), jax.tree.leaves(args)


def run(closed: ClosedJaxpr, flat: list[Any]) -> list[Any]:
    """One operation at a time: XLA:CPU fuses multiply-adds in one copy of a value and not in
    another.
    """
    with jax.disable_jit():
        return jaxpr_as_fun(closed)(*flat)


def choices(names: frozenset[str]) -> list[list[str]]:
    every = sorted(names)
    rng = random.Random(0)
    return [every, *(rng.sample(every, len(every) * tenths // 10) for tenths in (3, 7))]


@pytest.mark.parametrize("name", LOSSES)
def test_same_bits_whatever_is_recomputed(name: str) -> None:
    step, flat = traced(name)
    plain = run(step.jaxpr, flat)
    for names in choices(droppable(step.jaxpr)):
        found = rematerialise(step.jaxpr, names)
        check_jaxpr(found.jaxpr)
        for before, after in zip(plain, run(found, flat), strict=True):
            np.testing.assert_array_equal(before, after)


def count(closed: ClosedJaxpr, primitive: str) -> int:
    """Equations of a primitive, those of nested bodies included."""

    def inside(jaxpr: Any) -> int:
        total = 0
        for eqn in jaxpr.eqns:
            total += eqn.primitive.name == primitive
            for value in eqn.params.values():
                body = getattr(value, "jaxpr", value)
                total += inside(body) if hasattr(body, "eqns") else 0
        return total

    return inside(closed.jaxpr)


def peak(step: Step, closed: ClosedJaxpr) -> int:
    """Simulated bytes of one device."""
    categories = ["other"] * len(step.in_paths)
    timeline = liveness(closed, categories, step.donated, step.ties)
    return timeline.peak(timeline.global_bytes())[1]


def wide(name: str) -> Step:
    """A step whose activations outweigh its weights."""
    params = jax.eval_shape(lambda: init(name == "scan"))
    return trace(step_of(LOSSES[name]), params, jax.ShapeDtypeStruct((4096, 16), jnp.float32))


@pytest.mark.parametrize("name", ["flat", "scan"])
def test_memory_falls(name: str) -> None:
    step = wide(name)
    boundary = {
        str(i)
        for i, eqn in enumerate(step.jaxpr.jaxpr.eqns)
        if eqn.primitive.name == "name" and not is_backward(eqn)
    }
    names = droppable(step.jaxpr) - boundary
    assert peak(step, rematerialise(step.jaxpr, names)) < 0.7 * peak(step, step.jaxpr)


def test_one_barrier_a_group_and_the_loop_has_none() -> None:
    step, _ = traced("flat")
    curved = [
        str(i)
        for i, eqn in enumerate(step.jaxpr.jaxpr.eqns)
        if eqn.primitive.name == "tanh" and not is_backward(eqn)
    ]
    assert count(rematerialise(step.jaxpr, curved[:1]), "remat2") == 1
    assert count(rematerialise(step.jaxpr, curved), "remat2") == len(curved)
    scanned, _ = traced("scan")
    inside = [name for name in droppable(scanned.jaxpr) if "/body/" in name]
    found = rematerialise(scanned.jaxpr, inside)
    assert count(found, "remat2") == 0
    assert count(found, "dot_general") == count(scanned.jaxpr, "dot_general") + 1


def test_what_is_random_is_drawn_again_and_effects_never_are() -> None:
    def noisy(params: Any, x: jax.Array) -> Any:
        hidden = jnp.sin(x @ params["w"][0])
        jax.debug.callback(lambda v: None, hidden.sum())
        return flat_loss(params, hidden)

    step = trace(step_of(noisy), init(False), batch())
    names = droppable(step.jaxpr)
    effects = {str(i) for i, eqn in enumerate(step.jaxpr.jaxpr.eqns) if eqn.effects}
    assert effects
    assert not effects & names
    found = rematerialise(step.jaxpr, names)
    assert count(found, "debug_callback") == 1
    drawn = count(step.jaxpr, "random_bits")
    assert count(found, "random_bits") == drawn + 3


def test_names_of_nothing_are_refused() -> None:
    step, _ = traced("flat")
    late = next(str(i) for i, eqn in enumerate(step.jaxpr.jaxpr.eqns) if is_backward(eqn))
    for name in ("100000", "0/body/0", late):
        with pytest.raises(PlanError, match="cannot be recomputed"):
            rematerialise(step.jaxpr, [name])
