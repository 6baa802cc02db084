"""Some strategies of single equations; ``sweep_strategies.py`` goes through many."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from strategies import CASES, MESHES, attempt, equations, trials

SAMPLE = [
    (name, index, MESHES[(place + index) % len(MESHES)])
    for place, name in enumerate(CASES)
    for index in range(len(equations(name)))
]


@pytest.mark.parametrize(("name", "index", "mesh"), SAMPLE)
def test_some_strategies_of_every_equation(name: str, index: int, mesh: tuple[int, ...]) -> None:
    group = tuple(trials(equations(name)[index], mesh)[:12])
    assert attempt(name, index, mesh, group) == {}
