"""JAX's catalogue of operations under random plans: what the devices make is what one would.

A sample of every group here; all of it behind ``slow`` (or ``sweep.py``, which can be interrupted).
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from harnesses import Case, cases, sample
from sweep import chunks, sweep

UNRUNNABLE = Path(__file__).parent / "unrunnable.txt"
"""The cases that JAX itself cannot run on a CPU."""


def _ids(groups: Sequence[Sequence[Case]]) -> list[str]:
    return [f"{group[0].group}-{i}" for i, group in enumerate(groups)]


QUICK = list(chunks(sample()))
ALL = list(chunks(cases()))


@pytest.mark.parametrize("group", QUICK, ids=_ids(QUICK))
def test_some_of_every_group(group: Sequence[Case]) -> None:
    _run(group)


@pytest.mark.slow
@pytest.mark.parametrize("group", ALL, ids=_ids(ALL))
def test_all(group: Sequence[Case]) -> None:
    _run(group)


def _run(group: Sequence[Case]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = list(sweep(group))
    failed = [r for r in records if r["status"] == "failed"]
    assert not failed, "\n".join(f"{r['failures']}\n  again: {r['again']}" for r in failed)
    known = set(UNRUNNABLE.read_text().split())
    unknown = [r["case"] for r in records if r["status"] == "unrunnable"]
    assert set(unknown) <= known, "these ran before"
    assert len(records) == len(group)


def test_the_sample_has_every_group() -> None:
    missing = {case.group for case in cases()} - {case.group for case in sample()}
    assert not missing
