"""What a step says of layouts itself, by constraints or a shard_map, binds the plan."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding

import autopar
from autopar.core.errors import ClusterError, LoweringError, PinError, TraceError
from autopar.passes.rules import regions
from autopar.passes.trace import trace

CPU8 = autopar.Cluster.preset("cpu", 8)
P = jax.P
W = jax.random.normal(jax.random.key(0), (16, 32)) / 4
X = jax.random.normal(jax.random.key(1), (8, 16))
HERE = Path(__file__).name

constrain = jax.lax.with_sharding_constraint
Step = Callable[[jax.Array, jax.Array], Any]


@pytest.fixture(scope="module")
def mesh() -> jax.sharding.Mesh:
    return jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)


def planned(step: Step, **options: Any) -> autopar.Plan:
    return autopar.plan(step, W, X, cluster=CPU8, donate=(), **options)


def followed(plan: autopar.Plan, step: Step, primitive: str) -> list[str]:
    """The strategies of all equations of a primitive, in loops and branches too."""
    found: list[str] = []

    def walk(jaxpr: Any, prefix: str) -> None:
        for i, eqn in enumerate(jaxpr.eqns):
            if eqn.primitive.name == primitive:
                found.append(str(plan.strategies[f"{prefix}{i}"]))
            for region in regions(eqn) or ():
                walk(region.body, f"{prefix}{i}/{region.name}/")

    walk(trace(step, W, X, donate=()).jaxpr.jaxpr, "")
    return found


def check_runs(step: Step, plan: autopar.Plan, like: Step | None = None) -> None:
    want = jax.jit(like or step)(W, X)
    for backend in ("jit", "shard_map"):
        got = autopar.apply(step, plan, backend=backend, donate=())(W, X)
        check_alike(want, got)


def check_alike(want: Any, got: Any) -> None:
    """But for rounding: devices add in another order, and what cancels leaves few digits."""
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5 * float(abs(a).max()))


def test_constraints_of_every_kind(mesh: jax.sharding.Mesh) -> None:
    """Each stands in the plan as written, in the backward pass too; the mesh is theirs."""

    def put(x: jax.Array, *spec: Any) -> jax.Array:
        return constrain(x, NamedSharding(mesh, P(*spec)))

    def step(w: jax.Array, x: jax.Array) -> Any:
        def loss(w: jax.Array) -> jax.Array:
            h = put(jnp.tanh(x @ w), ("data", "model"))
            shown = NamedSharding(mesh, P("model"))
            h = jax.jit(jnp.sin, in_shardings=shown, out_shardings=shown)(h)
            h, _ = jax.lax.scan(lambda c, _: (put(c + h, None, "data"), None), h, length=2)
            h = jax.checkpoint(lambda h: put(jnp.cos(h), "model", "data") ** 2)(h)
            rows = jax.vmap(lambda row: put(row, "data"))(h)  # the mapped dimension is left open
            return jnp.mean((rows @ w.T) ** 2)

        return jax.value_and_grad(loss)(w)

    plan = planned(step)
    assert str(plan.mesh) == "data=4 x model=2"
    found = followed(plan, step, "sharding_constraint")
    forward = ["S(0),S(0)", "B,S(0)", "B,S(0)", "S(1),B", "S(1),S(0)"]
    assert [text.split(" -> ")[1] for text in found[:5]] == forward
    assert set(found) >= {f"{layout} -> {layout}" for layout in forward}
    assert len(found) == 13  # each once more in the backward pass, and a remat runs again
    rest = [text for text in found if text.split(" -> ")[1] not in forward]
    assert all(text.split(" -> ")[1].startswith("S(1),") for text in rest)
    check_runs(step, plan)


def test_a_spec_of_the_mesh_in_use(mesh: jax.sharding.Mesh) -> None:
    """Called where the mesh is in use, the step is planned for it and runs there."""

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return constrain(x @ w, P(P.UNCONSTRAINED, "model"))

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((4, 2), ("data", "model"))):
        plan = planned(step)  # no device is at hand
    with jax.set_mesh(mesh):
        (said,) = followed(plan, step, "sharding_constraint")
        got = autopar.apply(step, plan, donate=())(W, X)
    assert said.endswith(",S(1)")
    np.testing.assert_allclose(got, X @ W, rtol=1e-5, atol=1e-5)


def test_reshard() -> None:
    """Between explicit axes; what it leaves in the types of values is no obstacle."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        h = jax.sharding.reshard(x, NamedSharding(mesh, P("model", "data")))
        return jnp.sum(jnp.where(h > 0, h, 0.0)) * w

    plan = planned(step)
    assert followed(plan, step, "reshard")[0] == "S(1),S(0) -> S(1),S(0)"
    check_runs(step, plan, lambda w, x: jnp.sum(jnp.where(x > 0, x, 0.0)) * w)
    call = autopar.parallelize(cluster=CPU8, donate=())(step)
    with jax.set_mesh(mesh):
        call(W, X)


