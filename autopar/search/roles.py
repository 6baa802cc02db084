"""What each input of a step is for, read off the flow graph, not off its name."""

from __future__ import annotations

from autopar.passes.trace import Step
from autopar.search.graph import Graph

PARAMETERS = "parameters"
OPTIMIZER = "optimizer state"
BATCH = "batch"
OTHER = "other"


def roles(step: Step, graph: Graph) -> tuple[str, ...]:
    """The role of every flat input.

    An input that comes back as an output is state: parameters if the forward or backward pass reads
    it, optimizer state if only the optimiser's side does. Anything else with a dimension is batch.
    """
    tied = {position for _, position in step.ties}
    working: set[int] = set()
    for edge in graph.edges:
        if graph.nodes[edge.dst].kind != "input" and not graph.tails[edge.dst]:
            working.add(edge.src)
    found: list[str] = []
    for position, aval in enumerate(step.in_avals):
        if not aval.shape:
            found.append(OTHER)
        elif position in tied:
            found.append(PARAMETERS if position in working else OPTIMIZER)
        else:
            found.append(BATCH)
    return tuple(found)
