"""Where in the user's code values and errors come from."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import jax
from jax.extend.core import JaxprEqn

from autopar.core import compat
from autopar.passes.texts import function_name

_INSTALLED = re.compile(r"(site|dist)-packages[\\/](jax|jaxlib|flax|optax|chex|haiku|equinox)[\\/]")
"""Files, besides JAX's and autopar's own, that are not the user's code."""


def source_line(eqn: JaxprEqn) -> str:
    """The user's line that made ``eqn``, as ``"file.py:123"``; empty if unknown."""
    frames = list(compat.frames(eqn))
    own = next((f for f in frames if not _is_library(f[0])), None) or (frames[:1] or [None])[0]
    return f"{os.path.basename(own[0])}:{own[1]}" if own else ""


def source_name(eqn: JaxprEqn) -> str:
    """A readable name for the results of ``eqn``: the modules it stands in, and its primitive.

    Values of the backward pass end in ``(grad)``. Inside a loop the name is relative to the loop.
    """
    modules, suffix = _modules(str(eqn.source_info.name_stack))
    return "/".join((*modules, eqn.primitive.name)) + suffix


@lru_cache(maxsize=4096)
def _modules(stack: str) -> tuple[tuple[str, ...], str]:
    """The modules of a name stack, and what marks its values as those of the backward pass."""
    names: list[str] = []
    for part in re.split(r"[/()]", stack):
        if part and part not in _TRANSFORMS and part != (names[-1] if names else None):
            names.append(part)
    return tuple(names), " (grad)" if "transpose(" in stack else ""


_TRANSFORMS = frozenset(
    ("jvp", "transpose", "vmap", "jit", "pjit", "remat", "checkpoint", "rematted_computation")
)


def _is_library(filename: str) -> bool:
    """Whether a frame stands in a library; the models that come with autopar count as user code."""
    own = os.path.dirname(os.path.dirname(__file__))
    if filename.startswith(own + os.sep):
        return not filename.startswith(os.path.join(own, "models", ""))
    return compat.is_library_file(filename) or bool(_INSTALLED.search(filename))


def explain(fn: Callable[..., Any], error: Exception) -> str:
    """What went wrong in ``fn``, where, and what to do."""
    what, *more = str(error).strip().split("\nThe error occurred")[0].split("\n\n")
    if what.endswith(":"):
        what = "\n".join((what, *more[:1]))
    if isinstance(error, jax.errors.TracerBoolConversionError):
        advice = (
            "Python decides here on a value that exists only when the step runs: use jnp.where to "
            "choose between values, jax.lax.cond between computations, jax.lax.while_loop to loop"
        )
    elif isinstance(error, (jax.errors.JAXTypeError, jax.errors.JAXIndexError)):
        advice = (
            "Python needs here a value that exists only when the step runs: stay with jax.numpy, "
            "and take what shapes the program (sizes, flags, names) from outside the arguments"
        )
    elif isinstance(error, TypeError):
        advice = "check the arguments' number, structure, shapes and dtypes against the function's"
    else:
        advice = "the step must run under jax.jit with arguments of these shapes"
    place = _place(error)
    where = f"{place}, in " if place else ""
    return f"{where}{function_name(fn)}: {type(error).__name__}: {what}\n{advice}"


def _place(error: Exception) -> str:
    """``file:line`` of the deepest frame that is the user's own."""
    place = ""
    tb = error.__traceback__
    while tb is not None:
        filename = tb.tb_frame.f_code.co_filename
        if not _is_library(filename):
            place = f"{filename}:{tb.tb_lineno}"
        tb = tb.tb_next
    return place
