"""The decorated step beside ``jax.jit`` with the same shardings, as one would write them by hand.

Between steps, and in the compiled program, there is nothing of autopar but its constraints. So what
is communicated is what GSPMD makes of the shardings alone, or less.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import pytest
from hlo import collectives

import autopar
from autopar.models import preset

MODELS: dict[str, dict[str, Any]] = {
    "mlp:tiny": {"layers": 3, "hidden": 64, "batch_size": 64},
    "gpt:tiny": {"layers": 2, "d_model": 32, "heads": 4, "seq": 32, "batch_size": 16},
}
CASES = [
    *(("mlp:tiny", search) for search in ("data", "fsdp", "optimal")),
    *(("gpt:tiny", search) for search in ("data", "fsdp", "optimal")),
]


class Both(NamedTuple):
    """One step, compiled as decorated and as by hand, with the same shardings."""

    name: str
    ours: Any
    by_hand: Any


@pytest.fixture(scope="module", autouse=True)
def _compile_quickly() -> Iterator[None]:
    """Of XLA's CPU backend only: passes over HLO, collectives among them, all run."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def both(request: pytest.FixtureRequest) -> Both:
    model, search = request.param
    work = preset(model, **MODELS[model])
    batch = work.abstract_batch()
    state = work.abstract_state(batch)
    decorated = autopar.parallelize(mesh=8, search=search)(work.train_step)
    ins, outs = decorated.shardings(state, batch)
    by_hand = jax.jit(work.train_step, in_shardings=ins, out_shardings=outs, donate_argnums=0)
    return Both(
        "-".join(request.param),
        decorated.compile(state, batch),
        by_hand.lower(state, batch).compile(),
    )


def test_the_same_kinds_of_collectives(both: Both) -> None:
    """GSPMD finds them from the shardings of inputs and results alone."""
    assert set(collectives(both.ours.as_text())) == set(collectives(both.by_hand.as_text()))


def test_no_more_is_communicated(both: Both) -> None:
    """The same for the perceptron. For the GPT with split parameters the plan says one thing more.

    It splits the lookup's gradient where GSPMD by itself moves a few hundred bytes to do so.
    """
    ours, by_hand = collectives(both.ours.as_text()), collectives(both.by_hand.as_text())
    assert all(ours[kind] <= by_hand[kind] for kind in ours)
    if "mlp" in both.name or "data" in both.name:
        assert ours == by_hand


def test_as_much_is_given_up(both: Both) -> None:
    """Donated memory is reused as by hand, and no more is taken besides."""
    ours, by_hand = both.ours.memory_analysis(), both.by_hand.memory_analysis()
    assert ours.alias_size_in_bytes == by_hand.alias_size_in_bytes > 0
    assert ours.temp_size_in_bytes <= 1.1 * by_hand.temp_size_in_bytes
