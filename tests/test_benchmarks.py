"""The programs of ``benchmarks/`` load, and published rows are read as the documentation says."""

import json
import math
import runpy
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"
PROGRAMS = sorted(path.name for path in FOLDER.glob("[!_]*.py"))


def load(name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(FOLDER))
    return runpy.run_path(str(FOLDER / name))


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_loads(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert callable(load(name, monkeypatch)["main"])


def test_rows_are_read_or_say_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    published = load("published.py", monkeypatch)
    reasons: Counter[str] = Counter()
    for row in published["timed_rows"](json.loads((FOLDER / "data/published.json").read_text())):
        try:
            case = published["parse"](row)
        except published["Unpriced"] as reason:
            reasons[str(reason).partition(":")[0]] += 1
            continue
        ways = math.prod(case.mesh.values())
        assert ways == case.cluster.device_count
        assert case.batch % (case.replicas * case.shards) == 0
        assert case.config.d_model % case.shards == 0
        assert case.measured_s is not None
        reasons["priced"] += 1
    assert reasons.pop("priced") == 222
    assert reasons.pop("pipeline parallelism") == 35
    assert sum(reasons.values()) == 33


@pytest.mark.parametrize(
    ("predicted", "alike"),
    [
        ((3.0, 2.0, -math.inf), True),
        ((3.0, -math.inf, -math.inf), False),  # one is said not to fit, but ran
        ((3.0, 2.0, 1.0), False),  # one is said to fit, but did not
        ((2.0, 3.0, -math.inf), False),
        ((3.0, 3.0, -math.inf), False),
    ],
)
def test_groups_are_ranked_as_measured_out_of_memory_included(
    predicted: tuple[float, ...], alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = load("published.py", monkeypatch)
    pairs = zip((30.0, 20.0, -math.inf), predicted, strict=True)
    members = [published["Member"](str(i), *pair) for i, pair in enumerate(pairs)]
    assert published["ranked_alike"](members) is alike


@pytest.mark.parametrize(
    ("code", "said", "failed"),
    [
        (1, "XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying", "out of memory"),
        (-9, "", "out of memory"),
        (1, "ValueError: no such model", None),
    ],
)
def test_a_run_without_room_is_a_row_and_another_failure_is_none(
    code: int, said: str, failed: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = load("device.py", monkeypatch)
    done = subprocess.CompletedProcess([], code, stderr=said)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    run = next(device["runs"](True, 1, ""))
    if failed is None:
        with pytest.raises(RuntimeError, match="no such model"):
            device["measure"](run)
    else:
        assert device["measure"](run).failed == failed


@pytest.mark.slow
def test_a_step_is_measured_beside_its_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    device = load("device.py", monkeypatch)
    for run in list(device["runs"](True, 2, "cpu:1"))[1:3]:
        found = device["measure"](run)
        assert not found.failed
        assert min(found.measured_s, found.predicted_s, found.tokens_per_s) > 0
        assert min(found.measured_bytes, found.predicted_bytes) > 0
