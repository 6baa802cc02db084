"""A program without some of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal, Var
from numpy.typing import NDArray

from autopar.passes.fold.flow import Flow
from autopar.passes.fold.layers import Layers, NotFoldable

Atom = Var | Literal


@dataclass(frozen=True, slots=True)
class Part:
    """A program made of equations of another.

    Attributes:
      equations, inputs, outputs: their positions in the other, in order.
    """

    jaxpr: ClosedJaxpr
    equations: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


def splice(
    closed: ClosedJaxpr,
    ties: Sequence[tuple[int, int]],
    flow: Flow,
    layers: Layers,
    gone: NDArray[np.bool_],
) -> Part:
    """Leaves out the codes that are ``gone`` (see ``Flow``).

    What read something of a layer that is gone reads what its counterpart in that layer did: the
    layer after a gap reads the one before it.

    Raises:
      NotFoldable: something has no such counterpart, or an input would go without its output.
    """
    jaxpr, count = closed.jaxpr, flow.count
    reading = np.flatnonzero(gone[flow.makers])
    readers = flow.readers()[reading]
    replaced: dict[int, list[Atom]] = {}
    for operand, reader in zip(reading.tolist(), readers.tolist(), strict=True):
        if not gone[reader]:
            slot = operand - int(flow.first[reader])
            atoms = replaced.setdefault(reader, list(jaxpr.eqns[reader].invars))
            atoms[slot] = _beyond(jaxpr.eqns, flow, layers, gone, reader, slot)
    equations = tuple(np.flatnonzero(~gone[:count]).tolist())
    inputs = tuple(np.flatnonzero(~gone[count : count + flow.inputs]).tolist())
    outputs = tuple(np.flatnonzero(~gone[flow.outputs]).tolist())
    kept, left = set(inputs), set(outputs)
    if any((out in left) != (source in kept) for out, source in ties):
        raise NotFoldable
    eqns = [
        jaxpr.eqns[i].replace(invars=replaced[i]) if i in replaced else jaxpr.eqns[i]
        for i in equations
    ]
    part = jaxpr.replace(
        eqns=eqns,
        invars=[jaxpr.invars[i] for i in inputs],
        outvars=[jaxpr.outvars[i] for i in outputs],
    )
    return Part(ClosedJaxpr(part, closed.consts), equations, inputs, outputs)


def _beyond(
    eqns: Sequence[JaxprEqn],
    flow: Flow,
    layers: Layers,
    gone: NDArray[np.bool_],
    reader: int,
    slot: int,
) -> Atom:
    """What takes the place of an operand that is gone: the same, of an earlier or later layer."""
    wanted = reader
    for _ in range(flow.count):
        maker = int(flow.makers[flow.first[reader] + slot])
        if not gone[maker] and (maker < wanted or maker >= flow.count):
            return eqns[reader].invars[slot]
        if not gone[maker] or layers.stack[reader] != layers.stack[maker]:
            break
        (reader,) = layers.like(reader, (int(layers.layer[maker]),))
    raise NotFoldable
