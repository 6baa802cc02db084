"""``autopar plan``, ``compare`` and ``clusters``: output, exit codes, and what errors say."""

import json
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from autopar.cli import app
from autopar.core.plan import Plan
from autopar.core.plan_json import from_json
from autopar.cost_model import PRESETS

PAIR = ("cli_models:pair", "--cluster", "cpu:2")
WORKLOAD = ("cli_models:workload", "--cluster", "cpu:2")


def run(*arguments: str, code: int = 0):
    """Runs the program; nothing but what it expects may be raised."""
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result


def refused(*arguments: str, code: int = 2) -> str:
    """The one message on standard error of a call that fails."""
    result = run(*arguments, code=code)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.startswith("autopar: ")
    return result.stderr


def test_version():
    assert run("--version").stdout == f"autopar {version('autopar')}\n"


def test_commands_are_listed():
    text = run("--help").stdout
    assert all(name in text for name in ("plan", "train", "compare", "clusters"))


def test_plan_prints_the_plan():
    result = run("plan", *PAIR)
    assert result.stdout.startswith("cluster  cpu:2 (2 devices), mesh data=2\n")
    assert result.stderr == ""


def test_json_is_the_plan_itself_and_the_same_each_time(tmp_path):
    saved = tmp_path / "plan.json"
    first = run("plan", *PAIR, "--json", "--save", str(saved))
    assert first.stderr == ""
    assert saved.read_text() == first.stdout
    assert from_json(first.stdout) == Plan.load(saved)
    assert run("plan", *PAIR, "--json").stdout == first.stdout


def test_a_picture_of_memory(tmp_path):
    said = run("plan", *PAIR, "--picture", f"{tmp_path}/a.svg").stderr
    assert said == f"drawn in {tmp_path}/a.svg\n"
    assert "this plan: peak" in (tmp_path / "a.svg").read_text()
    wrong = refused("plan", *PAIR, "--picture", f"{tmp_path}/a.xyz")
    assert "give a name that ends with .svg" in wrong


def test_saving_says_where(tmp_path):
    assert (
        run("plan", *PAIR, "--save", f"{tmp_path}/a.json").stderr == f"saved to {tmp_path}/a.json\n"
    )


def planned(*options: str) -> Plan:
    return from_json(run("plan", *options, "--json").stdout)


@pytest.mark.parametrize(
    ("mesh", "sizes"), [("4x2", {"data": 4, "model": 2}), ("x=2, y=4", {"x": 2, "y": 4})]
)
def test_mesh_and_batch(mesh, sizes):
    options = ("--cluster", "cpu:8", "--mesh", mesh, "--batch", "24", "--search", "replicated")
    plan = planned("cli_models:workload", *options)
    assert dict(zip(plan.mesh.names, plan.mesh.sizes, strict=True)) == sizes
    assert plan.inputs[-1].shape[0] == 24


def test_a_presets_configuration_can_be_changed():
    options = ("layers=1", "outputs=32", "dtype=bfloat16", "use_bias=false")
    sets = [part for option in options for part in ("--set", option)]
    plan = planned("mlp:tiny", "--cluster", "cpu:2", "--search", "data", *sets)
    named = {v.path: v.shape for v in plan.inputs if v.role == "parameters"}
    assert named == {"state/params/dense_0/kernel": (64, 32)}


@pytest.mark.parametrize("spec", ["data,None", "P('data', None)", "P('data',)", "data"])
def test_pins(spec):
    plan = planned(*PAIR, "--pin", f"batch={spec}", "--pin", "w=")
    assert (tuple(plan.spec_of("batch")), tuple(plan.spec_of("state/w"))) == (("data",), ())


