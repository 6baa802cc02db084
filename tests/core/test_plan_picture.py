"""The picture of memory: what it says, that it is the same each time, and what errors say."""

import builtins
import dataclasses

import pytest
from plan_samples import gpt_plan

from autopar.core.errors import PlanError
from autopar.core.plan import MemoryCurve

BEFORE = MemoryCurve((0, 5), {"parameters": (2**20, 2**20), "other": (0, 2**31)}, "GPT/loss")


def test_it_shows_the_peak_the_categories_and_the_budget(tmp_path):
    plan = dataclasses.replace(gpt_plan(), unlimited=BEFORE)
    plan.picture(tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert "this plan: peak 10.0 MiB, at GPT/block_0/mlp/up/dot_general" in text
    assert "without a limit: peak 2.00 GiB, at GPT/loss" in text
    assert all(f">{name}<" in text for name in ("parameters", "activations", "other", "budget"))
    plan.picture(tmp_path / "b.svg")
    assert text == (tmp_path / "b.svg").read_text()


def test_a_plan_that_needed_no_limit_has_one_panel(tmp_path):
    gpt_plan().picture(tmp_path / "a.svg")
    assert "without a limit" not in (tmp_path / "a.svg").read_text()
    gpt_plan().picture(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["nowhere/a.svg", "a.xyz"])
def test_what_cannot_be_written(tmp_path, name):
    with pytest.raises(PlanError, match=f"{name}: the picture cannot be written: .*; give a name"):
        gpt_plan().picture(tmp_path / name)


def test_without_matplotlib(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(PlanError, match=r"pip install 'autopar\[pictures\]'"):
        gpt_plan().picture(tmp_path / "a.svg")
