"""The two streams of a step: what hides behind what."""

import dataclasses

import pytest

from autopar.cost_model import Cluster, Link
from autopar.cost_model.compute import Load
from autopar.cost_model.hardware import Overlap
from autopar.cost_model.overlap import Move, Task, step_time

CHIP = dataclasses.replace(Cluster.preset("tpu-v5e").chip, launch_s=0.0, hbm_efficiency=1.0)
LINKS = (Link("link", 1e9, 0.0, hops=1.0),)
MATMUL = Load(matmul=(1, 4096, 4096, 4096))
UNIT = MATMUL.seconds(CHIP)
"""Seconds of the matmul that all of these steps are made of."""


def kernel(*needs: int) -> Task:
    return Task(MATMUL, needs=needs)


def gather(units: float, *needs: int) -> Task:
    """An all-gather over two devices that takes so many times as long as the matmul."""
    payload = int(units * UNIT * 2 * LINKS[0].bandwidth)
    return Task(moves=(Move("all-gather", 0, 2, payload, coalesced=False),), needs=needs)


def units(*tasks: Task, overlap: Overlap = "async") -> float:
    return step_time(tasks, dataclasses.replace(CHIP, overlap=overlap), LINKS).step_s / UNIT


def test_a_weight_is_gathered_behind_the_layer_before() -> None:
    assert units(gather(0.8), kernel(), kernel(0, 1)) == pytest.approx(2.0)
    assert units(gather(1.5), kernel(), kernel(0, 1)) == pytest.approx(2.5)


def test_what_lies_between_two_kernels_is_exposed() -> None:
    assert units(kernel(), gather(0.8, 0), kernel(1)) == pytest.approx(2.8)


def test_a_gradient_is_reduced_behind_what_is_left() -> None:
    # Its light reader is put off, and makes the next matmul wait for nothing.
    light = Task(Load(moved_bytes=1.0), needs=(1,))
    assert units(kernel(), gather(0.8, 0), light, kernel(0)) == pytest.approx(2.0, rel=1e-3)
    assert units(kernel(), kernel(0), gather(0.8, 1), Task(Load(), needs=(2,))) == pytest.approx(
        2.8
    )


def test_of_two_collectives_the_one_needed_first_goes_first() -> None:
    assert units(gather(1.0), gather(0.5), kernel(1), kernel(0, 2)) == pytest.approx(2.5)


def test_a_loop_is_in_its_steady_state() -> None:
    hidden = Task(body=(gather(0.8), kernel(0)), trips=10)
    assert units(hidden) == pytest.approx(10.8)  # the first gather alone shows
    bound = Task(body=(gather(2.0), kernel(0)), trips=10)
    assert units(bound) == pytest.approx(21.0)
    exposed = Task(body=(kernel(), gather(0.5, 0), kernel(1)), trips=10)
    assert units(exposed) == pytest.approx(25.0)


def test_sums_do_not_depend_on_overlap() -> None:
    found = step_time((Task(body=(gather(0.8), kernel(0)), trips=10),), CHIP, LINKS)
    assert found.compute_s == pytest.approx(10 * UNIT)
    assert found.comm_s == pytest.approx(8 * UNIT)


def test_nothing_hides_where_nothing_overlaps() -> None:
    tasks = (gather(1.5), kernel(), kernel(0, 1), Task(body=(gather(0.8), kernel(0)), trips=10))
    assert units(*tasks, overlap="none") == pytest.approx(1.5 + 2 + 18)


def test_windows_hide_all_but_a_chunk() -> None:
    gathered = (kernel(), gather(0.8, 0), kernel(1))
    assert units(*gathered) == pytest.approx(2.8)
    assert units(*gathered, overlap="windowed") == pytest.approx(2.4)  # one chunk of two shows
    move = dataclasses.replace(gather(0.8).moves[0], kind="reduce-scatter")
    scattered = (kernel(), Task(moves=(move,), needs=(0,)), kernel(1))
    assert units(*scattered) == pytest.approx(2.8)
    assert units(*scattered, overlap="windowed") == pytest.approx(2.4)


def test_casts_of_weights_are_done_ahead() -> None:
    cast = Task(Load(moved_bytes=CHIP.hbm_bandwidth * UNIT / 10), ahead=True)
    assert units(kernel(), cast, gather(0.8, 1), kernel(0, 2)) == pytest.approx(2.1)