def test_pins_over_two_axes():
    plan = planned("cli_models:pair", "--cluster", "cpu:8", "--pin", "batch=data+model")
    assert tuple(plan.spec_of("batch")) == (("data", "model"),)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gpt:tyni",), "unknown preset: 'gpt:tyni'; did you mean gpt:tiny"),
        (("gpt",), "unknown preset: 'gpt'; "),
        (("no.such:thing",), "no.such:thing: there is no module 'no'; run autopar in the folder"),
        (("cli_models:thing",), "cli_models:thing: module cli_models has no 'thing'"),
        (("cli_models:not_a_function",), "is 5, not a function without arguments"),
        (("cli_models:number",), "cli_models:number returns 3, without train_step, init,"),
        (("cli_models:triple",), "returns a tuple of function, tuple, int; it must return (step,"),
        ((*PAIR, "--batch", "8"), "--batch: cli_models:pair gives its arguments itself"),
        ((*PAIR, "--set", "layers=2"), "--set: cli_models:pair is no preset"),
        (("gpt:tiny", "--set", "layers"), "--set 'layers' is not NAME=VALUE; write e.g. layers=2"),
        (("gpt:tiny", "--set", "layer=2"), "unknown option of gpt:tiny: 'layer'; did you mean"),
        (("gpt:tiny", "--set", "heads=3"), "--set: d_model=128 is not a multiple of heads=3"),
        (("gpt:tiny", "--set", "dtype=float23"), "--set: data type 'float23' not understood"),
        ((*PAIR[:2], "tpu-v55:4x4"), "unknown cluster preset 'tpu-v55'; did you mean 'tpu-v5"),
        ((*PAIR[:2], "cpu:4by4"), "'cpu:4by4' is not a cluster; write preset:shape such as"),
        ((*PAIR, "--memory", "14Gigs"), "unknown unit 'Gigs' in '14Gigs'"),
        ((*PAIR, "--memory", "lots"), "memory: 'lots' is not a quantity"),
        ((*PAIR, "--mesh", "2by2"), "--mesh '2by2' is not a mesh; write sizes such as 4x4, or"),
        ((*PAIR, "--mesh", "a=1,a=2"), "--mesh 'a=1,a=2' is not a mesh"),
        ((*PAIR, "--mesh", "4x4"), "16 devices"),
        ((*PAIR, "--search", "magic"), "search='magic' is not offered; choose one of optimal,"),
        ((*PAIR, "--pin", "embed"), "--pin 'embed' is not REGEX=SPEC; write e.g."),
        ((*PAIR, "--pin", "w=4"), "--pin 'w=4': '4' is not how an array is split; for each"),
        ((*PAIR, "--pin", "w=P(4)"), "--pin 'w=P(4)': 'P(4)' is not how an array is split"),
        ((*PAIR, "--pin", "w=P(data)"), "'P(data)' is not how an array is split"),
        ((*PAIR, "--pin", "w=data", "--pin", "w="), "--pin 'w' is given twice"),
        ((*PAIR, "--pin", "nothing=data"), "'nothing'"),
        ((*PAIR, "--time-limit", "0"), "time_limit=0.0 leaves no time to search"),
        ((*PAIR, "--save", "no/such/folder/plan.json"), "the plan cannot be written"),
    ],
)
def test_wrong_input(arguments, message):
    assert message in refused("plan", *arguments)


def test_progress_is_shown_on_a_terminal():
    result = CliRunner(env={"FORCE_COLOR": "1", "TERM": "xterm"}).invoke(app, ["plan", *PAIR])
    assert "\x1b[1m" in result.stdout
    assert "searching data=2" in result.stderr


def test_an_interrupt_is_no_error_of_ours(monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("autopar.api.plan", interrupt)
    run("plan", *PAIR, code=130)


def test_wrong_options_are_wrong_input():
    assert "--batch" in run("plan", *PAIR, "--batch", "0", code=2).stderr
    assert "MODEL" in run("plan", code=2).stderr


def test_no_feasible_plan_says_the_least_memory():
    text = refused("plan", *WORKLOAD, "--memory", "1KiB", code=1)
    assert "no plan fits 1.00 KiB a device: the least found" in text


def test_compare_is_one_table():
    lines = run("compare", *WORKLOAD).stdout.splitlines()
    assert lines[0] == "cli_models:workload on cpu:2, predicted"
    assert lines[2].split()[:3] == ["strategy", "mesh", "step"]
    assert [line.split()[0] for line in lines[3:]] == [
        *("optimal", "replicated", "data", "fsdp", "megatron", "fsdp+megatron", "redco"),
    ]
    assert "1.00 x" in lines[3]


def test_compare_for_machines():
    found = json.loads(run("compare", *WORKLOAD, "--json").stdout)
    assert found[0]["search"] == "optimal"
    assert all(outcome["of_optimal"] >= 1 - 1e-9 for outcome in found)


def test_compare_shows_what_is_infeasible():
    # 15 windows do not divide over 2 devices, so what splits the batch cannot be.
    options = ("compare", *WORKLOAD, "--batch", "15")
    text = run(*options).stdout
    row = next(line for line in text.splitlines() if line.startswith("data "))
    assert row.split()[1] == "infeasible"
    assert "cannot be split over the mesh data=2" in " ".join(text.split())
    rows = {row["search"]: row for row in json.loads(run(*options, "--json").stdout)}
    assert rows["data"]["feasible"] is False
    assert "cannot be split" in rows["data"]["reason"]
    assert rows["optimal"]["feasible"] is True


def test_compare_with_nothing_feasible():
    result = run("compare", *WORKLOAD, "--memory", "1KiB", code=1)
    assert result.stdout.count("infeasible") == 7
    assert "autopar: no plan fits 1.00 KiB" in result.stderr


def test_clusters_lists_every_preset():
    lines = run("clusters").stdout.splitlines()
    named = [line.split(":")[0] for line in lines if ":" in line.split(" ")[0]]
    assert named == list(PRESETS)


def test_clusters_for_machines():
    found = json.loads(run("clusters", "--json").stdout)
    assert found["tpu-v5e"]["example"] == "4x4"
    assert found["h100"]["chip"]["bf16_flops"] == PRESETS["h100"].chip.bf16_flops


def test_every_example_shape_is_a_cluster():
    for name, preset in json.loads(run("clusters", "--json").stdout).items():
        options = ("--cluster", f"{name}:{preset['example']}", "--search", "replicated")
        assert planned("cli_models:pair", *options).cluster["name"] == name
