"""The Plan as users ask it things."""

import jax
import pytest
from plan_samples import gpt_plan

from autopar.core.errors import PlanError
from autopar.core.layout import B, Partial, Split
from autopar.core.plan import Plan, SolverReport, Strategy


def test_spec_of_takes_the_end_of_a_path():
    plan = gpt_plan()
    assert plan.spec_of("params/block_0/mlp/up/kernel") == jax.P("data", "model")
    assert plan.spec_of("state/params/pos_embed") == jax.P()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("mlp/up/kernel", r"names 12 inputs of this plan \(state/params/block_0.*give more of the"),
        ("nothing", "'nothing' names 0 inputs of this plan$"),
    ],
)
def test_spec_of_wants_one_input(path, message):
    with pytest.raises(PlanError, match=message):
        gpt_plan().spec_of(path)


def test_specs_are_nested_by_path_until_the_trees_are_known():
    plan = gpt_plan()
    assert plan.in_specs["batch"]["tokens"] == jax.P("data")
    assert plan.out_specs == {"out": {"1": {"loss": jax.P()}}}
    leaves = [object() for _ in plan.inputs]
    in_tree, out_tree = jax.tree.structure(tuple(leaves)), jax.tree.structure({"loss": 0})
    bound = plan.with_trees(in_tree, out_tree)
    assert bound.in_specs[-1] == jax.P("data")
    assert bound.out_specs == {"loss": jax.P()}
    assert bound == plan


@pytest.mark.parametrize(
    ("objective", "bound", "gap"), [(2.0, 1.5, 0.25), (2.0, 2.0, 0.0), (2.0, 2.1, 0.0)]
)
def test_gap(objective, bound, gap):
    report = SolverReport("toulbar2", "feasible", objective, bound, 0.1, 1, 1, False)
    assert report.gap == gap


def test_search_time_is_no_part_of_equality():
    fast = SolverReport("toulbar2", "optimal", 1.0, 1.0, 0.1, 1, 1, False)
    slow = SolverReport("toulbar2", "optimal", 1.0, 1.0, 9.9, 1, 1, False)
    assert fast == slow


def test_strategy_text():
    strategy = Strategy(((Split(0), B), (B, B)), ((Split(0), Partial()),))
    assert str(strategy) == "S(0),B B,B -> S(0),P"


def test_save_load_and_print(tmp_path):
    plan = gpt_plan()
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(str(tmp_path / "plan.json"))
    assert loaded == plan
    assert str(loaded).splitlines()[0] == str(plan).splitlines()[0]
