"""Random programs under random plans compute what one device does, by both backends."""

import sys
import warnings
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, note, settings

sys.path.append(str(Path(__file__).parent))

from composed import Composed, Instruction, programs
from sweep_composed import PLANS, attempt


def run(program: Composed, mesh: tuple[int, ...], seed: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert not attempt(program, mesh, seed)


@settings(
    max_examples=5,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
@given(programs(most=16), PLANS)
def test_some_programs(program: Composed, plan: tuple[tuple[int, ...], int]) -> None:
    note(f"run({program!r}, {plan[0]}, {plan[1]})")
    run(program, *plan)


@pytest.mark.parametrize("name", ["scan", "loop", "remat", "cond"])
def test_a_region_and_its_gradient(name: str) -> None:
    options = (1, 4) if name == "scan" else ()
    body = (Instruction(name, (0,), options), Instruction("dot", (2, 1), (1, 0)))
    run(Composed(((8, 8), (8, 4)), body, name != "loop"), (2, 2), 1)


FOUND = {
    "XLA rejected what its partitioner had made of blocks of a partial value": (
        Composed(
            shapes=((4, 8), (4, 4)),
            body=(
                Instruction(op="take", inputs=(1,), options=(78, 8)),
                Instruction(op="halves", inputs=(1,), options=(0,)),
                Instruction(op="scale", inputs=(3,), options=()),
                Instruction(op="pool", inputs=(3,), options=(1,)),
                Instruction(op="shift", inputs=(3,), options=(0,)),
                Instruction(op="mean", inputs=(4,), options=(0,)),
                Instruction(op="cumsum", inputs=(6,), options=(1,)),
                Instruction(op="sum", inputs=(5,), options=(1,)),
                Instruction(op="remat", inputs=(8,), options=()),
            ),
            differentiate=True,
        ),
        (2, 2),
        373,
    ),
    "a look-up in one part of the table": (
        Composed(
            shapes=((4, 4), (8, 4), (8, 8)),
            body=(
                Instruction(op="tanh", inputs=(1,), options=()),
                Instruction(op="add", inputs=(2, 2), options=()),
                Instruction(op="stride", inputs=(2,), options=(0,)),
                Instruction(op="concatenate", inputs=(1, 1), options=(1,)),
                Instruction(op="tile", inputs=(3,), options=(1,)),
                Instruction(op="scan", inputs=(4,), options=(30, 4)),
                Instruction(op="scan", inputs=(5,), options=(34, 8)),
                Instruction(op="fill", inputs=(6,), options=(25, 4)),
                Instruction(op="sin", inputs=(8,), options=()),
                Instruction(op="shift", inputs=(11,), options=(0,)),
                Instruction(op="dot", inputs=(10, 9), options=(0, 0)),
            ),
            differentiate=False,
        ),
        (2, 2, 2),
        944,
    ),
}
"""What the long run found wrong once: a program, a mesh and a seed each."""


@pytest.mark.parametrize("why", FOUND)
def test_what_the_long_run_found(why: str) -> None:
    run(*FOUND[why])