def test_replication_may_be_asked_for_on_any_mesh(mesh: jax.sharding.Mesh) -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return constrain(x @ w, NamedSharding(mesh, P())) * 2

    for shape in (8, (2, 2, 2)):
        (said,) = followed(planned(step, mesh=shape), step, "sharding_constraint")
        assert set(said.split(" -> ")[1].split(",")) == {"B"}


def test_one_device_says_nothing() -> None:
    """A step written on one device is as free as one that says nothing."""
    one = jax.make_mesh((1,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:1])
    alone = jax.sharding.SingleDeviceSharding(one.devices[0])
    for sharding in (NamedSharding(one, P("rows")), alone):
        step = jax.jit(jnp.matmul, out_shardings=sharding)
        assert str(autopar.plan(step, X, W, cluster=CPU8, donate=()).mesh) == "data=8"


def test_baselines_obey_too(mesh: jax.sharding.Mesh) -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return constrain(x @ w, NamedSharding(mesh, P("model")))

    for search in ("replicated", "data"):
        plan = planned(step, search=search)
        assert followed(plan, step, "sharding_constraint") == ["B,S(0) -> B,S(0)"]
        program = autopar.apply(step, plan, donate=()).lower(W, X).as_text()
        _, after = program.split("dot_general", 1)
        laid = [lay for lay, _ in itertools.groupby(re.findall(r"constraint .*(\[.*\])", after))]
        assert laid.count('[{"model"}, {}]') == 1


def test_shard_map_is_laid_as_it_says(mesh: jax.sharding.Mesh) -> None:
    """Its specs are the plan's; its body runs as it stands, alone or in that of the backend."""

    def ring(h: jax.Array) -> jax.Array:
        to = [(i, (i + 1) % 4) for i in range(4)]
        turn = lambda c, _: (jax.lax.ppermute(jax.nn.gelu(c), "data", to), None)  # noqa: E731
        turned, _ = jax.lax.scan(turn, h, length=3)
        return turned + jax.lax.psum(h, "model") * np.arange(16, dtype=np.float32)

    halved = P("data", "model")
    mapped = jax.shard_map(ring, mesh=mesh, in_specs=halved, out_specs=halved)
    summed = jax.shard_map(
        lambda h: jax.lax.psum(jnp.sin(h), "model"),
        mesh=mesh,
        in_specs=P("data", "model"),
        out_specs=P("data"),
        check_vma=False,
    )

    def step(w: jax.Array, x: jax.Array) -> Any:
        return jax.value_and_grad(lambda w: jnp.mean(summed(mapped(x @ w)) ** 2))(w)

    plan = planned(step)
    first, second, *_ = followed(plan, step, "shard_map")
    assert "S(0),S(1)" in first.split(" -> ")[0]
    assert (first[-9:], second[-6:]) == ("S(0),S(1)", "S(0),B")
    assert plan.fallbacks == {}
    check_runs(step, plan)


def test_shard_map_over_some_axes(mesh: jax.sharding.Mesh) -> None:
    """The others are the partitioner's, and the exact backend has none."""

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        body: Callable[[jax.Array], jax.Array] = lambda h: jax.lax.psum(h, "model")  # noqa: E731
        return jax.shard_map(
            body, mesh=mesh, in_specs=P(None, "model"), out_specs=P(), axis_names={"model"}
        )(x @ w)

    plan = planned(step)
    check_alike(step(W, X), autopar.apply(step, plan, donate=())(W, X))
    with pytest.raises(
        LoweringError, match=rf"{HERE}:\d+: the shard_map leaves data to a partitioner.*'jit'"
    ):
        autopar.apply(step, plan, backend="shard_map", donate=()).lower(W, X)


