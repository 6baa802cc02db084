"""What the buffers of a step are for."""

from __future__ import annotations

from collections.abc import Mapping

from jax.extend.core import Jaxpr, Var

from autopar.cost_model.liveness import Span, Walk


class Categories:
    """What each buffer is for.

    A value that heavy work makes and only the optimiser's side uses is a gradient; one that the
    forward pass makes and the backward pass uses last is an activation.
    """

    def __init__(self, walk: Walk, inputs: Mapping[Var, str], jaxpr: Jaxpr):
        self.walk = walk
        self.inputs = inputs
        self.outputs = {walk.resolve(v) for v in jaxpr.outvars if isinstance(v, Var)}

    def of(self, span: Span) -> str:
        walk = self.walk
        if span.kind == "input":
            return self.inputs.get(span.var, "other")
        if span.var in self.outputs:
            return "outputs"
        last = walk.last_use.get(span.var, span.start)
        if not walk.tail[span.start] and span.var not in walk.busy and last > span.start:
            return "gradients"
        saved = walk.backward[last] and not walk.backward[span.start]
        return "activations" if saved and span.kind == "value" else "other"
