"""The decorated step beside ``jax.jit`` with the same shardings, as one would write them by hand.

Between steps and inside the compiled program there is nothing of autopar but its constraints: what
is communicated is what GSPMD makes of the same shardings, or less.
"""

import math
import re
from collections import Counter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import autopar
from autopar.models import preset

MODELS: dict[str, dict[str, Any]] = {
    "mlp:tiny": {"layers": 3, "hidden": 64, "batch_size": 64},
    "gpt:tiny": {"layers": 2, "d_model": 32, "heads": 4, "seq": 32, "batch_size": 16},
}
SIZES = {"f32": 4, "s32": 4, "u32": 4, "f16": 2, "bf16": 2, "pred": 1, "s8": 1, "u8": 1}
COLLECTIVE = re.compile(
    r" = (?P<shapes>\(.*?\)|\S+) "
    r"(?P<kind>all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")


def communicated(compiled: Any) -> Counter[str]:
    """Bytes of the results of all collectives on a device, by kind."""
    moved: Counter[str] = Counter()
    for found in COLLECTIVE.finditer(compiled.as_text()):
        for dtype, extents in ARRAY.findall(found["shapes"]):
            size = SIZES[dtype] * math.prod(int(e) for e in extents.split(",") if e)
            moved[found["kind"]] += size
    return moved


class Both(NamedTuple):
    """One step with the same shardings, decorated and by hand; compiled, and how to begin."""

    ours: Any
    by_hand: Any
    compiled: Any
    compiled_by_hand: Any
    state: Any
    batch: Any


def both(model: str, search: str) -> Both:
    work = preset(model, **MODELS[model])
    batch = jax.tree.map(jnp.asarray, next(work.batches()))
    ours = autopar.parallelize(mesh=8, search=search)(work.train_step)
    state = ours.init(work.init, jax.random.key(0), batch, batch=batch)
    ins, outs = ours.shardings(state, batch)
    by_hand = jax.jit(work.train_step, in_shardings=ins, out_shardings=outs, donate_argnums=0)
    batch = jax.device_put(batch, ins[1])
    compiled, compiled_by_hand = ours.compile(state, batch), by_hand.lower(state, batch).compile()
    return Both(ours, by_hand, compiled, compiled_by_hand, state, batch)


@pytest.fixture(
    scope="module",
    params=[(model, search) for model in MODELS for search in ("data", "fsdp", "optimal")],
    ids="-".join,
)
def case(request: pytest.FixtureRequest) -> tuple[str, str, Both]:
    return (*request.param, both(*request.param))


def test_print(case: tuple[str, str, Both]) -> None:
    model, search, two = case
    print(model, search, dict(communicated(two.compiled)), "BY HAND", dict(communicated(two.compiled_by_hand)))
    print(two.ours.plan(two.state, two.batch))
