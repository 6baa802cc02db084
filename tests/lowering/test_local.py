"""Every strategy of every rule, carried out on real devices by its primitive's localiser."""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

sys.path.append(str(Path(__file__).parents[1] / "passes"))

import cases_elementwise
import cases_indexing
import cases_layout
import cases_products
import emulation
import numpy as np
from emulation import Case
from jax import lax

from autopar.core.errors import LoweringError
from autopar.core.layout import B, Split
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Strategy
from autopar.passes.lowering.local import LOCAL, Site, localise
from autopar.passes.lowering.redistribute import own_part
from autopar.passes.rules import RULES, AxisStrategy

CASES = [
    case
    for family in (cases_elementwise, cases_indexing, cases_layout, cases_products)
    for case in family.CASES
]
OPTIONS = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}
SPEC = MeshSpec.of({"x": emulation.PARTS})


def _mesh() -> jax.sharding.Mesh:
    devices = jax.devices()[: emulation.PARTS]
    return jax.make_mesh((emulation.PARTS,), ("x",), (jax.sharding.AxisType.Auto,), devices=devices)


def test_every_rule_has_a_localiser() -> None:
    assert sorted(set(RULES) - set(LOCAL)) == []


XLA_CANNOT = {"mulhi"}
"""What XLA cannot compile for several devices, by any road (as of JAX 0.10)."""

TOGETHER = 12
"""Cases that share a program."""

ABLE = [case for case in CASES if case.primitive not in XLA_CANNOT]
CHUNKS = [ABLE[start : start + TOGETHER] for start in range(0, len(ABLE), TOGETHER)]


@pytest.mark.parametrize("chunk", CHUNKS, ids=[chunk[0].name for chunk in CHUNKS])
def test_every_strategy_runs(chunk: list[Case]) -> None:
    """Each device computes its part of each strategy of each case."""
    rng = np.random.default_rng(0)
    work = [(case, case.equation(), s) for case in chunk for s in emulation.strategies(case)]
    cut = [
        [_stack(emulation._cut(x, p, rng)) for x, p in zip(case.args, s.operands, strict=True)]
        for case, _, s in work
    ]

    def run(pieces: Any) -> Any:
        return [
            [r[None] for r in localise(_site(eqn, s), [piece[0] for piece in own])]
            for (_, eqn, s), own in zip(work, pieces, strict=True)
        ]

    spec = jax.P("x")
    mapped = jax.shard_map(run, mesh=_mesh(), in_specs=spec, out_specs=spec, check_vma=False)
    results = jax.jit(mapped).lower(cut).compile(compiler_options=OPTIONS)(cut)
    for (case, _, strategy), found in zip(work, results, strict=True):
        expected = case.call(case.whole, case.args)
        for got, want, placement in zip(found, expected, strategy.results, strict=True):
            pieces = [emulation._plain(piece) for piece in got]
            whole = emulation._join(pieces, placement)
            try:
                emulation._compare(whole, emulation._plain(want), case.rtol)
            except AssertionError as error:
                raise AssertionError(f"{case.name}, {strategy}: {error}") from None


def _site(eqn: Any, s: AxisStrategy) -> Site:
    layouts = Strategy(tuple((p,) for p in s.operands), tuple((p,) for p in s.results))
    return Site(eqn, layouts, SPEC)


def _stack(pieces: list[Any]) -> Any:
    return jnp.stack([jnp.asarray(piece) for piece in pieces])


def test_an_update_beyond_a_part_is_dropped() -> None:
    """XLA merges slices of slices: the device that drops it has sliced its part from the whole."""
    numbers = lax.ScatterDimensionNumbers((1,), (0,), (0,))
    options = {"dimension_numbers": numbers, "unique_indices": True, "mode": "drop"}
    scatter = partial(lax.scatter_mul, **options)
    args = (jnp.arange(12.0).reshape(6, 2), jnp.array([[1]]), jnp.full((1, 2), 3.0))
    (eqn,) = jax.make_jaxpr(scatter)(*args).jaxpr.eqns
    site = _site(eqn, AxisStrategy("rows", (Split(0), B, B), (Split(0),)))

    def local(x: Any, *others: Any) -> Any:
        part = own_part(x, 0, lax.axis_index("x"), emulation.PARTS)
        return localise(site, [part, *others])[0]

    specs = {"in_specs": jax.P(), "out_specs": jax.P("x")}
    mapped = jax.shard_map(local, mesh=_mesh(), check_vma=False, **specs)
    np.testing.assert_array_equal(jax.jit(mapped)(*args), scatter(*args))


def test_a_primitive_nobody_has_looked_at_is_not_cut() -> None:
    case = next(case for case in CASES if case.name == "exp")
    (split,) = emulation.strategies(case)
    eqn = case.equation()
    site = _site(eqn.replace(primitive=jax.extend.core.Primitive("brand_new")), split)
    with pytest.raises(LoweringError, match="does not know how to cut 'brand_new'"):
        localise(site, case.args)
