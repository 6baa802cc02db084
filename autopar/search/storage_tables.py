"""The tables of ``storage_joint``: seconds and bytes of layouts and storage together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import Var
from numpy.typing import NDArray

from autopar.search.draft import Draft
from autopar.search.graph import Node
from autopar.search.kernel_times import KernelTimes
from autopar.search.memory import MeshMemory
from autopar.search.memory_prices import Scattered, scattered, ticks
from autopar.search.network import FORBIDDEN, TICK_S, IntArray, Network, add_pair
from autopar.search.storage_model import StorageModel
from autopar.search.storage_values import GAIN, Value

Costs = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tables:
    """Two networks of the same variables: ticks, and bytes at the instant."""

    time: Network
    held: Network

    @classmethod
    def of(cls, draft: Draft, model: StorageModel, instant: int) -> Tables:
        """Of a program at an instant."""
        work = _Tables(draft, model, instant)
        work.fill()
        return cls(Network(tuple(work.time), work.times), Network(tuple(work.held), work.holds))

    def at(self, price: float) -> Network:
        """The network at a price: ticks a byte."""
        unary = [
            np.minimum(time + ticks(price * held), FORBIDDEN)
            for time, held in zip(self.time.unary, self.held.unary, strict=True)
        ]
        pairs = dict(self.time.pairs)
        for (i, j), table in self.held.pairs.items():
            add_pair(pairs, i, j, ticks(price * table))
        return Network(tuple(unary), pairs)


@dataclass(slots=True)
class _Tables:
    """``Tables`` in the making. A value that is kept or not is a variable of two values: 0, 1."""

    draft: Draft
    model: StorageModel
    instant: int
    time: list[IntArray] = field(init=False)
    held: list[IntArray] = field(init=False)
    times: dict[tuple[int, int], IntArray] = field(init=False)
    holds: dict[tuple[int, int], IntArray] = field(default_factory=dict[tuple[int, int], IntArray])
    nodes: Mapping[str, Node] = field(init=False)
    scales: Mapping[Var, float] = field(init=False)
    kernels: KernelTimes = field(init=False)
    stored: dict[int, int] = field(default_factory=dict[int, int])
    _both: dict[object, int] = field(default_factory=dict[object, int])
    _costs: dict[int, Costs] = field(default_factory=dict[int, Costs])

    def __post_init__(self) -> None:
        network = self.draft.found.problem.network
        self.time, self.times = list(network.unary), dict(network.pairs)
        self.held = [np.zeros(len(costs), np.int64) for costs in network.unary]
        self.nodes = {node.name: node for node in self.draft.prepared.graph.nodes}
        self.scales = {one.var: one.scale for one in self._memory.program.timeline.buffers}
        memory = self.draft.prepared.memory
        self.kernels = KernelTimes(memory.timeline, memory.fusion, memory.chip)

    def fill(self) -> None:
        """Writes all."""
        chosen = {v.var for v in self.model.own if v.needed and self._is_kept(v)}
        casts = self._casts()
        weights = self._memory.program.weights(self.instant, chosen | casts.keys())
        for variable, weight in weights.items():
            self.held[variable] = self.held[variable] + weight
        known: dict[object, int] = {}
        copies: dict[int, int] = {}
        for number, value in enumerate(self.model.own):
            if value.needed and not value.droppable and self._is_kept(value):
                node, size = self._size(value)
                self.held[node] = self.held[node] + size * self._copies(value)
            elif value.needed and value.droppable and self._matters(value):
                key = self._key(value)
                self.stored[number] = known.setdefault(key, number)
                own = self.stored[number]
                copies[own] = copies.get(own, 0) + self._copies(value)
        variables = {
            number: self._stored(self.model.own[number], n) for number, n in copies.items()
        }
        self.stored = {number: variables[own] for number, own in self.stored.items()}
        for var, number in casts.items():
            if number in self.stored:
                self._cast(var, self.stored[number])
        for one in scattered(self._memory.program, self.instant):
            number = self.model.streamed.get(one.root, -1)
            if number in self.stored:
                self._streamed(one, self.stored[number])
            elif number >= 0 and not self.model.own[number].droppable:
                add_pair(self.holds, one.src, one.dst, ticks(one.bytes * one.shares[one.left]))

    def _streamed(self, one: Scattered, stored: int) -> None:
        """An operand that is there if the product is scattered and its value kept: of these the
        product's layout and the value's storage are brought together in a variable.
        """
        key = one.src, one.left.tobytes(), stored
        if key not in self._both:
            count = len(one.shares)
            layouts, again = np.arange(2 * count) % count, np.arange(2 * count) // count
            self._both[key] = self._variable(2 * count)
            for end, wanted in ((one.src, one.left), (stored, np.arange(2))):
                apart = wanted[:, None] != (layouts if end == one.src else again)
                add_pair(self.times, end, self._both[key], np.where(apart, FORBIDDEN, 0))
        both = self._both[key]
        there = np.concatenate((one.bytes * one.shares, 0 * one.shares))
        add_pair(self.holds, both, one.dst, ticks(there))

    def _casts(self) -> dict[Var, int]:
        """Casts of weights that are held at the instant, and the one value that is made of each: if
        that is recomputed, so is the cast, and -1 where several are.
        """
        makers = {name: i for i, value in enumerate(self.model.own) for name in value.group}
        several = [name for value in self.model.own for name in value.group]
        found: dict[Var, int] = {}
        graph = self.draft.prepared.graph
        for held in self._memory.program.held:
            name = graph.nodes[graph.sources[held.var].node].name
            if held.is_weight and held.start <= self.instant <= held.end and name in makers:
                found[held.var] = makers[name] if several.count(name) == 1 else -1
        return found

    def _cast(self, var: Var, stored: int) -> None:
        """A cast of a weight, which is there if the value made of it is kept."""
        node, size = self._memory.program.table(var, 1.0)
        copies = int(self.draft.prepared.graph.copies[node])
        table = np.stack((size * copies, 0 * size), axis=1)
        add_pair(self.holds, self.draft.found.problem.variables[node], stored, table)

    def _stored(self, value: Value, copies: int) -> int:
        """The variable of a value, for so many like it."""
        node, size = self._size(value)
        stored, share = self._variable(2), GAIN if value.seconds < 0 else 1.0
        again = size * (value.again / max(1, value.bytes))
        held = (size * self._is_kept(value), again * self._is_again(value))
        add_pair(self.holds, node, stored, ticks(np.stack(held, axis=1)) * copies)
        saved = self._saved(value) / TICK_S
        add_pair(self.times, node, stored, _of_again(-share * saved * copies))
        for variable, seconds in self._work(value):
            add_pair(self.times, variable, stored, _of_again(share * seconds / TICK_S * copies))
        return stored

    def _variable(self, count: int) -> int:
        self.time.append(np.zeros(count, np.int64))
        self.held.append(np.zeros(count, np.int64))
        return len(self.time) - 1

    def _key(self, value: Value) -> object:
        """Equal for values that are stored alike for the same."""
        node, size = self._size(value)
        work = tuple([(variable, costs.tobytes()) for variable, costs in self._work(value)])
        spans = self._is_kept(value), self._is_again(value), value.seconds < 0, value.saved
        return node, size.tobytes(), work, spans

    def _size(self, value: Value) -> tuple[int, IntArray]:
        """The variable that decides about a value, and its bytes in each state."""
        scale = min(1.0, self.scales.get(value.var, 0.0))
        node, size = self._memory.program.table(value.var, scale)
        return self.draft.found.problem.variables[node], size

    def _saved(self, value: Value) -> Costs:
        """Seconds that readers save in each state, as bytes go."""
        node, size = self._size(value)
        here = (self.draft.found.solution.choice or ())[node]
        return value.saved * size / max(1, int(size[here]))

    def _work(self, value: Value) -> Iterator[tuple[int, Costs]]:
        """The variables of the equations that make a value, and their seconds."""
        problem = self.draft.found.problem
        for node in map(self.nodes.__getitem__, value.group):
            variable, states = problem.variables[node.index], problem.domains[node.index]
            if variable not in self._costs:  # nodes alike cost the same
                seconds = [self.kernels.seconds(problem, node, state) for state in states]
                self._costs[variable] = np.array(seconds)
            yield variable, self._costs[variable]

    def _matters(self, value: Value) -> bool:
        return self._is_kept(value) or self._is_again(value) or value.saved > 0

    def _is_kept(self, value: Value) -> bool:
        """Whether it is there at the instant only if it is kept."""
        return value.last_forward < self.instant <= value.last

    def _is_again(self, value: Value) -> bool:
        """Whether it is surely there if it is recomputed."""
        return value.first <= self.instant <= value.last

    def _copies(self, value: Value) -> int:
        return int(self.draft.prepared.graph.copies[self.nodes[value.name].index])

    @property
    def _memory(self) -> MeshMemory:
        return self.draft.prepared.depth.memory_on(self.draft.found.problem)


def _of_again(costs: Costs) -> IntArray:
    """A table of a variable's states and storage, where recomputing alone costs."""
    return ticks(np.stack((np.zeros_like(costs), costs), axis=1))
