"""The training text and what is cut from it."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autopar.models import data


@given(st.text())
def test_decode_undoes_encode(text):
    tokens = data.encode(text)
    assert tokens.dtype == np.int32
    assert data.decode(tokens) == text


def test_decode_shows_what_is_not_text():
    assert data.decode(np.array([104, 105, 255])) == "hi\ufffd"


def test_corpus_is_python_source():
    text = data.corpus()
    assert text.dtype == np.uint8
    assert len(text) > 1_000_000
    assert "def " in data.decode(text[:10_000])


def test_targets_are_the_next_tokens():
    batch = next(data.batches(0, 3, 16))
    assert np.array_equal(batch["tokens"][:, 1:], batch["targets"][:, :-1])
    assert data.decode(batch["tokens"][0]).encode() in data.corpus().tobytes()


def test_continuations_follow():
    batch = next(data.continuations(0, 3, 16, 4))
    assert {name: x.shape for name, x in batch.items()} == {
        "tokens": (3, 16),
        "previous": (3, 4),
        "targets": (3, 4),
    }
    assert np.array_equal(batch["previous"][:, 1:], batch["targets"][:, :-1])
    assert np.array_equal(batch["previous"][:, 0], batch["tokens"][:, -1])
    whole = np.concatenate([batch["tokens"][0], batch["targets"][0]])
    assert data.decode(whole).encode() in data.corpus().tobytes()


@pytest.mark.parametrize(
    "make",
    [
        lambda seed, start: data.batches(seed, 2, 8, start=start),
        lambda seed, start: data.continuations(seed, 2, 8, 4, start=start),
        lambda seed, start: data.image_batches(seed, 2, 4, 3, 5, start=start),
        lambda seed, start: data.regression_batches(seed, 2, 8, 4, start=start),
    ],
    ids=["text", "continuations", "images", "regression"],
)
def test_batches_depend_on_seed_and_step_alone(make):
    first, again = make(1, 0), make(1, 0)
    for _ in range(2):
        batch, same = next(first), next(again)
        assert all(np.array_equal(batch[name], same[name]) for name in batch)
    third = next(first)
    assert all(np.array_equal(third[name], other) for name, other in next(make(1, 2)).items())
    source = next(name for name in third if name != "targets")
    assert not np.array_equal(third[source], next(make(2, 2))[source])
    assert not np.array_equal(third[source], next(first)[source])


def test_images_are_sorted_by_brightness_into_even_classes():
    batch = next(data.image_batches(0, 4000, 4, 3, 4))
    assert batch["images"].shape == (4000, 4, 4, 3)
    assert np.abs(batch["images"]).max() <= 1
    brightness = batch["images"].mean(axis=(1, 2, 3))
    ranges = [brightness[batch["targets"] == label] for label in range(4)]
    assert all(len(r) > 800 for r in ranges)
    assert all(a.max() <= b.min() + 1e-6 for a, b in itertools.pairwise(ranges))


def test_regression_targets_follow_the_inputs():
    batch = next(data.regression_batches(0, 5, 8, 4))
    bytes_of = {name: np.rint((v + 1) * 127.5).astype(np.uint8) for name, v in batch.items()}
    window = np.concatenate([bytes_of["inputs"][0], bytes_of["targets"][0]]).tobytes()
    assert len(window) == 12
    assert window in data.corpus().tobytes()
