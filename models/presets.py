"""Workloads by name, `family:size`: a model, its data and its training step."""

import dataclasses
import difflib
from typing import Any, NamedTuple

import jax.numpy as jnp

from autopar.models.data import VOCAB
from autopar.models.family import Config
from autopar.models.gpt import GPTConfig
from autopar.models.llama import LlamaConfig
from autopar.models.lstm import LSTMConfig
from autopar.models.mlp import MLPConfig
from autopar.models.resnet import ResNetConfig
from autopar.models.t5 import T5Config
from autopar.models.training import default_optimizer
from autopar.models.vit import ViTConfig
from autopar.models.workload import Workload, make_workload


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


def _llama(
    layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int, batch_size: int
) -> _Preset:
    # The S x S scores of every layer together are more than any cluster holds: `remat`.
    config = LlamaConfig(
        layers=layers, d_model=d_model, heads=heads, kv_heads=kv_heads, d_ff=d_ff, remat=True
    )
    return _Preset(config, batch_size)


def _llama2(layers: int, d_model: int, heads: int, kv_heads: int, d_ff: int) -> _Preset:
    chosen = _llama(layers, d_model, heads, kv_heads, d_ff, 256)
    config = dataclasses.replace(chosen.config, vocab=32000, seq=4096, rope_theta=10_000.0)
    return chosen._replace(config=config)


def _t5(layers: int, d_model: int, heads: int, d_ff: int) -> _Preset:
    config = T5Config(layers=layers, d_model=d_model, heads=heads, d_head=64, d_ff=d_ff)
    return _Preset(config, 512)


_TINY_GPT = GPTConfig(layers=4, d_model=128, heads=8, vocab=VOCAB, seq=128, dtype=jnp.float32)
_TINY_VIT = ViTConfig(
    layers=4, d_model=128, heads=8, image=32, patch=4, classes=16, dtype=jnp.float32
)
_TINY_LLAMA = LlamaConfig(
    layers=4, d_model=128, heads=8, kv_heads=4, d_ff=256, vocab=VOCAB, seq=128, dtype=jnp.float32
)
_TINY_MOE = dataclasses.replace(_TINY_GPT, experts=8, experts_every=2)
_TINY_T5 = T5Config(
    layers=2, d_model=128, heads=8, d_ff=256, vocab=VOCAB, seq=64, target_seq=32, dtype=jnp.float32
)
_TINY_LSTM = LSTMConfig(layers=2, d_model=128, vocab=VOCAB, seq=64, dtype=jnp.float32)
_TINY_RESNET = ResNetConfig(stages=(1, 1), width=16, image=32, classes=16, dtype=jnp.float32)

_GLAM = GPTConfig(
    layers=24, d_model=2048, heads=16, vocab=256_000, seq=1024, experts=64, experts_every=2
)
_MIXTRAL = LlamaConfig(
    layers=32,
    d_model=4096,
    heads=32,
    kv_heads=8,
    d_ff=14336,
    experts=8,
    vocab=32000,
    rope_theta=1e6,
    remat=True,
)

# Sizes bear their published names, though the output layer here has parameters of its own. From
# GPT-3's table, 1.3b has 16 heads (24 do not divide 2048) and 13b is 5120 wide (40 divides that).
# Shapes of others: moe:27b from GLaM (Du et al. 2021, table 4, "1.7B/64E"), mixtral from Jiang et
# al. 2024, here with limited room for tokens; vit:22b from Dehghani et al. 2023, its blocks in
# sequence instead of side by side.
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
    "llama:tiny": _Preset(_TINY_LLAMA, 16, 1e-3),
    "llama:tiny-scan": _Preset(dataclasses.replace(_TINY_LLAMA, scan=True), 16, 1e-3),
    "llama2:7b": _llama2(32, 4096, 32, 32, 11008),
    "llama2:13b": _llama2(40, 5120, 40, 40, 13824),
    "llama2:70b": _llama2(80, 8192, 64, 8, 28672),
    "llama3:8b": _llama(32, 4096, 32, 8, 14336, 64),
    "llama3:70b": _llama(80, 8192, 64, 8, 28672, 512),
    "llama3:405b": _llama(126, 16384, 128, 8, 53248, 512),
    "moe:tiny": _Preset(_TINY_MOE, 16, 1e-3),
    "moe:27b": _Preset(_GLAM, 256),
    "mixtral:8x7b": _Preset(_MIXTRAL, 256),
    "t5:tiny": _Preset(_TINY_T5, 16, 1e-3),
    "t5:small": _t5(8, 512, 6, 1024),
    "t5:large": _t5(24, 1024, 16, 2816),
    "t5:3b": _t5(24, 2048, 32, 5120),
    "t5:11b": _t5(24, 4096, 64, 10240),
    "lstm:tiny": _Preset(_TINY_LSTM, 16, 1e-3),
    "resnet:tiny": _Preset(_TINY_RESNET, 16, 1e-3),
    "resnet:50": _Preset(ResNetConfig(), 1024, 1e-3),
    "resnet:152": _Preset(ResNetConfig(stages=(3, 8, 36, 3)), 1024, 1e-3),
    "vit:tiny": _Preset(_TINY_VIT, 16, 1e-3),
    "vit:s16": _vit(12, 384, 6),
    "vit:b16": _vit(12, 768, 12),
    "vit:l16": _vit(24, 1024, 16),
    "vit:h14": _vit(32, 1280, 16, patch=14),
    "vit:22b": _vit(48, 6144, 48, patch=14),
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
