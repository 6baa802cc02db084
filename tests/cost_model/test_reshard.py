"""Layout changes: the closure equals Dijkstra over the steps, written down again here."""

import heapq
import itertools
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autopar.core.errors import InfeasibleError
from autopar.core.layout import B, Layout, Partial, Placement, Split, divides, parse, shards
from autopar.core.mesh import MeshAxis, MeshSpec
from autopar.cost_model import Link, Resharder, collective_seconds, parse_cluster
from autopar.cost_model.layout_steps import EPSILON_S

V5E = parse_cluster("tpu-v5e:4x4")


def _resharder(*sizes: int, text: str = "tpu-v5e:4x4") -> Resharder:
    mesh = MeshSpec.of(sizes)
    return Resharder(mesh, parse_cluster(text).axis_links(mesh))


def _layouts(shape: tuple[int, ...], mesh: MeshSpec, ops: tuple[str, ...]) -> list[Layout]:
    choices: list[Placement] = [B, *map(Partial, ops), *map(Split, range(len(shape)))]
    every = itertools.product(choices, repeat=len(mesh.axes))
    return [x for x in every if divides(shape, x, mesh) and not _mixed(x)]


def _mixed(layout: Layout) -> bool:
    return len({p.op for p in layout if isinstance(p, Partial)}) > 1


def _step(
    before: Layout, after: Layout, shape: tuple[int, ...], itemsize: int, r: Resharder
) -> float | None:
    """Seconds of the one step between two layouts, by the definition, if there is one."""
    changed = [i for i, (x, y) in enumerate(zip(before, after, strict=True)) if x != y]
    if len(changed) != 1:
        return None
    (axis,) = changed
    size, link = r.mesh.sizes[axis], r.links[axis]
    local = math.prod(shape) * itemsize / shards(before, r.mesh)
    later = {p for p in before[axis + 1 :] if isinstance(p, Split)}
    old, new = before[axis], after[axis]
    if old in later or new in later:
        return None
    if isinstance(old, Split) and isinstance(new, Split):
        seconds = collective_seconds("all-to-all", local, link, size)
    elif isinstance(old, Split) and new == B:
        seconds = collective_seconds("all-gather", local * size, link, size)
    elif isinstance(old, Partial) and new == B:
        seconds = collective_seconds("all-reduce", local, link, size)
    elif old == Partial("add") and isinstance(new, Split):
        seconds = collective_seconds("reduce-scatter", local, link, size)
    elif old == B:
        seconds = 0.0
    else:
        return None
    return max(seconds, EPSILON_S)


def _dijkstra(
    start: Layout, layouts: list[Layout], shape: tuple[int, ...], itemsize: int, r: Resharder
) -> dict[Layout, float]:
    best = {start: 0.0}
    queue = [(0.0, 0, start)]
    ties = itertools.count(1)
    while queue:
        cost, _, here = heapq.heappop(queue)
        if cost > best[here]:
            continue
        for there in layouts:
            step = _step(here, there, shape, itemsize, r)
            if step is not None and cost + step < best.get(there, math.inf):
                best[there] = cost + step
                heapq.heappush(queue, (best[there], next(ties), there))
    return best


_SHAPES = st.lists(st.sampled_from([1, 2, 4, 6, 8, 16, 512]), min_size=0, max_size=2).map(tuple)
_LINKS = st.builds(
    Link,
    st.just("link"),
    st.floats(1e9, 1e12),
    st.floats(0, 1e-4),
    st.booleans(),
)


@settings(max_examples=25, deadline=None)
@given(
    _SHAPES,
    st.sampled_from([(2,), (3,), (4, 2), (2, 4), (2, 2)]),
    st.sampled_from([(), ("add",), ("add", "max")]),
    st.tuples(_LINKS, _LINKS),
)
def test_matrix_equals_dijkstra(
    shape: tuple[int, ...], sizes: tuple[int, ...], ops: tuple[str, ...], links: tuple[Link, Link]
) -> None:
    mesh = MeshSpec.of(sizes)
    resharder = Resharder(mesh, links[: len(sizes)])
    layouts = _layouts(shape, mesh, ops)
    matrix = resharder.matrix(shape, 2, layouts, layouts)
    for row, start in enumerate(layouts):
        best = _dijkstra(start, layouts, shape, 2, resharder)
        expected = [best.get(layout, math.inf) for layout in layouts]
        np.testing.assert_allclose(matrix[row], expected, rtol=1e-9)


@pytest.mark.parametrize("sizes", [(4, 4), (2, 2, 4)])
def test_triangle_inequality_and_paths(sizes: tuple[int, ...]) -> None:
    resharder = _resharder(*sizes)
    shape = (64, 32)
    layouts = _layouts(shape, resharder.mesh, ("add",))
    matrix = resharder.matrix(shape, 4, layouts, layouts)
    assert np.isfinite(matrix).all()
    assert (np.diag(matrix) == 0).all()
    through = matrix[:, :, None] + matrix[None, :, :]
    assert (matrix[:, None, :] <= through * (1 + 1e-12)).all()
    for i, j in itertools.product(range(len(layouts)), repeat=2):
        path = resharder.path(shape, 4, layouts[i], layouts[j])
        assert sum(step.seconds for step in path) == pytest.approx(matrix[i, j], rel=1e-9)
        ends = [layouts[i], *(step.layout for step in path)]
        assert ends[-1] == layouts[j]
        for before, after, step in zip(ends, ends[1:], path, strict=False):
            seconds = _step(before, after, shape, 4, resharder)
            assert seconds == pytest.approx(step.seconds)


