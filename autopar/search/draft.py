"""What was found, as a plan that is written out when it is first asked for.

Of the plans that a search goes through most serve as layouts to choose storage under, or as what
another must be faster than; few are handed on.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

from autopar.core.mesh import MeshSpec
from autopar.core.plan import MemoryCurve, Plan, SolverReport
from autopar.search import planner
from autopar.search.domains import State
from autopar.search.options import Options
from autopar.search.planner import Candidate
from autopar.search.prepared import Prepared


@dataclass(frozen=True)
class Draft:
    """A plan for the program that is ``prepared``.

    Attributes:
      found: its layouts. seconds: that the search took.
    """

    prepared: Prepared
    found: Candidate
    options: Options
    seconds: float

    @property
    def mesh(self) -> MeshSpec:
        """Its mesh."""
        return self.found.problem.mesh

    @property
    def peak_bytes(self) -> int:
        """Simulated, of a device."""
        return self.found.peak_bytes

    @cached_property
    def solver(self) -> SolverReport:
        """What is known of its quality."""
        return planner.report(self.prepared, self.found, self.options, self.seconds)

    @cached_property
    def states(self) -> tuple[State, ...]:
        """Of the nodes of what is looked at."""
        return self.found.problem.states(self.found.solution.choice or ())

    @property
    def curve(self) -> MemoryCurve:
        """What it holds in the course of the step."""
        memory = self.prepared.depth.memory_on(self.found.problem)
        return memory.stacked(self.states).curve()

    @cached_property
    def plan(self) -> Plan:
        """The plan, written out."""
        return planner.planned(self.prepared, self.found, self.options, self.seconds)


def unfolded(prepared: Prepared, found: Candidate, plain: Prepared) -> Candidate:
    """The same for the same step with no layers folded."""
    if prepared is plain:
        return found
    problem = plain.problem(found.problem.mesh)
    states = found.solution.choice or ()
    names = {
        name: states[variable]
        for node, variable in zip(prepared.graph.nodes, found.problem.variables, strict=True)
        for name in prepared.depth.names(node)
    }
    own = zip(plain.graph.nodes, problem.variables, strict=True)
    chosen = {variable: names[node.name] for node, variable in own}
    choice = tuple(chosen[variable] for variable in range(len(chosen)))
    solution = dataclasses.replace(found.solution, choice=choice, cost=problem.network.cost(choice))
    return dataclasses.replace(found, problem=problem, solution=solution)
