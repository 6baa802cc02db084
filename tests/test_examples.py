"""Every example runs as it is, and shows what it promises."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"


def output(name: str) -> str:
    """What an example prints; it must print nothing else, on standard error, and not fail."""
    found = subprocess.run(
        [sys.executable, FOLDER / name], capture_output=True, text=True, timeout=300, check=False
    )
    assert (found.returncode, found.stderr) == (0, "")
    return found.stdout


def test_quickstart():
    losses = [float(loss) for loss in re.findall(r"loss (\S+)", output("quickstart.py"))]
    assert len(losses) == 6
    assert losses[-1] < 0.2 * losses[0]


def test_plain_pytrees():
    text = output("plain_pytrees.py")
    assert "mesh data=4 x model=2" in text
    assert re.search(r"layer_1/w +f32\[512,512\] +P\(None, 'model'\)", text)
    pairs = re.findall(r"loss (\S+)  on one device (\S+)", text)
    assert len(pairs) == 5
    for sharded, plain in pairs:
        assert float(sharded) == pytest.approx(float(plain), abs=1e-4)


def test_plan_without_hardware():
    text = output("plan_without_hardware.py")
    assert "cluster  tpu-v5e:4x4 (16 devices)" in text
    assert "1.42 billion parameters" in text
    assert re.search(r"Adam moments: +P\(.*'", text)


def test_every_example_is_tested():
    tested = {f"{name.removeprefix('test_')}.py" for name in globals() if name.startswith("test_")}
    assert {path.name for path in FOLDER.glob("*.py")} <= tested
