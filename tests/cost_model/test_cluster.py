"""Clusters: presets, shapes, the links of mesh axes, and the words of errors."""

import dataclasses
import json
import math

import pytest

from autopar.core.errors import ClusterError
from autopar.core.mesh import MeshAxis, MeshSpec
from autopar.cost_model import PRESETS, Cluster, parse_cluster
from autopar.cost_model.presets import preset_for_device

PUBLISHED = {
    # name: bf16 TFLOP/s, HBM GiB, HBM GB/s of one JAX device (vendors' pages)
    "tpu-v4": (275, 32, 1200),
    "tpu-v5e": (197, 16, 819),
    "tpu-v5p": (459, 95, 2765),
    "tpu-v6e": (918, 32, 1638),
    "tpu-v7x": (2307 / 2, 96, 7380 / 2),
    "v100": (125, 16, 900),
    "a100-40": (312, 40, 1555),
    "a100-80": (312, 80, 2039),
    "h100": (989.4, 80, 3350),
    "h200": (989.4, 131.3, 4800),
    "b200": (2250, 167.6, 8000),
    "gb200": (2500, 173.2, 8000),
    "mi250x": (191.5, 64, 1600),
    "mi300x": (1307.4, 178.8, 5300),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_constants(name: str) -> None:
    chip = Cluster.preset(name).chip
    tflops, gib, gbps = PUBLISHED[name]
    assert chip.bf16_flops == pytest.approx(tflops * 1e12)
    assert chip.hbm_bytes == pytest.approx(gib * 2**30)
    assert chip.hbm_bandwidth == pytest.approx(gbps * 1e9)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_sane(name: str) -> None:
    cluster = Cluster.preset(name, 4)
    chip = cluster.chip
    assert cluster.device_count in (4, 8)  # two devices a chip
    assert chip.f32_highest_flops <= chip.f32_flops
    assert chip.vector_flops < chip.bf16_flops
    assert chip.host_bandwidth < chip.hbm_bandwidth or name == "cpu"
    assert 0.4 <= chip.matmul_efficiency <= 1
    assert 0.4 <= chip.hbm_efficiency <= 1
    assert 0.8 * chip.hbm_bytes < chip.usable_bytes < chip.hbm_bytes
    for mesh in cluster.default_meshes():
        for link in cluster.axis_links(mesh):
            assert link.bandwidth > 1e9
            assert 0 < link.latency_s < 1e-3


def test_efficiencies_are_shares() -> None:
    with pytest.raises(ClusterError, match=r"chip.matmul_efficiency is 1.2; it is a share"):
        dataclasses.replace(Cluster.preset("h100").chip, matmul_efficiency=1.2)


@pytest.mark.parametrize(
    ("text", "shape", "count"),
    [
        ("tpu-v5e", (1, 1), 1),
        ("tpu-v5e:4x4", (4, 4), 16),
        ("tpu-v5e:8", (2, 4), 8),
        ("tpu-v5e:2x16x16", (2, 16, 16), 512),
        ("tpu-v4:64", (4, 4, 4), 64),
        ("tpu-v4:2x2", (2, 2, 1), 4),
        ("tpu-v7x:2x2x1", (2, 2, 1), 8),
        ("h100:8", (8,), 8),
        ("h100:32", (4, 8), 32),
        ("h100:4x2", (4, 2), 8),
        ("gb200:72", (72,), 72),
        ("gb200:128", (2, 64), 128),
        ("mi250x:16", (2, 8), 16),
        ("cpu:8", (8,), 8),
    ],
)
def test_shapes(text: str, shape: tuple[int, ...], count: int) -> None:
    cluster = parse_cluster(text)
    assert (cluster.shape, cluster.device_count) == (shape, count)
    assert math.prod(level.size for level in cluster.levels) == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("tpu-v5", r"unknown cluster preset 'tpu-v5'; did you mean 'tpu-v5[ep]' or 'tpu-v5[ep]'\?"),
        ("xyzzy", r"unknown cluster preset 'xyzzy' \(presets: tpu-v3, "),
        ("tpu-v5e:0", r"shape: \(0,\) holds 0; every dimension needs at least one device"),
        ("tpu-v5e:32x16", r"no slice of shape 32x16: the largest pod is 16x16 \(256 chips\)"),
        ("tpu-v5e:7", "no standard slice of 7 chips"),
        ("tpu-v5e:2x2x2x2", "no slice of shape 2x2x2x2"),
        ("h100:12", "h100 nodes hold 8 devices, so shape 12 cannot be laid out"),
        ("h100:2x16", "write a multiple of 8, or nodes first: 2x8"),
        ("tpu-v5e:4x", "'tpu-v5e:4x' is not a cluster; write preset:shape such as 'tpu-v5e:4x4'"),
    ],
)
def test_bad_clusters(text: str, message: str) -> None:
    with pytest.raises(ClusterError, match=message):
        parse_cluster(text)


@pytest.mark.parametrize("shape", [-1, (2, -4), (), (2.0, 2), (True,)])
def test_bad_shapes(shape: object) -> None:
    with pytest.raises(ClusterError, match=r"shape: "):
        Cluster.preset("tpu-v5e", shape)  # pyright: ignore[reportArgumentType]


def test_torus_wraps_where_it_does() -> None:
    def wraps(text: str) -> list[bool]:
        return [level.wrap for level in parse_cluster(text).levels]

    assert wraps("tpu-v5e:16x16") == [True, True]
    assert wraps("tpu-v5e:8x16") == [False, True]
    assert wraps("tpu-v5e:4x4") == [False, False]
    assert wraps("tpu-v4:4x4x4") == [True, True, True]
    assert wraps("tpu-v4:2x4x4") == [False, False, False]


