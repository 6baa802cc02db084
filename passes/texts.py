"""Shapes, arrays and functions as texts that are the same in every process."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]+\b|\bid=\d+")
_PATH = re.compile(r"(?:[A-Za-z]:)?(?:[\\/][\w.\-+ ]+)+[\\/]")


def plain(text: str) -> str:
    """A text without memory addresses and directories."""
    return _PATH.sub("", _ADDRESS.sub("", text))


def aval_text(aval: Any) -> str:
    """Shape, dtype and weak type."""
    shape = getattr(aval, "shape", None)
    if shape is None:
        return _ADDRESS.sub("", str(aval))
    return _array_type(shape, aval.dtype, getattr(aval, "weak_type", False))


@functools.lru_cache(maxsize=4096)
def _array_type(shape: tuple[int, ...], dtype: Any, weak: bool) -> str:
    return f"{dtype}{'*' if weak else ''}[{','.join(map(str, shape))}]"


def function_name(function: Callable[..., Any]) -> str:
    """A callable's name, without the place it was defined in."""
    if isinstance(function, functools.partial):
        return function_name(function.func)
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) else type(function).__name__


def array_text(array: Any) -> str:
    """Type and contents; of an array whose contents are not all here, or of a key, the type."""
    text = _array_type(array.shape, array.dtype, False)
    if isinstance(array, jax.Array):
        if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
            array = jax.random.key_data(array)
        if not array.is_fully_addressable:
            return text
    contents = np.asarray(array).tobytes()
    short = len(contents) <= 16
    return f"{text}#{contents.hex() if short else hashlib.sha256(contents).hexdigest()[:32]}"
