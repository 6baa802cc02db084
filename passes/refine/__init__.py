"""Refine: a fused dimension becomes two, so that its blocks can be split alike.

A fused projection ``h = x @ W`` with ``W`` of ``[D, 3 * K]``, cut in three by a ``split``, slices
or a reshape, is tensor-parallel when each of the three blocks is split. No contiguous split of the
``3 * K`` does that. Written on ``[D, 3, K]`` the program computes the same numbers, and an ordinary
split of ``K`` is the blocked split of ``3 * K``.

Before: a simplified jaxpr. After: one of the same inputs and results, simplified too, in which the
*classes* of dimensions that are cut into equal blocks (``classes.py``) have two dimensions for one
(``equations.py``, ``program.py``). Reshapes stand where a value enters or leaves its class: at
inputs and results of the step, at the optimiser's arithmetic, which stays on the shapes of its
state, and at equations that have no refined form. Loops, branches and rematerialised bodies are
refined with their surroundings. A program without such a class is returned as it is.
"""

from __future__ import annotations

from jax.extend.core import ClosedJaxpr

from autopar.passes.fingerprint import Signatures
from autopar.passes.refine.classes import find_blocks
from autopar.passes.refine.program import rewrite


def refine(closed: ClosedJaxpr, signatures: Signatures | None = None) -> ClosedJaxpr:
    """Gives every fused dimension that a matrix product makes or consumes its two dimensions."""
    blocks = find_blocks(closed.jaxpr, signatures or Signatures())
    return rewrite(closed, blocks) if blocks else closed
