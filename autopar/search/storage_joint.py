r"""Sharding and storage weighed in one network, memory at one instant priced.

$$ L(\lambda) = \min_{x, s} \; \mathrm{cost}(x) + \sum_v c_v(x) [s_v = r]
   + \lambda \, (\mathrm{bytes}(x, s) - \mathrm{budget}) $$

over all layouts $x$ and, for each value $v$ of the forward pass that the backward pass reads, kept
or recomputed ($s_v$). For $\lambda \ge 0$ no step that fits the budget costs less (Lagrange), as
what is counted is less than what such a step costs and holds: recomputing takes no layout changes,
and holds only what is surely there at the instant; what nobody reads in the backward pass is there
for nothing; casts of weights go with the one value that is made of them; of operands that scattered
products find in memory (``Scattered``), each has its least bytes. Layers that look alike are laid
out alike, but may differ in storage.

The largest $L$ is the bound. The layouts found on the way are the ones to choose storage under.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from autopar.search.draft import Draft
from autopar.search.memory import MeshMemory
from autopar.search.memory_prices import on_chip_at_most
from autopar.search.network import TICK_S, Solution
from autopar.search.solve import solve
from autopar.search.storage_model import StorageModel
from autopar.search.storage_tables import Tables

ENOUGH = 5e-5
"""Share of the cost by which the bound may still rise when it is no longer raised."""

PRICES = 6
"""Prices tried at most."""

MORE = 2
"""As many again, once it is known how much room the model has to be given."""

SAME = 0.995
"""Share of a price below which another is another."""

ABOVE = 1.1
"""Times the best price, a little more: what memory it leaves is not short."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a price of memory led to.

    Attributes:
      price: ticks a byte. least: ticks; no choice takes less, with what its bytes cost.
      layouts: what was chosen, by the problem's variables.
      cost: of it, in ticks, without what bytes cost. bytes: at the instant.
    """

    price: float
    least: int
    layouts: tuple[int, ...]
    cost: int
    bytes: int

    def bound(self, room: float) -> float:
        """Ticks; nothing within ``room`` takes less."""
        return self.least - self.price * room

    def above(self, price: float, room: float) -> float:
        """Ticks; what the bound of another price is not above."""
        return self.cost + price * (self.bytes - room)


@dataclass(slots=True)
class Joint:
    """The network of one program, and what came of it.

    Attributes:
      draft: a plan, under whose layouts ``model`` knows what values there are to choose.
      instant: of the program that is looked at.
      deadline: until when prices are tried, by ``time.monotonic``.
    """

    draft: Draft
    model: StorageModel
    instant: int
    deadline: float
    points: list[Point] = field(default_factory=list[Point])
    _tables: Tables = field(init=False)
    _chip: float = field(init=False)

    def __post_init__(self) -> None:
        self._chip = on_chip_at_most(self._memory.program, self.instant)
        self._tables = Tables.of(self.draft, self.model, self.instant)

    def bound_s(self, room: float) -> float:
        """Seconds; no step that holds no more than ``room`` bytes takes less."""
        room += self._chip
        return max((point.bound(room) for point in self.points), default=0.0) * TICK_S

    def search(self, room: float, price: float, most: int = PRICES) -> None:
        """Looks for the price with the highest bound, next where the tangents of two others meet,
        until the deadline.

        Args:
          price: one at which there may be room.
          most: prices tried, those before included.
        """
        room += self._chip
        going = bool(self.points) or self._at(0.0)
        while going and len(self.points) < most:
            short = [point for point in self.points if point.bytes > room]
            ample = [point for point in self.points if point.bytes <= room]
            if not short:
                return
            low = max(short, key=lambda point: point.price)
            if not ample:
                going = self._at(max(price, 2 * low.price))
                continue
            high = min(ample, key=lambda point: point.price)
            between = (high.cost - low.cost) / (low.bytes - high.bytes)
            above = low.above(between, room)
            rises = above - max(point.bound(room) for point in self.points) > ENOUGH * above
            if rises and low.price < SAME * between < SAME * SAME * high.price:
                going = self._at(between)
            elif high.price > ABOVE * between:  # the nearest layouts that leave room
                going = self._at(ABOVE * between)
            else:
                return

    def drafts(self) -> Iterator[tuple[Draft, float]]:
        """The layouts found, as plans that recompute nothing, each with its price."""
        found = self.draft.found
        seen = {found.solution.choice}
        for point in sorted(self.points, key=lambda one: one.price):
            if point.layouts not in seen:
                seen.add(point.layouts)
                cost = found.problem.network.cost(point.layouts)
                solution = Solution(point.layouts, cost, found.solution.bound, "feasible")
                peak = self._memory.peak(found.problem.states(point.layouts))[1]
                other = dataclasses.replace(found, solution=solution, peak_bytes=peak)
                yield dataclasses.replace(self.draft, found=other), point.price

    def _at(self, price: float) -> bool:
        """Solves the network at a price; whether there was time."""
        left = self.deadline - time.monotonic()
        found = solve(self._tables.at(price), left) if left > 0 else None
        if found is None or found.choice is None:
            return False
        cost, held = (part.cost(found.choice) for part in (self._tables.time, self._tables.held))
        layouts = found.choice[: len(self.draft.found.problem.network.unary)]
        self.points.append(Point(price, found.bound, layouts, cost, held))
        return True

    @property
    def _memory(self) -> MeshMemory:
        return self.draft.prepared.depth.memory_on(self.draft.found.problem)


def binding(
    model: StorageModel, instants: Sequence[int], exact: NDArray[np.bool_], room: float
) -> tuple[int, float] | None:
    """Of some instants of the whole step that of which a limit costs most, in the program that is
    looked at, and the price in ticks a byte at which there is room under the layouts at hand.

    ``exact``: which of its instants that program has.
    """
    best: tuple[float, int, float] | None = None
    for instant in instants:
        place = int(model.places[instant])
        found = _dearest(model, instant, room) if exact[place] else None
        if found is not None and (best is None or found[0] > best[0]):
            best = found[0], place, found[1] / TICK_S
    return best and best[1:]


def _dearest(model: StorageModel, instant: int, room: float) -> tuple[float, float] | None:
    """What a limit at an instant costs at least, and at what price of a byte, in seconds."""
    values = [v for v in model.values if v.needed and v.droppable]
    kept = np.array([v.bytes * (v.last_forward < instant <= v.last) for v in values], np.float64)
    again = np.array([v.again * (v.first <= instant <= v.last) for v in values], np.float64)
    costs = np.array([v.seconds for v in values])
    fixed = sum(
        v.bytes
        for v in model.values
        if v.needed and not v.droppable and v.last_forward < instant <= v.last
    )
    freed = kept - again
    prices = np.unique(np.maximum(0.0, costs[freed > 0] / freed[freed > 0]))
    if not prices.any():
        return None
    least = np.minimum(prices[:, None] * kept, costs + prices[:, None] * again).sum(axis=1)
    bounds = least + prices * (model.base[instant] + fixed - room)
    place = int(np.argmax(bounds))
    return float(bounds[place]), float(prices[min(place + 1, len(prices) - 1)])
