"""Refined programs compute what they did, and are split as if nothing had been fused."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fused
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, check_jaxpr, jaxpr_as_fun

import autopar
from autopar.core.errors import InfeasibleError
from autopar.models import preset
from autopar.passes.refine import refine
from autopar.passes.rules import regions
from autopar.passes.simplify import simplify
from autopar.passes.sources import source_name
from autopar.passes.trace import trace

D = 16
UNOPTIMISED: Any = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
BETWEEN = ("dot_general", "add_any", "reduce_sum", "concatenate", "split", "slice", "pad")
"""What stands between parameters and results of a layer, but for the optimiser's arithmetic."""


def programs(step: Any, *args: Any) -> tuple[ClosedJaxpr, ClosedJaxpr]:
    """As it is written, and refined."""
    plain = simplify(jax.make_jaxpr(step)(*args))
    return plain, refine(plain)


def equations(jaxpr: Jaxpr) -> Iterator[JaxprEqn]:
    for eqn in jaxpr.eqns:
        yield eqn
        for region in regions(eqn) or ():
            yield from equations(region.body)


def extents(closed: ClosedJaxpr, *names: str) -> set[int]:
    """Of all dimensions that equations of these primitives read or write."""
    return {
        extent
        for eqn in equations(closed.jaxpr)
        if eqn.primitive.name in names
        for atom in (*eqn.invars, *eqn.outvars)
        for extent in atom.aval.shape
    }


def check_same(plain: ClosedJaxpr, refined: ClosedJaxpr, *args: Any) -> None:
    """That both compute the same. Unoptimised, for the sake of the time it takes to compile."""
    leaves = jax.tree.leaves(args)
    wanted, found = (
        jax.jit(jaxpr_as_fun(one)).lower(*leaves).compile(compiler_options=UNOPTIMISED)(*leaves)
        for one in (plain, refined)
    )
    for want, got in zip(wanted, found, strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        scale = float(np.abs(want).max())
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * max(scale, 1e-3))


@pytest.mark.parametrize("project", fused.FUSED, ids=lambda f: f.__name__)
def test_fused_projection(project: Any) -> None:
    """Forward and backward, every product is on the two dimensions, and so is all between."""
    block = fused.attention(project)
    gradient = jax.grad(lambda p, x: jnp.mean(block(p, x) ** 2), (0, 1))
    args = fused.attention_params(D), fused.batch_of(2, 4, D)["x"]
    plain, refined = programs(gradient, *args)
    check_jaxpr(refined.jaxpr)
    assert 3 * D in extents(plain, *BETWEEN)
    assert 3 * D not in extents(refined, *BETWEEN)
    check_same(plain, refined, *args)


GATES = {"gates": fused.dense(1, 2 * D, 4 * D)}
SWIGLU = {"gate_up": fused.dense(1, D, 6 * D), "down": fused.dense(2, 3 * D, D)}


@pytest.mark.parametrize(
    ("step", "layer", "width"),
    [
        pytest.param(fused.training_step(fused.lstm), GATES, 4 * D, id="lstm"),
        pytest.param(fused.training_step(fused.swiglu), SWIGLU, 6 * D, id="swiglu"),
        pytest.param(
            fused.scanned_step(fused.attention(fused.by_split)),
            fused.stacked(fused.attention_params(D), fused.attention_params(D)),
            3 * D,
            id="scanned-remat",
        ),
    ],
)
def test_other_fusions(step: Any, layer: Any, width: int) -> None:
    """Loops and rematerialised bodies are refined with what is around them."""
    args = fused.state_of(layer), fused.batch_of(2, 4, D)
    plain, refined = programs(step, *args)
    check_jaxpr(refined.jaxpr)
    assert width in extents(plain, "dot_general")
    assert width not in extents(refined, *BETWEEN)
    check_same(plain, refined, *args)


