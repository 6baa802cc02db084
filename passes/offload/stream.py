"""An update as a loop over pieces: fetch, update, write back in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.passes.offload.pieces import Pieces
from autopar.passes.offload.updates import Update
from autopar.passes.rules.build import dtype_of

Bind = Callable[[JaxprEqn, Sequence[Any]], list[Any]]
"""Evaluates one equation on its operands."""


def to_host(value: Any) -> Any:
    """``value`` in host memory; of what lies there, only the type changes."""
    return jax.device_put(value, jax.memory.Space.Host)


def on_device(value: Any) -> Any:
    """``value`` in device memory."""
    return jax.device_put(value, jax.memory.Space.Device) if is_on_host(value) else value


def is_on_host(value: Any) -> bool:
    """Whether ``value`` lies in host memory, as its type says."""
    return getattr(jax.typeof(value), "memory_space", None) == jax.memory.Space.Host


def stream(
    update: Update,
    jaxpr: Jaxpr,
    values: Mapping[Var, Any],
    cut: Pieces,
    bind: Bind,
) -> list[Any]:
    """The results of an update, in order, each on the host or on the device as what it replaces.

    Args:
      jaxpr: the step.
      values: the operands, of which the state is in host memory, and the scalars.
      cut: the pieces of the operands, which are the parts of one device.
    """
    made = [jaxpr.outvars[out] for out in update.results]
    taken = [var for var in update.replaced if var is not None]
    others = {var: _seen(values[var], cut) for var in update.operands if var not in taken}
    away = [old is not None and is_on_host(values[old]) for old in update.replaced]

    def run(number: Any, current: tuple[Any, ...]) -> tuple[Any, ...]:
        whole = {**others, **{v: c for v, c in zip(update.replaced, current, strict=True) if v}}
        start = number * cut.size
        env: dict[Any, Any] = {var: values[var] for var in update.scalars}
        for var, array in whole.items():
            piece = lax.dynamic_slice_in_dim(array, start, cut.size)
            env[var] = on_device(piece)
        _evaluate(update, jaxpr.eqns, env, bind)
        return tuple(
            lax.dynamic_update_slice_in_dim(
                array, to_host(env[var]) if there else env[var], start, 0
            )
            for array, var, there in zip(current, made, away, strict=True)
        )

    shape = values[update.operands[0]].shape
    first = tuple(
        jnp.zeros(cut.view, dtype_of(var)) if old is None else _seen(values[old], cut)
        for var, old in zip(made, update.replaced, strict=True)
    )
    return [done.reshape(shape) for done in lax.fori_loop(0, cut.count, run, first)]


def _seen(array: Any, cut: Pieces) -> Any:
    return array.reshape(cut.view)


def _evaluate(update: Update, eqns: Sequence[JaxprEqn], env: dict[Any, Any], bind: Bind) -> None:
    """Runs the update on one piece; ``env`` then has its results."""
    shape = next(env[var].shape for var in update.operands)
    for position in update.members:
        eqn = eqns[position]
        operands = [a.val if isinstance(a, Literal) else env[a] for a in eqn.invars]
        if eqn.primitive.name == "broadcast_in_dim":
            results = [jnp.broadcast_to(operands[0], shape)]
        else:
            results = bind(eqn, operands)
        env.update(zip(eqn.outvars, results, strict=True))
