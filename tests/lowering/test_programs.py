"""Whole training steps, run by both backends, are what one device computes."""

import sys
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parent))

from whole_steps import PROGRAMS

import autopar

STEPS = 3
TOLERANCE = 1e-5
OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _run(call: Any, state: Any, batch: Any) -> Any:
    """The state after some steps, and the metrics of each of them."""
    compiled = call.lower(state, batch).compile(compiler_options=OPTIONS)
    told = []
    for _ in range(STEPS):
        state, metrics = compiled(state, batch)
        told.append(metrics)
    return jax.tree.map(_plain, (state, told))


def _plain(x: Any) -> np.ndarray:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _compare(got: Any, want: Any) -> None:
    """Floats agree to ``TOLERANCE`` of the largest in their array, all else to the bit.

    Moments are held against the largest of their kind: some are sums of gradients that are 0 but
    for rounding (a bias of keys, which softmax cancels), and have no scale of their own.
    """
    pairs = zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True)
    named = [(jax.tree_util.keystr(path), a, b) for (path, a), b in pairs]
    largest: dict[str, float] = defaultdict(float)
    for name, a, _ in named:
        largest[_kind(name)] = max(largest[_kind(name)], _scale(a))
    for name, a, b in named:
        if jnp.issubdtype(a.dtype, jnp.inexact):
            atol = TOLERANCE * largest[_kind(name)]
            np.testing.assert_allclose(b, a, rtol=0, atol=atol, err_msg=name)
        else:
            np.testing.assert_array_equal(b, a, err_msg=name)


def _kind(name: str) -> str:
    """What shares a scale with this leaf: moments of one kind (``.opt_state[0].mu``)."""
    return name.partition("['")[0] if "opt_state" in name else name


def _scale(x: np.ndarray) -> float:
    """The largest absolute value; 0 of what has no rounding."""
    return float(np.abs(x).max(initial=0.0)) if jnp.issubdtype(x.dtype, jnp.inexact) else 0.0


def _check(name: str, mesh: tuple[int, ...], search: str, seed: int = 0) -> None:
    program = PROGRAMS[name]()
    want = _run(jax.jit(program.step), program.state, program.batch)
    cluster = autopar.Cluster.preset("cpu", shape=(8,))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plan = autopar.plan(
            *(program.step, program.state, program.batch),
            cluster=cluster,
            mesh=mesh,
            search=search,
            seed=seed,
            donate=(),
        )
        for backend in ("shard_map", "jit"):
            step = autopar.apply(program.step, plan, backend=backend, donate=())
            _compare(_run(step, program.state, program.batch), want)


FAST = [
    ("recurrence", "optimal"),
    ("loop", "optimal"),
    ("equilibrium", "optimal"),
    ("dropout", "random"),
    ("gpt-scan", "fsdp"),
]


@pytest.mark.parametrize(("name", "search"), FAST)
def test_three_steps(name: str, search: str) -> None:
    _check(name, (8,) if search == "fsdp" else (2, 4), search)


PLANS = [((8,), "optimal"), ((2, 4), "optimal"), ((2, 4), "random"), ((2, 2, 2), "random")]


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize(("mesh", "search"), PLANS)
def test_three_steps_of_every_program(name: str, mesh: tuple[int, ...], search: str) -> None:
    _check(name, mesh, search, seed=1)
