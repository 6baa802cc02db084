"""Collectives against worked examples of "How to Scale Your Model", and against each other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.core.errors import OptionError
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster, Link, collective_seconds, collective_wire_bytes
from autopar.cost_model.collectives import KINDS, CollectiveKind

RING = Link("ring", 90e9, 1e-6, wrap=True)
LINE = Link("line", 45e9, 1e-6)


def test_gather_of_the_book() -> None:
    # Sharding, question 2: AllGather_X([B_X, D_Y]) on v4 4x4x4, B = 1024, D = 4096, bf16: 23 us.
    # The book leaves out (n-1)/n and the latency.
    links = Cluster.preset("tpu-v4", (4, 4, 4)).axis_links(MeshSpec.of((4, 4, 4)))
    payload = 2 * 1024 * 4096 / 4
    seconds = collective_seconds("all-gather", payload, links[0], 4)
    assert payload / 9e10 == pytest.approx(23e-6, rel=0.02)
    assert seconds == pytest.approx(payload / 9e10 * 3 / 4 + 2e-6)


def test_gather_over_two_axes_of_the_book() -> None:
    # Part 3: AllGather_XY of the whole array takes 46 us: two axes, twice the bandwidth.
    links = Cluster.preset("tpu-v4", (4, 4, 4)).axis_links(MeshSpec.of((16, 4)))
    seconds = collective_seconds("all-gather", 2 * 1024 * 4096, links[0], 16)
    assert seconds == pytest.approx(46e-6 * 15 / 16 + 4e-6, rel=0.02)


def test_tiny_gather_of_the_book_is_two_hops() -> None:
    # Question 3: 256 bytes over a ring of 4: "roughly 2 us".
    links = Cluster.preset("tpu-v4", (4, 4, 4)).axis_links(MeshSpec.of((4, 4, 4)))
    assert collective_seconds("all-gather", 256, links[0], 4) == pytest.approx(2e-6, rel=0.01)


def test_all_to_all_of_the_book_is_a_quarter() -> None:
    # On a ring, a quarter of the all-gather of the same array (the axis holds n local buffers).
    local, n = 1e9, 16
    gather = n * local / RING.bandwidth
    assert collective_seconds("all-to-all", local, RING, n) == pytest.approx(gather / 4, rel=1e-3)


def test_two_neighbours_exchange_half() -> None:
    assert collective_seconds("all-to-all", 90e9, LINE, 2) == pytest.approx(1.0, rel=1e-5)


def test_node_of_the_book() -> None:
    # GPUs: AllGather in a node costs bytes (n-1)/n over a GPU's own bandwidth.
    (link,) = Cluster.preset("h100", 8).axis_links(MeshSpec.of((8,)))
    seconds = collective_seconds("all-gather", 1e9, link, 8)
    assert seconds == pytest.approx(1e9 * 7 / 8 / 370e9, rel=0.01)


def test_wire_bytes() -> None:
    assert collective_wire_bytes("all-reduce", 800, 8) == 2 * collective_wire_bytes(
        "all-gather", 800, 8
    )
    assert collective_wire_bytes("reduce-scatter", 800, 8) == 700
    assert collective_wire_bytes("all-to-all", 800, 8) == 700
    assert collective_wire_bytes("collective-permute", 800, 8) == 800
    assert collective_wire_bytes("slice", 800, 8) == 0
    assert collective_wire_bytes("all-reduce", 800, 1) == 0


def test_unknown_kind() -> None:
    with pytest.raises(
        OptionError, match="'broadcast' is not a collective; expected one of all-ga"
    ):
        collective_seconds("broadcast", 1, RING, 2)  # pyright: ignore[reportArgumentType]


@given(
    st.sampled_from(KINDS),
    st.floats(0, 1e12),
    st.floats(0, 1e12),
    st.integers(1, 64),
    st.booleans(),
)
def test_more_bytes_never_cost_less(
    kind: CollectiveKind, a: float, b: float, size: int, wrap: bool
) -> None:
    link = RING if wrap else LINE
    few, many = sorted((a, b))
    assert (
        0 <= collective_seconds(kind, few, link, size) <= collective_seconds(kind, many, link, size)
    )


@given(st.floats(0, 1e12), st.integers(2, 64))
def test_all_reduce_is_scatter_then_gather(payload: float, size: int) -> None:
    parts = [collective_seconds(k, payload, RING, size) for k in ("reduce-scatter", "all-gather")]
    assert collective_seconds("all-reduce", payload, RING, size) == pytest.approx(sum(parts))


def test_a_reduce_scatter_over_a_whole_square_slice_costs_an_all_reduce() -> None:
    slice_ = Cluster.preset("tpu-v5e", (8, 8))
    whole = slice_.axis_links(MeshSpec.of((64,)))[0]
    scattered, reduced, gathered = (
        collective_seconds(kind, 2**26, whole, 64)
        for kind in ("reduce-scatter", "all-reduce", "all-gather")
    )
    assert scattered == reduced == pytest.approx(2 * gathered)
    assert all(link.scatters for link in slice_.axis_links(MeshSpec.of((16, 4))))
