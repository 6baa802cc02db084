"""In what form XLA:TPU carries out a collective under ``jit``, where it is not the plain one.

* A matrix product that is reduce-scattered over 4 to 32 devices, its contraction longer than 4096,
  is computed piece by piece along the ring (*windowed*), unless the dimension that is scattered was
  split already, or the devices are all of a 2x2 slice.
* Convolutions, but for kernels' gradients, and what ``cost_model.whole`` says, are reduced *whole*.
* What is scattered in parts that fill no tiles, or but one, is reduced whole (*small*: under
  ``shard_map``, which folds parts into tiles, only if they fill but one).
* Where all axes that split one dimension come to split another, there is one exchange: of the
  all-to-alls that do it axis by axis all but the first are *joined* to it, and send nothing.

Steps of one kind over several axes are one collective. Measured: v5e, libtpu 0.0.42.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jax.extend.core import JaxprEqn

from autopar.core.layout import Layout, Split, is_partial, local_shape
from autopar.core.mesh import MeshSpec
from autopar.cost_model.hardware import Level
from autopar.cost_model.reshard import Collective
from autopar.cost_model.whole import (
    folded,
    gathers_by_reduction,
    is_too_small,
    scatter_padding,
    scatters_by_reduction,
)
from autopar.cost_model.work import shape_of
from autopar.search.graph import Edge, Graph

Form = Literal["", "windowed", "whole", "small", "joined"]

WINDOWED = range(4, 33)
"""Devices round the ring of a windowed product."""

LEAST_CONTRACTION = 4096
"""What a windowed product's contraction must be longer than, over all devices."""


@dataclass(frozen=True)
class Forms:
    """Tells the forms of collectives on one mesh, of a cluster of ``levels``."""

    graph: Graph
    mesh: MeshSpec
    levels: Sequence[Level]

    def of(self, path: Sequence[Collective], edge: Edge, left: Layout) -> tuple[Form, ...]:
        """The form of every step of ``path``, which an edge takes from layout ``left``."""
        return tuple(self._form(step, path, edge, left) for step in path)

    def padding(self, step: Collective, edge: Edge, itemsize: int) -> int:
        """See ``CollectiveUse``; of elements of this size."""
        if step.kind != "reduce-scatter":
            return 0
        part = folded(local_shape(edge.shape, step.layout, self.mesh))
        return scatter_padding(self.levels, self._size([step]), part, itemsize)

    def _form(self, step: Collective, path: Sequence[Collective], edge: Edge, left: Layout) -> Form:
        alike = [one for one in path if one.kind == step.kind]
        if step.kind == "all-gather":
            payload = max(one.bytes for one in alike)
            summed = gathers_by_reduction(self.levels, self._size(alike), payload)
            return "whole" if summed else ""
        if step.kind == "all-to-all" and step is not alike[0]:
            return "joined" if self._is_one_exchange(alike, path[-1].layout, left) else ""
        if step.kind != "reduce-scatter":
            return ""
        target, (eqn, moved) = self._target(step), self._made_by(edge.src)
        sizes = zip(left, self.mesh.sizes, strict=True)
        size = math.prod(n for p, n in sizes if is_partial((p,)) or (moved and p == target))
        windowed = is_windowed(eqn, size, self.mesh.device_count)
        if windowed and (moved or target not in left):
            return "" if step is not path[-1] or is_partial(step.layout) else "windowed"
        part = local_shape(edge.shape, step.layout, self.mesh)
        if is_too_small(self.levels, size, folded(part)):
            return "small"
        whole = scatters_by_reduction(self.levels, size) or _is_convolved(eqn)
        return "whole" if whole or is_too_small(self.levels, size, part) else ""

    def _is_one_exchange(self, steps: Sequence[Collective], right: Layout, left: Layout) -> bool:
        """Whether all axes exchanged on the way go from one dimension to one other."""
        axes = {self.mesh.names.index(step.axis) for step in steps}
        return len({(left[axis], right[axis]) for axis in axes}) == 1 < len(axes)

    def _size(self, steps: Sequence[Collective]) -> int:
        return math.prod(self.mesh.sizes[self.mesh.names.index(one.axis)] for one in steps)

    def _target(self, step: Collective) -> Split:
        target = step.layout[self.mesh.names.index(step.axis)]
        assert isinstance(target, Split), "a reduce-scatter splits a dimension"
        return target

    def maker(self, index: int) -> int:
        """The node that made a value, transpositions since looked through."""
        nodes = self.graph.nodes
        while index in self._sources and (
            nodes[index].kind == "hub" or _is_transpose(nodes[index].eqn)
        ):
            index = self._sources[index]
        return index

    def _made_by(self, index: int) -> tuple[JaxprEqn | None, bool]:
        """The equation that made a value, and whether it was transposed since.

        If so, what splits it by now may be a part of the same scattering.
        """
        nodes, made = self.graph.nodes, self.maker(index)
        while index != made and nodes[index].kind == "hub":
            index = self._sources[index]
        return nodes[made].eqn, index != made

    @functools.cached_property
    def _sources(self) -> dict[int, int]:
        """Where the first operand of each node comes from."""
        return {edge.dst: edge.src for edge in self.graph.edges if edge.slot == 0}


def _is_transpose(eqn: JaxprEqn | None) -> bool:
    return eqn is not None and eqn.primitive.name == "transpose"


def is_windowed(eqn: JaxprEqn | None, size: int, devices: int) -> bool:
    """Whether what made a value is a product that is windowed, if ``size`` devices scatter it."""
    if eqn is None or eqn.primitive.name != "dot_general" or size not in WINDOWED:
        return False
    (contracting, _), _ = eqn.params["dimension_numbers"]
    length = math.prod(shape_of(eqn.invars[0].aval)[dim] for dim in contracting)
    return length > LEAST_CONTRACTION and (size, devices) != (4, 4)


def _is_convolved(eqn: JaxprEqn | None) -> bool:
    """Whether a convolution made a value, but for kernels' gradients: their windows are larger."""
    if eqn is None or eqn.primitive.name != "conv_general_dilated":
        return False
    numbers = eqn.params["dimension_numbers"]
    window, result = (
        math.prod(shape_of(var.aval)[dim] for dim in spec[2:])
        for var, spec in ((eqn.invars[1], numbers.rhs_spec), (eqn.outvars[0], numbers.out_spec))
    )
    return window <= result
