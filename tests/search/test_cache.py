"""Plans kept in a folder: the same question is searched once, another question anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import autopar
from autopar.core.errors import OptionError
from autopar.search import cache

WEIGHTS = jax.ShapeDtypeStruct((8, 8), jnp.float32)
BATCH = jax.ShapeDtypeStruct((16, 8), jnp.float32)
CLUSTER = autopar.Cluster.preset("cpu", 4)


def step(weights: jax.Array, batch: jax.Array) -> jax.Array:
    return weights - jax.grad(lambda w: jnp.sum(jnp.tanh(batch @ w)))(weights)


def other(weights: jax.Array, batch: jax.Array) -> jax.Array:
    return weights - jax.grad(lambda w: jnp.sum(jnp.sin(batch @ w)))(weights)


def plan(folder: Path, fn: Any = step, **options: Any) -> tuple[autopar.Plan, bool]:
    """The plan, and whether it was there."""
    said: list[str] = []
    settings = {"cluster": CLUSTER, "mesh": 4, **options}
    found = autopar.plan(fn, WEIGHTS, BATCH, cache=folder, progress=said.append, **settings)
    return found, any(line.startswith("found in") for line in said)


def test_the_second_time_it_is_there(tmp_path: Path) -> None:
    first, found = plan(tmp_path / "plans")
    again, found_again = plan(tmp_path / "plans")
    assert (found, found_again) == (False, True)
    assert again.in_specs == first.in_specs
    again.save(tmp_path / "again.json")
    first.save(tmp_path / "first.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "first.json").read_bytes()
    moved = autopar.apply(step, again, devices=jax.devices()[:4])
    weights, batch = jnp.ones((8, 8)), jnp.ones((16, 8))
    assert jnp.allclose(moved(weights.copy(), batch), step(weights, batch), atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        {"fn": other},
        {"cluster": autopar.Cluster.preset("h100", 4)},
        {"memory": "1GiB"},
        {"mesh": (2, 2)},
        {"search": "data"},
        {"pins": {"weights": jax.P()}},
        {"time_limit": 59.0},
        {"seed": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_question_is_searched(tmp_path: Path, change: dict[str, Any]) -> None:
    plan(tmp_path)
    assert not plan(tmp_path, **change)[1]


def test_changed_source_is_another_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(tmp_path)
    monkeypatch.setattr(cache, "source_hash", lambda: "edited")
    assert not plan(tmp_path)[1]


def test_a_damaged_file_is_replaced(tmp_path: Path) -> None:
    first, _ = plan(tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_text(file.read_text()[:100])
    again, found = plan(tmp_path)
    assert not found
    assert again.in_specs == first.in_specs
    assert plan(tmp_path)[1]


def test_the_environment_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPAR_CACHE", str(tmp_path / "plans"))
    autopar.plan(step, WEIGHTS, BATCH, cluster=CLUSTER, mesh=4)
    assert len(list((tmp_path / "plans").iterdir())) == 1


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OptionError, match="is no folder for plans"):
        plan(file)
