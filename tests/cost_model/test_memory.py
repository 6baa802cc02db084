"""Liveness of small programs, by hand."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from autopar.cost_model import CATEGORIES, Timeline, liveness
from autopar.cost_model.on_chip import Pace
from autopar.cost_model.timeline import COPIES
from autopar.cost_model.work import aval_bytes
from autopar.passes.trace import trace

KIB = 1024
SHAPE = jax.ShapeDtypeStruct((16, 16), jnp.float32)  # 1 KiB


def timeline(
    fn: Callable[..., object], *args: object, donate: Sequence[int] = (), bf16_dots: bool = False
) -> Timeline:
    step = trace(fn, *args, donate=donate)
    categories = ["parameters"] * len(step.in_paths)
    return liveness(step.jaxpr, categories, step.donated, step.ties, bf16_dots=bf16_dots)


def profile(line: Timeline) -> list[float]:
    """KiB live at every instant."""
    return (line.profile(line.global_bytes()) / KIB).tolist()


def names(line: Timeline) -> list[str]:
    return [eqn.primitive.name for eqn in line.kernels]


def test_chain_of_matmuls() -> None:
    line = timeline(lambda x, w: ((x @ w) @ w) @ w, SHAPE, SHAPE)
    assert names(line) == ["dot_general"] * 3
    # Two inputs all along; each product coexists with the next.
    assert profile(line) == [3, 4, 4]
    assert line.peak(line.global_bytes()) == (1, 4 * KIB)


def test_identity_and_empty() -> None:
    line = timeline(lambda x: x, SHAPE)
    assert (line.instants, profile(line)) == (1, [1])
    assert line.peak(line.global_bytes()) == (0, KIB)


def test_donated_output_is_free() -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return w - 0.1 * (x @ w)

    kept = timeline(step, SHAPE, SHAPE)
    reused = timeline(step, SHAPE, SHAPE, donate=(0,))
    assert (profile(kept), profile(reused)) == ([3], [2])


def test_donated_output_is_not_free_while_the_input_is_needed() -> None:
    def step(w: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        new = w + x @ x
        return new, jnp.sin(new @ x) @ w

    line = timeline(step, SHAPE, SHAPE, donate=(0,))
    assert line.buffers[2].category == "outputs"
    assert max(profile(line)) == 5  # w, x, new, the product, the second output


def test_views_extend_their_root() -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        h = x @ w
        t = h.reshape(8, 32)
        y = (x @ x) @ w
        return y + t.reshape(16, 16)

    line = timeline(fn, SHAPE, SHAPE)
    first = line.buffers[2]
    assert line.kernels[first.start].primitive.name == "dot_general"
    assert first.end == line.instants - 1
    assert {aval_bytes(b.var.aval) for b in line.buffers} == {KIB}


def test_updates_run_as_soon_as_their_gradients() -> None:
    def step(params: dict[str, jax.Array], x: jax.Array) -> dict[str, jax.Array]:
        def loss(params: dict[str, jax.Array]) -> jax.Array:
            h = x
            for name in sorted(params):
                h = jnp.tanh(h @ params[name])
            return (h**2).sum()

        grads = jax.grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)

    params = {f"w{i}": jax.ShapeDtypeStruct((64, 64), jnp.float32) for i in range(6)}
    x = jax.ShapeDtypeStruct((16, 64), jnp.float32)
    line = timeline(step, params, x, donate=(0,))
    gradients = [b for b in line.buffers if b.category == "gradients"]
    assert not gradients or max(b.end - b.start for b in gradients) <= 2


def _adam_step(clip: bool) -> Timeline:
    chain = [optax.clip_by_global_norm(1.0)] if clip else []
    optimizer = optax.chain(*chain, optax.adam(1e-3))
    params = {f"w{i}": jax.ShapeDtypeStruct((64, 64), jnp.float32) for i in range(6)}
    state = jax.eval_shape(optimizer.init, params)

    def step(carry: tuple[dict[str, jax.Array], optax.OptState], x: jax.Array):
        params, state = carry

        def loss(params: dict[str, jax.Array]) -> jax.Array:
            h = x
            for name in sorted(params):
                h = jnp.tanh(h @ params[name])
            return (h**2).sum()

        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return timeline(step, (params, state), jax.ShapeDtypeStruct((16, 64), jnp.float32), donate=(0,))


def _most_gradients(line: Timeline) -> float:
    live = np.zeros(line.instants)
    for buffer in line.buffers:
        if buffer.category == "gradients":
            live[buffer.start : buffer.end + 1] += aval_bytes(buffer.var.aval)
    return live.max() / (64 * 64 * 4)


def test_clipping_by_the_global_norm_holds_all_gradients_back() -> None:
    assert _most_gradients(_adam_step(clip=False)) <= 2.1
    assert _most_gradients(_adam_step(clip=True)) >= 6


def test_activations_wait_for_the_backward_pass() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return (jnp.tanh(x @ w) @ w).sum()

    line = timeline(jax.grad(loss), SHAPE, SHAPE)
    saved = [b for b in line.buffers if b.category == "activations"]
    assert len(saved) == 1
    assert names(line)[saved[0].start] in ("dot_general", "tanh")


def test_scan_stacks_its_residuals() -> None:
    layers = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32)

    def loss(ws: jax.Array, x: jax.Array) -> jax.Array:
        y, _ = lax.scan(lambda c, w: (jnp.tanh(c @ w), None), x, ws)
        return y.sum()

    line = timeline(jax.grad(loss), layers, SHAPE)
    scans = [i for i, name in enumerate(names(line)) if name == "scan"]
    assert len(scans) == 4  # start and end of the forward and of the backward loop
    stacks = [b for b in line.buffers if tuple(b.var.aval.shape) == (5, 16, 16)]
    residuals = [b for b in stacks if b.category == "activations"]
    assert residuals
    for buffer in residuals:
        assert buffer.start == scans[0]
        assert buffer.end == scans[3]
    assert line.peak(line.global_bytes())[0] > scans[2]


def test_a_dying_initial_value_becomes_the_carry() -> None:
    def fn(x: jax.Array) -> jax.Array:
        return lax.fori_loop(0, 3, lambda _, c: c @ c, x @ x)

    line = timeline(fn, SHAPE)
    assert profile(line)[0] == 2  # x and x @ x
    loop = names(line).index("scan")
    assert profile(line)[loop] == pytest.approx(2, abs=0.02)  # x and the carry
    assert max(profile(line)) == pytest.approx(3, abs=0.02)  # and its next value


@pytest.mark.parametrize("kind", ["while", "cond", "remat"])
def test_other_regions(kind: str) -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        if kind == "while":
            return lax.while_loop(lambda c: c.sum() > 0, lambda c: c @ w, x @ w)
        if kind == "cond":
            return lax.cond(x[0, 0] > 0, lambda a: a @ w, lambda a: (a @ w) @ w, x)
        return jax.grad(lambda w: jax.checkpoint(lambda x: jnp.sin(x @ w) @ w)(x).sum())(w)

    line = timeline(fn, SHAPE, SHAPE)
    live = profile(line)
    assert 3 <= max(live) <= 6.1
    assert min(live) >= 2
    assert all(0 <= b.start <= b.end < line.instants for b in line.buffers)


def test_hoisted_casts_are_stacked() -> None:
    def fn(ws: jax.Array, x: jax.Array) -> jax.Array:
        def body(c: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return c @ w.astype(jnp.bfloat16), None

        return lax.scan(body, x, ws)[0]

    line = timeline(
        fn,
        jax.ShapeDtypeStruct((4, 16, 16), jnp.float32),
        jax.ShapeDtypeStruct((16, 16), jnp.bfloat16),
    )
    (cast,) = [b for b in line.buffers if b.scale == 4]
    assert cast.var.aval.dtype == jnp.bfloat16
    assert (cast.start, cast.end) == (0, line.instants - 1)


def test_two_loops_share_a_hoisted_cast() -> None:
    def fn(ws: jax.Array, x: jax.Array) -> jax.Array:
        @jax.checkpoint
        def body(c: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.sin(c @ w.astype(jnp.bfloat16)), None

        return lax.scan(body, x, ws)[0].astype(jnp.float32).sum()

    shapes = jax.ShapeDtypeStruct((4, 16, 16), jnp.float32), SHAPE.update(dtype=jnp.bfloat16)
    line = timeline(jax.grad(fn), *shapes)
    first, *_, last = [i for i, e in enumerate(line.kernels) if e.primitive.name == "scan"]
    (cast,) = [b for b in line.buffers if b.scale == 4]
    assert (cast.start, cast.end) == (first, last)


def test_f32_for_matmuls_may_be_stored_as_bf16() -> None:
    def fn(x: jax.Array, w: jax.Array) -> jax.Array:
        return (x @ w) @ w

    half = timeline(fn, SHAPE, SHAPE, bf16_dots=True)
    assert [b.scale for b in half.buffers] == [1, 1, 0.5, 1]
    assert max(profile(half)) == 3.5
    assert max(profile(timeline(fn, SHAPE, SHAPE))) == 4


def test_profile_agrees_with_buffers_extras_and_vmem() -> None:
    line = _adam_step(clip=True)
    sizes = {var: size // 3 for var, size in line.global_bytes().items()}
    live = line.profile(sizes)
    for instant in range(line.instants):
        there = line.live_at(instant)
        assert live[instant] == sum(count * b.scale * sizes[b.var] for b, count in there)
    more = line.profile(sizes, extra=[(2, 4, 1000.0)])
    assert (more - live).nonzero()[0].tolist() == [2, 3, 4]
    for vmem in (0.0, 700.0, 1e9):
        held = line.stacked(sizes, [(2, 4, 1000.0)], vmem)
        parts = {kind: one.total for kind, one in held.items()}
        assert set(parts) == set(CATEGORIES)
        assert sum(parts.values()) == pytest.approx(
            line.profile(sizes, [(2, 4, 1000.0)], vmem), abs=1e-6
        )
        assert parts[COPIES].nonzero()[0].tolist() == ([] if vmem > 1000 else [2, 3, 4])
    spared = line.profile(sizes, vmem_bytes=1e9)
    assert (spared <= live).all()
    assert (spared < live).any()
    assert spared[-1] == live[-1]


def test_what_is_soon_read_for_the_last_time_stays_on_the_chip() -> None:
    def fn(x, y):
        kept = y @ y
        for _ in range(12):
            x = x @ x
        return x @ x, kept @ kept

    line = timeline(fn, jax.ShapeDtypeStruct((64, 64), jnp.float32), SHAPE)
    sizes = line.global_bytes()
    live, spared = (line.profile(sizes, vmem_bytes=v) for v in (0, 1e9))
    # A product of x is read at once. By the time `kept` is, far more than its bytes have moved.
    assert live[6] - spared[6] == 2 * sizes[line.buffers[-1].var] == 2 * 64 * 64 * 4
    assert (line.profile(sizes, vmem_bytes=64 * 64 * 4) > spared).any()  # one of the two


def test_nothing_waits_long_on_the_chip() -> None:
    def fn(x, y):
        kept = x @ x
        return (kept @ ((y @ y) @ y)) @ y

    line = timeline(fn, SHAPE, SHAPE)
    sizes = line.global_bytes()
    free, quick, slow = (
        line.profile(sizes, vmem_bytes=1e9, pace=pace)
        for pace in (None, *(Pace(np.full(line.instants, s), 1.0) for s in (0.1, 2.0)))
    )
    assert (free == quick).all()
    # `kept` waits for one kernel: all others are read by the next.
    assert (slow - free).max() == sizes[line.buffers[-1].var] == 4 * 16 * 16


def test_every_equation_has_an_instant_and_every_use_is_inside() -> None:
    line = _adam_step(clip=False)
    for var, (first, last) in line.uses.items():
        assert 0 <= first <= last < line.instants, var
    for instant, eqn in enumerate(line.kernels):
        assert line.instant_of[eqn.outvars[0]] <= instant
    for buffer in line.buffers:
        assert line.root(buffer.var) is buffer.var


def test_same_program_same_timeline() -> None:
    def shape(line: Timeline) -> list[tuple[object, ...]]:
        return [(b.start, b.end, b.category, b.scale, str(b.var.aval)) for b in line.buffers]

    assert shape(_adam_step(clip=True)) == shape(_adam_step(clip=True))
