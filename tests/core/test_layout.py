"""Layouts: their text, their PartitionSpecs, and what one device holds."""

import math

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.core import layout
from autopar.core.layout import B, Partial, Split
from autopar.core.mesh import MeshSpec

MESH = MeshSpec.of({"data": 4, "model": 2, "expert": 3})

placements = st.one_of(
    st.just(B),
    st.builds(Split, st.integers(0, 2)),
    st.builds(Partial, st.sampled_from(["add", "max", "min", "mul"])),
)
layouts = st.tuples(placements, placements, placements)
whole_layouts = layouts.filter(lambda found: not layout.is_partial(found))
shapes = st.tuples(*[st.integers(1, 48)] * 3)


@given(layouts)
def test_text_round_trips(found):
    assert layout.parse(layout.show(found)) == found


def test_text_is_one_placement_an_axis():
    assert layout.show((Split(1), B, Partial())) == "S(1),B,P"
    assert layout.parse("P(max),S(12)") == (Partial("max"), Split(12))
    assert layout.parse("") == ()


@pytest.mark.parametrize("text", ["S", "S(x)", "B,", "b", "P()", "S(-1)", "B B"])
def test_text_that_is_no_layout(text):
    with pytest.raises(ValueError, match=r"is not a placement: expected B, P, P\(op\) or S\(dim\)"):
        layout.parse(text)


@given(whole_layouts)
def test_spec_round_trips(found):
    assert layout.from_spec(layout.to_spec(found, MESH, 3), MESH) == found


def test_axes_of_one_dimension_stand_in_mesh_order():
    assert layout.to_spec((Split(1), B, Split(1)), MESH, 3) == jax.P(None, ("data", "expert"))
    assert layout.to_spec((Split(2), Split(0), B), MESH, 3) == jax.P("model", None, "data")


def test_partial_and_broadcast_have_no_place_in_a_spec():
    assert layout.to_spec((Partial(), B, Split(0)), MESH, 2) == jax.P("expert")
    assert layout.to_spec(layout.replicated(MESH), MESH, 2) == jax.P()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (jax.P("batch"), "'batch' names no axis of the mesh data=4 x model=2 x expert=3"),
        (jax.P(("model", "data")), r"must list its axes in mesh order \('data', 'model'"),
        ([("data", "data")], "'data' is used twice"),
        (["data", "data"], "'data' is used twice"),
        ([4], "4 is not a mesh axis name, a tuple of them, or None"),
    ],
)
def test_specs_that_do_not_fit_the_mesh(spec, message):
    with pytest.raises(ValueError, match=message):
        layout.from_spec(spec, MESH)


@given(shapes, whole_layouts)
def test_what_divides_is_cut_into_equal_pieces(shape, found):
    if layout.divides(shape, found, MESH):
        local = layout.local_shape(shape, found, MESH)
        assert math.prod(local) * layout.shards(found, MESH) == math.prod(shape)


def test_division_is_by_every_axis_of_a_dimension():
    both = (Split(0), Split(0), B)
    assert layout.divides((16, 3), both, MESH)
    assert not layout.divides((4, 3), both, MESH)
    assert not layout.divides((8,), (Split(1), B, B), MESH)
    assert layout.local_shape((16, 3), (Split(0), Split(0), Split(1)), MESH) == (2, 1)
    assert layout.shards((Split(0), Partial(), Split(1)), MESH) == 12