def _path(text: str, shape: tuple[int, ...], sizes: tuple[int, ...] = (4, 4)) -> list[str]:
    src, dst = map(parse, text.split(" -> "))
    steps = _resharder(*sizes).path(shape, 2, src, dst)
    return [f"{step.kind} {step.axis} {step.bytes}" for step in steps]


@pytest.mark.parametrize(
    ("change", "steps"),
    [
        ("B,B -> B,B", []),
        ("S(0),B -> B,B", ["all-gather data 131072"]),
        ("P,B -> B,B", ["all-reduce data 131072"]),
        ("P,B -> S(1),B", ["reduce-scatter data 131072"]),
        ("P,S(0) -> S(1),S(0)", ["reduce-scatter data 32768"]),
        ("B,S(0) -> B,S(1)", ["all-to-all model 32768"]),
        ("B,B -> S(0),S(1)", ["slice model 0", "slice data 0"]),
        ("B,B -> P,B", ["mask data 0"]),
        # The minor axis is gathered first, a quarter of the bytes.
        ("S(0),S(0) -> B,B", ["all-gather model 32768", "all-gather data 131072"]),
        # The first axis shrinks what the second one reduces.
        ("P,P -> S(0),S(0)", ["reduce-scatter data 131072", "reduce-scatter model 32768"]),
    ],
)
def test_paths_by_hand(change: str, steps: list[str]) -> None:
    assert _path(change, (256, 256)) == steps


def test_major_axis_is_not_gathered_under_a_minor_one() -> None:
    steps = _path("S(0),S(0) -> B,S(0)", (256, 256))
    assert steps != ["all-gather data 32768"]
    assert len(steps) > 1


def test_partial_of_another_operation_cannot_scatter() -> None:
    assert _path("P(max),B -> S(0),B", (256, 256)) == ["all-reduce data 131072", "slice data 0"]


def test_impossible_changes() -> None:
    resharder = _resharder(4, 4)
    uneven, even = parse("S(0),S(0)"), parse("B,B")
    matrix = resharder.matrix((8, 8), 4, [uneven, even], [even, uneven, parse("S(1),B")])
    assert np.isinf(matrix[0]).all()
    assert np.isfinite(matrix[1]).tolist() == [True, False, True]
    assert matrix[1, 0] == 0
    with pytest.raises(
        InfeasibleError,
        match=r"shape \(8, 8\) cannot go from B,B to S\(0\),S\(0\) on mesh data=4 x model=4",
    ):
        resharder.path((8, 8), 4, even, uneven)


def test_small_collectives_share_their_latency() -> None:
    resharder = _resharder(4, text="tpu-v5e:1x4")
    src, dst = parse("P"), parse("B")
    alone = resharder.seconds((256,), 4, src, dst)
    merged = resharder.seconds((256,), 4, src, dst, coalesced=True)
    latency = 2 * 3 * 1e-6  # there and back along a line of four
    assert alone - merged == pytest.approx(latency * (1 - 1024 / resharder.coalesce_bytes))
    large = (2**20, 4)
    assert resharder.seconds(large, 4, src, dst) == pytest.approx(
        resharder.seconds(large, 4, src, dst, coalesced=True)
    )


def test_time_axes_only_slice() -> None:
    mesh = MeshSpec((MeshAxis("micro", 4, "time"), MeshAxis("data", 16)))
    resharder = Resharder(mesh, V5E.axis_links(mesh))
    src = [parse(text) for text in ("B,B", "S(0),B", "P,B")]
    matrix = resharder.matrix((64,), 4, src, [parse("B,B"), parse("S(0),B")])
    assert np.isfinite(matrix).tolist() == [[True, True], [False, True], [False, False]]


def test_scalars_and_empty_values() -> None:
    resharder = _resharder(4, 4)
    assert resharder.seconds((), 4, parse("P,B"), parse("B,B")) > 0
    assert [s.kind for s in resharder.path((0, 8), 4, parse("S(1),B"), parse("B,B"))] == [
        "all-gather"
    ]


def test_same_question_same_answer_and_quick() -> None:
    layouts = _layouts((64, 64, 64), MeshSpec.of((2, 2, 4)), ("add",))
    began = time.perf_counter()
    first = _resharder(2, 2, 4).matrix((64, 64, 64), 2, layouts, layouts)
    assert time.perf_counter() - began < 1.0
    assert (first == _resharder(2, 2, 4).matrix((64, 64, 64), 2, layouts, layouts)).all()
    first[:] = 7
    assert not (_resharder(2, 2, 4).matrix((64, 64, 64), 2, layouts, layouts) == 7).any()
