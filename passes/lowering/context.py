"""What an equation is carried out under: the circumstances it was traced in, on another mesh."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
from jax.extend import source_info_util
from jax.extend.core import JaxprEqn
from jax.sharding import NamedSharding


@contextmanager
def context_of(eqn: JaxprEqn) -> Generator[None]:
    """The name, place and options under which ``eqn`` was traced, but in the mesh of now."""
    stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
    mesh = jax.sharding.get_abstract_mesh()
    with (
        source_info_util.user_context(eqn.source_info.traceback, name_stack=stack),
        eqn.ctx.manager,
        jax.sharding.use_abstract_mesh(mesh),
    ):
        yield


def unplaced(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters without the shardings that types of the user's own mesh left in them."""
    return {
        key: None if isinstance(value, NamedSharding) else value for key, value in params.items()
    }