def test_mesh_without_the_axes(mesh: jax.sharding.Mesh) -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return constrain(x @ w, NamedSharding(mesh, P("model")))

    place = rf"{HERE}:{step.__code__.co_firstlineno + 1}: the sharding constraint "
    with pytest.raises(PinError, match=place + r"P\('model', None\) is for the mesh") as e:
        planned(step, mesh={"data": 2, "model": 4})
    assert "but the plan's mesh data=2 x model=4 has no axis model=2; plan with" in str(e.value)
    assert str(e.value).endswith("mesh={'data': 4, 'model': 2}, or remove it")


def test_shard_map_of_another_mesh(mesh: jax.sharding.Mesh) -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.shard_map(jnp.sin, mesh=mesh, in_specs=P("data"), out_specs=P("data"))(x @ w)

    with pytest.raises(PinError, match=rf"{HERE}:\d+: the shard_map in_specs .* no axis data=4"):
        planned(step, mesh=8)


def test_meshes_of_two_minds(mesh: jax.sharding.Mesh) -> None:
    other = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        h = constrain(x @ w, NamedSharding(mesh, P("model")))
        return constrain(h, NamedSharding(other, P("model")))

    with pytest.raises(
        PinError, match=r"data=4 x model=2, but .* for data=2 x model=4; write both"
    ):
        planned(step)


def test_mesh_of_too_few_devices() -> None:
    small = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,), devices=jax.devices()[:2])

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return constrain(x @ w, NamedSharding(small, P("rows")))

    with pytest.raises(
        ClusterError, match="mesh rows=2, for which the step's own shardings are wr"
    ):
        planned(step)


@pytest.mark.parametrize("pin", [P("data"), P(None, "data"), P()])
def test_pin_that_a_constraint_contradicts(mesh: jax.sharding.Mesh, pin: jax.P) -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ constrain(w, NamedSharding(mesh, P(None, "model")))

    with pytest.raises(
        PinError,
        match=rf"{HERE}:\d+: the sharding constraint P\(None, 'model'\) contradicts the pin 'w'",
    ) as error:
        planned(step, pins={"w": pin})
    assert f"= {pin} on 'w', the very value it lays otherwise; remove one of" in str(error.value)


def test_pin_finer_than_a_constraint(mesh: jax.sharding.Mesh) -> None:
    """Fully sharded by hand: it rests in parts, and is gathered along an axis for use."""

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return x @ constrain(w, NamedSharding(mesh, P(None, "model")))

    plan = planned(step, pins={"w": P("data", "model")})
    assert followed(plan, step, "sharding_constraint") == ["B,S(1) -> B,S(1)"]
    assert {use.kind for use in plan.predicted.collectives if use.value == "w"} == {"all-gather"}


def test_spec_that_does_not_divide(mesh: jax.sharding.Mesh) -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return constrain((x @ w)[:6], NamedSharding(mesh, P("data")))

    with pytest.raises(
        PinError, match=rf"{HERE}:\d+: .*does not divide a value of shape \(6, 32\)"
    ):
        planned(step)


def test_axes_of_one_dimension_out_of_order(mesh: jax.sharding.Mesh) -> None:
    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return constrain(x @ w, NamedSharding(mesh, P(("model", "data"))))

    with pytest.raises(PinError, match=rf"{HERE}:\d+: .*lists its axes in another order than"):
        planned(step)


MISFITS = [(P("rows"), "rows"), (P(None, ("data", "model")), "divis")]


@pytest.mark.parametrize(("spec", "why"), MISFITS)
def test_shard_map_that_does_not_fit_its_mesh(mesh: jax.sharding.Mesh, spec: Any, why: str) -> None:
    """JAX says so itself; the line is the user's."""

    def step(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.shard_map(jnp.sin, mesh=mesh, in_specs=spec, out_specs=spec)(x[:, :12]) @ w[:12]

    with pytest.raises(TraceError, match=rf"(?s){HERE}:\d+, in .*step.*{why}"):
        planned(step)