def test_flax_dense() -> None:
    class Fused(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            q, k, v = jnp.split(nn.Dense(3 * D)(x), 3, axis=-1)
            return nn.Dense(D)(jax.nn.sigmoid(q) * k * v)

    model, x = Fused(), fused.batch_of(2, 4, D)["x"]
    params = model.init(jax.random.key(0), x)
    plain, refined = programs(jax.grad(lambda p, x: jnp.mean(model.apply(p, x) ** 2)), params, x)
    assert 3 * D not in extents(refined, *BETWEEN)
    check_same(plain, refined, params, x)


W, X = jnp.ones((D, 3 * D)), jnp.ones((4, D))


def _unequal(w: jax.Array, x: jax.Array) -> Any:
    q, k, v = jnp.split(x @ w, [2 * D, 5 * D // 2], axis=-1)
    return q.sum() + (k * v).sum()


def _half(w: jax.Array, x: jax.Array) -> Any:
    """Only one block is ever read apart."""
    h = x @ w
    return h[:, :D].sum() + h.sum()


def _strided(w: jax.Array, x: jax.Array) -> Any:
    h = x @ w
    return (h[:, ::3] * h[:, 1::3] * h[:, 2::3]).sum()


def _shifted(w: jax.Array, x: jax.Array) -> Any:
    h = x @ w
    return (h[:, 1:] * h[:, :-1]).sum()


def _heads(w: jax.Array, x: jax.Array) -> Any:
    """Interleaved by head, as Megatron keeps it: contiguous splits are what is wanted."""
    q, k, v = jnp.split((x @ w).reshape(4, 4, 3 * D // 4), 3, axis=-1)
    return (q * k * v).sum()


def _rotary(w: jax.Array, x: jax.Array) -> Any:
    a, b = jnp.split((x @ w).reshape(4, 6, D // 2), 2, axis=-1)
    return jnp.concatenate([-b, a], axis=-1).sum()


@pytest.mark.parametrize("program", [_unequal, _half, _strided, _shifted, _heads, _rotary])
def test_left_alone(program: Any) -> None:
    plain, refined = programs(jax.grad(program, (0, 1)), W, X)
    assert refined is plain


@pytest.mark.parametrize("name", ["gpt:tiny", "vit:tiny", "mlp:tiny"])
def test_ordinary_models_have_one_program(name: str) -> None:
    work = preset(name) if name == "mlp:tiny" else preset(name, layers=1)
    batch = work.abstract_batch()
    step = trace(work.train_step, work.abstract_state(batch), batch)
    assert step.programs == (step,)


OPERATIONS: dict[str, Any] = {
    "scale": lambda p, h: h * p["b"],
    "tanh": lambda p, h: jnp.tanh(h),
    "turn": lambda p, h: jnp.concatenate(jnp.split(h, 3, -1)[::-1], -1),
    "nest": lambda p, h: jnp.concatenate([h[:, :8], *jnp.split(h[:, 8:] * 2, 2, -1)], -1),
    "fold": lambda p, h: h.reshape(4, 3, 8).at[:, 1].multiply(2.0).reshape(h.shape),
    "stack": lambda p, h: jnp.stack([h[:, :8], h[:, 8:16], h[:, 16:]], 1).reshape(h.shape),
    "mix": lambda p, h: jnp.tanh(h @ p["v"]) @ p["w"],
    "gram": lambda p, h: h + h @ (p["w"].T @ p["w"]) / 24,
    "merge": lambda p, h: h + h.reshape(-1)[::-1].reshape(h.shape),
    "running": lambda p, h: jnp.cumsum(h, -1) / 8,
    "mean": lambda p, h: h - h.mean(-1, keepdims=True) + h.mean(0),
    "pad": lambda p, h: h + jnp.pad(h[:, 8:16], ((0, 0), (16, 0))),
    "loop": lambda p, h: jax.lax.scan(lambda h, s: (h + s * p["b"], h), h, jnp.arange(1.0, 3.0))[
        1
    ].sum(0),
    "branch": lambda p, h: jax.lax.cond(p["v"].sum() > 0, lambda h: h * p["b"], jnp.sin, h),
    "while": lambda p, h: jax.lax.while_loop(
        lambda c: c[0] < 2, lambda c: (c[0] + 1, jnp.cos(c[1]) * p["b"]), (0, h)
    )[1],
    "remat": jax.checkpoint(lambda p, h: jnp.sin(h * p["b"]) @ p["v"] @ p["w"]),
}
"""What may be done to a value of [4, 24] with a fused dimension."""


def check_random_program(names: list[str], differentiate: bool) -> None:
    differentiate &= "while" not in names
    params = {"w": fused.dense(1, 8, 24)["w"], "v": fused.dense(2, 24, 8)["w"]}
    params["b"] = fused.dense(3, 1, 24)["b"]

    def program(p: Any, x: jax.Array) -> Any:
        h = OPERATIONS["turn"](p, x @ p["w"])
        for name in names:
            h = OPERATIONS[name](p, h)
        return (jnp.arange(96.0).reshape(h.shape) * jnp.sin(h)).mean(), h

    x = fused.dense(4, 4, 8)["w"]
    step = jax.grad(program, has_aux=True) if differentiate else program
    plain, refined = programs(step, params, x)
    assert refined is not plain
    check_jaxpr(refined.jaxpr)
    check_same(plain, refined, params, x)


random_programs = given(
    st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=6), st.booleans()
)
test_random_programs = settings(max_examples=4, deadline=None, derandomize=True)(
    random_programs(check_random_program)
)
test_more_random_programs = pytest.mark.slow(
    settings(max_examples=100, deadline=None)(random_programs(check_random_program))
)


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATIONS)
def test_each_operation(name: str) -> None:
    check_random_program([name, "mix", name], True)


WIDE = 256


class Planned:
    """The optimal plan for two blocks of attention on eight emulated devices, and its program."""

    def __init__(self, project: Any, mesh: tuple[int, ...], seq: int) -> None:
        self.step = fused.training_step(fused.attention(project))
        params = fused.attention_params(WIDE, project is not fused.unfused)
        self.args = fused.state_of(*[params] * 2), fused.batch_of(len(mesh), seq, WIDE)
        cluster = autopar.Cluster.preset("cpu", 8)
        self.plan = autopar.plan(self.step, *self.args, cluster=cluster, mesh=mesh, memory="100GiB")
        programs = trace(self.step, *self.args).programs
        self.program = next(p for p in programs if p.fingerprint == self.plan.step)
        self.axis = self.plan.mesh.names[-1]

    def products(self, right: tuple[int, ...]) -> set[str]:
        """How the last axis splits the products of activations and a weight of this shape."""
        found: set[str] = set()
        for position, eqn in enumerate(self.program.jaxpr.jaxpr.eqns):
            if eqn.primitive.name == "dot_general" and eqn.invars[1].aval.shape == right:
                (contracting, _), _ = eqn.params["dimension_numbers"]
                if len(contracting) == 1 and source_name(eqn) == "dot_general":
                    chosen = self.plan.strategies[str(position)]
                    sides = (*chosen.operands, *chosen.results)
                    found.add(" ".join(str(layout[-1]) for layout in sides))
        return found

    def moved(self) -> Counter[tuple[str, int]]:
        """Kind and bytes of each collective along the last axis, but for those of vectors."""
        found: Counter[tuple[str, int]] = Counter()
        for use in self.plan.predicted.collectives:
            if use.axis == self.axis and use.bytes > 16 * WIDE:
                found[use.kind, use.bytes] += use.count
        return found

    def run(self, backend: str) -> tuple[Any, str]:
        """The results of one step, and the compiled program."""
        step = autopar.apply(self.step, self.plan, backend=backend)
        compiled = step.lower(*self.args).compile(compiler_options=UNOPTIMISED)
        return compiled(jax.tree.map(jnp.copy, self.args[0]), self.args[1]), compiled.as_text()


def gathered(text: str) -> list[tuple[int, ...]]:
    """Shapes of the results of all-gathers."""
    found = re.findall(r"f32\[([\d,]+)\]\S* all-gather(?:-start)?\(", text)
    return [tuple(map(int, shape.split(","))) for shape in found]


def check_megatron(planned: Planned, seq: int) -> None:
    """Heads are split; the kernel, at rest by rows, moves to its blocks and its gradient back."""
    mesh, activation = planned.plan.mesh.sizes, 4 * seq * WIDE
    assert planned.plan.solver.status == "optimal"
    assert planned.products((WIDE, 3, WIDE)) == {"B S(2) S(3)"}
    assert planned.products((WIDE, WIDE)) == {"S(2) S(0) P"}
    assert planned.moved() == {
        ("all-gather", activation): 3,
        ("reduce-scatter", activation): 3,
        ("all-to-all", 4 * WIDE * 3 * WIDE // math.prod(mesh)): 4,
    }


def check_runs(planned: Planned, seq: int) -> None:
    """As on one device, and no device ever gathers the fused activation."""
    lowered = jax.jit(planned.step).lower(*planned.args)
    want = lowered.compile(compiler_options=UNOPTIMISED)(*planned.args)
    for backend in ("jit", "shard_map"):
        got, text = planned.run(backend)
        for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
            np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * float(np.abs(a).max()))
        shapes = gathered(text)
        assert shapes
        assert not [s for s in shapes if s[0] == 1 and math.prod(s) == seq * 3 * WIDE]


def test_fused_attention_is_megatron() -> None:
    planned = Planned(fused.by_split, (8,), 128)
    check_megatron(planned, 128)
    check_runs(planned, 128)


@pytest.mark.slow
@pytest.mark.parametrize(("mesh", "seq"), [((8,), 128), ((2, 4), 128), ((2, 4), 256)])
def test_fused_attention_is_as_unfused(mesh: tuple[int, ...], seq: int) -> None:
    """What the last axis moves is the same, but for the kernel on its way to its blocks.

    Of the longest sequence, the last block's attention goes from heads to rows: an all-to-all,
    which is less than what Megatron reduces.
    """
    ours, theirs = (Planned(project, mesh, seq) for project in (fused.by_split, fused.unfused))
    if seq == 128:
        check_megatron(ours, seq)
    check_runs(ours, seq)
    assert theirs.products((WIDE, WIDE)) == {"B S(1) S(2)", *ours.products((WIDE, WIDE))}
    extra = ours.moved() - theirs.moved()
    assert theirs.moved() == ours.moved() - extra
    assert {kind for kind, _ in extra} == {"all-to-all"}


def test_the_faster_program_is_planned() -> None:
    """Where kernels outweigh activations it is those that move, on the program as it is written."""
    planned = Planned(fused.by_split, (8,), 16)
    assert planned.program.fingerprint == trace(planned.step, *planned.args).fingerprint
    assert max(moved for _, moved in planned.moved()) < 4 * WIDE * 3 * WIDE // 8


def test_infeasible_in_every_program() -> None:
    step, state = fused.training_step(fused.swiglu), fused.state_of(SWIGLU)
    cluster = autopar.Cluster.preset("cpu", 8)
    with pytest.raises(InfeasibleError) as failure:
        autopar.plan(step, state, fused.batch_of(2, 4, D), cluster=cluster, mesh=8, memory=512)
    assert failure.value.least_bytes
