"""JAX's own catalogue of operations, as small steps to plan at random and run both ways.

Compiling is most of the work, so several cases share one program; a program that fails is taken
apart, case by case.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.internal_test_util import test_harnesses  # noqa: TID251

import autopar

MESHES = ((4,), (2, 2), (2, 2, 2))
QUICK = {
    "xla_backend_optimization_level": 1,
    "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
    "xla_cpu_parallel_codegen_split_count": 1,
}
"""Compiler options under which small programs compile soonest. Level 0 miscompiles (NaN)."""


@dataclass(frozen=True)
class Case:
    """One harness: a function of arrays, and arguments drawn from its name."""

    harness: Any

    @property
    def name(self) -> str:
        return self.harness.fullname

    @property
    def group(self) -> str:
        return self.harness.group_name

    @property
    def number(self) -> int:
        """A number that is the case's own in every process."""
        return int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big")

    @property
    def jit_mesh(self) -> tuple[int, ...]:
        """The mesh on which it goes through jit as well."""
        return MESHES[self.number % len(MESHES)]

    def args(self) -> tuple[Any, ...]:
        rng = np.random.RandomState(self.number)
        return tuple(self.harness.dyn_args_maker(rng))

    def __call__(self, *args: Any) -> Any:
        return self.harness.dyn_fun(*args)


@cache
def cases() -> tuple[Case, ...]:
    """All, in the catalogue's order."""
    return tuple(map(Case, test_harnesses.all_harnesses))


@cache
def _by_name() -> dict[str, Case]:
    return {case.name: case for case in cases()}


@cache
def unrunnable() -> frozenset[str]:
    """The names of the cases that JAX itself cannot run on a CPU."""
    return frozenset((Path(__file__).parent / "unrunnable.txt").read_text().split())


XLA_FAULTS = {
    "[hlo verifier]": "XLA's partitioner made a program that XLA then rejects (backend='jit')",
}
"""What XLA itself cannot do, by a piece of its message: loud, and never a wrong number."""


def status(failures: dict[str, str]) -> str:
    """``passed``, ``failed``, or ``xla`` if all of these are XLA's faults."""
    if not failures:
        return "passed"
    faults = all(any(text in why for text in XLA_FAULTS) for why in failures.values())
    return "xla" if faults else "failed"


PER_GROUP = 4
"""Cases of each group in the sample."""


@cache
def sample() -> tuple[Case, ...]:
    """A few cases of every group, those with small arrays that can be cut preferred."""
    groups: dict[str, list[Case]] = {}
    for case in cases():
        if case.harness.filter("cpu"):
            groups.setdefault(case.group, []).append(case)
    return tuple(
        case for group in groups.values() for case in sorted(group, key=_expense)[:PER_GROUP]
    )


def _expense(case: Case) -> tuple[int, int]:
    shapes = [
        tuple(getattr(one, "shape", ())) for one in case.harness.arg_descriptors if one is not None
    ]
    size = max((int(np.prod(shape)) for shape in shapes), default=0)
    whole = all(n % 2 for shape in shapes for n in shape)
    return (whole + (size > 512), case.number)


class Difference(AssertionError):
    """The plan's result is not the program's."""


def together(group: Sequence[Case]) -> Callable[..., Any]:
    """One function of the arguments of all these cases, one tuple each."""

    def step(*args: Any) -> Any:
        return tuple(case(*one) for case, one in zip(group, args, strict=True))

    return step


def compiled(lowered: Any) -> Callable[..., Any]:
    return lowered.compile(compiler_options=QUICK)


def on_one_device(step: Callable[..., Any], *args: Any) -> Any:
    return jax.tree.map(plain, compiled(jax.jit(step).lower(*args))(*args))


@lru_cache(maxsize=1)
def expected(group: tuple[Case, ...]) -> Any:
    """What one device computes. Raises what JAX raises where it cannot run a case."""
    return on_one_device(together(group), *(case.args() for case in group))


def attempt(
    names: tuple[str, ...], mesh: tuple[int, ...], seed: int, backends: Sequence[str]
) -> dict[str, str]:
    """``differences`` of these cases; under "jax", why one device cannot run them."""
    group = tuple(_by_name()[name] for name in names)
    try:
        want = expected(group)
    except Exception as error:
        return {"jax": _short(error)}
    args = [case.args() for case in group]
    return differences(together(group), args, want, mesh, seed, backends)


def differences(
    step: Callable[..., Any],
    args: Sequence[Any],
    want: Any,
    mesh: tuple[int, ...],
    seed: int,
    backends: Sequence[str],
) -> dict[str, str]:
    """Why a random plan of ``step`` does not compute ``want``, by backend. Empty if it does."""
    cluster = autopar.Cluster.preset("cpu", shape=(int(np.prod(mesh)),))
    try:
        plan = autopar.plan(
            step, *args, cluster=cluster, mesh=mesh, search="random", seed=seed, donate=()
        )
    except Exception as error:
        return {"plan": _short(error)}
    failures: dict[str, str] = {}
    for backend in backends:
        try:
            run = autopar.apply(step, plan, backend=backend, donate=())
            compare(jax.tree.map(plain, compiled(run.lower(*args))(*args)), want)
        except Exception as error:
            failures[backend] = _short(error)
    return failures


def _short(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: " + " | ".join(lines)[:600]


def plain(x: Any) -> np.ndarray:
    """A result as numpy; keys as their words."""
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


_EPSILONS = {"float64": 1e-9, "float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}


def compare(got: Any, want: Any) -> None:
    """Equal where numbers are exact; else close, by the dtype. Raises ``Difference``."""
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, a), b in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        try:
            _compare(b, a)
        except AssertionError as error:
            raise Difference(f"{jax.tree_util.keystr(path)}: {error}") from None


def _compare(got: np.ndarray, want: np.ndarray) -> None:
    assert got.shape == want.shape, f"{got.shape} is not {want.shape}"
    assert got.dtype == want.dtype, f"{got.dtype} is not {want.dtype}"
    if not jnp.issubdtype(want.dtype, jnp.inexact):
        np.testing.assert_array_equal(got, want)
        return
    complex_ = jnp.issubdtype(want.dtype, jnp.complexfloating)
    part = jnp.finfo(want.dtype).dtype
    rtol = _EPSILONS.get(str(part), 0.3)
    wide = np.complex128 if complex_ else np.float64
    got, want = np.asarray(got, wide), np.asarray(want, wide)
    finite = np.isfinite(want)
    scale = float(np.abs(want[finite]).max(initial=0.0))
    np.testing.assert_allclose(got[finite], want[finite], rtol=rtol, atol=rtol * max(scale, 0.05))
    # Partial sums of what is infinite need not be infinite with the same sign: they are NaN.
    assert not np.isfinite(got[~finite]).any(), "finite where one device has inf or nan"


def reproducer(group: Sequence[Case], seed: int) -> str:
    """The command that runs these cases again."""
    names = " ".join(case.name for case in group)
    return f"python tests/fuzz/sweep.py /tmp/again.jsonl --seed {seed} --cases {names}"
