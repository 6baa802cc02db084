"""What pins mean on one graph and mesh: the layouts that nodes may have, and which lie alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.core.errors import PinError
from autopar.core.layout import Layout, layouts_of
from autopar.core.mesh import MeshSpec
from autopar.passes.fold import Fold
from autopar.search.pins import Value, Wish

Nodes = Mapping[Value, int]
"""The node that says where a value lies: of an input, or a hub."""


@dataclass(frozen=True, slots=True)
class Pinned:
    """The layouts that a value may have, and the pin that says so."""

    wish: Wish
    layouts: tuple[Layout, ...]


def pinned(wishes: Sequence[Wish], nodes: Nodes, mesh: MeshSpec) -> dict[int, Pinned]:
    """By node, what pins leave it.

    Raises:
      PinError: a pin contradicts another, or does not fit the shape or the mesh.
    """
    found: dict[int, Pinned] = {}
    for wish in wishes:
        if wish.like is not None or wish.value not in nodes:
            continue
        allowed = _layouts(wish, mesh)
        node = nodes[wish.value]
        earlier = found.setdefault(node, Pinned(wish, allowed))
        both = tuple([layout for layout in earlier.layouts if layout in allowed])
        if not both:
            raise PinError(
                f"pins contradict each other: {wish.name!r} is pinned to {earlier.wish.said} by "
                f"{earlier.wish.pattern!r} and to {wish.said} by {wish.pattern!r}; make one of the "
                "patterns narrower, or remove it"
            )
        found[node] = Pinned(earlier.wish, both)
    return found


def alike(
    wishes: Sequence[Wish], nodes: Nodes, pins: Mapping[int, Pinned]
) -> tuple[tuple[int, int], ...]:
    """Pairs of nodes that must lie alike, each once.

    Raises:
      PinError: ``pins`` say of the two of a pair that they lie otherwise.
    """
    pairs: dict[tuple[int, int], None] = {}
    for wish in wishes:
        if wish.like is None or wish.value not in nodes or wish.like not in nodes:
            continue
        one, other = nodes[wish.value], nodes[wish.like]
        ends = [pins[node] for node in (one, other) if node in pins]
        if len(ends) == 2 and not set(ends[0].layouts) & set(ends[1].layouts):
            first, second = (end.wish for end in ends)
            raise PinError(
                f"pins contradict each other: {wish}, but {first.name!r} is pinned to {first.said} "
                f"by {first.pattern!r} and {second.name!r} to {second.said} by {second.pattern!r}; "
                "remove one of the three"
            )
        if one != other:
            pairs[one, other] = None
    return tuple(pairs)


def speaks_of_layers(wishes: Sequence[Wish], fold: Fold) -> bool:
    """Whether pins tell layers apart that ``fold`` takes for one, or speak of what is in them."""
    if not all(isinstance(one, int) for wish in wishes for one in (wish.value, wish.like or 0)):
        return True
    said: dict[int, list[Wish]] = defaultdict(list)
    for wish in wishes:
        assert isinstance(wish.value, int)
        said[wish.value].append(wish)
    standing = {position: one for one in fold.inputs for position in one.positions}
    for one in fold.inputs:
        specs = {
            frozenset([str(wish.said) for wish in said[position] if wish.like is None])
            for position in one.positions
        }
        likes = [[wish.like for wish in said[position]] for position in one.positions]
        if len(specs) > 1 or len({len(each) for each in likes}) > 1:
            return True
        for targets in zip(*likes, strict=True):
            first = next((standing[like] for like in targets if isinstance(like, int)), None)
            if first and targets != first.positions and (first.generic or len({*targets}) > 1):
                return True
    return False


def _layouts(wish: Wish, mesh: MeshSpec) -> tuple[Layout, ...]:
    """Those that the spec of a pin allows, the one with the fewest splits first."""
    spec, shape = wish.said, wish.shape
    assert not isinstance(spec, str)
    if len(spec) > len(shape):
        raise PinError(
            f"{wish}: the spec has {len(spec)} entries, the value {len(shape)} dimensions"
        )
    try:
        found = layouts_of(spec, shape, mesh)
    except ValueError as error:
        raise PinError(f"{wish}: {error}") from None
    if not found:
        raise PinError(f"{wish}: the mesh {mesh} does not divide it evenly; splits must be even")
    return found
