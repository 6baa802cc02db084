"""Steps of every framework, and every kind of argument, behave as they did once decorated."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import autopar
from autopar import Cluster, Plan
from autopar.core.errors import TraceError
from autopar.core.layout import local_shape

P = jax.P
IN, HIDDEN, OUT = 16, 32, 8


class Program(NamedTuple):
    """A training step, what makes its state, and a batch."""

    step: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[Any], Any]
    batch: Any


def batch_of(size: int, seed: int = 0) -> dict[str, jax.Array]:
    x, y = jax.random.split(jax.random.key(seed))
    return {"x": jax.random.normal(x, (size, IN)), "y": jax.random.normal(y, (size, OUT))}


def drawn(shape: tuple[int, ...]) -> jax.Array:
    """Something like noise, which takes no time to compile."""
    return 0.2 * jnp.sin(jnp.arange(np.prod(shape), dtype=jnp.float32) ** 2).reshape(shape)


def squared_error(out: jax.Array, batch: Any) -> jax.Array:
    return jnp.mean((out - batch["y"]) ** 2)


def trained(apply: Callable[[Any, Any], Any], init: Any, optimizer: Any, size: int = 32) -> Program:
    """The usual step around ``apply(params, x)``."""

    def step(state: Any, batch: Any) -> Any:
        def loss_of(params: Any) -> jax.Array:
            return squared_error(apply(params, batch["x"]), batch)

        loss, grads = jax.value_and_grad(loss_of)(state["params"])
        updates, opt = optimizer.update(grads, state["opt"], state["params"])
        return {"params": optax.apply_updates(state["params"], updates), "opt": opt}, loss

    def init_state(key: Any) -> Any:
        params = init(key)
        return {"params": params, "opt": optimizer.init(params)}

    return Program(step, init_state, batch_of(size))


# Programs


def linen() -> Program:
    model = nn.Sequential([nn.Dense(HIDDEN), nn.gelu, nn.LayerNorm(), nn.Dense(OUT)])
    return trained(
        model.apply, lambda key: model.init(key, jnp.ones((1, IN))), optax.adamw(1e-2, eps=1e-4)
    )


class Network(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.up, self.down = nnx.Linear(IN, HIDDEN, rngs=rngs), nnx.Linear(HIDDEN, OUT, rngs=rngs)
        self.calls = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x: jax.Array) -> jax.Array:
        self.calls[...] += 1
        return self.down(nnx.relu(self.up(x)))


def flax_nnx() -> Program:
    """The model itself, split into a static graph and its state; it counts its calls."""
    optimizer = optax.sgd(0.1, momentum=0.9)
    graph = nnx.split(nnx.eval_shape(lambda: Network(nnx.Rngs(0))))[0]

    def step(state: Any, batch: Any) -> Any:
        model = nnx.merge(graph, state["model"])
        loss, grads = nnx.value_and_grad(lambda m: squared_error(m(batch["x"]), batch))(model)
        params = nnx.state(model, nnx.Param)
        updates, opt = optimizer.update(grads, state["opt"], params)
        nnx.update(model, optax.apply_updates(params, updates))
        return {"model": nnx.state(model), "opt": opt}, loss

    def init(key: Any) -> Any:
        model = Network(nnx.Rngs(key))
        return {"model": nnx.state(model), "opt": optimizer.init(nnx.state(model, nnx.Param))}

    return Program(step, init, batch_of(32))


def plain_pytrees() -> Program:
    """Tuples and lists, no framework, gradient descent by hand."""

    def step(state: Any, batch: Any) -> Any:
        def loss_of(layers: Any) -> jax.Array:
            x = batch["x"]
            for w, b in layers[:-1]:
                x = jnp.tanh(x @ w + b)
            return squared_error(x @ layers[-1][0] + layers[-1][1], batch)

        layers, count = state
        loss, grads = jax.value_and_grad(loss_of)(layers)
        rate = 0.1 / (1 + count)
        return (jax.tree.map(lambda w, g: w - rate * g, layers, grads), count + 1), loss

    def init(key: Any) -> Any:
        del key
        shapes = ((IN, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, OUT))
        return [(drawn(shape), jnp.zeros(shape[1])) for shape in shapes], jnp.zeros((), jnp.int32)

    return Program(step, init, batch_of(32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Linear:
    """As Equinox has it: the layer is a pytree, its activation a static part of it."""

    weight: jax.Array
    bias: jax.Array
    activation: Any = dataclasses.field(metadata={"static": True})

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.activation(x @ self.weight + self.bias)


def identity(x: Any) -> Any:
    return x


def frozen_dataclasses() -> Program:
    def apply(layers: Any, x: Any) -> Any:
        for layer in layers:
            x = layer(x)
        return x

    def init(key: Any) -> Any:
        del key
        up = Linear(drawn((IN, HIDDEN)), jnp.zeros(HIDDEN), jnp.tanh)
        return up, Linear(drawn((HIDDEN, OUT)), jnp.zeros(OUT), identity)

    return trained(apply, init, optax.sgd(0.1))


def clipped_chain() -> Program:
    """A norm over all gradients, and a schedule that counts."""
    schedule = optax.cosine_decay_schedule(1e-2, 10)
    chain = optax.chain(optax.clip_by_global_norm(0.1), optax.adam(schedule, eps=1e-4))
    model = nn.Dense(OUT)
    return trained(model.apply, lambda key: model.init(key, jnp.ones((1, IN))), chain)


def scan_over_layers() -> Program:
    def apply(params: Any, x: Any) -> Any:
        def layer(x: Any, params: Any) -> Any:
            return x + jnp.tanh(x @ params["up"]) @ params["down"], None

        x, _ = jax.lax.scan(jax.checkpoint(layer), x, params["layers"])
        return x @ params["out"]

    def init(key: Any) -> Any:
        del key
        layers = {"up": drawn((4, IN, HIDDEN)), "down": drawn((4, HIDDEN, IN))}
        return {"layers": layers, "out": drawn((IN, OUT))}

    return trained(apply, init, optax.sgd(0.05))


def noisy() -> Program:
    """A random key in the state: dropout."""

    def step(state: Any, batch: Any) -> Any:
        params, key = state
        key, now = jax.random.split(key)

        def loss_of(w: Any) -> jax.Array:
            keep = jax.random.bernoulli(now, 0.9, batch["x"].shape)
            return squared_error(jnp.where(keep, batch["x"], 0) @ w, batch)

        loss, grads = jax.value_and_grad(loss_of)(params)
        return (params - 0.1 * grads, key), loss

    def init(key: Any) -> Any:
        return drawn((IN, OUT)), key

    return Program(step, init, batch_of(32))


PROGRAMS = (
    *(linen, flax_nnx, plain_pytrees, frozen_dataclasses),
    *(clipped_chain, scan_over_layers, noisy),
)


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


class Made(NamedTuple):
    """A program, decorated, planned, and its state as ``init`` made it.

    As a rule for this process's eight devices.
    """

    program: Program
    step: Any
    plan: Plan
    born: Any


def planned(program: Program, **options: Any) -> Made:
    return bound(program, autopar.parallelize(**options)(program.step))


def bound(program: Program, step: Any) -> Made:
    plan = step.plan(shapes_of(program), program.batch)
    born = step.init(program.init, jax.random.key(0), batch=program.batch)
    return Made(program, step, plan, born)


def shapes_of(program: Program) -> Any:
    return jax.eval_shape(program.init, jax.random.key(0))


@pytest.fixture(scope="module", params=PROGRAMS, ids=lambda make: make.__name__)
def made(request: pytest.FixtureRequest) -> Made:
    return planned(request.param())


def state_of(made: Made) -> Any:
    """The state at first, to be donated."""
    return jax.tree.map(jnp.copy, made.born)


def plain(x: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x)


def assert_same(got: Any, want: Any, rtol: float = 1e-5) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for (path, w), g in zip(jax.tree.leaves_with_path(want), jax.tree.leaves(got), strict=True):
        scale = float(np.abs(plain(w)).max(initial=0))
        np.testing.assert_allclose(
            plain(g), plain(w), rtol, rtol * scale, err_msg=jax.tree_util.keystr(path)
        )


def one_device(program: Program, steps: int = 3, batch: Any = None) -> tuple[Any, list[float]]:
    state, losses = jax.jit(program.init)(jax.random.key(0)), []
    step = jax.jit(program.step)
    for _ in range(steps):
        state, loss = step(state, program.batch if batch is None else batch)
        losses.append(float(loss))
    return state, losses


# What every program does


def test_three_steps_are_those_of_one_device(made: Made) -> None:
    state, losses = state_of(made), []
    for _ in range(3):
        state, loss = made.step(state, made.program.batch)
        losses.append(float(loss))
    want, want_losses = one_device(made.program)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
    assert_same(state, want)
    assert losses[-1] < losses[0]


def test_the_state_is_born_in_parts(made: Made) -> None:
    """Each device gets its part from ``init``, not the whole and then a part."""
    values = [v for v in made.plan.inputs if not v.path.startswith("batch/")]
    for value, leaf in zip(values, jax.tree.leaves(made.born), strict=True):
        part = local_shape(value.shape, value.layout, made.plan.mesh)
        assert len(leaf.addressable_shards) == 8
        assert {shard.data.shape for shard in leaf.addressable_shards} == {part}, value.path


def test_the_state_that_is_born_is_that_of_one_device(made: Made) -> None:
    assert_same(made.born, jax.jit(made.program.init)(jax.random.key(0)), rtol=1e-6)


def test_specs_mirror_arguments_and_results(made: Made) -> None:
    shapes = shapes_of(made.program)
    out = jax.eval_shape(made.program.step, shapes, made.program.batch)
    is_spec = lambda x: isinstance(x, jax.P)  # noqa: E731
    of_args = jax.tree.structure(made.plan.in_specs, is_leaf=is_spec)
    of_results = jax.tree.structure(made.plan.out_specs, is_leaf=is_spec)
    assert of_args == jax.tree.structure((shapes, made.program.batch))
    assert of_results == jax.tree.structure(out)


def test_the_state_leaves_as_it_came(made: Made) -> None:
    """What is fed to the next step lies as it expects: nothing is moved in between."""
    ins, outs = made.plan.in_specs, made.plan.out_specs
    assert ins[0] == outs[0]
    state, _ = made.step(state_of(made), made.program.batch)
    shardings = made.step.shardings(state, made.program.batch)[0][0]
    for leaf, sharding in zip(jax.tree.leaves(state), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)


def test_the_old_state_is_given_up(made: Made) -> None:
    state = state_of(made)
    made.step(state, made.program.batch)
    big = [leaf for leaf in jax.tree.leaves(state) if leaf.ndim > 1]
    assert big
    assert all(leaf.is_deleted() for leaf in big)


def test_asking_again_plans_nothing_anew(made: Made) -> None:
    assert made.step.plan(shapes_of(made.program), made.program.batch) is made.plan
    assert made.step.plan(made.born, made.program.batch) is made.plan


# What one program shows


@pytest.fixture(scope="module")
def small() -> Made:
    return planned(plain_pytrees(), mesh=8, search="fsdp")


def _losses(made: Made, steps: int = 3) -> list[float]:
    state, losses = state_of(made), []
    for _ in range(steps):
        state, loss = made.step(state, made.program.batch)
        losses.append(float(loss))
    return losses


def test_defaults_stay_the_functions_own() -> None:
    @autopar.parallelize
    def step(x: Any, scale: Any = 3.0, name: str = "static") -> Any:
        assert name == "static"
        return x * scale

    x = np.ones((8,), np.float32)
    assert float(step(x)[0]) == 3.0
    assert float(step(x, scale=2.0)[0]) == 2.0
    with pytest.raises(TraceError, match="argument name is a str"):
        step(x, 2.0, "given")


def test_another_batch_size_is_planned_anew_once() -> None:
    program = plain_pytrees()
    told: list[str] = []
    step = autopar.parallelize(mesh=8, progress=told.append)(program.step)
    sizes = (32, 64, 32, 64, 6)
    losses = []
    for size in sizes:
        state = jax.jit(program.init)(jax.random.key(0))
        losses.append(float(step(state, batch_of(size))[1]))
    want = [one_device(program, 1, batch_of(size))[1][0] for size in sizes]
    np.testing.assert_allclose(losses, want, rtol=1e-6)
    assert told.count("searching data=8") == 3
    shapes = shapes_of(program)
    plans = [step.plan(shapes, batch_of(size)) for size in sizes]
    assert plans[0] is plans[2]
    assert plans[1] is plans[3]
    assert len({plan.step for plan in plans}) == 3
    assert told.count("searching data=8") == 3


def test_other_arguments_are_planned_anew() -> None:
    """More of them, another structure: whatever JAX would say of these, they are new to us."""

    @autopar.parallelize(mesh=8, donate=())
    def total(x: Any, *more: Any) -> Any:
        return jax.tree.reduce(jnp.add, (x, more))

    ones = jnp.ones((16,))
    calls = ((ones,), (ones, ones), (ones, {"a": ones, "b": ones}), (ones, {"c": ones}), (ones,))
    assert [float(total(*call)[0]) for call in calls] == [1.0, 2.0, 3.0, 2.0, 1.0]


def test_arrays_that_were_put_elsewhere() -> None:
    """The advice is JAX's own; nothing is planned anew for it."""
    told: list[str] = []
    double = autopar.parallelize(mesh=8, progress=told.append)(lambda x: 2 * x)
    x = np.ones((16,), np.float32)
    double(x)
    planned_once = len(told)
    with pytest.raises(ValueError, match="does not match the sharding on the respective arg"):
        double(jax.device_put(x, jax.devices()[3]))
    assert len(told) == planned_once
    placed = jax.device_put(x, double.shardings(x)[0][0])
    assert double(placed).sharding.is_equivalent_to(double.shardings(x)[1], 1)


