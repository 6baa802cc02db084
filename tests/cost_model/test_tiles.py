"""Padding of what convolutions read and make."""

import jax
import jax.numpy as jnp
import pytest

from autopar.cost_model.tiles import convolved, padding, tiled_elements


@pytest.mark.parametrize(
    ("shape", "minor", "elements"),
    [
        ((16, 56, 56, 64), None, 16 * 56 * 56 * 64),
        ((16, 56, 56, 256), (0, 3), 16 * 56 * 56 * 256),  # both fill their tiles
        ((16, 56, 56, 64), (0, 3), 16 * 56 * 56 * 128),  # features are minor
        ((16, 224, 224, 3), (0, 3), 128 * 224 * 224 * 4),  # the batch is
        ((6, 2, 2, 200), (0, 3), 8 * 2 * 2 * 256),
        ((1, 1), (0, 1), 128),
    ],
)
def test_elements_as_the_compiler_was_seen_to_pad_them(shape, minor, elements):
    assert tiled_elements(shape, minor) == elements


def test_what_is_computed_from_a_convolution_lies_as_its_result_does():
    def fn(image: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
        out = jax.lax.conv_general_dilated(
            image * 2, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.maximum(out + bias, 0).sum()

    shapes = (8, 6, 6, 3), (3, 3, 3, 5), (5,)
    jaxpr = jax.make_jaxpr(fn)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).jaxpr
    found = convolved([jaxpr])
    assert {var.aval.shape for var in found} == {(8, 6, 6, 3), (8, 6, 6, 5)}
    assert all(sorted(minor) == [0, 3] for minor in found.values())
    assert not set(jaxpr.invars) & set(found)  # these lie as their maker left them
    assert {eqn.outvars[0] for eqn in jaxpr.eqns if eqn.primitive.name == "max"} <= set(found)


def test_scores_and_what_they_are_made_of_are_padded_where_they_do_not_fill_tiles():
    def fn(q: jax.Array, k: jax.Array) -> jax.Array:
        heads = q.reshape(2, 196, 12, 64)
        return jnp.tanh(jnp.einsum("bqhd,bkhd->bhqk", heads, k))

    shapes = (2, 196, 768), (2, 196, 12, 64)
    args = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    jaxpr = jax.make_jaxpr(lambda q, k: fn(q * 2, k * 2))(*args).jaxpr
    found = convolved([jaxpr])
    sizes = {v.aval.shape: tiled_elements(v.aval.shape, minor) for v, minor in found.items()}
    scores, heads = 2 * 12 * 200 * 256, 2 * 12 * 64 * 256
    assert sizes == {(2, 12, 196, 196): scores, (2, 196, 12, 64): heads}  # as XLA:TPU holds them
    source = jaxpr.eqns[0].outvars[0]
    (view,) = [eqn.outvars[0] for eqn in jaxpr.eqns if eqn.primitive.name == "reshape"]
    assert padding(found, {view: source}) == {source: 256 / 196}
