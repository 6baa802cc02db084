"""How values lie where they enter and leave the regions of an equation, by a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autopar.core.layout import Layout, shifted
from autopar.passes.rules.regions import Region


@dataclass(frozen=True, slots=True)
class Border:
    """The layouts of what enters and leaves the regions of the equation ``name``.

    ``hubs``: see ``Plan``.
    """

    hubs: Mapping[str, Layout]
    name: str

    def entry(self, region: Region, slot: int) -> Layout:
        """Of an input, as the body sees it."""
        return self.hubs[f"{self.name}/{region.name}.in{slot}"]

    def exits(self, region: Region) -> list[Layout]:
        """Of every result, as the body leaves it."""
        slots = {link.inner: slot for slot, link in enumerate(region.inputs)}
        carries = [self.entry(region, slots[into]) for into, _ in region.carries]
        rest = range(len(carries), len(region.outputs))
        return carries + [self.hubs[f"{self.name}.out{slot}"] for slot in rest]

    def entries(self, region: Region) -> list[Layout]:
        """Of every input, as the body sees it."""
        return [self.entry(region, slot) for slot in range(len(region.inputs))]

    def results(self, nested: Sequence[Region]) -> list[Layout]:
        """Of every result of the equation, outside."""
        region = next(r for r in nested if r.outputs)
        return [
            shifted(layout, int(link.stacked))
            for layout, link in zip(self.exits(region), region.outputs, strict=True)
        ]
