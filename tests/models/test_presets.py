"""Presets: what they are called, what they hold, and what is said of a wrong name."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from autopar.models import UnknownPreset, preset, preset_names

TINY = ("mlp:tiny", "gpt:tiny", "gpt:tiny-scan", "vit:tiny")


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_built(name):
    small = preset(name, layers=1)
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


def test_batches_can_be_resumed_at_any_step():
    workload = preset("gpt:tiny")
    third = next(itertools.islice(workload.batches(7), 2, None))
    assert np.array_equal(third["tokens"], next(workload.batches(7, start=2))["tokens"])


def test_parameters_are_counted_without_being_made():
    d, layers, vocab, seq = 12288, 96, 51200, 2048
    expected = layers * (12 * d * d + 13 * d) + (2 * vocab + seq + 2) * d
    assert preset("gpt:175b", scan=True).parameter_count() == expected


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
    with pytest.raises(ValueError, match=r"^unknown preset: 'zzz'; known: mlp:tiny, .*vit:h14$"):
        preset("zzz")


def test_unknown_option_names_the_nearest():
    with pytest.raises(
        TypeError, match=r"unknown option of gpt:tiny: 'layer'; did you mean layers\?"
    ):
        preset("gpt:tiny", layer=2)


def test_text_needs_a_vocabulary_of_bytes():
    workload = preset("gpt:tiny", vocab=100)
    assert workload.abstract_batch()["tokens"].dtype == jnp.int32
    with pytest.raises(ValueError, match="the text has 256 tokens, the model's vocabulary 100"):
        workload.batches()
