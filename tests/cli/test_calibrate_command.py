"""``autopar calibrate``: what it measures stands in its file, and ``plan`` uses it."""

import json
from collections.abc import Sequence

import jax
import pytest
from typer.testing import CliRunner

from autopar.cli import app
from autopar.core.plan import Plan
from autopar.cost_model import Cluster, calibration
from autopar.cost_model.measure import Sample

COUNT = len(jax.devices())


class Machine:
    """Stands in for ``Bench``: times that follow from constants, exactly."""

    def __init__(self, devices: Sequence[object], rounds: int, scale: int) -> None:
        assert (len(devices), rounds, scale) == (COUNT, 3, 1)

    def matmuls(self, dtype: str) -> list[Sample]:
        flops = {"float32": 4e10, "bfloat16": 1e10}[dtype]
        return [
            sample((1.0, 2.0 * n**2 * k, 2.0 * n**2), (3e-6, 1 / flops, 16 / flops))
            for n, k in ((128, 128), (256, 32), (512, 512))
        ]

    def copies(self) -> list[Sample]:
        return [sample((1.0, size), (3e-6, 1 / 8e9)) for size in (1e5, 1e6, 1e7)]

    def arithmetic(self) -> list[Sample]:
        return [sample((1.0, count), (3e-6, 1 / 2e9)) for count in (1e5, 1e6, 1e7)]

    def collectives(self) -> list[Sample]:
        return [sample((1.0, size), (4e-5, 1 / 5e9)) for size in (1e5, 1e6, 1e7)]


def sample(terms: tuple[float, ...], constants: tuple[float, ...]) -> Sample:
    return Sample("", terms, sum(a * b for a, b in zip(terms, constants, strict=True)))


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "Bench", Machine)


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def test_constants_are_printed_and_saved_for_plans(tmp_path) -> None:
    file = tmp_path / "here.toml"
    result = run("calibrate", "--rounds", "3", "--save", str(file))
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == f"cpu-measured:{COUNT}, per device, all devices at work"
    for line in ("bf16 10 GFLOP/s", "f32 40 GFLOP/s", "memory 8 GB/s", "a kernel 3 us"):
        assert line in lines
    assert "matmul float32 3 0.0% +0.0%" in [line.replace("-0.0%", "+0.0%") for line in lines]
    assert result.stderr.endswith(f"saved to {file}; plan with --cluster {file}\n")
    cluster = Cluster.from_toml(file)
    assert cluster.chip.f32_flops == pytest.approx(4e10)
    assert cluster.chip.matmul_half_k == 16
    assert cluster.levels[0].bandwidth == pytest.approx(5e9)
    plan = Plan.load(planned(tmp_path, str(file)))
    assert plan.cluster == cluster.to_dict()
    assert (
        plan.predicted.compute_s != Plan.load(planned(tmp_path, f"cpu:{COUNT}")).predicted.compute_s
    )


def planned(folder, cluster: str):
    path = folder / "plan.json"
    run("plan", "cli_models:pair", "--cluster", cluster, "--save", str(path))
    return path


def test_json_has_the_cluster_and_every_curve() -> None:
    data = json.loads(run("calibrate", "--rounds", "3", "--json").stdout)
    assert Cluster.from_dict(data["cluster"]).device_count == COUNT
    names = ["matmul float32", "matmul bfloat16", "copy", "arithmetic", "collectives"]
    assert [curve["name"] for curve in data["curves"]] == names
    assert all(curve["error"] < 1e-9 for curve in data["curves"])


def test_what_cannot_be_is_refused(tmp_path) -> None:
    missing = tmp_path / "nowhere" / "here.toml"
    message = run("calibrate", "--rounds", "3", "--save", str(missing), code=2).stderr
    assert message.startswith(f"autopar: cannot write cluster file {missing}: ")
    assert "'--rounds'" in run("calibrate", "--rounds", "0", code=2).stderr
