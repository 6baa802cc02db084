"""Reading a plan by the names of the user's program instead of the numbers of its equations."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import autopar
from autopar.core.layout import Layout, show
from autopar.core.plan import CollectiveUse, Strategy
from autopar.passes.sources import source_name
from autopar.passes.trace import Step, trace


@dataclass(frozen=True)
class Reading:
    """A step and a plan for it.

    Attributes:
      plan: the plan.
      step: what it was made for.
    """

    plan: autopar.Plan
    step: Step

    def strategies(self, name: str) -> list[Strategy]:
        """Of the equations whose source name this regular expression matches in full."""
        return [self.plan.strategies[str(i)] for i in self._equations(name)]

    def written(self, name: str) -> set[str]:
        """Those strategies as text: ``{"B S(1) -> S(2)"}``."""
        return {str(strategy) for strategy in self.strategies(name)}

    def hubs(self, name: str) -> set[str]:
        """The layouts of the shared results of those equations."""
        hubs = self.plan.hubs
        return {show(hubs[f"{i}.0"]) for i in self._equations(name) if f"{i}.0" in hubs}

    def layouts(self, path: str) -> set[str]:
        """How the inputs rest whose path this regular expression finds something in."""
        return {show(layout) for layout in self.inputs(path).values()}

    def inputs(self, path: str) -> dict[str, Layout]:
        found = {v.path: v.layout for v in self.plan.inputs if re.search(path, v.path)}
        assert found, f"no input matches {path!r}"
        return found

    def collectives(self, value: str = "", least_bytes: int = 0) -> list[CollectiveUse]:
        """Those of values whose name this regular expression finds something in."""
        return [
            use
            for use in self.plan.predicted.collectives
            if use.bytes >= least_bytes and re.search(value, use.value)
        ]

    def counts(self, value: str = "", least_bytes: int = 0) -> dict[str, int]:
        """How many of each kind."""
        found: dict[str, int] = defaultdict(int)
        for use in self.collectives(value, least_bytes):
            found[use.kind] += use.count
        return dict(found)

    def _equations(self, name: str) -> list[int]:
        eqns = self.step.jaxpr.jaxpr.eqns
        found = [i for i, eqn in enumerate(eqns) if re.fullmatch(name, source_name(eqn))]
        assert found, f"no equation is called {name!r}"
        return found


def read(step: Callable[..., Any], *args: Any, **options: Any) -> Reading:
    """Plans ``step`` and traces it again to know its names."""
    plan = autopar.plan(step, *args, **options)
    program = trace(step, *args, donate=options.get("donate", (0,))).program(
        plan.step, plan.recompute
    )
    assert program is not None
    return Reading(plan, program)
