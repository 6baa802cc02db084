"""Baselines fix how inputs rest as people do by hand."""

from __future__ import annotations

import pytest

from autopar.core.layout import show
from autopar.core.mesh import MeshSpec
from autopar.models import preset
from autopar.passes.trace import trace
from autopar.search.baselines import baseline
from autopar.search.graph import build_graph

HEADS = {"attn/q": "B,S(1)", "attn/k": "B,S(1)", "attn/v": "B,S(1)", "attn/out": "B,S(0)"}
GATED = {"mlp/gate": "B,S(1)", "mlp/up": "B,S(1)", "mlp/down": "B,S(0)"}
CROSS = {name.replace("attn", "cross"): layout for name, layout in HEADS.items()}


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("llama:tiny", {**HEADS, **GATED, "lm_head": "B,S(1)", "embed/embedding": "B,S(0)"}),
        (
            "t5:tiny",
            {
                "lm_head": "B,S(1)",
                **HEADS,
                **GATED,
                **CROSS,
                "embedding": "B,S(0)",
                "distances": "B,B",
            },
        ),
    ],
)
def test_redco_splits_by_its_two_rules(model: str, expected: dict[str, str]) -> None:
    """Heads by columns and back by rows; other layers by turns; moments as their matrices."""
    work = preset(model, layers=1)
    step = trace(work.train_step, work.abstract_state(), work.abstract_batch(8))
    resting = baseline("redco", step, build_graph(step), MeshSpec.of((2, 4))).resting
    for position, path in enumerate(step.in_paths):
        (layout,) = resting[position]
        shape = step.in_avals[position].shape
        found = [want for name, want in expected.items() if name in path and len(shape) == 2]
        if path.startswith("batch"):
            assert show(layout) == "S(0),B"
        elif len(shape) < 2:
            assert show(layout) == "B,B"
        else:
            assert [show(layout)] == found, path
