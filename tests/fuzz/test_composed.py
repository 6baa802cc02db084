"""Random programs under random plans compute what one device does, by both backends."""

import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

sys.path.append(str(Path(__file__).parent))

from composed import Composed, Instruction, programs
from harnesses import MESHES, compare, compiled, plain, xla_fault

import autopar

PLANS = st.tuples(st.sampled_from(MESHES), st.integers(0, 999))


def run(program: Composed, mesh: tuple[int, ...], seed: int) -> None:
    """The reproducer: call it with what a failure prints."""
    args = program.args()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = jax.tree.map(plain, compiled(jax.jit(program.__call__).lower(*args))(*args))
        cluster = autopar.Cluster.preset("cpu", shape=(int(np.prod(mesh)),))
        options: dict[str, Any] = {"cluster": cluster, "mesh": mesh, "seed": seed}
        plan = autopar.plan(program.__call__, *args, search="random", donate=(), **options)
        for backend in ("shard_map", "jit"):
            step = autopar.apply(program.__call__, plan, backend=backend, donate=())
            again = f"run({program!r}, {mesh}, {seed}), {backend}"
            try:
                compare(jax.tree.map(plain, compiled(step.lower(*args))(*args)), want)
            except jax.errors.JaxRuntimeError as error:
                if backend == "shard_map" or not xla_fault(error):
                    raise AssertionError(f"{again}: {error}") from None
            except AssertionError as error:
                raise AssertionError(f"{again}: {error}") from None


def _settings(examples: int) -> Any:
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )


@_settings(5)
@given(programs(most=16), PLANS)
def test_some_programs(program: Composed, plan: tuple[tuple[int, ...], int]) -> None:
    note(f"run({program!r}, {plan[0]}, {plan[1]})")
    run(program, *plan)


@pytest.mark.slow
@_settings(2000)
@given(programs(), PLANS)
def test_many_programs(program: Composed, plan: tuple[tuple[int, ...], int]) -> None:
    note(f"run({program!r}, {plan[0]}, {plan[1]})")
    run(program, *plan)


@pytest.mark.parametrize("name", ["scan", "loop", "remat", "cond"])
def test_a_region_and_its_gradient(name: str) -> None:
    options = (1, 4) if name == "scan" else ()
    body = (Instruction(name, (0,), options), Instruction("dot", (2, 1), (1, 0)))
    run(Composed(((8, 8), (8, 4)), body, name != "loop"), (2, 2), 1)
