"""Pins: layouts the user fixes, by the path of an input or the name of an operation.

A pin is a ``PartitionSpec``, in which ``P.UNCONSTRAINED`` leaves a dimension to the search and
``P()`` says not to split at all; or a text, the path or name of another value whose layout this one
must have. A pinned result of an operation gets a hub of its own, if it has none: that is where it
lies as pinned, whatever the operation leaves.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
from jax.extend.core import Jaxpr, Var

from autopar.core.errors import PinError
from autopar.core.plan import Plan
from autopar.passes.rules import regions
from autopar.passes.sources import source_name
from autopar.passes.trace import Step

Pin = jax.P | str
"""How a value must lie, or the path or name of the one that it must lie like."""

Pins = Mapping[str, Pin]
"""Regular expression over input paths or operation names (matched to their end, from any ``/``)."""

Value = int | Var
"""A value that pins speak of: the position of an input, or the result of an equation."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a pin says of one value.

    Attributes:
      name: the value's path or name. like: what it must lie like, if that is what the pin says.
    """

    pattern: str
    said: Pin
    value: Value
    name: str
    shape: tuple[int, ...]
    like: Value | None = None

    def __str__(self) -> str:
        said = f"like {self.said!r}" if isinstance(self.said, str) else self.said
        return f"pin {self.pattern!r} = {said} on {self.name!r} of shape {self.shape}"


def axis_names(pins: Pins) -> set[str]:
    """Every mesh axis the pins speak of."""
    entries = [entry for spec in pins.values() if not isinstance(spec, str) for entry in spec]
    groups = [entry if isinstance(entry, tuple) else (entry,) for entry in entries]
    return {name for group in groups for name in group if isinstance(name, str)}


def following(plan: Plan, step: Step) -> dict[str, jax.P]:
    """Pins by which the inputs of ``step`` rest as their likes do under ``plan``.

    An input's like has its shape and dtype and the longest common end of paths; of several, a
    parameter comes first. So ``params/block_0/kernel`` of an evaluation follows
    ``state/params/block_0/kernel`` of the training step, and not the moments named alike.

    Raises:
      PinError: no input of ``step`` has a like.
    """
    found: dict[str, jax.P] = {}
    for path, aval in zip(step.in_paths, step.in_avals, strict=True):
        type_ = (tuple(aval.shape), str(aval.dtype))
        ranked = [
            ((_common_end(path, value.path), value.role == "parameters"), -i)
            for i, value in enumerate(plan.inputs)
            if (value.shape, value.dtype) == type_
        ]
        (ends, _), place = max(ranked, default=((0, False), 0))
        if ends:
            found[re.escape(path)] = plan.inputs[-place].spec(plan.mesh)
    if not found:
        raise PinError(
            "like= names a plan whose inputs are unlike those of this step: none has the name, "
            f"shape and dtype of one here; it has {plan.inputs[0].path!r}, here is "
            f"{step.in_paths[0]!r}; give the plan of a step with the same parameters"
        )
    return found


def _common_end(a: str, b: str) -> int:
    """How many parts of two paths agree, from the end."""
    pairs = zip(reversed(a.split("/")), reversed(b.split("/")), strict=False)
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))


def wishes(pins: Pins, step: Step) -> tuple[Wish, ...]:
    """What pins say of the values of a step.

    Raises:
      PinError: a pin names no value, is no regular expression, or wants one to lie like what is not
        there, is not one value, or has other dimensions.
    """
    values = _Values(step)
    return tuple(
        [
            Wish(pattern, said, value, name, values.shape(value), like)
            for pattern, said in pins.items()
            for value, name, like in values.named(pattern, said)
        ]
    )


def names_results(pins: Pins, step: Step) -> bool:
    """Whether pins speak of other values than inputs; errors as of ``wishes``."""
    return not all(isinstance(one, int) for one in values_of(wishes(pins, step)))


def values_of(wishes: Iterable[Wish]) -> Iterator[Value]:
    """The values that pins speak of."""
    for wish in wishes:
        yield wish.value
        if wish.like is not None:
            yield wish.like


@dataclass(frozen=True)
class _Values:
    """The values of a step, by name."""

    step: Step

    @cached_property
    def inputs(self) -> tuple[tuple[str, Value], ...]:
        return tuple([(path, position) for position, path in enumerate(self.step.in_paths)])

    @cached_property
    def results(self) -> tuple[tuple[str, Value], ...]:
        return tuple(_results(self.step.jaxpr.jaxpr))

    def shape(self, value: Value) -> tuple[int, ...]:
        aval = self.step.in_avals[value] if isinstance(value, int) else value.aval
        return tuple(getattr(aval, "shape", ()))

    def named(self, pattern: str, said: Pin) -> Iterator[tuple[Value, str, Value | None]]:
        """The values that a pin names, inputs if there are any, and what each must lie like."""
        try:
            compiled = re.compile(rf"(?:.*/)?(?:{pattern})")
        except re.error as error:
            raise PinError(f"pin {pattern!r} is not a regular expression: {error}") from None
        for values in (self.inputs, self.results):
            matches = [(compiled.fullmatch(name), value) for name, value in values]
            named = [(found, value) for found, value in matches if found]
            for found, value in named:
                like = self._like(pattern, said, found, value) if isinstance(said, str) else None
                yield value, found.string, like
            if named:
                return
        raise PinError(
            f"pin {pattern!r} names no input of the step, and no operation; the nearest names are "
            f"{self._nearest(pattern)}"
        )

    def _like(self, pattern: str, said: str, found: re.Match[str], value: Value) -> Value:
        """The one value whose name ends as ``said``, groups of the match filled in."""
        where = f"pin {pattern!r} = {said!r} on {found.string!r}"
        try:
            wanted = found.expand(said)
        except (re.error, IndexError) as error:
            raise PinError(f"{where}: {error}") from None
        for values in (self.inputs, self.results):
            likes = [one for one in values if f"/{one[0]}".endswith(f"/{wanted}")]
            if len(likes) > 1:
                names = ", ".join([name for name, _ in likes[:3]])
                raise PinError(f"{where}: {wanted!r} is the end of several names: {names}")
            for name, like in likes:
                if len(self.shape(like)) != len(self.shape(value)):
                    raise PinError(
                        f"{where}: they lie alike only if they have as many dimensions; {name!r} "
                        f"has the shape {self.shape(like)}, this one {self.shape(value)}"
                    )
                return like
        raise PinError(
            f"{where}: no input and no operation is named {wanted!r}; the nearest names are "
            f"{self._nearest(wanted)}; to split over a mesh axis, write jax.P({wanted!r})"
        )

    def _nearest(self, text: str) -> str:
        names = dict.fromkeys([name for name, _ in (*self.inputs, *self.results)])
        return ", ".join(difflib.get_close_matches(text, list(names), n=3, cutoff=0.0))


def _results(jaxpr: Jaxpr) -> Iterator[tuple[str, Value]]:
    """What equations make, also within bodies, by the equation's name."""
    for eqn in jaxpr.eqns:
        nested = regions(eqn)
        for region in nested or ():
            yield from _results(region.body)
        if nested is None:
            name = source_name(eqn)
            yield from [(name, var) for var in eqn.outvars]
