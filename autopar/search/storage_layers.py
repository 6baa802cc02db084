"""The choices of a step whose layers are folded: one for each layer, those left out included.

The layers of a folded program are taken for the first and the last of the whole step, in the order
in which it goes through them, and its generic layer for all between. What is made, or read, in the
layer next to another is so in all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jax.extend.core import JaxprEqn

from autopar.cost_model import Timeline
from autopar.passes.fold import Fold, NotFoldable
from autopar.passes.sources import source_name
from autopar.passes.trace import Step
from autopar.search.memory_curve import Unfolded
from autopar.search.repeats import Key, kernel_keys
from autopar.search.storage_bodies import Body
from autopar.search.storage_values import Value


@dataclass(frozen=True, slots=True)
class Row:
    """An equation of a layer that the folded program has, and its like in all others.

    Attributes:
      positions: of the whole step, in its order; of its layer alone, if it is in none.
      layers: their numbers. places: of layers that the folded program has, the place in its order.
      layer: the equation's own; -1 if it is in none. own: places of what it stands for.
    """

    positions: tuple[int, ...]
    layers: tuple[int, ...]
    places: Mapping[int, int]
    layer: int
    stack: int
    own: range

    @property
    def stands_for(self) -> Iterator[tuple[int, int]]:
        """Positions in the whole step, and their layers."""
        return ((self.positions[place], self.layers[place]) for place in self.own)

    def seen(self, viewer: Row, layer: int) -> int:
        """The position that is to a layer what this is to that of ``viewer``.

        Args:
          layer: of those that ``viewer`` stands for.

        Raises:
          NotFoldable: there is none.
        """
        if min(self.stack, viewer.stack) < 0 or viewer.layer not in self.places:
            if len(self.own) > 1 or (len(viewer.own) > 1 and self.stack >= 0):
                raise NotFoldable
            return self.positions[self.own[0]]
        if viewer.stack != self.stack:
            raise NotFoldable
        away = self.places[self.layer] - self.places[viewer.layer]
        place = self.layers.index(layer) + away if layer in self.layers else -1
        if not 0 <= place < len(self.positions):
            raise NotFoldable
        return self.positions[place]


@dataclass(slots=True)
class Unrolled:
    """Where the equations of a folded step, and the instants of its kernels, are in the whole one.

    Attributes:
      step: the whole step. timeline: of the folded program, unfolded as ``unfolded`` says.
    """

    step: Step
    fold: Fold
    timeline: Timeline
    unfolded: Unfolded
    _numbers: dict[int, int] = field(init=False)
    _rows: dict[int, Row] = field(default_factory=dict[int, Row])
    _keys: tuple[Key, ...] = field(init=False)
    _instants: dict[Key, int] = field(init=False)

    def __post_init__(self) -> None:
        self._numbers = {place: i for i, place in enumerate(self.fold.part.equations)}
        self._keys = tuple(kernel_keys(self._eqns, self.timeline.kernels))
        self._instants = dict(self._places())

    def values(self, values: Sequence[Value]) -> tuple[Value, ...]:
        """Those of the whole step, makers before readers.

        Raises:
          NotFoldable: what a layer reads, or what reads it, is not known for every layer.
        """
        found = sorted(
            [
                (position, self._port(value), number, layer)
                for number, value in enumerate(values)
                for position, layer in self._row(int(value.name)).stands_for
            ]
        )
        numbers = {one[:2]: number for number, one in enumerate(found)}
        return tuple([self._value(values, numbers, *one) for one in found])

    def body(self, body: Body) -> Body:
        """The whole step's forward pass, of that of the folded one."""
        top = self.step.jaxpr.jaxpr.eqns
        places = sorted(place for one in body.eqns for place, _ in self._row(one).stands_for)
        makers = {var: place for place in places for var in top[place].outvars}
        eqns = {place: top[place] for place in places}
        return dataclasses.replace(body, eqns=eqns, makers=makers, reads={})

    def _value(
        self,
        values: Sequence[Value],
        numbers: Mapping[Key, int],
        position: int,
        port: int,
        number: int,
        layer: int,
    ) -> Value:
        value = values[number]
        viewer = self._row(int(value.name))
        eqn = self.step.jaxpr.jaxpr.eqns[position]

        def seen(name: str) -> int:
            return self._row(int(name)).seen(viewer, layer)

        def instant(own: int) -> int:
            return own if own < 0 else self._instant(own, viewer, layer)

        sources = [(seen(values[i].name), self._port(values[i])) for i in value.sources]
        if not numbers.keys() >= set(sources):
            raise NotFoldable
        return dataclasses.replace(
            value,
            var=eqn.outvars[port],
            name=str(position),
            label=source_name(eqn),
            group=tuple([str(seen(name)) for name in value.group]),
            sources=tuple([numbers[one] for one in sources]),
            start=instant(value.start),
            last_forward=instant(value.last_forward),
            first=instant(value.first),
            last=instant(value.last),
            buffers=(eqn.outvars[port],),
            beside=tuple([(instant(a), instant(b), size) for a, b, size in value.beside]),
        )

    @property
    def _eqns(self) -> Sequence[JaxprEqn]:
        return self.fold.part.jaxpr.jaxpr.eqns

    def _port(self, value: Value) -> int:
        return self._eqns[int(value.name)].outvars.index(value.var)

    def _instant(self, instant: int, viewer: Row, layer: int) -> int:
        """That of the whole step that one of the folded is for a layer of ``viewer``."""
        number, kernel = self._keys[instant]
        key = self._row(number).seen(viewer, layer), kernel
        if key not in self._instants:
            raise NotFoldable
        return self._instants[key]

    def _row(self, number: int) -> Row:
        if number not in self._rows:
            self._rows[number] = self._found(number)
        return self._rows[number]

    def _found(self, number: int) -> Row:
        position, layers = self.fold.part.equations[number], self.fold.layers
        stack = self.fold.equations[number].stack
        if stack < 0:
            return Row((position,), (-1,), {}, -1, -1, range(1))
        column: list[int] = layers.column(position).tolist()
        numbers: list[int] = layers.layer[column].tolist()
        has = [place for place in column if place in self._numbers]
        generic = [self.fold.equations[self._numbers[place]].generic for place in has]
        if sum(generic) != 1:
            raise NotFoldable
        places = {int(layers.layer[one]): place for place, one in enumerate(has)}
        own, first = has.index(position), generic.index(True)
        last = len(column) - len(has)
        begin, end = own + last * (own > first), own + last * (own >= first)
        layer = int(layers.layer[position])
        return Row(tuple(column), tuple(numbers), places, layer, stack, range(begin, end + 1))

    def _places(self) -> Iterator[tuple[Key, int]]:
        """Of each kernel of the whole step, its instant."""
        order = np.argsort(self.unfolded.places, kind="stable")
        starts = np.searchsorted(self.unfolded.places[order], np.arange(len(self._keys) + 1))
        for instant, (number, kernel) in enumerate(self._keys):
            found = order[starts[instant] : starts[instant + 1]].tolist()
            row = self._row(number)
            if len(found) != len(row.own):
                raise NotFoldable
            for (position, _), there in zip(row.stands_for, found, strict=True):
                yield (position, kernel), there