def test_specs_of_a_plan_from_a_file(small: Made, tmp_path: Path) -> None:
    """Nested by path, until it meets its step."""
    small.plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded.in_specs["state"]["0"]["0"]["0"] == loaded.spec_of("state/0/0/0")
    applied = autopar.apply(small.program.step, loaded)
    found = applied.plan(shapes_of(small.program), small.program.batch)
    assert found.in_specs == small.plan.in_specs


def test_fully_sharded_is_an_eighth(small: Made) -> None:
    for leaf in jax.tree.leaves(small.born):
        whole = leaf.size if leaf.ndim else 8
        assert all(shard.data.size == whole // 8 for shard in leaf.addressable_shards)


def test_pins_are_kept() -> None:
    program = linen()
    pins = {r"layers_0/kernel": P("model"), r"batch/.*": P("data"), r"count": P()}
    made = planned(program, mesh={"data": 2, "model": 4}, pins=pins)
    assert made.plan.spec_of("state/params/params/layers_0/kernel") == P("model")
    assert made.plan.spec_of("state/opt/0/mu/params/layers_0/kernel") == P("model")
    assert made.plan.spec_of("batch/x") == made.plan.spec_of("batch/y") == P("data")
    kernel = made.born["params"]["params"]["layers_0"]["kernel"]
    assert kernel.sharding.spec == P("model")
    np.testing.assert_allclose(_losses(made), one_device(program)[1], rtol=1e-6)


@pytest.mark.parametrize("search", ["optimal", "data"])
@pytest.mark.parametrize(("count", "size"), [(1, 6), (3, 6), (5, 6), (7, 14)])
def test_any_number_of_devices(count: int, size: int, search: str) -> None:
    program = plain_pytrees()._replace(batch=batch_of(size))
    if search == "data" and size % count:
        return
    devices, cluster = jax.devices()[-count:], Cluster.preset("cpu", count)
    made = planned(program, cluster=cluster, devices=devices, search=search)
    assert made.plan.mesh.sizes == (count,)
    assert all(leaf.devices() == set(devices) for leaf in jax.tree.leaves(made.born))
    np.testing.assert_allclose(_losses(made), one_device(program)[1], rtol=1e-6)
    if search == "data":
        assert made.plan.spec_of("batch/x") == P("data")


def test_a_mesh_of_one() -> None:
    program = plain_pytrees()
    made = planned(program, cluster=Cluster.preset("cpu", 1), mesh=(1,))
    assert made.plan.predicted.comm_s == 0
    assert made.plan.predicted.collectives == ()
    np.testing.assert_allclose(_losses(made), one_device(program)[1], rtol=1e-6)


def test_a_function_that_returns_nothing_of_its_arguments() -> None:
    """No state, nothing tied: nothing is given up either, and nobody warns of that."""

    @autopar.parallelize(mesh=8)
    def evaluate(params: Any, batch: Any) -> Any:
        return {"error": squared_error(batch["x"] @ params["w"], batch)}

    params, batch = {"w": jnp.ones((IN, OUT))}, batch_of(32)
    placed = jax.device_put(params, evaluate.shardings(params, batch)[0][0])
    for _ in range(2):
        found = evaluate(placed, batch)["error"]
        np.testing.assert_allclose(found, squared_error(batch["x"] @ params["w"], batch), rtol=1e-6)
    assert not placed["w"].is_deleted()


def test_numbers_as_arguments() -> None:
    @autopar.parallelize(mesh=8, donate=())
    def scaled(x: Any, rate: float) -> Any:
        return x * rate

    x = np.arange(16, dtype=np.float32)
    for rate in (2.0, 3.0):
        np.testing.assert_array_equal(scaled(x, rate), x * np.float32(rate))


def test_arguments_without_arrays() -> None:
    @autopar.parallelize(mesh=8)
    def step(state: Any, nothing: Any, batch: Any) -> Any:
        assert nothing is None
        return {"w": state["w"] + batch.sum(), "empty": state["empty"]}

    state = {"w": jnp.zeros((16,)), "empty": ()}
    assert float(step(state, None, jnp.ones((8,)))["w"][0]) == 8.0
