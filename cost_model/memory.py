"""Which values lie in device memory when: a static liveness analysis of one step.

An *instant* is the running of one kernel, in the order of ``schedule``; a loop or branch has an
instant where it starts, those of its body (once, however often it runs), and one where it ends.
Rules, after what XLA:TPU does (measured for the design):

* Only values that ``fusion`` says are written count; views are their root.
* Arguments are there all the time. A result that replaces a donated input is free, if the input is
  dead when it is written; other results stay to the end.
* A value lives from its kernel to its last reader, that instant included: a dying operand and the
  result made from it coexist.
* A ``scan``'s stacked results and carries are allocated when it starts; its body writes them in
  place. A carry's new value coexists with the old one. An initial carry that dies in the loop
  becomes it.
* A narrowing cast of a whole scanned input is hoisted out of the loop: the cast stack is there
  while the loop runs (``scale`` is then the trip count).
* Bodies that run once and always (``remat``) are inlined.
* What only results need that do not become the next step's state, the loss above all, runs in its
  place or last, whichever holds less, on a single device: its f32 logits may outweigh all else.

``Timeline.profile`` adds up any assignment of bytes to variables, in linear time, with numpy.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType

import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var
from numpy.typing import NDArray

from autopar.cost_model.bodies import Bodies, is_heavy
from autopar.cost_model.categories import Categories
from autopar.cost_model.fusion import FusionBorders, fusion_borders
from autopar.cost_model.liveness import Walk
from autopar.cost_model.on_chip import Pace, on_chip
from autopar.cost_model.work import aval_bytes

COPIES = "collective buffers"
CATEGORIES = (
    *("parameters", "optimizer state", "gradients", "activations", "batch", "outputs", "other"),
    COPIES,
)
"""What memory is spent on. ``other``: temporaries, and inputs that are none of these. ``COPIES``:
what re-layouts put there."""

SHORT_KERNELS = 6
"""Kernels that an operand waits, at most, while it is not worth writing (measured, v5e)."""

Bytes = NDArray[np.float64]
Instants = NDArray[np.intp]
Extra = tuple[int, int, float]
"""First instant, last instant, bytes."""
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


@dataclass(frozen=True)
class Timeline:
    """All buffers of a step, and the equation that runs at each instant.

    Attributes:
      kernels: for each instant, the equation that runs (a loop's, where it starts and ends).
      instant_of: first result of an equation to the instant it runs at; of one fused into others,
        the first of theirs.
      uses: every buffer's variable to its first and last reader's instant.
      roots: views, region inputs and results, and the variable whose buffer they are in.
    """

    buffers: tuple[Buffer, ...]
    kernels: tuple[JaxprEqn, ...]
    instant_of: Mapping[Var, int]
    uses: Mapping[Var, tuple[int, int]]
    roots: Mapping[Var, Var]

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
        extra: Iterable[Extra] = (),
        vmem_bytes: float = 0,
        lasting: Lasting = MappingProxyType({}),
        pace: Pace | None = None,
    ) -> Bytes:
        """Live bytes at every instant.

        Args:
          bytes_of: per-device bytes of the variable of every buffer.
          extra: further ``(start, end, bytes)``: copies in another layout, receive buffers.
          vmem_bytes: on-chip memory, for values that are soon read for the last time.
          lasting: buffers that live longer than their readers need, up to this instant.
          pace: how time passes, if it is known; nothing is on the chip for long.
        """
        return self._summed(*self._held(bytes_of, extra, vmem_bytes, lasting, pace))

    def _held(
        self,
        bytes_of: Mapping[Var, int],
        extra: Iterable[Extra],
        vmem_bytes: float,
        lasting: Lasting,
        pace: Pace | None,
    ) -> tuple[Instants, Instants, Bytes]:
        """First and last instants of the buffers and the extra ones, and their device memory."""
        copies = np.array(list(extra), dtype=np.float64).reshape(-1, 3)
        starts = np.concatenate((self._starts, copies[:, 0].astype(np.intp)))
        ends = np.concatenate((self._ends, copies[:, 1].astype(np.intp)))
        for var in lasting.keys() & self._places.keys():
            ends[self._places[var]] = max(ends[self._places[var]], lasting[var])
        sizes = np.concatenate((self.sizes(bytes_of), copies[:, 2]))
        if vmem_bytes:
            last = self.instants - 1
            sizes[on_chip(starts, ends, sizes, vmem_bytes, last, pace)] = 0.0
        return starts, ends, sizes

    def peak(
        self,
        bytes_of: Mapping[Var, int],
        extra: Iterable[Extra] = (),
        vmem_bytes: float = 0,
        lasting: Lasting = MappingProxyType({}),
        pace: Pace | None = None,
    ) -> tuple[int, int]:
        """``(instant, bytes)`` of the first moment at which the most bytes are live."""
        live = self.profile(bytes_of, extra, vmem_bytes, lasting, pace)
        instant = int(np.argmax(live))
        return instant, int(live[instant])

    def live_at(self, instant: int) -> tuple[Buffer, ...]:
        """The buffers live at an instant."""
        return tuple(
            self.buffers[i]
            for i in np.flatnonzero((self._starts <= instant) & (self._ends >= instant))
        )

    def stacked(
        self,
        bytes_of: Mapping[Var, int],
        extra: Iterable[Extra] = (),
        vmem_bytes: float = 0,
        lasting: Lasting = MappingProxyType({}),
        pace: Pace | None = None,
    ) -> dict[str, Bytes]:
        """``profile`` by category; every category is there, ``COPIES`` being what is extra."""
        starts, ends, sizes = self._held(bytes_of, extra, vmem_bytes, lasting, pace)
        kinds = np.full(len(sizes), COPIES, dtype=object)
        kinds[: len(self.buffers)] = [buffer.category for buffer in self.buffers]
        return {
            kind: self._summed(starts, ends, np.where(kinds == kind, sizes, 0.0))
            for kind in CATEGORIES
        }

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

    def _summed(self, starts: Instants, ends: Instants, sizes: Bytes) -> Bytes:
        change = np.zeros(self.instants + 1)
        np.add.at(change, starts, sizes)
        np.subtract.at(change, ends + 1, sizes)
        return np.cumsum(change[:-1])


def liveness(
    jaxpr: Jaxpr | ClosedJaxpr,
    in_categories: Sequence[str],
    donated: Sequence[bool],
    ties: Sequence[tuple[int, int]],
    *,
    borders: FusionBorders | None = None,
    bf16_dots: bool = False,
) -> Timeline:
    """The timeline of a step.

    Args:
      jaxpr: the simplified step.
      in_categories: the category of every input.
      donated: whether each input may be overwritten.
      ties: ``(output, input)`` positions: outputs that are the next step's inputs.
      borders: ``fusion_borders(jaxpr)``, if it is at hand.
      bf16_dots: whether f32 values that only matmuls use are stored as bf16 (XLA:TPU).
    """
    top = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    borders = borders or fusion_borders(top)
    in_place: dict[Var, Var] = {}
    for position, source in ties:
        out = top.outvars[position]
        if donated[source] and isinstance(out, Var):
            in_place.setdefault(borders.root(out), top.invars[source])
    inputs = dict(zip(top.invars, in_categories, strict=True))
    outputs = [top.outvars[position] for position, _ in ties]
    lasting = frozenset(borders.root(out) for out in outputs if isinstance(out, Var))
    found: list[tuple[Walk, Timeline]] = []
    bodies = Bodies(borders)
    for order in (None, lasting) if lasting else (None,):
        walk = Walk(bodies, in_place, order)
        walk.body(top, backward=False, tail=False, in_place=in_place)
        found.append((walk, _timeline(walk, top, inputs, bf16_dots)))
    walk, best = min(found, key=lambda one: one[1].peak(one[1].global_bytes())[1])
    return replace(best, instant_of=walk.instants())


def _timeline(walk: Walk, top: Jaxpr, inputs: Mapping[Var, str], bf16_dots: bool) -> Timeline:
    spans = tuple(walk.spans(top))
    category = Categories(walk, inputs, top)
    return Timeline(
        buffers=tuple(
            Buffer(s.var, s.start, s.end, category.of(s), s.scale if bf16_dots else max(1, s.scale))
            for s in spans
        ),
        kernels=tuple(walk.ran),
        instant_of={},
        uses={
            s.var: (walk.first_use.get(s.var, s.start), walk.last_use.get(s.var, s.start))
            for s in spans
        },
        roots={var: walk.resolve(var) for var in (*walk.bodies.borders.roots, *walk.alias)},
    )
