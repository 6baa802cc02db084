"""What JAX does not export: the one file that may import ``jax._src``.

Everything here works on JAX 0.10 and 0.11. Nothing else in autopar depends on a JAX version.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

from jax._src import source_info_util
from jax._src.ad_checkpoint import remat_p as remat_p
from jax._src.named_sharding import UnspecifiedValue
from jax.extend.core import DropVar as DropVar
from jax.extend.core import JaxprEqn, Var

if TYPE_CHECKING:  # JAX exports both untyped
    PyTreeDef: TypeAlias = Any
    Device: TypeAlias = Any
else:
    from jax import Device as Device
    from jax.tree_util import PyTreeDef as PyTreeDef


def new_var(aval: Any) -> Var:
    """A fresh variable of abstract value ``aval``."""
    return Var(aval)


def like_var(var: Var) -> Var:
    """A fresh variable like ``var``; a dropped one stays dropped."""
    return type(var)(var.aval)


def is_unspecified(sharding: object) -> bool:
    """Whether a ``jit`` equation leaves this sharding to the compiler."""
    return isinstance(sharding, UnspecifiedValue)


def manual_axes(eqn: JaxprEqn) -> frozenset[str]:
    """The mesh axes over which the body of a ``shard_map`` is the work of one device."""
    names = eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes"))
    return frozenset(eqn.params["mesh"].axis_names if names is None else names)


def frames(eqn: JaxprEqn) -> Iterator[tuple[str, int]]:
    """``(file, line)`` of the frames that made ``eqn``, innermost first, without JAX's own."""
    for frame in source_info_util.user_frames(eqn.source_info.traceback):
        yield frame.file_name, frame.start_line


def is_library_file(filename: str) -> bool:
    """Whether ``filename`` belongs to JAX or the standard library."""
    return not source_info_util.is_user_filename(filename)
