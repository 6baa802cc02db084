"""Presets: what they are called, what they hold, and what is said of a wrong name."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models import UnknownPreset, preset, preset_names

TINY = tuple(name for name in preset_names() if ":tiny" in name)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_built(name):
    small = preset(name, **({"stages": (1,)} if name.startswith("resnet") else {"layers": 1}))
    assert small.parameter_count() > 0
    assert small.tokens_per_batch > 0


@pytest.mark.parametrize("name", TINY)
def test_batches_are_as_the_abstract_batch_says(name):
    workload = preset(name)
    for batch in itertools.islice(workload.batches(), 2):
        assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
            k: (v.shape, v.dtype) for k, v in workload.abstract_batch().items()
        }
    assert workload.abstract_batch(3)["targets"].shape[0] == 3
    assert len(next(workload.batches(batch=3))["targets"]) == 3


@pytest.mark.parametrize("name", ["llama:tiny", "moe:tiny", "t5:tiny", "lstm:tiny", "resnet:tiny"])
def test_other_families_compute_in_bf16_from_f32_parameters(name):
    small = {"stages": (1,)} if name.startswith("resnet") else {"layers": 1}
    work = preset(name, dtype="bfloat16", batch_size=2, **small)
    batch, state = work.abstract_batch(), work.abstract_state()
    inputs = [batch[key] for key in batch if key != "targets"]
    variables = {"params": state.params, **state.variables}
    assert jax.eval_shape(work.model.apply, variables, *inputs).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    after, _ = jax.eval_shape(work.train_step, state, batch)
    kept = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), after, state)
    assert all(jax.tree.leaves(kept))


def test_batches_can_be_resumed_at_any_step():
    workload = preset("gpt:tiny")
    third = next(itertools.islice(workload.batches(7), 2, None))
    assert np.array_equal(third["tokens"], next(workload.batches(7, start=2))["tokens"])


def test_parameters_are_counted_without_being_made():
    d, layers, vocab, seq = 12288, 96, 51200, 2048
    expected = layers * (12 * d * d + 13 * d) + (2 * vocab + seq + 2) * d
    assert preset("gpt:175b", scan=True).parameter_count() == expected


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama2:7b", 6_738_415_616),
        ("llama2:13b", 13_015_864_320),
        ("llama2:70b", 68_976_648_192),
        ("llama3:8b", 8_030_261_248),
        ("llama3:70b", 70_553_706_496),
        ("llama3:405b", 405_853_388_800),
        ("mixtral:8x7b", 46_702_792_704),
        ("t5:3b", 2_849_757_184),
        ("t5:11b", 11_135_332_352),
        ("resnet:50", 25_557_032),
    ],
)
def test_models_have_the_published_parameters(name, published):
    overrides = {} if name.startswith("resnet") else {"scan": True}
    assert preset(name, **overrides).parameter_count() == published


def test_tokens_are_counted_by_batch():
    assert preset("gpt:tiny").tokens_per_batch == 16 * 128
    assert preset("vit:tiny", batch_size=2, pool="cls").tokens_per_batch == 2 * (64 + 1)
    assert preset("mlp:tiny").tokens_per_batch == 64


def test_overrides_reach_config_batch_and_data():
    workload = preset("gpt:tiny", layers=2, seq=32, dtype="bfloat16", batch_size=8)
    assert (workload.config.layers, workload.config.heads) == (2, 8)
    assert workload.abstract_batch()["tokens"].shape == (8, 32)
    assert preset("gpt:tiny").config.layers == 4


def test_unknown_preset_names_the_nearest():
    with pytest.raises(UnknownPreset, match=r"^unknown preset: 'gpt:tyni'; did you mean gpt:tiny"):
        preset("gpt:tyni")


def test_unknown_preset_with_nothing_near_names_them_all():
    with pytest.raises(ValueError, match=r"^unknown preset: 'zzz'; known: mlp:tiny, .*vit:22b$"):
        preset("zzz")


def test_unknown_option_names_the_nearest():
    with pytest.raises(
        TypeError, match=r"unknown option of gpt:tiny: 'layer'; did you mean layers"
    ):
        preset("gpt:tiny", layer=2)


def test_text_needs_a_vocabulary_of_bytes():
    workload = preset("gpt:tiny", vocab=100)
    assert workload.abstract_batch()["tokens"].dtype == jnp.int32
    with pytest.raises(ValueError, match="the text has 256 tokens, the model's vocabulary 100"):
        workload.batches()
