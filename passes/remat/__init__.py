"""Rematerialisation of a traced step: values of the forward pass that the backward computes again.

Before: a simplified jaxpr, and the names of the equations whose results are not to be kept for the
backward pass (``12``, in the body of a forward loop ``30/body/4``). After: a jaxpr that computes
the same bits, with no special cases for whoever reads it:

* straight-line code: each group of values is recomputed behind one barrier, just before the
  backward pass first needs one of them (``flat``);
* loops: the backward loop recomputes first thing in its body what the forward loop no longer
  stacks (``loops``).

``droppable`` says which equations may be named. What the user wrote as ``jax.checkpoint`` stays.
"""

from __future__ import annotations

from autopar.passes.remat.loops import partners as partners
from autopar.passes.remat.program import droppable as droppable
from autopar.passes.remat.program import rematerialise as rematerialise
from autopar.passes.remat.sides import is_backward as is_backward
from autopar.passes.remat.sides import is_repeatable as is_repeatable
