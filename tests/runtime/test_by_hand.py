"""A planned step compiles to what an expert would have written by hand, and to what it says.

XLA:CPU has no reduce-scatter: it emits an all-reduce and keeps a part. Its bytes are compared as
those of an all-reduce, of which the payload is the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from hlo import collectives
from jax.lax import with_sharding_constraint as constrain
from jax.sharding import Mesh, NamedSharding

import autopar
from autopar.core.mesh import MeshSpec
from autopar.models import preset
from autopar.runtime import device_mesh

GPUS = autopar.Cluster.preset("h100", 8)
WIDTH, HIDDEN = 512, 2048
MESH = device_mesh(MeshSpec.of({"data": 8}))

Shardings = Any
Place = Callable[[jax.Array], jax.Array]


def keep(x: jax.Array) -> jax.Array:
    return x


def step_with(hidden: Place, outer: Place, weight: Place) -> Callable[..., Any]:
    """Two layers and plain gradient descent, with an expert's constraints put in."""

    def step(params: Any, batch: Any) -> Any:
        def loss(p: Any) -> jax.Array:
            up, down = weight(p["up"]), weight(p["down"])
            h = hidden(jnp.maximum(batch["x"] @ up, 0))
            return jnp.mean((outer(h @ down) - batch["y"]) ** 2)

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value

    return step


def shapes(batch: int) -> tuple[Any, Any]:
    params = {
        "up": jax.ShapeDtypeStruct((WIDTH, HIDDEN), jnp.float32),
        "down": jax.ShapeDtypeStruct((HIDDEN, WIDTH), jnp.float32),
    }
    x = jax.ShapeDtypeStruct((batch, WIDTH), jnp.float32)
    return params, {"x": x, "y": x}


def placed(*spec: str | None) -> NamedSharding:
    return NamedSharding(MESH, jax.P(*spec))


def at(*spec: str | None) -> Place:
    return lambda x: constrain(x, placed(*spec))


def by_hand(step: Callable[..., Any], params: Shardings, batch: Shardings) -> Any:
    return jax.jit(
        step, in_shardings=(params, batch), out_shardings=(params, placed()), donate_argnums=0
    )


ROWS, WHOLE = placed("data"), placed()
SPLIT_ROWS = {"up": placed("data"), "down": placed("data")}
COLUMN_ROW = {"up": placed(None, "data"), "down": placed("data")}

HANDS: dict[str, tuple[int, Any, Any, dict[str, jax.P]]] = {
    # batch, the expert's jit, its arguments' shapes, and what the same is called for autopar
    "data parallel": (
        4096,
        by_hand(step_with(keep, keep, keep), WHOLE, ROWS),
        "data",
        {},
    ),
    "fully sharded": (
        4096,
        by_hand(step_with(at("data"), at("data"), at()), SPLIT_ROWS, ROWS),
        "optimal",
        {"batch/.": jax.P("data"), "params/.*": jax.P("data")},
    ),
    "tensor parallel, results scattered": (
        4,
        by_hand(step_with(at(None, "data"), at(None, "data"), keep), COLUMN_ROW, WHOLE),
        "optimal",
        {"batch/.": jax.P(), "params/up": jax.P(None, "data"), "params/down": jax.P("data")},
    ),
}


@pytest.mark.parametrize("name", HANDS)
def test_same_collectives_as_by_hand(name: str) -> None:
    batch, hand, search, pins = HANDS[name]
    args = shapes(batch)
    expected = collectives(hand.lower(*args).compile().as_text())
    ours = autopar.parallelize(cluster=GPUS, mesh=8, search=search, pins=pins)(
        step_with(keep, keep, keep)
    )
    found = collectives(ours.compile(*args).as_text())
    assert expected
    assert found == expected


def test_reading_of_combined_collectives() -> None:
    text = (
        "  %ar = (f32[4,8]{1,0}, /*index=1*/bf16[2]{0}) all-reduce(f32[4,8] %a, bf16[2] %b)\n"
        "  %ag = f32[16]{0} all-gather-start(f32[2] %c)\n"
        "  ROOT %done = f32[16]{0} all-gather-done(f32[16] %ag)\n"
    )
    assert collectives(text) == {"all-reduce": 132, "all-gather": 64}


def without_scatter(counts: Counter[str]) -> dict[str, int]:
    """Bytes by kind where reduce-scatters are made of all-reduces."""
    merged = Counter(counts)
    merged["all-reduce"] += merged.pop("reduce-scatter", 0)
    return {kind: size for kind, size in merged.items() if size}


SEARCHES: dict[str, tuple[str, Any]] = {
    "data": ("data", 8),
    "fsdp": ("fsdp", 8),
    "megatron": ("megatron", {"model": 8}),
    "optimal": ("optimal", 8),
}


@pytest.mark.parametrize("model", ["mlp:tiny", "gpt:tiny"])
@pytest.mark.parametrize("search", SEARCHES)
def test_plan_is_what_runs(model: str, search: str) -> None:
    """Every byte the plan says is moved, and no other."""
    work = preset(model, **({"layers": 1} if model.startswith("gpt") else {}))
    batch = work.abstract_batch()
    args = (work.abstract_state(batch), batch)
    name, mesh = SEARCHES[search]
    ours = autopar.parallelize(cluster=GPUS, mesh=mesh, search=name)(work.train_step)
    said: Counter[str] = Counter()
    for use in ours.plan(*args).predicted.collectives:
        said[use.kind] += use.bytes * use.count
    assert collectives(ours.compile(*args).as_text()) == without_scatter(said)


def test_mesh_of_devices_is_row_major() -> None:
    mesh = device_mesh(MeshSpec.of((4, 2)))
    assert isinstance(mesh, Mesh)
    assert [d.id for d in mesh.devices.ravel()] == [d.id for d in jax.devices()]
    assert (mesh.axis_names, mesh.devices.shape) == (("data", "model"), (4, 2))
