"""Real text that every machine has: the source of Python's own standard library, as bytes.

Batches are a function of `(seed, step)` alone, so that a run can be repeated, or resumed at any
step. Corpora differ between Python versions, as the library does.
"""

import functools
import itertools
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

VOCAB = 256
"""Tokens are bytes."""

Arrays: TypeAlias = dict[str, NDArray[Any]]


def encode(text: str) -> NDArray[np.int32]:
    """The text's UTF-8 bytes, as int32 [S]."""
    return np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32)


def decode(tokens: NDArray[np.integer[Any]]) -> str:
    """The text of byte tokens [S]; what is not UTF-8 shows as a replacement character."""
    return tokens.astype(np.uint8).tobytes().decode(errors="replace")


@functools.cache
def corpus() -> NDArray[np.uint8]:
    """The standard library's top-level modules, one after another by name: uint8 [some 5e6].

    Raises:
        FileNotFoundError: this Python was installed without its library's source.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    # _sysconfigdata* describes the machine that built this Python: it is not the library's.
    files = [f for f in folder.glob("*.py") if not f.name.startswith("_sysconfigdata")]
    if not files:
        raise FileNotFoundError(f"no Python source in {folder}, which the training text is made of")
    text = b"\n".join(f.read_bytes() for f in sorted(files, key=lambda f: f.name))
    return np.frombuffer(text, dtype=np.uint8)


def batches(seed: int, batch: int, seq: int, *, start: int = 0) -> Iterator[Arrays]:
    """Endless text, for next-token prediction.

    Args:
        seed: which order.
        batch: B, windows a batch.
        seq: S, tokens a window.
        start: step to begin at.

    Yields:
        `tokens` and `targets`, int32 [B, S]: targets are the tokens one further.
    """
    for windows in _windows(seed, batch, seq + 1, start):
        text = windows.astype(np.int32)
        yield {"tokens": text[:, :-1], "targets": text[:, 1:]}


def continuations(
    seed: int, batch: int, seq: int, target_seq: int, *, start: int = 0
) -> Iterator[Arrays]:
    """Endless text and how it goes on, for encoder-decoder models.

    Args:
        seed: which order.
        batch: B, windows a batch.
        seq: S, tokens given.
        target_seq: T, tokens to predict.
        start: step to begin at.

    Yields:
        `tokens`, int32 [B, S]; `targets`, int32 [B, T], the tokens that follow; `previous`, int32
        [B, T], the token before each of those.
    """
    for windows in _windows(seed, batch, seq + target_seq, start):
        text = windows.astype(np.int32)
        yield {
            "tokens": text[:, :seq],
            "previous": text[:, seq - 1 : -1],
            "targets": text[:, seq:],
        }


def image_batches(
    seed: int, batch: int, image: int, channels: int, classes: int, *, start: int = 0
) -> Iterator[Arrays]:
    """Endless pictures of the text, to be sorted by brightness.

    Args:
        seed: which order.
        batch: B, images a batch.
        image: H and W.
        channels: C.
        classes: number of levels of brightness, about equally common.
        start: step to begin at.

    Yields:
        `images`, f32 [B, H, W, C] in [-1, 1]; `targets`, int32 [B] in [0, classes).
    """
    size = image * image * channels
    levels = _levels(size, classes)
    for windows in _windows(seed, batch, size, start):
        labels = np.searchsorted(levels, windows.mean(axis=1)).astype(np.int32)
        yield {"images": _unit(windows).reshape(batch, image, image, channels), "targets": labels}


def regression_batches(
    seed: int, batch: int, inputs: int, outputs: int, *, start: int = 0
) -> Iterator[Arrays]:
    """Endless bytes, to predict the bytes that follow as numbers.

    Args:
        seed: which order.
        batch: B, windows a batch.
        inputs: bytes given.
        outputs: bytes to predict.
        start: step to begin at.

    Yields:
        `inputs`, f32 [B, inputs], and `targets`, f32 [B, outputs], both in [-1, 1].
    """
    for windows in _windows(seed, batch, inputs + outputs, start):
        values = _unit(windows)
        yield {"inputs": values[:, :inputs], "targets": values[:, inputs:]}


def _windows(seed: int, batch: int, length: int, start: int) -> Iterator[NDArray[np.uint8]]:
    """Yields windows of the corpus, uint8 [batch, length]."""
    windows = np.lib.stride_tricks.sliding_window_view(corpus(), length)
    for step in itertools.count(start):
        yield windows[np.random.default_rng((seed, step)).integers(0, len(windows), size=batch)]


@functools.cache
def _levels(size: int, classes: int) -> NDArray[np.float64]:
    """What cuts the means of the corpus's windows of `size` bytes into `classes` equal parts."""
    text = corpus()
    means = text[: len(text) // size * size].reshape(-1, size).mean(axis=1)
    return np.quantile(means, np.arange(1, classes) / classes)


def _unit(values: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes as f32 in [-1, 1]."""
    return values.astype(np.float32) / np.float32(127.5) - np.float32(1)
