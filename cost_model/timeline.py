"""Buffers over time, and the bytes that they add up to under any layouts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn, Var
from numpy.typing import NDArray

from autopar.cost_model.bodies import is_heavy
from autopar.cost_model.on_chip import Pace, off_chip
from autopar.cost_model.repeated import Instants, Numbers, Repeated, Spans
from autopar.cost_model.work import aval_bytes

COPIES = "collective buffers"
CATEGORIES = (
    *("parameters", "optimizer state", "gradients", "activations", "batch", "outputs", "other"),
    COPIES,
)
"""What memory is spent on. ``other``: temporaries, and inputs that are none of these. ``COPIES``:
what re-layouts put there."""

Bytes = Numbers
Extra = tuple[int, int, float]
"""First instant, last instant, bytes."""
Owned = tuple[int, int, float, int]
"""The same, and an instant of the layer that it belongs to, if that is not the first."""
Lasting = Mapping[Var, int]
"""Last instants."""


@dataclass(frozen=True, slots=True)
class Buffer:
    """One value in memory from instant ``start`` to ``end``, both included.

    ``scale`` times the bytes of ``var`` are held: a trip count for a stack that has no variable of
    its own, one half for an f32 value stored as bf16.
    """

    var: Var
    start: int
    end: int
    category: str
    scale: float = 1.0


class Layered(NamedTuple):
    """Bytes at every instant of a timeline.

    Attributes:
      own: of all that is in it. before, after: what each layer adds that another stands for, for
        each of these; at instants of that other as if it came before the rest, or after.
      times: how many are left out.
    """

    own: Bytes
    before: tuple[Bytes, ...] = ()
    after: tuple[Bytes, ...] = ()
    times: tuple[int, ...] = ()

    @property
    def total(self) -> Bytes:
        """With the layers that are left out."""
        total = self.own
        for times, each in zip(self.times, self.before, strict=True):
            total = total + times * each
        return total


@dataclass(frozen=True)
class Timeline:
    """All buffers of a step, and the equation that runs at each instant.

    Attributes:
      kernels: for each instant, the equation that runs (a loop's, where it starts and ends).
      instant_of: first result of an equation to the instant it runs at; of one fused into others,
        the first of theirs.
      uses: every buffer's variable to its first and last reader's instant.
      roots: views, region inputs and results, and the variable whose buffer they are in.
      layers: those that stand for others.
    """

    buffers: tuple[Buffer, ...]
    kernels: tuple[JaxprEqn, ...]
    instant_of: Mapping[Var, int]
    uses: Mapping[Var, tuple[int, int]]
    roots: Mapping[Var, Var]
    layers: tuple[Repeated, ...] = ()

    @property
    def instants(self) -> int:
        """How many there are; one for a step without kernels."""
        return max(1, len(self.kernels))

    def scaled(self, shares: Mapping[Var, float]) -> Timeline:
        """The same with only shares of some values in device memory; 1 of all others.

        Scores of attention may stay on the chip, inputs and gradients on the host.
        """
        held = {self.root(var): share for var, share in shares.items()}
        buffers = tuple(
            replace(buffer, scale=buffer.scale * held.get(buffer.var, 1.0))
            for buffer in self.buffers
            if held.get(buffer.var, 1.0)
        )
        return replace(self, buffers=buffers) if held else self

    def root(self, var: Var) -> Var:
        """The variable whose buffer holds ``var``."""
        return self.roots.get(var, var)

    def sizes(self, bytes_of: Mapping[Var, int]) -> Bytes:
        """Bytes of each buffer."""
        return np.array([buffer.scale * bytes_of[buffer.var] for buffer in self.buffers])

    def profile(
        self,
        bytes_of: Mapping[Var, int],
        extra: Iterable[Extra | Owned] = (),
        vmem_bytes: float = 0,
        lasting: Lasting = MappingProxyType({}),
        pace: Pace | None = None,
    ) -> Bytes:
        """Live bytes at every instant, those of layers left out included.

        Args:
          bytes_of: per-device bytes of the variable of every buffer.
          extra: further ``(start, end, bytes)``: copies in another layout, receive buffers.
          vmem_bytes: on-chip memory, for values that are soon read for the last time.
          lasting: buffers that live longer than their readers need, up to this instant.
          pace: how time passes, if it is known; nothing is on the chip for long.
        """
        return self._summed(self._held(bytes_of, extra, vmem_bytes, lasting, pace), False).total

    def layered(
        self,
        bytes_of: Mapping[Var, int],
        extra: Iterable[Extra | Owned] = (),
        vmem_bytes: float = 0,
    ) -> Layered:
        """``profile``, with what layers that are left out add apart."""
        return self._summed(self._held(bytes_of, extra, vmem_bytes, {}, None))

    def _held(
        self,
        bytes_of: Mapping[Var, int],
        extra: Iterable[Extra | Owned],
        vmem_bytes: float,
        lasting: Lasting,
        pace: Pace | None,
    ) -> Spans:
        """The buffers and the extra ones, with their device memory."""
        copies = np.array([(*one, one[0])[:4] for one in extra], np.float64).reshape(-1, 4)
        starts, ends, owners = (
            np.concatenate((own, copies[:, column].astype(np.intp)))
            for own, column in ((self._starts, 0), (self._ends, 1), (self._owners, 3))
        )
        for var in lasting.keys() & self._places.keys():
            ends[self._places[var]] = max(ends[self._places[var]], lasting[var])
        sizes = np.concatenate((self.sizes(bytes_of), copies[:, 2]))
        spans = Spans(starts, ends, sizes, owners, sizes, self.instants)
        return off_chip(spans, vmem_bytes, pace, self.layers) if vmem_bytes else spans

    def peak(
        self,
        bytes_of: Mapping[Var, int],
        extra: Iterable[Extra | Owned] = (),
        vmem_bytes: float = 0,
        lasting: Lasting = MappingProxyType({}),
        pace: Pace | None = None,
    ) -> tuple[int, int]:
        """``(instant, bytes)`` of the first moment at which the most bytes are live."""
        live = self.profile(bytes_of, extra, vmem_bytes, lasting, pace)
        instant = int(np.argmax(live))
        return instant, int(live[instant])

    def live_at(self, instant: int) -> tuple[tuple[Buffer, int], ...]:
        """The buffers live at an instant, and how many, layers left out included."""
        none = np.zeros(len(self._starts))
        spans = Spans(self._starts, self._ends, none, self._owners, none, self.instants)
        counts = self._counts(spans, instant)
        return tuple([(self.buffers[i], int(counts[i])) for i in np.flatnonzero(counts)])

    def count(self, start: int, end: int, instant: int) -> int:
        """How many of what is there between two instants are live at one, likewise."""
        if not self.layers:
            return int(start <= instant <= end)
        first, last, none = np.array([start]), np.array([end]), np.zeros(1)
        spans = Spans(first, last, none, first, none, self.instants)
        return int(self._counts(spans, instant)[0])

    def _counts(self, spans: Spans, instant: int) -> NDArray[np.int64]:
        counts = ((spans.starts <= instant) & (spans.ends >= instant)).astype(np.int64)
        for layer in self.layers:
            counts += layer.times * layer.holds(spans, instant)
        return counts

    def stacked(
        self,
        bytes_of: Mapping[Var, int],
        extra: Iterable[Extra | Owned] = (),
        vmem_bytes: float = 0,
        lasting: Lasting = MappingProxyType({}),
        pace: Pace | None = None,
    ) -> dict[str, Layered]:
        """``profile`` by category; every category is there, ``COPIES`` being what is extra."""
        spans = self._held(bytes_of, extra, vmem_bytes, lasting, pace)
        kinds = np.full(len(spans.sizes), COPIES, dtype=object)
        kinds[: len(self.buffers)] = [buffer.category for buffer in self.buffers]
        return {kind: self._summed(spans.only(kinds == kind)) for kind in CATEGORIES}

    def global_bytes(self) -> dict[Var, int]:
        """Bytes of every buffer's variable on a single device."""
        return {buffer.var: aval_bytes(buffer.var.aval) for buffer in self.buffers}

    @cached_property
    def last_heavy(self) -> int:
        """The instant at which the last heavy kernel runs: then the backward pass is over."""
        heavy = (at for at, eqn in enumerate(self.kernels) if is_heavy(eqn))
        return max(heavy, default=self.instants - 1)

    @cached_property
    def _places(self) -> Mapping[Var, int]:
        return {buffer.var: place for place, buffer in enumerate(self.buffers)}

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        return np.array([buffer.start for buffer in self.buffers], dtype=np.intp)

    @cached_property
    def _ends(self) -> NDArray[np.intp]:
        return np.array([buffer.end for buffer in self.buffers], dtype=np.intp)

    @cached_property
    def _owners(self) -> Instants:
        """An instant of the layer that each buffer is of; -1 of inputs that are of none."""
        found = self._starts.copy()
        owner = {var: -1 for layer in self.layers for var in layer.inputs}
        for layer in self.layers:
            within = [var for var, is_own in layer.inputs.items() if is_own]
            owner.update(dict.fromkeys(within, int(np.argmax(layer.inside))))
        for var in owner.keys() & self._places.keys():
            found[self._places[var]] = owner[var]
        return found

    def _summed(self, spans: Spans, after: bool = True) -> Layered:
        """``after``: whether ``Layered.after`` is wanted."""
        change = np.zeros(self.instants + 1)
        np.add.at(change, spans.starts, spans.sizes)
        np.subtract.at(change, spans.ends + 1, spans.sizes)
        return Layered(
            np.cumsum(change[:-1]),
            tuple([layer.added(spans) for layer in self.layers]),
            tuple([layer.added(spans, after=True) for layer in self.layers if after]),
            tuple([layer.times for layer in self.layers]),
        )
