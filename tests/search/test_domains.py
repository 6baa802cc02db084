"""What may be chosen, enumerated by hand."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.core.layout import P_ADD, B, Layout, Partial, Split, divides, parse, show
from autopar.core.mesh import MeshSpec
from autopar.passes.rules import FactorRule, factor_rule
from autopar.search.domains import Domain, Domains, partial_ops, parts

ONE, TWO = MeshSpec.of(2), MeshSpec.of((2, 2))
NONE: frozenset[str] = frozenset()


def rule_of(fn, *shapes: tuple[int, ...]) -> FactorRule:
    args = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    (eqn,) = jax.make_jaxpr(fn)(*args).jaxpr.eqns
    rule = factor_rule(eqn)
    assert rule is not None
    return rule


def written(domain: Domain) -> list[str]:
    return [
        f"{' '.join(map(show, s.operands))} -> {' '.join(map(show, s.results))}" for s in domain
    ]


def layouts(shape: tuple[int, ...], mesh: MeshSpec, partial: frozenset[str] = NONE) -> list[str]:
    return [show(layout) for layout in Domains(mesh).layouts(shape, partial)]


def test_product_on_one_axis() -> None:
    domain = Domains(ONE).op(rule_of(jnp.matmul, (8, 4), (4, 6)))
    assert sorted(written(domain)) == [
        "B B -> B",
        "B P -> P",
        "B S(1) -> S(1)",
        "P B -> P",
        "S(0) B -> S(0)",
        "S(1) S(0) -> P",
    ]
    assert written(domain)[0] == "B B -> B"  # ties prefer to split nothing


def test_odd_sizes_are_not_cut() -> None:
    domain = Domains(ONE).op(rule_of(jnp.matmul, (7, 4), (4, 5)))
    assert sorted(written(domain)) == ["B B -> B", "B P -> P", "P B -> P", "S(1) S(0) -> P"]


def test_what_has_no_elements_is_not_cut() -> None:
    assert layouts((4, 0), TWO) == ["B,B"]


def test_two_axes_cut_one_dimension_only_if_both_divide_it() -> None:
    offered = written(Domains(TWO).op(rule_of(jnp.sin, (4, 6))))
    assert "S(0),S(0) -> S(0),S(0)" in offered
    assert "S(1),S(1) -> S(1),S(1)" not in offered
    assert "S(0),S(1) -> S(0),S(1)" in offered


def test_product_on_two_axes_is_the_product_of_choices() -> None:
    rule = rule_of(jnp.matmul, (8, 4), (4, 8))
    single, double = Domains(ONE).op(rule), Domains(TWO).op(rule)
    assert len(double) == len(single) ** 2
    assert "S(0),S(1) B,S(0) -> S(0),P" in written(double)


def test_partials_of_two_kinds_do_not_mix() -> None:
    found = layouts((4,), TWO, frozenset({"add", "max"}))
    assert "P,P(max)" not in found
    assert "P(max),P" not in found
    assert {"P,P", "P(max),P(max)", "B,P", "P(max),S(0)"} <= set(found)
    assert len(found) == 4 * 4 - 2


def test_layouts_by_hand() -> None:
    assert layouts((4, 3), ONE) == ["B", "S(0)"]
    assert layouts((1, 4), ONE) == ["B", "S(1)"]
    assert layouts((), TWO) == ["B,B"]
    assert layouts((2, 2), TWO) == [
        "B,B",
        "B,S(0)",
        "B,S(1)",
        "S(0),B",
        "S(0),S(1)",
        "S(1),B",
        "S(1),S(0)",
    ]


def test_hub_passes_a_value_through() -> None:
    domain = Domains(ONE).hub((4,), frozenset({"add"}))
    assert all(state.operands == state.results for state in domain)
    assert written(domain) == ["B -> B", "S(0) -> S(0)", "P -> P"]


def test_shared_input_may_be_gathered_for_use_but_not_moved() -> None:
    domains = Domains(TWO)
    rests = domains.layouts((4, 4), NONE)
    for state in domains.input((4, 4), True, rests):
        (rest,), (use,) = state.operands, state.results
        assert all(u in (r, B) for r, u in zip(rest, use, strict=True))
    pairs = {(show(s.operands[0]), show(s.results[0])) for s in domains.input((4, 4), True, rests)}
    assert ("S(0),S(1)", "B,S(1)") in pairs
    assert ("S(0),B", "S(1),B") not in pairs
    assert ("B,B", "S(0),B") not in pairs


def test_input_of_one_reader_is_used_as_it_rests() -> None:
    domains = Domains(ONE)
    domain = domains.input((4,), False, domains.layouts((4,), NONE))
    assert written(domain) == ["B -> B", "S(0) -> S(0)"]


def test_work_is_divided_among_the_axes_that_cut_it() -> None:
    rule = rule_of(jnp.matmul, (8, 4), (4, 8))
    mesh = MeshSpec.of((2, 4))
    by_text = dict(zip(written(Domains(mesh).op(rule)), Domains(mesh).op(rule), strict=True))
    assert parts(by_text["S(0),S(1) B,S(0) -> S(0),P"], mesh) == 8
    assert parts(by_text["S(0),B B,B -> S(0),B"], mesh) == 2
    assert parts(by_text["P,B B,B -> P,B"], mesh) == 1


def test_partial_ops_of_a_reduction() -> None:
    assert partial_ops(Domains(ONE).op(rule_of(lambda x: jnp.max(x, 0), (4, 4))), 0) == {"max"}
    assert partial_ops(Domains(ONE).op(rule_of(lambda x: jnp.exp(x), (4, 4))), 0) == NONE


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(1, 12), max_size=3).map(tuple),
    st.lists(st.sampled_from([2, 3, 4]), min_size=1, max_size=2),
    st.sampled_from([NONE, frozenset({"add"}), frozenset({"add", "max"})]),
)
def test_layouts_are_all_that_divide(
    shape: tuple[int, ...], sizes: list[int], partial: frozenset[str]
) -> None:
    """Against the definition: every combination, kept if it divides and mixes no reductions."""
    mesh = MeshSpec.of(sizes)
    choices = [B, *map(Split, range(len(shape))), *map(Partial, partial)]
    expected: set[Layout] = {
        layout
        for layout in itertools.product(choices, repeat=len(sizes))
        if divides(shape, layout, mesh)
        and len({p.op for p in layout if isinstance(p, Partial)}) <= 1
    }
    found = Domains(mesh).layouts(shape, partial)
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.parametrize("text", ["S(0),B", "P,P(max)", "B,S(1)"])
def test_text_of_layouts(text: str) -> None:
    assert show(parse(text)) == text
    assert parse("P,B") == (P_ADD, B)
