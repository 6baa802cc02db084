"""What searches of one step have in common that differ in memory and time alone."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from jax.extend.core import Var

from autopar.core.layout import Layout
from autopar.core.mesh import MeshSpec
from autopar.cost_model import Cluster, Resharder
from autopar.passes.fold import NotFoldable
from autopar.passes.trace import Step
from autopar.search.assemble import Restriction, assemble
from autopar.search.baselines import baseline
from autopar.search.depth import Depth
from autopar.search.graph import Graph
from autopar.search.memory import MemoryModel
from autopar.search.network import Solution
from autopar.search.operations import Operation, operations
from autopar.search.options import BASELINES, Options
from autopar.search.own_shardings import own_shardings
from autopar.search.own_shardings import states as own_states
from autopar.search.pinned import alike, pinned, speaks_of_layers
from autopar.search.pins import Wish, values_of, wishes
from autopar.search.problem import Problem

ALIKE_ABOVE = 400
"""Nodes above which nodes that look alike share a choice. Below, everything is searched apart."""


@dataclass(frozen=True, slots=True)
class Away:
    """What is on the host: flat inputs, and stacks of loops by name.

    ``resting``: the layouts in which inputs must rest, for those to be updated there.
    """

    inputs: frozenset[int] = frozenset()
    stacks: tuple[str, ...] = ()
    resting: Mapping[int, Layout] = field(default_factory=dict[int, Layout])

    def shares(self, step: Step) -> Mapping[Var, float]:
        """What a device holds of values all the same."""
        return step.shares(self.inputs, self.stacks)


NOTHING = Away()


@dataclass(frozen=True, slots=True)
class Prepared:
    """The graph of a step, its memory, and per mesh the network and what was found without limits.

    Attributes:
      depth: the step, and what of it is looked at.
      options: of these, memory and time are not looked at.
      wishes: what pins say, of values of the whole step.
    """

    depth: Depth
    cluster: Cluster
    options: Options
    ops: tuple[Operation | None, ...]
    wishes: tuple[Wish, ...]
    away: Away = NOTHING
    free: dict[MeshSpec, Solution] = field(default_factory=dict[MeshSpec, Solution])
    _problems: dict[MeshSpec, Problem] = field(default_factory=dict[MeshSpec, Problem])

    @classmethod
    def of(cls, step: Step, cluster: Cluster, options: Options, away: Away = NOTHING) -> Prepared:
        """Does what does not depend on the mesh. ``away``: what is on the host."""
        return cls._plain(step, cluster, options, away, wishes(options.pins, step))

    @classmethod
    def _plain(
        cls,
        step: Step,
        cluster: Cluster,
        options: Options,
        away: Away,
        said: tuple[Wish, ...],
    ) -> Prepared:
        options.progress("building the flow graph")
        held = frozenset([one for one in values_of(said) if not isinstance(one, int)])
        depth = Depth.plain(step, cluster.chip, away.shares(step), held)
        return cls._of(depth, cluster, options, away, said)

    @classmethod
    def _of(
        cls,
        depth: Depth,
        cluster: Cluster,
        options: Options,
        away: Away,
        said: tuple[Wish, ...],
    ) -> Prepared:
        ops = operations(depth.graph, depth.step.signatures)
        return cls(depth, cluster, options, ops, said, away)

    @classmethod
    def folded(
        cls, step: Step, cluster: Cluster, options: Options, away: Away = NOTHING
    ) -> Prepared:
        """The same, with layers folded where that is to be had and changes no answer.

        Pins may speak of single layers; baselines do, and so does what is on the host.
        """
        alike = options.search == "optimal" and away == NOTHING
        fold = step.fold if alike else None
        said = wishes(options.pins, step)
        if fold is not None and not speaks_of_layers(said, fold):
            options.progress("building the flow graph")
            with contextlib.suppress(NotFoldable):
                depth = Depth.folded(step, fold, cluster.chip)
                return cls._of(depth, cluster, options, NOTHING, said)
        return cls._plain(step, cluster, options, away, said)

    def plain(self) -> Prepared:
        """The same with nothing folded."""
        if self.depth.fold is None:
            return self
        return self._plain(self.step, self.cluster, self.options, self.away, self.wishes)

    @property
    def step(self) -> Step:
        """The step that is planned."""
        return self.depth.whole

    @property
    def graph(self) -> Graph:
        """Of what is looked at."""
        return self.depth.graph

    @property
    def memory(self) -> MemoryModel:
        """Of what is looked at."""
        return self.depth.memory

    @property
    def alike(self) -> bool:
        """Whether nodes that look alike share a choice."""
        apart = self.options.search in ("exhaustive", "random")
        return self.graph.size > ALIKE_ABOVE and not apart

    def problem(self, mesh: MeshSpec) -> Problem:
        """The network of a mesh.

        Raises:
          PinError: pins do not suit the mesh. InfeasibleError: a baseline cannot be formed on it.
        """
        if mesh not in self._problems:
            self._problems[mesh] = self._assembled(mesh, self.alike)
        return self._problems[mesh]

    def unrolled(self, mesh: MeshSpec) -> Problem:
        """The network in which every node chooses for itself; errors as of ``problem``."""
        return self._assembled(mesh, False)

    def _assembled(self, mesh: MeshSpec, alike: bool) -> Problem:
        return assemble(
            *(self.graph, self.ops, self.depth.fusion, self.cluster, mesh),
            *(self._restriction(mesh), Resharder(mesh, self.cluster.axis_links(mesh))),
            *(alike, self.memory.attention),
        )

    def _restriction(self, mesh: MeshSpec) -> Restriction:
        step, graph, search = self.depth.step, self.graph, self.options.search
        nodes = self.depth.nodes(values_of(self.wishes)) if self.wishes else {}
        pins = pinned(self.wishes, nodes, mesh)
        own = own_states(own_shardings(graph), graph, mesh, pins)
        base = baseline(search, step, graph, mesh) if search in BASELINES else Restriction()
        resting = {i: (layout,) for i, layout in self.away.resting.items()}
        said = {node: pin.layouts for node, pin in pins.items()}
        return dataclasses.replace(
            base,
            resting={**base.resting, **resting, **said},
            borders={**base.borders, **said},
            own=own,
            alike=alike(self.wishes, nodes, pins),
        )
