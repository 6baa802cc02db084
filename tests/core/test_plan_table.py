"""The printed plan: short, complete, and the same wherever it is printed."""

import dataclasses
import io

import pytest
from plan_samples import BATCH, GRADIENT, MESH, gpt_plan
from rich.console import Console

from autopar.core.layout import B, Split
from autopar.core.plan import CollectiveUse, ValuePlan
from autopar.core.plan_json import from_json, to_json
from autopar.core.plan_table import WIDTH, render, renderable


def squeezed(plan) -> list[str]:
    return [" ".join(line.split()) for line in render(plan).splitlines()]


def with_solver(**changes):
    plan = gpt_plan()
    return dataclasses.replace(plan, solver=dataclasses.replace(plan.solver, **changes))


def with_prediction(**changes):
    plan = gpt_plan()
    return dataclasses.replace(plan, predicted=dataclasses.replace(plan.predicted, **changes))


def test_a_small_gpt_fits_a_page():
    lines = render(gpt_plan()).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines)) <= WIDTH
    assert not any("\x1b" in line or line != line.rstrip() for line in lines)


def test_what_a_newcomer_reads_first():
    assert squeezed(gpt_plan())[:4] == [
        "cluster cpu:8 (8 devices), mesh data=4 x model=2",
        "search optimal: proven optimal among plans that treat repeated layers alike (in 310 ms)",
        "step 1.25 ms predicted: compute 1.00 ms, communication 500 us, exposed 250 us (20 %)",
        "memory 11.4 MiB peak a device: activations 8.00 MiB, parameters 3.00 MiB",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "parameters in state/params/ 69 arrays, 3.34 MiB 507 KiB",
        "block_*/mlp/up/kernel f32[128,512] x4 P('data', 'model') [32,256]",
        "block_*/attn/{k,q,v}/kernel f32[128,128] x12 P('data', 'model') [32,64]",
        "pos_embed f32[128,128] P() [128,128]",
        "state/opt_state/0/{mu,nu}/... x138 as the parameters",
        "{targets,tokens} i32[16,128] x2 P('data') [4,128]",
        "step, opt_state/0/count i32[] x2 P() []",
        "all-gather data 16 <= 64.0 KiB 640 KiB 400 us",
        "GPT/block_*/mlp/up/dot_general (grad)",
    ],
)
def test_inputs_and_collectives_are_folded(line):
    assert line in squeezed(gpt_plan())


def test_roles_come_in_order_of_interest():
    titles = [line for line in squeezed(gpt_plan()) if " in " in line and "array" in line]
    assert [title.split(" in ")[0] for title in titles] == [
        *("parameters", "optimizer state", "batch", "other"),
    ]


def test_optimizer_state_that_lies_otherwise_is_shown():
    plan = gpt_plan()
    moved = [
        dataclasses.replace(v, layout=(Split(0), Split(0)))
        if "/mu/block_1/mlp/up/k" in v.path
        else v
        for v in plan.inputs
    ]
    lines = squeezed(dataclasses.replace(plan, inputs=tuple(moved)))
    assert "state/opt_state/0/{mu,nu}/... x137 as the parameters" in lines
    assert "mu/block_1/mlp/up/kernel f32[128,512] P(('data', 'model')) [16,512]" in lines


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"layers_alike": False}, "optimal: proven optimal (in 310 ms)"),
        (
            {"layers_alike": False, "bound_s": 1.2499e-3},
            "optimal: proven optimal within 0.008 % (in 310 ms)",
        ),
        (
            {"status": "feasible", "bound_s": 1.0e-3},
            "optimal: not proven optimal: the best would be at most 20 % faster (in 310 ms)",
        ),
        (
            {"status": "stopped", "bound_s": 1.0e-3},
            "optimal: stopped by the time limit: the best would be at most 20 % faster (in 310 ms)",
        ),
        (
            {"status": "feasible", "bound_s": 0.0},
            "optimal: not proven optimal (in 310 ms)",
        ),
        (
            {"status": "feasible", "bound_s": float("-inf")},
            "optimal: not proven optimal (in 310 ms)",
        ),
    ],
)
def test_how_good_the_plan_is_known_to_be(changes, text):
    assert squeezed(with_solver(**changes))[1] == f"search {text}"


def test_a_loaded_plan_reads_the_same():
    plan = with_solver(seconds=0.0)
    assert render(from_json(to_json(plan))) == render(plan)


def test_fallbacks_are_named():
    assert "replicated" not in render(gpt_plan())
    text = render(gpt_plan(fallbacks={"fft": 3, "cumsum": 1}))
    assert text.endswith("replicated for want of a sharding rule: cumsum x1, fft x3")


def test_no_communication_and_no_time():
    none = dict.fromkeys(("step_s", "compute_s", "comm_s", "exposed_s"), 0.0)
    text = render(with_prediction(collectives=(), memory={}, **none))
    assert "communication  " not in text
    assert "0 s predicted: compute 0 s, communication 0 s, exposed 0 s (0 %)" in text
    assert "11.4 MiB peak a device\n" in text


def test_memory_on_the_host_is_told():
    assert "on the host 1.00 GiB" in " ".join(squeezed(with_prediction(host_bytes=2**30)))


def test_many_moved_values_are_counted():
    uses = [CollectiveUse("all-reduce", "data", 8, 1, i, name) for i, name in enumerate("abcde")]
    assert "all-reduce data 5 8 B 40 B 10.0 s {a,b,c,d,e}" in squeezed(
        with_prediction(collectives=tuple(uses))
    )
    uses = [
        CollectiveUse("all-reduce", "data", 8, 1, i, "/".join([str(i)] * (i + 1))) for i in range(5)
    ]
    assert "all-reduce data 5 8 B 40 B 10.0 s 4/4/4/4/4, 3/3/3/3, 3 more" in squeezed(
        with_prediction(collectives=tuple(uses))
    )


def test_what_does_not_fit_beside_its_row_stands_below():
    name = GRADIENT.format("9" * 40)
    use = CollectiveUse("reduce-scatter", "model", 8, 1, 1.0, name)
    assert render(with_prediction(collectives=(use,))).endswith(f"\n    {name}")


def test_unknown_dtypes_roles_and_brackets_are_shown_as_they_are():
    values = (
        ValuePlan("x['[red]']", (8,), "key<fry>", BATCH, "odd"),
        ValuePlan("y", (8,), "bfloat16", (B, B), "odd"),
    )
    lines = squeezed(gpt_plan(inputs=values))
    assert "odd 2 arrays, 80 B 32 B" in lines
    assert "x['[red]'] key<fry>[8] P('data') [2]" in lines
    assert "y bf16[8] P() [8]" in lines
    assert MESH.device_count == 8


def test_a_terminal_gets_colour_and_its_own_width():
    file = io.StringIO()
    Console(file=file, force_terminal=True, width=160, color_system="truecolor").print(
        renderable(gpt_plan())
    )
    assert "\x1b[1m" in file.getvalue()
