"""The documentation is true: generated files are fresh, links lead somewhere, examples run."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import jax.extend.core.primitives as primitives
import pytest

from autopar.cli import app
from autopar.passes.rules import RULES
from autopar.passes.rules.control_flow import BODIES
from autopar.passes.simplify import CALLS

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def anchors(page: Path) -> set[str]:
    """What headings are called in links, as GitHub has it."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path) -> None:
    text = "\n".join(re.findall(r"```.*?```|`[^`\n]+`", page.read_text(), re.DOTALL))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE)) <= targets
    commands = {command.callback.__name__ for command in app.registered_commands}
    assert set(re.findall(r"(?:^\$ |`)autopar ([a-z]+)", text, re.MULTILINE)) <= commands


def test_operations_are_those_of_the_registry() -> None:
    generated = runpy.run_path(str(ROOT / "docs" / "generate_operations.py"))["text"]()
    assert generated == (ROOT / "docs" / "operations.md").read_text(), "run `make docs`"


def test_primitives_without_a_rule_are_those_listed() -> None:
    listed = runpy.run_path(str(ROOT / "docs" / "generate_operations.py"))["UNRULED"]
    exported = {value.name for name, value in vars(primitives).items() if name.endswith("_p")}
    without = exported - {*RULES, *BODIES, *CALLS, "custom_linear_solve"}
    assert without == {name for names in listed.values() for name in names}


def test_readme_counts_the_rules() -> None:
    (count,) = re.findall(r"rules for (\d+) primitives", (ROOT / "README.md").read_text())
    generated = (ROOT / "docs" / "operations.md").read_text()
    assert f"{count} primitives have a rule" in generated


def test_readme_example_runs() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "cpu:8 (8 devices)" in found.stdout
