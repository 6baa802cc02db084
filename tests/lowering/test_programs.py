"""Whole training steps, run by both backends, are what one device computes."""

import sys
import warnings
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
OPTIONS = {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}


def _run(call: Any, state: Any, batch: Any) -> Any:
    compiled = call.lower(state, batch).compile(compiler_options=OPTIONS)
    metrics = None
    for _ in range(STEPS):
        state, metrics = compiled(state, batch)
    return jax.tree.map(_plain, (state, metrics))


def _plain(x: Any) -> np.ndarray:
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def _compare(got: Any, want: Any) -> None:
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        name = jax.tree_util.keystr(path)
        if jnp.issubdtype(a.dtype, jnp.inexact):
            scale = float(np.abs(a).max(initial=0.0))
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * max(scale, 1.0), err_msg=name)
        else:
            np.testing.assert_array_equal(b, a, err_msg=name)


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


FAST = [("lstm", "optimal"), ("loop", "optimal"), ("dropout", "random"), ("gpt-scan", "fsdp")]


@pytest.mark.parametrize(("name", "search"), FAST)
def test_three_steps(name: str, search: str) -> None:
    _check(name, (8,) if search == "fsdp" else (2, 4), search)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("mesh", [(8,), (2, 4), (2, 2, 2)])
@pytest.mark.parametrize("search", ["optimal", "random"])
def test_three_steps_of_every_program(name: str, mesh: tuple[int, ...], search: str) -> None:
    _check(name, mesh, search, seed=1)
