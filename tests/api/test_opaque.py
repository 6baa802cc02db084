"""Operations nobody looks into run whole, and are named in a warning; and rules that are wrong."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.experimental.custom_partitioning import custom_partitioning

import autopar
from autopar.core.errors import RuleError
from autopar.passes.rules import RULES, FactorRule

CPU8 = autopar.Cluster.preset("cpu", 8)
W = jax.random.normal(jax.random.key(0), (16, 32)) / 4
X = jax.random.normal(jax.random.key(1), (8, 16))


def doubled(x: jax.Array) -> jax.Array:
    """A kernel of the user's own."""

    def kernel(source: Any, target: Any) -> None:
        target[...] = source[...] * 2

    like = jax.ShapeDtypeStruct(x.shape, x.dtype)
    return pl.pallas_call(kernel, out_shape=like, interpret=True)(x)


sine = custom_partitioning(jnp.sin)
sine.def_partition(
    infer_sharding_from_operands=lambda mesh, args, result: args[0].sharding,
    partition=lambda mesh, args, result: (mesh, jnp.sin, args[0].sharding, (args[0].sharding,)),
    sharding_rule=lambda mesh, args, results: "i j -> i j",
)


def halved(x: jax.Array) -> jax.Array:
    """A function of the host."""
    return jax.pure_callback(lambda a: a / 2, jax.ShapeDtypeStruct(x.shape, x.dtype), x)


OPAQUE: dict[str, Callable[[jax.Array], jax.Array]] = {
    "pallas_call": doubled,
    "custom_partitioning": sine,
    "pure_callback": halved,
}


@pytest.mark.parametrize("name", OPAQUE)
def test_opaque_operations_run_whole(name: str) -> None:
    """The rest of the step is split all the same; both backends compute what one device does."""

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return OPAQUE[name](jnp.tanh(x)) @ w

    with pytest.warns(autopar.FallbackWarning, match=f"no sharding rule for {name} x1: ") as caught:
        plan = autopar.plan(step, W, X, cluster=CPU8, donate=())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert plan.fallbacks == {name: 1}
    assert any("S(" in str(strategy) for strategy in plan.strategies.values())
    for backend in ("jit", "shard_map"):
        got = autopar.apply(step, plan, backend=backend, donate=())(W, X)
        np.testing.assert_allclose(got, step(W, X), rtol=1e-5, atol=1e-5)


def test_a_decorated_step_warns_once() -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return doubled(doubled(x)) @ w

    call = autopar.parallelize(cluster=CPU8, donate=())(step)
    with pytest.warns(autopar.FallbackWarning, match=r"pallas_call x2: .* jax\.shard_map"):
        call.plan(W, X)
    call.plan(W, X)  # planned already: a warning here would be an error


def test_no_warning_where_nothing_could_be_split() -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return (x @ w) * halved(jnp.sum(x))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert autopar.plan(step, W, X, cluster=CPU8, donate=()).fallbacks == {}


WRONG: dict[str, tuple[FactorRule, str]] = {
    "too few dimensions": (
        FactorRule((("i",),), (("i",),), (("i", 8),)),
        r"operand 0 has shape \(8, 32\), the rule says \('i',\)",
    ),
    "an extent that does not divide": (
        FactorRule((("i", "j"),), (("i", "j"),), (("i", 8), ("j", 5))),
        "factor j=5 of operand 0 does not divide the dimension of 32",
    ),
    "too many operands": (
        FactorRule((("i", None), ("i", None)), (("i", None),), (("i", 8),)),
        "the rule has 2 operands, the equation 1",
    ),
    "a reduced factor that stays": (
        FactorRule((("i", None),), (("i", None),), (("i", 8),), (("i", "add"),)),
        "factor i is reduced, yet reaches a result",
    ),
}


@pytest.mark.parametrize("why", WRONG)
def test_rule_that_does_not_match(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """The equation and the user's line are named."""
    rule, message = WRONG[why]
    monkeypatch.setitem(RULES, "tanh", lambda eqn: rule)

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.tanh(x @ w)

    place = rf"{Path(__file__).name}:{step.__code__.co_firstlineno + 1}: tanh: "
    with pytest.raises(RuleError, match=place + message + ".*correct the rule of 'tanh'"):
        autopar.plan(step, W, X, cluster=CPU8, donate=())
