"""The models by themselves: shapes, types, and that one model written in two ways is one model."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models import GPT, MLP, GPTConfig, MLPConfig, ViT, ViTConfig

KEY = jax.random.key(0)
TOKENS = jnp.arange(2 * 16).reshape(2, 16) % 32
IMAGES = jnp.linspace(-1, 1, 2 * 8 * 8 * 3).reshape(2, 8, 8, 3)


def gpt(**overrides):
    shape = {"layers": 2, "d_model": 16, "heads": 4, "vocab": 32, "seq": 16, "dtype": jnp.float32}
    return GPT(GPTConfig(**(shape | overrides)))


def vit(**overrides):
    shape = {"layers": 1, "d_model": 16, "heads": 4, "image": 8, "patch": 4, "classes": 5}
    return ViT(ViTConfig(**(shape | overrides)))


def value_and_grad(model, params):
    def loss(params):
        return jnp.square(model.apply({"params": params}, TOKENS)).mean()

    return jax.jit(jax.value_and_grad(loss))(params)


def random_params(model):
    """Parameters at random, faster than compiling the model's own `init`."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: rng.normal(scale=0.1, size=leaf.shape).astype(leaf.dtype),
        jax.eval_shape(model.init, KEY, TOKENS)["params"],
    )


def stacked(params):
    """Parameters of an unrolled model of two layers, as the scanned model names them."""
    rest = {name: value for name, value in params.items() if not name.startswith("block_")}
    blocks = (params["block_0"], params["block_1"])
    return rest | {"blocks": jax.tree.map(lambda a, b: np.stack([a, b]), *blocks)}


@functools.cache
def plain():
    """The unrolled model's parameters, its loss and its gradients."""
    params = random_params(gpt())
    return params, *value_and_grad(gpt(), params)


@pytest.mark.parametrize(
    ("model", "x", "shape"),
    [
        (MLP(MLPConfig(layers=2, inputs=8, hidden=16, outputs=4)), jnp.ones((2, 8)), (2, 4)),
        (gpt(dtype=jnp.bfloat16), TOKENS, (2, 16, 32)),
        (gpt(dtype="bfloat16", scan=True, remat=True), TOKENS, (2, 16, 32)),
        (vit(), IMAGES, (2, 5)),
        (vit(pool="cls"), IMAGES, (2, 5)),
    ],
)
def test_computes_in_bf16_from_f32_parameters(model, x, shape):
    out, variables = jax.eval_shape(model.init_with_output, KEY, x)
    assert (out.shape, out.dtype) == (shape, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}


def test_gpt_parameters_are_named_for_rules_and_pins():
    params = jax.eval_shape(gpt().init, KEY, TOKENS)["params"]
    shapes = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    assert shapes["embed/embedding"] == (32, 16)
    assert shapes["pos_embed"] == (16, 16)
    for name in ("q", "k", "v", "out"):
        assert shapes[f"block_0/attn/{name}/kernel"] == (16, 16)
    assert shapes["block_1/mlp/up/kernel"] == (16, 64)
    assert shapes["block_1/mlp/down/kernel"] == (64, 16)
    assert shapes["lm_head/kernel"] == (16, 32)


@pytest.mark.parametrize("variant", [{"scan": True}, {"remat": True}])
def test_scan_and_remat_change_no_value_and_no_gradient(variant):
    params, value, grads = plain()
    if variant.get("scan"):
        params, grads = stacked(params), stacked(grads)
    other_value, other_grads = value_and_grad(gpt(**variant), params)
    assert np.isclose(value, other_value, rtol=1e-5)
    chex.assert_trees_all_close(grads, other_grads, rtol=1e-4, atol=1e-6)


def test_gpt_sees_no_later_token():
    model = gpt()
    variables = {"params": random_params(model)}
    apply = jax.jit(model.apply)
    before, after = apply(variables, TOKENS), apply(variables, TOKENS.at[:, 9].set(0))
    assert jnp.array_equal(before[:, :9], after[:, :9])
    assert not jnp.array_equal(before[:, 9:], after[:, 9:])


def test_shorter_sequences_fit_and_longer_ones_say_so():
    assert jax.eval_shape(gpt().init_with_output, KEY, TOKENS[:, :8])[0].shape == (2, 8, 32)
    with pytest.raises(
        ValueError, match="a sequence of 17 tokens, where the model has 16 positions"
    ):
        jax.eval_shape(gpt().init, KEY, jnp.zeros((2, 17), jnp.int32))


def test_impossible_shapes_say_so():
    with pytest.raises(ValueError, match="d_model=16 is not a multiple of heads=3"):
        gpt(heads=3)
    with pytest.raises(ValueError, match="image=8 is not a multiple of patch=3"):
        vit(patch=3)
