"""Numbers for layers: which repetition of one run belongs to which of another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autopar.passes.fold.flow import Flow
from autopar.passes.fold.runs import IntArray, Run

Mask = NDArray[np.bool_]


class NotFoldable(Exception):
    """The layers do not lie as they would have to."""


RADIUS = 4
"""How far nodes look that are to be alike (``search.quotient``): a generic layer sees no end."""

LEAST = 0.05
"""Stacks matter that have so much of the program in them; each takes a program more."""

SHORT = 2
"""Layers at the ends that may be unlike the others in one pass, and not in another."""

FEWEST = 3
"""Layers that one must at least stand for."""


@dataclass(frozen=True, slots=True)
class Group:
    """Layers of a stack, one after another, that are alike.

    Attributes:
      folded: the numbers of those of which one may stand for all.
      saved: equations that go if it does.
    """

    stack: int
    folded: tuple[int, ...]
    saved: int


@dataclass(slots=True)
class Layers:
    """The layer of every equation and input, by code (see ``Flow``).

    Attributes:
      stack: the stack of layers it is in, or -1. layer: its number there.
    """

    flow: Flow
    stack: IntArray
    layer: IntArray
    _column: dict[int, IntArray] = field(default_factory=dict[int, IntArray])
    _places: dict[tuple[bytes, tuple[int, ...]], IntArray] = field(default_factory=dict)
    _runs: dict[Run, IntArray] = field(default_factory=dict[Run, IntArray])

    def having(self, stack: int, layers: Sequence[int]) -> Mask:
        """The codes in these layers."""
        return (self.stack == stack) & np.isin(self.layer, layers)

    def places(self) -> IntArray:
        """By code, the place of its layer among those of all stacks, one stack after another as the
        program comes to them; -1 in no layer.
        """
        found, count = np.full(len(self.stack), -1), 0
        stacks, first = np.unique(self.stack, return_index=True)
        for stack in stacks[np.argsort(first)].tolist():
            if stack >= 0:
                mask = self.stack == stack
                found[mask] = count + self.layer[mask]
                count = int(found.max()) + 1
        return found

    def like(self, code: int, layers: Sequence[int]) -> tuple[int, ...]:
        """What stands at the place of ``code`` in these layers, in their order.

        Raises:
          NotFoldable: nothing does.
        """
        column = self.column(code)
        numbers = self.layer[column]
        key = numbers.tobytes(), tuple(layers)
        if key not in self._places:
            place = {layer: i for i, layer in enumerate(numbers.tolist())}
            if not place.keys() >= {*layers}:
                raise NotFoldable
            self._places[key] = np.array([place[layer] for layer in layers])
        return tuple(column[self._places[key]].tolist())

    def column(self, code: int) -> IntArray:
        """What stands at the place of ``code`` in all repetitions, in order; errors as above."""
        if code not in self._column:
            found = [run for run in self._runs if run.start <= code < run.stop]
            if not found:
                raise NotFoldable
            (run,) = found
            place = run.start + (code - run.start) % run.period
            every = np.arange(place, run.stop, run.period)
            self._column.update(dict.fromkeys(every.tolist(), every))
        return self._column[code]

    def settle(self, run: Run, stack: int, numbers: IntArray) -> None:
        """Numbers the repetitions of a run, and the inputs that they read first.

        Where an equation reads inputs whose layers are known, it is in their layer.
        """
        slots, places = self.flow.slots(run)
        own = np.repeat(numbers[:, None], run.period, axis=1)
        is_input = (slots >= self.flow.count).all(axis=0) & _distinct(slots)
        for slot in np.flatnonzero(is_input & self._known(slots, stack)).tolist():
            own[:, places[slot]] = self.layer[slots[:, slot]]
        self.stack[run.start : run.stop] = stack
        self.layer[run.start : run.stop] = own.reshape(-1)
        for slot in np.flatnonzero(is_input).tolist():
            inputs = slots[:, slot]
            if (self.stack[inputs] < 0).all():
                self.stack[inputs], self.layer[inputs] = stack, own[:, places[slot]]
                self._column.update(dict.fromkeys(inputs.tolist(), inputs))
        self._runs[run] = numbers

    def join(self, run: Run, missing: int) -> bool:
        """Numbers a run by what most of it reads, inputs rather than others, if that is known.

        Args:
          missing: in how many repetitions it is in no layer. These are those that are left.
        """
        slots, _ = self.flow.slots(run)
        stacks, numbers = self.stack[slots], self.layer[slots]
        stack = stacks.max(axis=0)
        lacks = stacks < 0
        one = (lacks | (stacks == stack)).all(axis=0) & (stack >= 0)
        apart = np.where(lacks, -1 - np.arange(run.count)[:, None], numbers)
        (found,) = np.nonzero(one & (lacks.sum(axis=0) == missing) & _distinct(apart))
        if not len(found):
            return False
        inputs = found[slots[0, found] >= self.flow.count]
        slot = _oftenest_column(numbers, inputs if len(inputs) else found)
        layers = numbers[:, slot].copy()
        every = np.unique(self.layer[self.stack == stack[slot]])
        left = np.setdiff1d(every, layers)
        if len(left) < missing:
            return False
        layers[lacks[:, slot]] = left[len(left) - missing :]
        self.settle(run, int(stack[slot]), layers)
        return True

    def sort(self, stack: int) -> None:
        """Numbers the layers of a stack in the order in which the program first comes to them."""
        runs = sorted(run for run in self._runs if self.stack[run.start] == stack)
        every = np.concatenate([self._runs[run] for run in runs])
        numbers, first = np.unique(every, return_index=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        mask = self.stack == stack
        self.layer[mask] = rank[np.searchsorted(numbers, self.layer[mask])]
        self._runs.update((run, rank[np.searchsorted(numbers, self._runs[run])]) for run in runs)

    def groups(self) -> list[Group]:
        """Layers that may be folded, and stack by stack what is alike in these."""
        stacks = range(int(self.stack.max(initial=-1)) + 1)
        return [group for stack in stacks for group in self._groups(stack)]

    def _groups(self, stack: int) -> Iterator[Group]:
        runs = [run for run in self._runs if self.stack[run.start] == stack]
        every = np.unique(self.layer[self.stack == stack])
        ends = self._ends(stack, every)
        kept = {*every[:ends].tolist(), *every[-ends:].tolist()}
        within: list[Mask] = []
        for run in runs:
            table = self.layer[run.start : run.stop].reshape(run.count, run.period)
            outer = ends if _monotone(table[:, 0]) else int(self._chained(run))
            kept.update(table[:outer].flat, table[len(table) - outer :].flat)
            unique = {column.tobytes(): column for column in np.ascontiguousarray(table.T)}
            within += [np.isin(every, column) for column in unique.values()]
        makers = self.flow.makers
        outside = (self.stack[makers] == stack) & (self.stack[self.flow.readers()] != stack)
        kept.update(self.layer[makers[outside]].tolist())
        unlike = np.any(np.diff(np.array(within), axis=1), axis=0)
        for layers in np.split(every, np.flatnonzero(unlike) + 1):
            folded = tuple([layer for layer in layers.tolist() if layer not in kept])
            if len(folded) >= FEWEST:
                gone = self.having(stack, folded[1:])[: self.flow.count]
                yield Group(stack, folded, int(gone.sum()))

    def _chained(self, run: Run) -> bool:
        """Whether repetitions read others: a sum over all parameters does, updates do not."""
        slots, _ = self.flow.slots(run)
        within = (slots >= run.start) & (slots < run.stop)
        other = (slots - run.start) // run.period != np.arange(run.count)[:, None]
        return bool((within & other).any())

    def _ends(self, index: int, every: IntArray) -> int:
        """How many layers to keep at either end: one more than are seen from a layer."""
        makers, readers = self.flow.makers, self.flow.readers()
        within = (self.stack[makers] == index) & (self.stack[readers] == index)
        sums = self.flow.sums
        within &= ~(sums[makers] & sums[readers] & (self.flow.onward[makers] == 1))
        makers, readers = makers[within], readers[within]
        far = np.full(len(self.layer), RADIUS + 1)
        far[self.having(index, (int(every[len(every) // 2]),))] = 0
        for _ in range(RADIUS):
            past = far + np.where(far > 0, self.flow.through - 1, 0)
            np.minimum.at(far, readers, past[makers] + self.flow.onward[makers])
            np.minimum.at(far, makers, past[readers] + self.flow.onward[makers])
        return len(np.unique(self.layer[far <= RADIUS])) // 2 + 1

    def _known(self, slots: IntArray, stack: int) -> Mask:
        return (self.stack[slots] == stack).all(axis=0) & _distinct(self.layer[slots])


def find_layers(flow: Flow, runs: Sequence[Run]) -> Layers:
    """Numbers the repetitions of runs: of one by position, of others by what they read.

    That one is the longest, or if more is alike then, the one of most repetitions: where layers
    differ in one pass, others go through all of them. Runs that belong to none so long that folding
    it would pay are in no layer.
    """
    found = _numbered(flow, runs, _longest, SHORT)
    most = max([run.count for run in runs if _size(run) >= LEAST * flow.count], default=0)
    if most <= found.layer[found.stack == 0].max(initial=-1) + 1:
        return found
    other = _numbered(flow, runs, _oftenest, most // 4)
    return max(found, other, key=lambda one: sum(group.saved for group in one.groups()))


def _numbered(
    flow: Flow, runs: Sequence[Run], first: Callable[[Sequence[Run]], Run], short: int
) -> Layers:
    """``short``: layers that a run may lack in what numbers it."""
    unknown = np.full(flow.count + flow.inputs + 1, -1)  # and one for code -1
    layers = Layers(flow, unknown, unknown.copy())
    waiting = list(runs)
    stacks = 0
    while waiting:
        base = first([run for run in waiting if _size(run) >= LEAST * flow.count] or waiting)
        if _size(base) < LEAST * flow.count:
            break
        layers.settle(base, stacks, np.arange(base.count))
        waiting.remove(base)
        joined = True
        while joined:
            joined = False
            for missing in range(short + 1):
                left = [run for run in waiting if not layers.join(run, missing)]
                joined, waiting = len(left) < len(waiting), left
                if joined:
                    break
        layers.sort(stacks)
        stacks += 1
    return layers


def _longest(runs: Sequence[Run]) -> Run:
    """The run with the most in it, or one of a few layers more: not all begin or end alike."""
    longest = max(runs, key=_size)
    near = [run for run in runs if longest.count < run.count <= longest.count + SHORT]
    return max(near, key=_size) if near else longest


def _oftenest(runs: Sequence[Run]) -> Run:
    """The run of the most repetitions, of these the longest."""
    return max(runs, key=lambda run: (run.count, _size(run)))


def _oftenest_column(table: IntArray, columns: IntArray) -> int:
    """The first of those columns of which most are the same."""
    _, first, counts = np.unique(table[:, columns], axis=1, return_index=True, return_counts=True)
    most = first[counts == counts.max()].min()
    return int(columns[most])


def _size(run: Run) -> int:
    return run.period * run.count


def _monotone(numbers: IntArray) -> bool:
    steps = np.diff(numbers)
    return bool((steps > 0).all() or (steps < 0).all())


def _distinct(table: IntArray) -> Mask:
    """Whether all entries of each column differ."""
    ordered = np.sort(table, axis=0)
    return (ordered[1:] != ordered[:-1]).all(axis=0)
