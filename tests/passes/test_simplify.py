"""A simplified program computes the same, with nothing to call and nothing named twice."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from programs import PROGRAMS, X, branched, looped, scanned

from autopar.core.errors import TraceError
from autopar.passes.dce import prune
from autopar.passes.rules import rebuild, regions
from autopar.passes.simplify import CALLS, simplify
from autopar.passes.sources import source_line

each_program = pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)


def _simplified(program: Callable[..., Any], *args: Any) -> jex.ClosedJaxpr:
    return simplify(jax.make_jaxpr(program)(*args))


def _bodies(jaxpr: jex.Jaxpr) -> Iterator[jex.Jaxpr]:
    yield jaxpr
    for eqn in jaxpr.eqns:
        for inner in jex.jaxprs_in_params(eqn.params):
            yield from _bodies(inner)


def _find(jaxpr: jex.Jaxpr, name: str) -> list[jex.JaxprEqn]:
    return [eqn for body in _bodies(jaxpr) for eqn in body.eqns if eqn.primitive.name == name]


def _run(closed: jex.ClosedJaxpr, *args: Any) -> list[Any]:
    return jex.jaxpr_as_fun(closed)(*args)


@each_program
def test_computes_the_same(program: Callable[..., Any]) -> None:
    for got, want in zip(
        _run(_simplified(program, X), X), jax.tree.leaves(program(X)), strict=True
    ):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


@each_program
def test_is_well_typed_and_flat(program: Callable[..., Any]) -> None:
    closed = _simplified(program, X)
    jex.check_jaxpr(closed.jaxpr)
    names = {eqn.primitive.name for body in _bodies(closed.jaxpr) for eqn in body.eqns}
    assert not names & set(CALLS)
    traced = jax.make_jaxpr(program)(X)
    assert closed.in_avals == traced.in_avals
    assert closed.out_avals == traced.out_avals


@each_program
def test_every_variable_is_bound_once(program: Callable[..., Any]) -> None:
    bound = Counter(
        var
        for body in _bodies(_simplified(program, X).jaxpr)
        for var in (*body.constvars, *body.invars, *(v for e in body.eqns for v in e.outvars))
    )
    assert set(bound.values()) == {1}


@each_program
def test_constants_are_at_the_top(program: Callable[..., Any]) -> None:
    closed = _simplified(program, X)
    inner = [body for body in _bodies(closed.jaxpr) if body is not closed.jaxpr]
    assert not any(body.constvars for body in inner)
    assert len({id(const) for const in closed.consts}) == len(closed.consts)


def test_dead_scan_values_go() -> None:
    (scan, *_) = _find(_simplified(lambda x: scanned(x)[0], X).jaxpr, "scan")
    assert scan.params["num_carry"] == 1
    assert [v.aval.shape for v in scan.outvars] == [(2, 3), (3,)]


def test_dead_while_carries_go() -> None:
    (loop,) = _find(_simplified(looped, X).jaxpr, "while")
    assert [v.aval.shape for v in loop.outvars] == [(), (2, 3), ()]
    (whole,) = _find(jax.make_jaxpr(looped)(X).jaxpr, "while")
    assert len(whole.outvars) == 4


def test_unused_inputs_stay() -> None:
    closed = _simplified(lambda x, unused: x + 1, X, X)
    assert len(closed.jaxpr.invars) == 2


def test_dead_code_with_an_effect_stays() -> None:
    def step(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x.sum())
        return x

    names = [eqn.primitive.name for eqn in _simplified(step, X).jaxpr.eqns]
    assert names[0] == "reduce_sum"
    assert len(names) == 2


def test_names_of_callers_come_first() -> None:
    @jax.jit
    def inner(x: jax.Array) -> jax.Array:
        with jax.named_scope("inner"):
            return jnp.sin(x)

    def step(x: jax.Array) -> jax.Array:
        with jax.named_scope("outer"):
            return inner(x).sum()

    stacks = [str(e.source_info.name_stack) for e in _simplified(jax.grad(step), X).jaxpr.eqns]
    assert stacks[0] == "jvp(outer)/inner"
    assert stacks[-1] == "transpose(jvp(outer))/inner"


def test_shardings_of_a_jit_become_constraints() -> None:
    """On its operands and results, in the caller's place; a scalar has no layout."""
    mesh = jax.make_mesh((2,), ("x",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    here = jax.NamedSharding(mesh, jax.P())
    placed = jax.jit(lambda x, s: s * jnp.sin(x) @ TABLE_T, in_shardings=here, out_shardings=here)
    closed = _simplified(lambda x: placed(x, 2.0) + placed(x, 3.0), X)
    jex.check_jaxpr(closed.jaxpr)
    assert not _find(closed.jaxpr, "jit")
    constraints = _find(closed.jaxpr, "sharding_constraint")
    assert [eqn.params["sharding"].mesh for eqn in constraints] == [mesh] * 4
    assert source_line(constraints[0]).startswith("test_simplify.py:")
    np.testing.assert_allclose(_run(closed, X)[0], 5 * np.sin(X) @ TABLE_T, rtol=1e-5)


TABLE_T = np.ones((3, 2), np.float32)


def test_mutable_references_are_refused() -> None:
    def step(x: jax.Array) -> jax.Array:
        ref = jax.new_ref(x)
        ref[0, 0] = 1.0
        return ref[...]

    with pytest.raises(TraceError, match="mutable reference"):
        _simplified(step, X)


def test_nested_branches_stay_linear() -> None:
    """Each level is visited once; twice would be thousands of visits to the innermost."""

    def nest(depth: int, x: jax.Array) -> jax.Array:
        if depth == 0:
            return jnp.sin(x)
        return lax.cond(x[0, 0] > depth, lambda y: nest(depth - 1, y), lambda y: y + depth, x)

    traced = jax.make_jaxpr(lambda x: nest(12, x))(X)
    start = time.perf_counter()
    simplify(traced)
    assert time.perf_counter() - start < 2


def test_scan_regions_link_every_value() -> None:
    (scan, *_) = _find(_simplified(scanned, X).jaxpr, "scan")
    (region,) = regions(scan) or ()
    assert (region.name, region.trips) == ("body", 3)
    assert [link.outer for link in region.inputs] == scan.invars
    assert [link.inner for link in region.inputs] == region.body.invars
    assert [link.outer for link in region.outputs] == scan.outvars
    assert len(region.carries) == scan.params["num_carry"]
    for link in (*region.inputs, *region.outputs):
        assert len(link.outer.aval.shape) - len(link.inner.aval.shape) == int(link.stacked)
    for inside, after in region.carries:
        assert inside in region.body.invars
        assert after in region.body.outvars


def test_while_regions_share_their_carries() -> None:
    (loop,) = _find(_simplified(looped, X).jaxpr, "while")
    cond, body = regions(loop) or ()
    assert (cond.name, cond.outputs, cond.carries) == ("cond", (), ())
    assert [link.outer for link in body.outputs] == loop.outvars
    n = len(loop.outvars)
    assert [link.outer for link in cond.inputs][-n:] == [link.outer for link in body.inputs][-n:]
    assert len(body.carries) == n


def test_branches_leave_the_index_out() -> None:
    (switch,) = [e for e in _simplified(branched, X).jaxpr.eqns if e.primitive.name == "cond"]
    found = regions(switch) or ()
    assert [region.name for region in found] == ["branch0", "branch1", "branch2"]
    for region in found:
        assert [link.outer for link in region.inputs] == switch.invars[1:]
        assert [link.inner for link in region.inputs] == region.body.invars


def test_plain_equations_have_no_regions() -> None:
    assert regions(_simplified(jnp.sin, X).jaxpr.eqns[0]) is None


@each_program
def test_rebuild_with_the_same_bodies_changes_nothing(program: Callable[..., Any]) -> None:
    closed = _simplified(program, X)
    eqns = [
        eqn.replace(params=rebuild(eqn, [region.body for region in found]))
        if (found := regions(eqn))
        else eqn
        for eqn in closed.jaxpr.eqns
    ]
    again = jex.ClosedJaxpr(closed.jaxpr.replace(eqns=eqns), closed.consts)
    jex.check_jaxpr(again.jaxpr)
    for got, want in zip(_run(again, X), _run(closed, X), strict=True):
        np.testing.assert_array_equal(got, want)


def test_rebuild_counts_bodies() -> None:
    (loop,) = _find(_simplified(looped, X).jaxpr, "while")
    cond, body = (region.body for region in regions(loop) or ())
    with pytest.raises(ValueError, match="fewer regions than the 3 bodies"):
        rebuild(loop, [cond, body, body])


def test_prune_keeps_what_it_is_told_to() -> None:
    jaxpr = jax.make_jaxpr(lambda x, y: (x + 1, y * 2))(1.0, 2.0).jaxpr
    smaller, kept = prune(jaxpr, [True, False], [False, False])
    assert (kept, len(smaller.eqns), len(smaller.outvars)) == ([True, False], 1, 1)
    _, kept = prune(jaxpr, [True, False], [False, True])
    assert kept == [True, True]
