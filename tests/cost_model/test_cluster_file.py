"""Clusters from TOML: what is read, and how mistakes are named."""

from pathlib import Path

import pytest

from autopar.core.errors import ClusterError
from autopar.cost_model import Cluster, parse_cluster

LAB = """
name = "lab"
preset = "h100"

[chip]
hbm_bytes = "96 GiB"
hbm_bandwidth = "2.4 TB/s"
matmul_efficiency = 0.6

[[levels]]
name = "ethernet"
size = 2
bandwidth = "100 Gb/s"
latency = "30 us"

[[levels]]
name = "nvlink"
size = 4
kind = "switch"
bandwidth = "300 GB/s"
latency = 1e-5
"""


def _write(path: Path, text: str) -> Path:
    file = path / "lab.toml"
    file.write_text(text)
    return file


def test_reads_a_cluster(tmp_path: Path) -> None:
    cluster = Cluster.from_toml(_write(tmp_path, LAB))
    assert (cluster.name, cluster.shape, cluster.device_count) == ("lab", (2, 4), 8)
    assert cluster.chip.hbm_bytes == 96 * 2**30
    assert cluster.chip.matmul_efficiency == 0.6
    assert cluster.chip.bf16_flops == Cluster.preset("h100").chip.bf16_flops
    assert [level.bandwidth for level in cluster.levels] == [12.5e9, 300e9]
    assert parse_cluster(str(tmp_path / "lab.toml")) == cluster


def test_preset_and_shape_are_enough(tmp_path: Path) -> None:
    cluster = Cluster.from_toml(_write(tmp_path, 'preset = "tpu-v5e"\nshape = [4, 4]\n'))
    assert cluster.levels == Cluster.preset("tpu-v5e", (4, 4)).levels
    assert cluster.name == "lab"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"100 Gb/s"', '"100 furlongs"', r"levels\[0\].bandwidth: unknown unit 'furlongs'"),
        ('"100 Gb/s"', '"-1 GB/s"', r"levels\[0\].bandwidth: '-1 GB/s' is negative"),
        ('"100 Gb/s"', '"0 GB/s"', r"levels.ethernet.bandwidth is 0.0; it must be positive"),
        ("size = 2", "size = 0", r"levels.ethernet.size is 0; it must be at least 1"),
        ("size = 2", "size = 2.5", r"levels\[0\].size: 2.5 is not a whole number"),
        ("size = 2\n", "", r"levels\[0\].size: missing"),
        ('"switch"', '"mesh"', r"levels\[1\].kind: 'mesh' is neither 'torus' nor 'switch'"),
        ("hbm_bytes", "hbm_size", r"chip.hbm_size is not known; did you mean chip.hbm_bytes\?"),
        ('"96 GiB"', '"96 Gib"', r"chip.hbm_bytes: unknown unit 'Gib' .*'GiB'"),
        ("0.6", '"fast"', r"chip.matmul_efficiency: 'fast' is not a number"),
        ("matmul_efficiency = 0.6", 'overlap = "all"', r"chip.overlap is 'all'; .* 'async'"),
        ("0.6", "1.2", r"chip.matmul_efficiency is 1.2; it is a share, at most 1"),
        ('preset = "h100"', "", r"chip.bf16_flops: missing; give it, or start from a preset"),
        ('"h100"', '"h10"', r"unknown cluster preset 'h10'; did you mean 'h100'"),
        ('name = "lab"', "shape = [3]", r"shape: \[3\] has 3 devices, but the levels have 8"),
        ("[chip]", "[chip", r"is not a TOML file"),
        ("[chip]", "[chips]", r"chips is not known; did you mean chip\?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in LAB
    with pytest.raises(ClusterError, match=message):
        Cluster.from_toml(_write(tmp_path, LAB.replace(old, new, 1)))


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(
        ClusterError, match=r"cannot read cluster file .*nowhere.toml: No such file"
    ):
        Cluster.from_toml(tmp_path / "nowhere.toml")


def test_neither_levels_nor_preset(tmp_path: Path) -> None:
    with pytest.raises(
        ClusterError, match=r"lab.toml: levels: missing; give \[\[levels\]\], or a pre"
    ):
        Cluster.from_toml(_write(tmp_path, 'name = "lab"\n'))
