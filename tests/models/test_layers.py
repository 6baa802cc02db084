"""What layers mean: rotations, shared key heads, fused projections, experts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models import GPT, GPTConfig, Llama, LlamaConfig
from autopar.models.attention import Attention, rotate
from autopar.models.experts import Experts, imbalance, route
from autopar.models.layers import TransformerConfig
from autopar.models.t5 import bucket
from autopar.models.transformer import FeedForward

KEY = jax.random.key(0)
TOKENS = jnp.arange(2 * 8).reshape(2, 8)
X = jnp.asarray(np.random.default_rng(1).normal(size=(2, 8, 16)), jnp.float32)


def config(**overrides):
    return TransformerConfig(
        **{"layers": 1, "d_model": 16, "heads": 4, "dtype": jnp.float32, **overrides}
    )


def random_params(module, *args):
    """Parameters at random, without compiling the module's own `init`."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(module.init, KEY, *args)["params"]
    return jax.tree.map(lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype("f"), shapes)


def test_rotated_products_depend_on_distance_alone():
    same = jnp.broadcast_to(X[:1, :1, None, :], (1, 8, 1, 16))
    q, k = rotate(same, 100.0), rotate(same[..., ::-1], 100.0)
    products = np.asarray(jnp.einsum("bqhd,bkhd->qk", q, k))
    for distance in range(-6, 7):
        diagonal = np.diagonal(products, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-4)
    assert np.std(products[0]) > 0.1
    np.testing.assert_allclose(q[:, 0], same[:, 0])


def test_shared_key_heads_are_repeated_ones():
    shared = Attention(config(kv_heads=2), causal=True)
    params = random_params(shared, X)

    def repeat(w):
        by_head = w.reshape(*w.shape[:-1], 2, 4)
        return np.repeat(by_head, 2, axis=-2).reshape(*w.shape[:-1], 16)

    repeated = params | {name: jax.tree.map(repeat, params[name]) for name in ("k", "v")}
    expected = Attention(config(), causal=True).apply({"params": repeated}, X)
    np.testing.assert_allclose(shared.apply({"params": params}, X), expected, atol=1e-5)


def test_a_fused_projection_is_three_side_by_side():
    plain, fused = (
        Attention(config(kv_heads=2), True),
        Attention(config(kv_heads=2, fused_qkv=True), True),
    )
    params = random_params(plain, X)
    joined = jax.tree.map(
        lambda *leaves: np.concatenate(leaves, axis=-1), *(params[name] for name in "qkv")
    )
    expected = plain.apply({"params": params}, X)
    got = fused.apply({"params": {"qkv": joined, "out": params["out"]}}, X)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_a_tied_head_is_the_embedding():
    shape = {"layers": 1, "d_model": 16, "heads": 4, "vocab": 32, "seq": 8, "dtype": jnp.float32}
    tied, plain = GPT(GPTConfig(**shape, tied=True)), GPT(GPTConfig(**shape))
    params = random_params(tied, TOKENS)
    with_head = params | {"lm_head": {"kernel": params["embed"]["embedding"].T}}
    expected = plain.apply({"params": with_head}, TOKENS)
    np.testing.assert_allclose(tied.apply({"params": params}, TOKENS), expected, atol=1e-5)


def test_llama_has_no_bias_and_sees_no_later_token():
    shape = {"layers": 1, "d_model": 16, "heads": 4, "kv_heads": 2, "vocab": 32, "d_ff": 24}
    model = Llama(LlamaConfig(**shape, dtype=jnp.float32))
    params = random_params(model, TOKENS)
    names = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)}
    assert not any("bias" in name for name in names)
    assert params["block_0"]["attn"]["k"]["kernel"].shape == (16, 8)
    before = model.apply({"params": params}, TOKENS)
    after = model.apply({"params": params}, TOKENS.at[:, 5].set(0))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert not np.array_equal(before[:, 5:], after[:, 5:])


def test_experts_with_room_for_all_are_a_weighted_sum():
    c = config(experts=3, top_k=3, capacity=1.0, d_ff=8, use_bias=False, gated=True)
    layer = Experts(c)
    params = random_params(layer, X)
    shares = jax.nn.softmax(X @ params["router"]["kernel"])
    expected = sum(
        shares[..., e : e + 1]
        * FeedForward(c).apply(
            {"params": {name: {"kernel": params[name][e]} for name in ("gate", "up", "down")}}, X
        )
        for e in range(3)
    )
    np.testing.assert_allclose(layer.apply({"params": params}, X), expected, atol=1e-5)


def test_routing_is_first_come_first_served_and_second_choices_wait():
    likely = jnp.asarray([[[0.6, 0.4], [0.7, 0.3], [0.2, 0.8], [0.9, 0.1]]])
    np.testing.assert_allclose(
        route(likely, 1, 2)[0].sum(-1), [[0.6, 0], [0.7, 0], [0, 0.8], [0, 0]], atol=1e-6
    )
    combine = np.asarray(route(likely, 2, 3)[0])
    np.testing.assert_allclose(
        combine.sum(-1), [[0.6, 0.4], [0.7, 0.3], [0, 0.8], [0.9, 0]], atol=1e-6
    )
    assert (combine > 0).sum(axis=0).max() == 1  # a place is one token's
    assert float(imbalance(likely)) == pytest.approx(2 * (0.75 * 0.6 + 0.25 * 0.4))
    assert float(imbalance(jnp.full((1, 4, 2), 0.5))) == pytest.approx(1.0)


def test_experts_sow_how_unevenly_they_are_used():
    layer = Experts(config(experts=4, d_ff=8, balance=0.5))
    params = random_params(layer, X)
    _, sown = jax.jit(lambda p: layer.apply({"params": p}, X, mutable=["losses"]))(params)
    expected = 0.5 * imbalance(jax.nn.softmax(X @ params["router"]["kernel"]))
    np.testing.assert_allclose(sown["losses"]["balance"][0], expected, rtol=1e-5)


def test_distances_fall_into_buckets():
    past = np.asarray(bucket(256, 32, 128, causal=True))[-1][::-1]
    assert past[:16].tolist() == list(range(16))
    assert (np.diff(past) >= 0).all()
    assert past[128:].tolist() == [31] * 128
    both = np.asarray(bucket(256, 32, 128, causal=False))
    assert (both[0, 1:] >= 16).all()
    assert (both[-1, :-1] < 16).all()
    assert both[0, 0] == 0


def test_impossible_shapes_say_so():
    with pytest.raises(ValueError, match="heads=4 is not a multiple of kv_heads=3"):
        config(kv_heads=3)
    with pytest.raises(ValueError, match="rotary positions turn pairs, and a head is 3 wide"):
        config(d_head=3, rope_theta=1e4)
    with pytest.raises(ValueError, match="top_k=2 of experts=1"):
        config(experts=1)
    with pytest.raises(ValueError, match="a loop over layers needs them alike"):
        config(experts=4, experts_every=2, scan=True)
