"""A layer of a timeline that stands for others, and what those hold that are left out.

A step goes through its layers several times: forward, backward, in its updates. A *pass* is one
such time. The layers that are left out run beside the one that is there, in each pass all before
or all after what runs at another instant. So they hold alike there: a value that one of them made
in a pass that is over, to be read in one that is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jax.extend.core import Var
from numpy.typing import NDArray

Instants = NDArray[np.intp]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.float64]


class Spans(NamedTuple):
    """What is there from one instant to another, both included.

    Attributes:
      sizes: bytes. owners: an instant of the layer that each belongs to; -1: of none.
      others: bytes, on average, of the same in a layer that is left out. instants: how many.
    """

    starts: Instants
    ends: Instants
    sizes: Numbers
    owners: Instants
    others: Numbers
    instants: int

    def only(self, some: Mask) -> Spans:
        """The same with bytes of some alone."""
        sizes, others = (np.where(some, one, 0.0) for one in (self.sizes, self.others))
        return self._replace(sizes=sizes, others=others)


@dataclass(frozen=True)
class Repeated:
    """The layer, and where the others run.

    Attributes:
      times: how many layers are left out.
      passes: of each of its instants the number of the pass; -1 of all others.
      over: for every instant how many passes of those left out are over by then: as they come
        after it at an instant of the layer itself.
      like: for an instant of any such layer, that of this one at which the same is done; for all
        others themselves.
      inputs: every input of the step, and whether it is one of the layer.
    """

    times: int
    passes: Instants
    over: Instants
    like: Instants
    inputs: Mapping[Var, bool]

    @property
    def inside(self) -> Mask:
        """Whether each instant is of the layer."""
        return self.passes >= 0

    def added(self, spans: Spans, after: bool = False) -> Numbers:
        """Bytes at every instant that each layer left out holds.

        Args:
          after: whether they come before the layer at its own instants, and not after it.
        """
        line = self._after if after else self._before
        owned, first, last = self._lives(spans, line)
        change = np.zeros(len(self.over) + 1)
        np.add.at(change, first[owned], spans.others[owned])
        np.subtract.at(change, last[owned] + 1, spans.others[owned])
        return np.cumsum(change[:-1])[line.place]

    def holds(self, spans: Spans, instant: int) -> Mask:
        """Whether each layer left out has its own of each at an instant."""
        owned, first, last = self._lives(spans, self._before)
        place = self._before.place[instant]
        return owned & (first <= place) & (place <= last)

    def between(self, spans: Spans, spent: Numbers) -> tuple[Numbers, Numbers]:
        """What layers left out spend while each span lasts; and how much more it is for each of
        them that has its own later in the first pass and earlier in the last, if they have it.

        Args:
          spent: at every instant.
        """
        inside, count = self.inside, int(self.passes.max()) + 1
        each = np.bincount(self.passes[inside], spent[inside], count)
        before = np.concatenate(([0.0], np.cumsum(each)))
        read = self.like[spans.ends]
        made, done = self.passes[spans.starts], self.passes[read]
        owned = self._owned(spans) & (made >= 0)
        first = np.where(owned, made + 1, self.over[spans.starts])
        last = np.where(owned & (done >= 0), done, self.over[spans.ends])
        fixed = self.times * (before[last] - before[np.minimum(first, last)])
        own = each[made] + np.where(done >= 0, each[done], 0.0)
        return fixed, np.where(owned & (last >= first), own, 0.0)

    def left_off(self, spans: Spans, further: Numbers) -> Numbers:
        """The share of layers left out whose own is not among the first so many ``further``."""
        on = np.minimum(np.floor(np.minimum(further, self.times)) + 1, self.times + 1)
        return np.where(self._owned(spans), (self.times + 1 - on) / self.times, 0.0)

    def _owned(self, spans: Spans) -> Mask:
        return (self.passes[spans.owners] >= 0) & (spans.owners >= 0)

    def _lives(self, spans: Spans, line: _Line) -> tuple[Mask, Instants, Instants]:
        """Which spans are the layer's, and from what place on the line to what those of others."""
        owned = self._owned(spans)
        made, read = self.passes[spans.starts], self.like[spans.ends]
        done = self.passes[read]
        first = np.where(made >= 0, line.begins(made), line.place[spans.starts])
        last = np.where(done >= 0, line.begins(done) - 1, line.place[read])
        always = (spans.starts == 0) & (spans.ends == len(self.over) - 1)
        first, last = np.where(always, 0, first), np.where(always, len(self.over) - 1, last)
        return owned & (first <= last), first, last

    @cached_property
    def _before(self) -> _Line:
        return _Line.of(self.over)

    @cached_property
    def _after(self) -> _Line:
        return _Line.of(self.over + self.inside)


class _Line(NamedTuple):
    """Instants by how many passes are over: ``place`` of each, and of each place the passes."""

    place: Instants
    over: Instants

    @classmethod
    def of(cls, over: Instants) -> _Line:
        order = np.argsort(over, kind="stable")
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return cls(place, over[order])

    def begins(self, number: Instants) -> Instants:
        """The first place at which a pass is over."""
        return np.searchsorted(self.over, number, side="right")
