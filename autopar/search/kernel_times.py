"""How long the kernels of a step take, instant by instant, under the layouts chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autopar.core.layout import local_shapes
from autopar.cost_model import Chip, FusionBorders, equation_seconds, work
from autopar.cost_model.on_chip import Pace
from autopar.cost_model.timeline import Timeline
from autopar.cost_model.work import shape_of
from autopar.search.domains import State
from autopar.search.graph import Node
from autopar.search.problem import Problem


@dataclass(slots=True)
class KernelTimes:
    """Seconds of the equations, found once for each that differs in its state."""

    timeline: Timeline
    fusion: FusionBorders
    chip: Chip
    _seconds: dict[object, float] = field(default_factory=dict[object, float])

    def of(self, problem: Problem, states: Sequence[State]) -> Pace:
        """How time passes under a choice; a loop's body runs once."""
        spent = np.zeros(self.timeline.instants)
        for node, variable in zip(problem.graph.nodes, problem.variables, strict=True):
            if node.eqn is None or not node.eqn.outvars:
                continue
            instant = self.timeline.instant_of.get(node.eqn.outvars[0])
            if instant is not None:
                state = states[node.index]
                key = variable, id(state)
                if key not in self._seconds:
                    self._seconds[key] = self.seconds(problem, node, state)
                spent[instant] += self._seconds[key]
        return Pace.of(spent, self.chip)

    def seconds(self, problem: Problem, node: Node, state: State) -> float:
        """Of an equation in a state."""
        eqn = node.eqn
        assert eqn is not None
        ins = local_shapes([shape_of(v.aval) for v in eqn.invars], state.operands, problem.mesh)
        outs = local_shapes([shape_of(v.aval) for v in eqn.outvars], state.results, problem.mesh)
        return equation_seconds(work(eqn), ins, outs, self.chip, *self.fusion.of(eqn))