def test_links_of_a_torus() -> None:
    pod = parse_cluster("tpu-v5e:16x16")
    rows, columns = pod.axis_links(MeshSpec.of((16, 16)))
    assert (rows.bandwidth, rows.wrap, rows.hops) == (90e9, True, 8)
    assert columns.bandwidth == 90e9
    (both,) = pod.axis_links(MeshSpec.of(256))
    assert both.bandwidth == 180e9
    # Part of a ring is a line; the strided part shares its links with three other groups.
    strided, line = parse_cluster("tpu-v5e:1x16").axis_links(MeshSpec.of((4, 4)))
    assert (line.bandwidth, line.wrap, line.hops) == (45e9, False, 3)
    assert (strided.bandwidth, strided.wrap, strided.hops) == (90e9 / 4, True, 8)


def test_links_of_nodes() -> None:
    nodes = parse_cluster("h100:4x8")
    across, inside = nodes.axis_links(MeshSpec.of((4, 8)))
    assert (across.name, across.bandwidth) == ("infiniband", 45e9)  # one adapter a GPU
    assert (inside.name, inside.bandwidth) == ("nvlink", 370e9)
    (all_of_it,) = nodes.axis_links(MeshSpec.of(32))
    assert all_of_it.name == "infiniband+nvlink"
    # Seven eighths through NVLink are slower than three quarters through a node's adapters.
    assert all_of_it.bandwidth == pytest.approx(31 / 32 * 370e9 * 8 / 7)
    (many,) = Cluster.preset("h100", (1024, 8)).axis_links(MeshSpec.of(8192))
    assert many.bandwidth == pytest.approx(8 * 45e9, rel=1e-3)  # a node's adapters, pooled
    pooled, _ = nodes.axis_links(MeshSpec.of((16, 2)))
    assert pooled.bandwidth * 3 / 4 == pytest.approx(15 / 16 * 4 * 45e9)  # of V, 3/4 leave a node


def test_links_of_dies_that_share_a_chip() -> None:
    across, die = parse_cluster("tpu-v7x:2x1x1").axis_links(MeshSpec.of((2, 2)))
    assert (across.bandwidth, die.bandwidth) == (50e9, 600e9)
    (both,) = parse_cluster("tpu-v7x:2x1x1").axis_links(MeshSpec.of(4))
    assert both.bandwidth / 2 == pytest.approx(3 / 4 * 100e9)  # of V, half leaves a chip


def test_misaligned_axis_takes_the_slowest_level() -> None:
    link, _ = parse_cluster("h100:2x3").axis_links(MeshSpec.of((3, 2)))
    assert link.bandwidth == 45e9


def test_time_axes_are_free() -> None:
    mesh = MeshSpec((MeshAxis("micro", 4, "time"), MeshAxis("data", 8)))
    time, data = parse_cluster("h100:8").axis_links(mesh)
    assert time.bandwidth == math.inf
    assert data.bandwidth == 370e9


def test_mesh_of_another_size() -> None:
    with pytest.raises(
        ClusterError, match=r"mesh data=4 x model=4 is for 16 devices, but h100:8 has"
    ):
        parse_cluster("h100:8").axis_links(MeshSpec.of((4, 4)))


def test_default_meshes() -> None:
    def sizes(text: str, axes: int = 2) -> list[tuple[int, ...]]:
        return [mesh.sizes for mesh in parse_cluster(text).default_meshes(axes)]

    assert sizes("cpu:8") == [(8,), (4, 2), (2, 4)]
    assert sizes("cpu:8", 3) == [(8,), (4, 2), (2, 4), (2, 2, 2)]
    assert sizes("cpu:6") == [(6,), (3, 2), (2, 3)]
    assert sizes("cpu:1") == [(1,)]
    assert sizes("cpu:7") == [(7,)]


@pytest.mark.parametrize("text", ["tpu-v5e:4x4", "h100:16", "tpu-v7x:2x2x1", "cpu:8"])
def test_round_trip(text: str) -> None:
    cluster = parse_cluster(text)
    data = json.loads(json.dumps(cluster.to_dict()))
    again = Cluster.from_dict(data)
    assert again == cluster
    assert again.fingerprint == cluster.fingerprint
    assert len(cluster.fingerprint) == 64
    assert str(cluster) == text or text == "h100:16"


def test_fingerprints_tell_clusters_apart() -> None:
    texts = ["tpu-v5e:4x4", "tpu-v5e:2x8", "tpu-v6e:4x4", "h100:16", "h100:8"]
    assert len({parse_cluster(text).fingerprint for text in texts}) == len(texts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chip": None}, "not a cluster description"),
        ({"levels": [{"size": 2}]}, "not a cluster description"),
        ({"shape": [0]}, "every dimension needs at least one device"),
    ],
)
def test_damaged_description(change: dict[str, object], message: str) -> None:
    data = {**parse_cluster("h100:8").to_dict(), **change}
    with pytest.raises(ClusterError, match=message):
        Cluster.from_dict(data)


def test_detects_this_machine() -> None:
    cluster = Cluster.detect()
    assert (cluster.name, cluster.device_count) == ("cpu", 8)
    assert cluster == Cluster.preset("cpu", 8)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "tpu-v5e"),
        ("TPU v5", "tpu-v5p"),
        ("TPU v6 lite", "tpu-v6e"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40"),
        ("NVIDIA H200", "h200"),
        ("Quantum 9000", None),
    ],
)
def test_device_kinds(kind: str, name: str | None) -> None:
    assert preset_for_device(kind) == name
