"""Every rule means what it says: the parts, put together, are the whole."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases_elementwise
import cases_indexing
import cases_layout
import cases_products
import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from emulation import Case, check, strategies
from jax import lax

from autopar.core.errors import RuleError
from autopar.core.layout import Partial, Split
from autopar.passes.rules import (
    RULES,
    AxisStrategy,
    Linear,
    axis_strategies,
    check_rule,
    factor_rule,
    replicate_rule,
)
from autopar.passes.rules.registry import rule

CASES: list[Case] = [
    *cases_elementwise.CASES,
    *cases_indexing.CASES,
    *cases_layout.CASES,
    *cases_products.CASES,
]
GOLDEN = Path(__file__).parent / "golden_rules.txt"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "strategy" in metafunc.fixturenames:
        pairs = [(case, strategy) for case in CASES for strategy in strategies(case)]
        ids = [f"{case.name}:{_show(strategy)}" for case, strategy in pairs]
        metafunc.parametrize(("case", "strategy"), pairs, ids=ids)


def _show(strategy: AxisStrategy) -> str:
    ins, outs = (",".join(map(str, p)) for p in (strategy.operands, strategy.results))
    return f"{strategy.factor or ''}({ins})->{outs}"


def test_parts_make_the_whole(case: Case, strategy: AxisStrategy) -> None:
    check(case, strategy)


def test_every_primitive_has_a_case() -> None:
    assert sorted(RULES) == sorted({case.primitive for case in CASES} | {"reshard"})


def test_golden() -> None:
    """One line a case. To accept a change, write ``lines`` to the file and read the difference."""
    lines = sorted(f"{case.name}: {case.rule()}\n" for case in CASES)
    assert "".join(lines) == GOLDEN.read_text()


def test_the_emulation_notices_a_wrong_strategy() -> None:
    case = next(case for case in CASES if case.name == "cumsum")
    with pytest.raises(AssertionError):
        check(case, AxisStrategy("j", (Split(1),), (Split(1),)))
    case = next(case for case in CASES if case.name == "exp")
    with pytest.raises(AssertionError):
        check(case, AxisStrategy(None, (Partial(),), (Partial(),)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: jax.random.bits(jax.random.key(3), (8, 6)),
        lambda: jax.random.key_data(jax.random.split(jax.random.key(3), 8)),
        lambda: lax.broadcasted_iota(jnp.int32, (8, 6), 0),
    ],
    ids=["random_bits", "random_split", "iota"],
)
@pytest.mark.filterwarnings("ignore:.*threefry.*")
def test_each_device_makes_its_own_part(make: Callable[[], Any]) -> None:
    """What a rule creates in parts, the compiler can: equal values, and no communication."""
    mesh = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    cut = jax.jit(make, out_shardings=jax.NamedSharding(mesh, jax.P("x"))).lower().compile()
    np.testing.assert_array_equal(cut(), make())
    text = cut.as_text()
    assert not any(
        name in text for name in ("all-gather", "all-reduce", "collective", "all-to-all")
    )


def _only(fn: Callable[..., Any], *args: Any) -> jex.JaxprEqn:
    (eqn,) = jax.make_jaxpr(fn)(*args).jaxpr.eqns
    return eqn


def _rule(fn: Callable[..., Any], *args: Any) -> str:
    return str(factor_rule(_only(fn, *args)))


def test_a_literal_alone_is_never_partial() -> None:
    x = jnp.ones((4,))
    assert _rule(lambda x: x * 2.0, x) == "([i], []) -> [i] {i=4} linear={0}"
    assert _rule(lambda x: x + 2.0, x) == "([i], []) -> [i] {i=4} linear={0, 1}"


def test_dropped_results_keep_their_place() -> None:
    eqn = _only(lambda x: lax.top_k(x, 2), jnp.ones((4, 6)))
    kept, dropped = eqn.outvars
    eqn = eqn.replace(outvars=[kept, jex.DropVar(dropped.aval)])
    assert str(factor_rule(eqn)) == "([i, _]) -> [i, _], [i, _] {i=4}"


def test_a_dimension_of_one_is_not_a_factor() -> None:
    assert _rule(jnp.sin, jnp.ones((1, 4))) == "([_, i]) -> [_, i] {i=4}"


def test_reshard_is_an_identity() -> None:
    mesh = jax.make_mesh((1,), ("x",), (jax.sharding.AxisType.Explicit,), devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        text = _rule(lambda x: jax.reshard(x, jax.P("x")), jnp.ones((4,)))
    assert text.startswith("([i]) -> [i] {i=4} linear={0}")


def test_splitting_a_fused_projection_keeps_the_fused_dimension_whole() -> None:
    """Query, key and value side by side are blocks: no ``PartitionSpec`` says what is wanted."""
    text = _rule(lambda x: lax.split(x, (8, 8, 8), axis=1), jnp.ones((4, 24)))
    assert text == "([i, _]) -> [i, _], [i, _], [i, _] {i=4} linear={0}"


def test_no_rule_for_what_is_opaque() -> None:
    mesh = jax.make_mesh((1,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:1])
    shift = jax.shard_map(lambda x: x + 1, mesh=mesh, in_specs=jax.P(), out_specs=jax.P())
    eqn = _only(shift, jnp.ones((4, 2)))
    assert factor_rule(eqn) is None
    assert str(replicate_rule(eqn)) == "([_, _]) -> [_, _]"
    assert len(axis_strategies(replicate_rule(eqn))) == 1


def test_a_primitive_has_one_rule() -> None:
    places = r"'add' already has a rule, at elementwise\.py:\d+ \(_sums\); .* remove one of them"
    with pytest.raises(RuleError, match=r"__init__\.py:\d+ \(replicate_rule\): .*" + places):
        rule("add")(replicate_rule)


def test_check_rule_names_the_operand() -> None:
    eqn = _only(jnp.sin, jnp.ones((4,)))
    with pytest.raises(RuleError, match=r"sin: operand 0 has shape \(4, 2\)"):
        check_rule(factor_rule(eqn) or replicate_rule(eqn), ((4, 2),), ((4,),), "sin")


def test_max_passes_maxima_but_not_sums() -> None:
    found = factor_rule(_only(jnp.maximum, jnp.ones((4,)), jnp.ones((4,))))
    assert found is not None
    assert found.linear == (Linear((0, 1), "max"),)
