"""Calibration: curves are fitted as they were made, and its file reads back."""

from pathlib import Path

import jax
import pytest

from autopar.core.errors import ClusterError
from autopar.cost_model import Cluster, measure
from autopar.cost_model.calibration import calibrate, fit, product_curve
from autopar.cost_model.cluster_file import read_cluster, write_cluster
from autopar.cost_model.measure import Sample


def test_a_curve_is_found_again() -> None:
    terms = [(1.0, flops, flops / k) for flops, k in ((1e6, 64), (1e7, 64), (1e8, 256), (1e9, 512))]
    made = (2e-6, 1e-10, 3e-9)
    samples = [Sample("", t, sum(a * b for a, b in zip(made, t, strict=True))) for t in terms]
    curve = fit("matmul", samples)
    assert curve.coefficients == pytest.approx(made)
    assert curve.error < 1e-9


def test_no_coefficient_is_negative() -> None:
    samples = [Sample("", (1.0, x), seconds) for x, seconds in ((1.0, 0.5), (2.0, 2.0), (4.0, 8.0))]
    curve = fit("copy", samples)
    assert min(curve.coefficients) >= 0
    assert len(curve.residuals) == 3


def test_products_have_a_rate_whatever_the_noise() -> None:
    """Times that do not grow with the contraction leave nothing but its inverse to blame."""
    sizes = [(256, 256), (256, 32), (512, 64), (512, 512)]
    samples = [Sample("", (1.0, n * n * k, 1.0 * n * n), 1e-9 * n * n) for n, k in sizes]
    assert fit("matmul", samples).coefficients[1] == pytest.approx(0.0, abs=1e-18)
    _, per_flop, per_face = product_curve("matmul", samples).coefficients
    assert per_face == 0.0
    assert 1e-12 < per_flop < 1e-10


@pytest.mark.parametrize(
    ("name", "shape"), [("h100", (2, 8)), ("tpu-v5e", (16, 16)), ("cpu", (1,))]
)
def test_a_cluster_is_read_as_it_was_written(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    cluster = Cluster.preset(name, shape)
    write_cluster(cluster, tmp_path / "written.toml")
    assert read_cluster(tmp_path / "written.toml") == cluster


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"cannot write cluster file .*nowhere.*give a path"):
        write_cluster(Cluster.preset("cpu", 2), tmp_path / "nowhere" / "here.toml")


class Stuck:
    """A loop that takes as long however often it runs."""

    runs = 2

    @classmethod
    def of(cls, *_: object) -> "Stuck":
        return cls()

    def time(self, runs: int) -> float:
        return 1.0


def test_a_machine_too_busy_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_Runner", Stuck)
    with pytest.raises(ClusterError, match=r"of 4 measurements .* only 0 .* more --rounds"):
        measure.Bench(tuple(jax.devices()), 2, 1).copies()


@pytest.mark.slow
def test_this_machine_is_measured() -> None:
    found = calibrate(rounds=2)
    assert found.cluster.device_count == len(jax.devices())
    assert {curve.name for curve in found.curves} >= {"matmul float32", "copy", "arithmetic"}
    assert 1e8 < found.cluster.chip.f32_flops < 1e15
    assert 1e8 < found.cluster.chip.hbm_bandwidth < 1e13
