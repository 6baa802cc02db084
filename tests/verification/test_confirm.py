"""Plans that the compiler confirms: searched again for less until what it makes of them fits."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import autopar
from autopar.core.errors import InfeasibleError, OptionError
from autopar.core.plan import MemoryCurve
from autopar.cost_model import parse_cluster
from autopar.search.options import Options
from autopar.verification import confirmed

CPU = parse_cluster("cpu:2")
W = jax.ShapeDtypeStruct((64, 64), jnp.float32)


def step(w: jax.Array, x: jax.Array) -> jax.Array:
    return w - 0.1 * jax.grad(lambda w: jnp.mean(jnp.tanh(x @ w) ** 2))(w)


PLAN = autopar.plan(step, W, W, cluster=CPU, mesh=2)


def found(budgets: list[int], least: int = 0):
    """A search that needs all of its budget, and notes what it was asked for."""

    def find(options: Options) -> autopar.Plan:
        budget = options.memory_bytes or 0
        budgets.append(budget)
        if budget < least:
            raise InfeasibleError(f"needs {least}", least)
        predicted = dataclasses.replace(PLAN.predicted, peak_bytes=budget)
        return dataclasses.replace(PLAN, predicted=predicted, options=options.as_text())

    return find


def test_it_asks_for_as_much_less_as_the_compiler_needs_more():
    budgets: list[int] = []
    asked = Options(memory_bytes=1000)
    plan = confirmed(CPU, asked, found(budgets), lambda plan: plan.predicted.peak_bytes * 5 // 4)
    assert budgets == [1000, 792]
    assert plan.compiled_bytes == 990
    assert plan.options == asked.as_text()
    assert "990 B compiled" in str(plan)


@pytest.mark.parametrize(("whole", "peak", "wanted"), [
    (1040, 990, [1000, 1050]),  # as it is written it was predicted not to fit, but does
    (1040, 1010, [1000, 1050, 1000]),
    (1100, 990, [1000]),
])  # fmt: skip
def test_a_step_that_is_nearly_small_enough_is_asked_about(
    whole: int, peak: int, wanted: list[int]
):
    budgets: list[int] = []
    find, curve = found(budgets), MemoryCurve((0,), {"other": (whole,)})
    confirmed(
        CPU,
        Options(memory_bytes=1000),
        lambda options: dataclasses.replace(find(options), unlimited=curve),
        lambda plan: peak if plan.predicted.peak_bytes != 1000 or whole > 1050 else 1000,
    )
    assert budgets == wanted


def test_the_least_of_all_is_tried_before_it_is_given_up():
    budgets: list[int] = []
    peaks = {1000: 1200, 900: 980}
    plan = confirmed(
        *(CPU, Options(memory_bytes=1000), found(budgets, least=900)),
        lambda plan: peaks[plan.predicted.peak_bytes],
    )
    assert budgets == [1000, 825, 900]
    assert plan.compiled_bytes == 980


def test_what_is_never_compiled_to_fit_is_said_to_need_the_least_seen():
    asked = Options(memory_bytes=1000)
    with pytest.raises(InfeasibleError, match=r"the least was 1.17 KiB .needs 900.; give") as one:
        confirmed(CPU, asked, found([], least=900), lambda plan: 1200)
    assert one.value.least_bytes == 1200
    with pytest.raises(InfeasibleError, match="4 plans were tried"):
        confirmed(CPU, asked, found([]), lambda plan: 1200)
    with pytest.raises(InfeasibleError, match=r"^needs 2000$"):
        confirmed(CPU, asked, found([], least=2000), lambda plan: 1200)


@pytest.mark.parametrize("backend", ["jit", "shard_map"])
def test_the_devices_of_this_process_compile_it(backend: str):
    plan = autopar.plan(step, W, W, cluster=CPU, mesh=2, confirm=backend)
    whole = jax.jit(step).lower(W, W).compile().memory_analysis()
    assert W.size * 4 < plan.compiled_bytes < 4 * whole.argument_size_in_bytes
    assert plan == dataclasses.replace(
        PLAN, compiled_bytes=plan.compiled_bytes, options=plan.options
    )


def test_bad_requests():
    with pytest.raises(OptionError, match="backend='pmap' is not offered"):
        autopar.plan(step, W, W, cluster=CPU, confirm="pmap")
