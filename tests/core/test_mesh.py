"""Meshes, as users write them."""

import pytest

from autopar.core.errors import ClusterError
from autopar.core.mesh import MeshAxis, MeshSpec


@pytest.mark.parametrize("written", [(4, 2), [4, 2], {"data": 4, "model": 2}])
def test_forms_of_one_mesh(written):
    mesh = MeshSpec.of(written)
    assert (mesh.names, mesh.sizes, mesh.device_count) == (("data", "model"), (4, 2), 8)
    assert MeshSpec.of(mesh) is mesh
    assert str(mesh) == "data=4 x model=2"


def test_one_number_is_one_axis():
    assert MeshSpec.of(8) == MeshSpec.of((8,)) == MeshSpec((MeshAxis("data", 8),))


def test_time_axes_take_no_devices():
    assert MeshSpec((MeshAxis("data", 4), MeshAxis("microbatch", 3, "time"))).device_count == 4


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ((4, 0), "mesh axis 'model' has size 0; every axis needs at least one device"),
        ({"x": -1}, "mesh axis 'x' has size -1"),
        ((True,), "mesh axis 'data' has size True"),
        ((2.0,), "mesh axis 'data' has size 2.0"),
        ((1, 1, 1, 1, 2), "has 5 axes but only 4 have default names; give a dict"),
    ],
)
def test_what_is_no_mesh(written, message):
    with pytest.raises(ClusterError, match=message):
        MeshSpec.of(written)
