"""Plans as files: exact, the same bytes each time, never half written, and clear when damaged."""

import dataclasses
import json
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plan_samples import gpt_plan, plans

from autopar.core import plan_json
from autopar.core.errors import PlanError
from autopar.core.plan import SCHEMA
from autopar.core.plan_json import from_json, load, save, to_json

TEXT = to_json(gpt_plan())


@settings(deadline=None)
@given(plans())
def test_any_plan_round_trips(plan):
    text = to_json(plan)
    assert from_json(text) == plan
    assert to_json(from_json(text)) == text
    json.loads(text, parse_constant=pytest.fail)  # no NaN or Infinity: any reader can read it


def test_seconds_of_the_search_are_not_kept():
    plan = gpt_plan()
    slower = dataclasses.replace(plan, solver=dataclasses.replace(plan.solver, seconds=9.0))
    assert to_json(plan) == to_json(slower)
    assert from_json(TEXT).solver.seconds == 0.0


def test_the_same_bytes_in_another_process():
    program = "import sys; from autopar.core.plan_json import from_json, to_json\n"
    program += "sys.stdout.write(to_json(from_json(sys.stdin.read())))"
    other = subprocess.run(
        [sys.executable, "-c", program],
        input=TEXT,
        env={"PYTHONHASHSEED": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert other.stdout == TEXT


def test_strategies_are_numbers_into_a_table():
    data = json.loads(TEXT)
    assert data["strategies"] == {"0": 0, "1": 0, "2": 0, "3/body/0": 1}
    assert data["strategy_table"] == [
        [["S(0),B", "S(0),S(1)"], ["S(0),B"]],
        [["S(1),S(0)"], ["P,P(max)"]],
    ]


def test_an_entry_is_a_line():
    assert ' "2.0": "S(0),B"\n' in TEXT
    assert '"fallbacks": {},\n' in TEXT
    paths = [value.path for value in gpt_plan().inputs]
    assert all(sum(f'"path": "{path}"' in line for line in TEXT.splitlines()) for path in paths)


def test_saving_replaces_the_whole_file_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "plan.json"
    path.write_text("precious")

    def full(fileno):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(plan_json.os, "fsync", full)
    with pytest.raises(PlanError, match=r"plan.json: the plan cannot be written: No space left"):
        save(gpt_plan(), path)
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.undo()
    save(gpt_plan(), path)
    assert path.read_text() == TEXT
    assert list(tmp_path.iterdir()) == [path]


def test_saving_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
    save(gpt_plan(), tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert (tmp_path / "real.json").read_text() == TEXT


def test_saving_where_there_is_no_folder(tmp_path):
    with pytest.raises(PlanError, match=r"No such file or directory; give a path in a folder that"):
        save(gpt_plan(), tmp_path / "nowhere" / "plan.json")


def test_loading_what_is_not_there(tmp_path):
    with pytest.raises(PlanError, match=r"gone.json: no such file; `autopar plan ... --save"):
        load(tmp_path / "gone.json")


def test_loading_what_is_no_text_or_a_folder(tmp_path):
    (tmp_path / "plan.json").write_bytes(b"\x80\x81")
    with pytest.raises(PlanError, match="not a plan: byte 0 is not UTF-8"):
        load(tmp_path / "plan.json")
    with pytest.raises(PlanError, match="cannot be read: Is a directory"):
        load(tmp_path)


def test_a_cut_file_says_where(tmp_path):
    (tmp_path / "plan.json").write_text(TEXT[: len(TEXT) // 2])
    with pytest.raises(
        PlanError,
        match=r"plan.json: not JSON at line \d+, column \d+ \(it seems to be cut short\): .*; "
        "the file is damaged or not a plan: make the plan again",
    ):
        load(tmp_path / "plan.json")


@given(st.integers(0, len(TEXT) - 2))
def test_cut_anywhere(position):
    with pytest.raises(PlanError):
        from_json(TEXT[:position])


@pytest.mark.parametrize(("schema", "age"), [(99, "a newer"), (0, "an older")])
def test_another_schema(schema, age):
    text = TEXT.replace(f'"schema": {SCHEMA}', f'"schema": {schema}')
    expected = f"of schema {schema}, from {age} autopar; .* schema {SCHEMA}: "
    with pytest.raises(PlanError, match=expected):
        from_json(text)


def _every_place(data, place=()):
    """The places of all fields of objects whose keys are part of the schema."""
    for key, value in data.items():
        yield (*place, key)
        if key in ("predicted", "solver", "curve", "unlimited"):
            yield from _every_place(value, (*place, key))
        if key in ("mesh", "inputs", "outputs", "collectives"):
            yield from _every_place(value[0], (*place, key, 0))


def _shown(place):
    return "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")


@pytest.mark.parametrize("place", list(_every_place(json.loads(TEXT))), ids=_shown)
def test_a_missing_or_wrong_field_is_named(place):
    data = json.loads(TEXT)
    parent = data
    for key in place[:-1]:
        parent = parent[key]
    kept = parent.pop(place[-1])
    with pytest.raises(PlanError) as missing:
        from_json(json.dumps(data), "plan.json")
    assert f"plan.json: field {_shown(place)!r} is missing; " in str(missing.value)
    parent[place[-1]] = [kept] if not isinstance(kept, list) else "text"
    with pytest.raises(PlanError) as wrong:
        from_json(json.dumps(data), "plan.json")
    assert f"plan.json: {_shown(place)} is " in str(wrong.value)
    assert "; the file is damaged or not a plan: make the plan again" in str(wrong.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"format": "autopar plan"', '"format": "x"', "format is \"x\", expected 'autopar plan'"),
        ('"2.0": "S(0),B"', '"2.0": "S(0)"', "hubs.2.0 is .* one placement for each of 2"),
        ('"2.0": "S(0),B"', '"2.0": "Q,B"', r"hubs.2.0 is \"Q,B\", expected a layout such as"),
        ('"3/body/0": 1', '"3/body/0": 2', "3/body/0 is 2, expected a whole number below 2"),
        ('"3/body/0": 1', '"3/body/0": -1', "is -1, expected a whole number of at least 0"),
        ('"3/body/0": 1', '"3/body/0": true', "is true, expected a whole number"),
        ('"name": "model"', '"name": "data"', "mesh is .*, expected axes of different names"),
        ('"kind": "space"', '"kind": "disk"', r"mesh\[0\].kind is .*expected 'space' or 'time'"),
        ('"size": 4', '"size": 0', r"mesh\[0\].size is 0, expected a whole number of at least 1"),
        ('"layout": "B,B", "path": "state/step"', '"layout": "S(0),B", "path": "state/step"',
         r"inputs\[0\].layout is \"S\(0\),B\", expected a layout of a value of 0 dimensions"),
        ('[["S(1),S(0)"], ["P,P(max)"]]', '[["S(1),S(0)"]]', r"strategy_table\[1\] is .*two lists"),
        ('"instants": [0, 3, 7]', '"instants": [0, 3]', r"curve.bytes.activations is .*expected 2"),
        ('"step_s": 0.00125', '"step_s": "fast"', "predicted.step_s is .*, expected a number"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_named(old, new, message):
    assert old in TEXT
    with pytest.raises(PlanError, match=message):
        from_json(TEXT.replace(old, new))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"not JSON at line 1, column 1 \(it seems to be cut short\)"),
        ("[]", r"the document is \[\], expected an object"),
        ('{"name": "some other file"}', "field 'format' is missing"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_what_is_no_plan(text, message):
    with pytest.raises(PlanError, match=message):
        from_json(text)
