"""JAX's catalogue of operations under random plans: what the devices make is what one would.

A sample of every group; ``sweep.py`` goes through all of it.
"""

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from harnesses import MESHES, Case, attempt, cases, sample
from sweep import chunks, settle

CHUNKS = [(group, MESHES[i % len(MESHES)]) for i, group in enumerate(chunks(sample()))]


@pytest.mark.parametrize(
    ("group", "mesh"), CHUNKS, ids=[f"{group[0].group}-{mesh}" for group, mesh in CHUNKS]
)
def test_some_of_every_group(group: Sequence[Case], mesh: tuple[int, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = settle(attempt, group, mesh, seed=0)
    assert len(records) == len(group)
    assert {one["status"] for one in records} <= {"passed", "xla"}, records


def test_the_sample_has_every_group() -> None:
    missing = {case.group for case in cases()} - {case.group for case in sample()}
    assert not missing
    assert len(sample()) >= 400
