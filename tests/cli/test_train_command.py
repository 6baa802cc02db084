"""``autopar train``: on the eight devices that tests have, and on its own in another process."""

import dataclasses
import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from autopar.cli import app, train, training
from autopar.cli.training import Run

MODEL = "cli_models:workload"


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(app, ["train", *arguments], catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("plans") / "plan.json"
    options = ["--cluster", "cpu:8", "--search", "fsdp", "--save", str(path)]
    assert CliRunner().invoke(app, ["plan", MODEL, *options]).exit_code == 0
    return str(path)


def test_training_shows_plan_and_summary(plan_file):
    lines = run(MODEL, "--steps", "25", "--check", "--plan", plan_file).stdout.splitlines()
    assert lines[0].startswith("cluster  cpu:8")
    summary = lines[lines.index(f"{MODEL}, 25 steps") + 1 :]
    starts = ["loss", "tokens/s", "step, measured", "step, predicted", "check"]
    assert [line[: len(start)] for line, start in zip(summary, starts, strict=True)] == starts
    assert "ok: losses of 20 steps within" in summary[-1]


def test_training_for_machines_from_a_plan_file(plan_file):
    result = run(MODEL, "--steps", "6", "--plan", plan_file, "--check", "--json", "--batch", "16")
    found = json.loads(result.stdout)
    assert (found["cluster"], found["mesh"]) == ("cpu:8", {"data": 8})
    assert len(found["losses"]) == 6
    assert found["max_difference"] <= 1e-4
    assert found["failures"] == []
    assert found["measured_step_s"] > 0
    assert found["predicted_step_s"] > 0


def test_another_seed_gives_other_losses(plan_file):
    def losses(seed):
        options = ("--steps", "1", "--plan", plan_file, "--json", "--seed", seed)
        return json.loads(run(MODEL, *options).stdout)["losses"]

    assert losses("1") != losses("2")


def test_progress_is_shown_on_a_terminal(plan_file):
    runner = CliRunner(env={"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "200"})
    result = runner.invoke(app, ["train", MODEL, "--steps", "2", "--plan", plan_file])
    assert "training, 8 devices" in result.stderr
    assert re.search(r"loss 0\.\d{4}, [\d,]+ tokens/s", result.stderr)


def test_a_loss_that_does_not_fall_fails_the_check(plan_file):
    result = run("cli_models:rising", "--steps", "10", "--search", "data", "--check", code=1)
    assert "autopar: the loss did not fall" in result.stderr
    assert "FAILED" in result.stdout


def test_another_result_than_one_devices_fails_the_check(plan_file, monkeypatch):
    real = training.Trainer.one_device

    def off_by_a_little(self, steps, done):
        found = real(self, steps, done)
        return dataclasses.replace(found, losses=tuple(loss + 0.01 for loss in found.losses))

    monkeypatch.setattr(training.Trainer, "one_device", off_by_a_little)
    result = run(MODEL, "--steps", "5", "--plan", plan_file, "--check", "--json", code=1)
    assert "losses differ from one device's by up to 1.00e-02, more than 0.0001" in result.stderr
    assert json.loads(result.stdout)["max_difference"] == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt:tyni",), "unknown preset: 'gpt:tyni'; did you mean gpt:tiny"),
        (("cli_models:pair",), "which can be planned but not trained; return an object with"),
        (("cli_models:without_loss", "--search", "data"), "metrics are ['accuracy']; training"),
        ((MODEL, "--plan", "gone.json"), "gone.json: no such file"),
        ((MODEL, "--plan", "gone.json", "--search", "data"), "--plan and --search: a plan file is"),
        ((MODEL, "--devices", "3"), "--devices 3: this process has 8 devices (cpu); leave"),
        ((MODEL, "--search", "magic"), "search='magic' is not offered"),
    ],
)
def test_wrong_input(arguments, message):
    stderr = run(*arguments, code=2).stderr
    assert stderr.startswith("autopar: ")
    assert message in stderr


def test_a_plan_for_another_model(plan_file):
    text = run("mlp:tiny", "--plan", plan_file, code=2).stderr
    assert "this plan was made for another step: " in text
    assert "its input 'state/params/dense_0/kernel' is float32[8, 8], here float32[64, 256]" in text


def test_a_plan_file_cut_short(plan_file, tmp_path):
    cut = tmp_path / "cut.json"
    cut.write_text(Path(plan_file).read_text()[:500])
    text = run(MODEL, "--plan", str(cut), code=2).stderr
    assert "cut.json: not JSON at line " in text
    assert "(it seems to be cut short)" in text


def test_devices_are_emulated_in_a_process_of_its_own():
    options = ("--devices", "2", "--steps", "8", "--check", "--json")
    found = subprocess.run(
        [sys.executable, "-m", "autopar", "train", MODEL, *options],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(found.stdout)["cluster"] == "cpu:2"
    assert found.stderr == ""


def test_time_is_the_median_after_warming_up():
    assert Run((1.0,) * 6, (9.0, 9.0, 9.0, 1.0, 2.0, 3.0), 10).step_s == 2.0
    assert Run((1.0,) * 2, (9.0, 1.0), 10).tokens_per_s == 10.0


def test_falling_is_judged_by_means():
    assert Run((2.0, 2.0, 1.0, 1.0, 1.9, 1.9, 1.5, 1.5, 1.0, 1.0), (1.0,) * 10, 1).fell
    assert not Run((1.0, 2.0), (1.0,) * 2, 1).fell
    assert Run((1.0,), (1.0,), 1).fell


def test_nan_is_a_difference():
    one = Run((1.0, math.nan), (1.0, 1.0), 1)
    assert math.isnan(one.difference(Run((1.5, 1.0), (1.0, 1.0), 1)))
    result = train.Result("m", None, one, math.nan)
    assert "losses differ" in result.failures[0]
