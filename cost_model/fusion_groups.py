"""Kernels with several results: what light work computes beside the values it reads.

XLA:TPU puts a reduction into the kernel that makes what it reduces (the maximum of scores into
their product, the sums of a layer norm into the residual before it), and elementwise work that
reads the same into one kernel (the moments and the weight of an optimiser's update). What such a
kernel has made or read is not read again. (Measured, v5e.)
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from jax.extend.core import JaxprEqn, Var

from autopar.cost_model.work import shape_of


@dataclass(slots=True)
class Group:
    """One kernel: the place of its first equation, and the values that it has made or read.

    ``convolution``: the one that the kernel is made around, if any.
    """

    start: int
    at_hand: set[Var]
    convolution: JaxprEqn | None = None


@dataclass(slots=True)
class Groups:
    """The groups of one jaxpr's kernels, which are added in program order.

    Attributes:
      place: of every value, in program order.
      made_in: every value in memory that a kernel makes element by element, and its group; of what
        a matmul or the like makes, in ``products``.
      reading: a value, and the last group that reads it and nothing made later.
    """

    place: Mapping[Var, int]
    made_in: dict[Var, Group] = field(default_factory=dict[Var, Group])
    products: dict[Var, Group] = field(default_factory=dict[Var, Group])
    reading: dict[Var, Group] = field(default_factory=dict[Var, Group])

    def product(self, outs: Sequence[Var], convolution: JaxprEqn | None) -> Group:
        """Adds, and returns, a kernel of heavy work that ends in ``outs``."""
        found = Group(max([self.place[out] for out in outs], default=0), set(outs), convolution)
        self.products |= dict.fromkeys(outs, found)
        return found

    def light(self, at: int, outs: Sequence[Var], needed: Collection[Var], elements: int) -> Group:
        """Adds light work, and returns its kernel, to what is at hand of which is to be added.

        Args:
          at: its place. outs: what it makes of ``needed`` element by element; a reduction, nothing.
          elements: of what it goes through.
        """
        place, products = self.place, {} if outs else self.products
        full = [var for var in needed if math.prod(shape_of(var.aval)) >= elements]
        if not full:  # of small values alone: done beside whatever uses it
            return Group(at, set(needed))
        last = max(full, key=place.__getitem__)
        candidates = (table.get(last) for table in (products, self.made_in, self.reading))
        found = next((g for g in candidates if g and self._ready(g, needed)), None)
        if found is None:
            found = self.reading[last] = Group(at, set())
        for out in outs:
            self.made_in[out] = found
        return found

    def _ready(self, group: Group, needed: Collection[Var]) -> bool:
        """Whether all that is needed is at hand, or was made before the group began."""
        return all(var in group.at_hand or self.place[var] < group.start for var in needed)
