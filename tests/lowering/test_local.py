"""Every strategy of every rule, carried out on real devices by its primitive's localiser."""

import sys
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

from autopar.core.errors import LoweringError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Strategy
from autopar.passes.lowering.local import LOCAL, Site, localise
from autopar.passes.rules import RULES, AxisStrategy

CASES = [
    case
    for family in (cases_elementwise, cases_indexing, cases_layout, cases_products)
    for case in family.CASES
]
SPEC = MeshSpec.of({"x": emulation.PARTS})


def _mesh() -> jax.sharding.Mesh:
    devices = jax.devices()[: emulation.PARTS]
    return jax.make_mesh((emulation.PARTS,), ("x",), (jax.sharding.AxisType.Auto,), devices=devices)


def test_every_rule_has_a_localiser() -> None:
    assert sorted(set(RULES) - set(LOCAL)) == []


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_strategy_runs(case: Case) -> None:
    """All strategies of one case share a program; each device computes its part of each."""
    eqn, strategies = case.equation(), emulation.strategies(case)
    rng = np.random.default_rng(0)
    cut = [
        [_stack(emulation._cut(x, p, rng)) for x, p in zip(case.args, s.operands, strict=True)]
        for s in strategies
    ]

    def run(pieces: Any) -> Any:
        return [
            [r[None] for r in localise(_site(eqn, s), [piece[0] for piece in own])]
            for s, own in zip(strategies, pieces, strict=True)
        ]

    spec = jax.P("x")
    mapped = jax.shard_map(run, mesh=_mesh(), in_specs=spec, out_specs=spec, check_vma=False)
    results = jax.jit(mapped)(cut)
    expected = case.call(case.whole, case.args)
    for strategy, found in zip(strategies, results, strict=True):
        for got, want, placement in zip(found, expected, strategy.results, strict=True):
            pieces = [emulation._plain(piece) for piece in got]
            emulation._compare(
                emulation._join(pieces, placement), emulation._plain(want), case.rtol
            )


def _site(eqn: Any, s: AxisStrategy) -> Site:
    layouts = Strategy(tuple((p,) for p in s.operands), tuple((p,) for p in s.results))
    return Site(eqn, layouts, SPEC)


def _stack(pieces: list[Any]) -> Any:
    return jnp.stack([jnp.asarray(piece) for piece in pieces])


def test_a_primitive_nobody_has_looked_at_is_not_cut() -> None:
    case = next(case for case in CASES if case.name == "exp")
    (split,) = emulation.strategies(case)
    eqn = case.equation()
    site = _site(eqn.replace(primitive=jax.extend.core.Primitive("brand_new")), split)
    with pytest.raises(LoweringError, match="does not know how to cut 'brand_new'"):
        localise(site, case.args)
