"""Workloads by name, `family:size`: a model, its data and its training step."""

import dataclasses
import difflib
from typing import Any, NamedTuple

import jax.numpy as jnp

from autopar.models.data import VOCAB
from autopar.models.gpt import GPTConfig
from autopar.models.mlp import MLPConfig
from autopar.models.training import default_optimizer
from autopar.models.vit import ViTConfig
from autopar.models.workload import Config, Workload, make_workload


class UnknownPreset(ValueError):
    """No preset has this name."""


class _Preset(NamedTuple):
    config: Config
    batch_size: int
    learning_rate: float = 3e-4


def _gpt(layers: int, d_model: int, heads: int, batch_size: int) -> _Preset:
    return _Preset(GPTConfig(layers=layers, d_model=d_model, heads=heads), batch_size)


def _vit(layers: int, d_model: int, heads: int, patch: int = 16) -> _Preset:
    config = ViTConfig(layers=layers, d_model=d_model, heads=heads, patch=patch)
    return _Preset(config, 1024, 1e-3)


_TINY_GPT = GPTConfig(layers=4, d_model=128, heads=8, vocab=VOCAB, seq=128, dtype=jnp.float32)
_TINY_VIT = ViTConfig(
    layers=4, d_model=128, heads=8, image=32, patch=4, classes=16, dtype=jnp.float32
)

# Sizes bear their published names, though the output layer here has parameters of its own. From
# GPT-3's table, 1.3b has 16 heads (24 do not divide 2048) and 13b is 5120 wide (40 divides that).
_PRESETS: dict[str, _Preset] = {
    "mlp:tiny": _Preset(
        MLPConfig(layers=4, inputs=64, hidden=256, outputs=64, dtype=jnp.float32), 64, 1e-3
    ),
    "mlp:wide": _Preset(MLPConfig(layers=8, inputs=8192, hidden=8192, outputs=8192), 4096),
    "gpt:tiny": _Preset(_TINY_GPT, 16, 1e-3),
    "gpt:tiny-scan": _Preset(dataclasses.replace(_TINY_GPT, scan=True), 16, 1e-3),
    "gpt:125m": _gpt(12, 768, 12, 64),
    "gpt:350m": _gpt(24, 1024, 16, 64),
    "gpt:760m": _gpt(24, 1536, 16, 64),
    "gpt:1.3b": _gpt(24, 2048, 16, 64),
    "gpt:2.7b": _gpt(32, 2560, 32, 128),
    "gpt:6.7b": _gpt(32, 4096, 32, 128),
    "gpt:13b": _gpt(40, 5120, 40, 128),
    "gpt:30b": _gpt(48, 7168, 56, 256),
    "gpt:175b": _gpt(96, 12288, 96, 256),
    "vit:tiny": _Preset(_TINY_VIT, 16, 1e-3),
    "vit:s16": _vit(12, 384, 6),
    "vit:b16": _vit(12, 768, 12),
    "vit:l16": _vit(24, 1024, 16),
    "vit:h14": _vit(32, 1280, 16, patch=14),
}


def preset_names() -> tuple[str, ...]:
    """The names that `preset` takes, by family and size."""
    return tuple(_PRESETS)


def preset(name: str, **overrides: Any) -> Workload:
    """The workload of this name, with any field of its model's config set otherwise.

    `batch_size` and `learning_rate` may be set too:
    `preset("gpt:125m", layers=2, dtype="float32", batch_size=8)`.

    Raises:
        UnknownPreset: no preset has this name.
        TypeError: an override is no field of the model's config.
    """
    if name not in _PRESETS:
        raise UnknownPreset(_unknown("preset", name, preset_names()))
    chosen = _PRESETS[name]
    of_run = ("batch_size", "learning_rate")
    options = (*(field.name for field in dataclasses.fields(chosen.config)), *of_run)
    for option in overrides:
        if option not in options:
            raise TypeError(_unknown(f"option of {name}", option, options))
    chosen = chosen._replace(**{key: overrides.pop(key) for key in of_run if key in overrides})
    return make_workload(
        name,
        dataclasses.replace(chosen.config, **overrides),
        optimizer=default_optimizer(chosen.learning_rate),
        batch_size=chosen.batch_size,
    )


def _unknown(what: str, name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"unknown {what}: {name!r}; {hint}"
