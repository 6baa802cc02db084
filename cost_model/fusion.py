"""Where the compiler's fusions begin and end: which values really lie in device memory.

A static analysis of one jaxpr, before sharding, after XLA:TPU's habits (measured for the design):

1. **Views** (reshape, transpose, copy and the like) are their root: no bytes of their own.
2. **Heavy** operations (matmul, convolution, gather, scatter, sort, reductions, loops, and whatever
   is unknown) write their results. Gathers, scatters, loops and reductions of windows also need
   their operands written, except *cheap* ones: constants, iota, and broadcasts of scalars. A
   one-hot scatter (the gradient of ``take_along_axis``) is elementwise.
3. A matmul's or convolution's buffer moves down its chain of single-user elementwise consumers of
   its size (output fusion) to the last of its narrowest values: converts to wider types are left to
   the consumers. Where two chains meet, the later one goes on.
4. Any other elementwise value is recomputed in each consumer, unless it has two or more consumers,
   two or more full-size non-input ancestors, and those ancestors' bytes exceed 2.25 times its own;
   or, if a convolution reads it, unless writing it and reading that in each is no more than reading
   its ancestors in each.
5. Inputs lie in memory, results are written, both for the whole step and for every region's body.

A fused group ends at the value it writes (its *sink*). The whole group is one kernel, so its reads
are charged where it ends: ``reads`` says, for each operand of a heavy or written equation, how many
times that operand's own bytes come from device memory: 1 if it lies there, and for an operand that
is computed on the way, the bytes of everything in memory it is computed from over its own. What
several operands share counts once; a value recomputed for several sinks has its sources read by
each. The write below a matmul (item 3) is charged to the matmul, whose time hides it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Var

from autopar.cost_model.fusion_graph import FusionGraph, Nature
from autopar.passes.fingerprint import PerSignature, Signatures
from autopar.passes.fold import Alike
from autopar.passes.rules import regions
from autopar.passes.rules.control_flow import BODIES


@dataclass(frozen=True)
class FusionBorders:
    """The result of the analysis, for the step and all its regions.

    Attributes:
      reads: (first result of an equation, operand index) to how often that operand's bytes are read
        from device memory; absent: never.
      writes: the values that lie in device memory, inputs aside.
      charged: the values whose writing is charged to the equation that makes them.
      roots: every view and the value it is a view of.
      sources: first result of a kernel (an equation that writes) to the values in memory it needs.
      softmaxes: the exponentials that a matmul's kernel writes, holding whole rows for their
        maximum, and what it would write if the maximum were at hand.
      widened: values that lie in memory only as such an exponential, of which they are computed, is
        wider than what would be written if the maximum were at hand.
      narrow: f32 values that only matmuls of default precision use: XLA:TPU stores them as bf16.
      beside: first result of a kernel to the vector instructions of what is fused into it, per
        element of its equation's largest operand.
      fused: the values that are computed inside the kernels that read them, those made of scalars
        and iota alone left out.
    """

    reads: Mapping[tuple[Var, int], float]
    writes: frozenset[Var]
    charged: frozenset[Var]
    roots: Mapping[Var, Var]
    sources: Mapping[Var, tuple[Var, ...]]
    narrow: frozenset[Var]
    softmaxes: Mapping[Var, Var]
    widened: Mapping[Var, Var]
    beside: Mapping[Var, float]
    fused: frozenset[Var]

    def reads_of(self, eqn: JaxprEqn) -> tuple[float, ...]:
        """For each operand of ``eqn``, how often it is read."""
        if not eqn.outvars or eqn.outvars[0] not in self._readers:
            return (0.0,) * len(eqn.invars)
        key = eqn.outvars[0]
        return tuple([self.reads.get((key, index), 0.0) for index in range(len(eqn.invars))])

    @cached_property
    def _readers(self) -> frozenset[Var]:
        """The first results of equations that read device memory."""
        return frozenset([var for var, _ in self.reads])

    def writes_of(self, eqn: JaxprEqn) -> tuple[bool, ...]:
        """For each result of ``eqn``, whether the equation is charged with writing it."""
        return tuple([var in self.charged for var in eqn.outvars])

    def of(self, eqn: JaxprEqn) -> tuple[tuple[float, ...], tuple[bool, ...], float]:
        """``(reads, writes, beside)`` of ``eqn``, as ``equation_seconds`` takes them."""
        beside = self.beside.get(eqn.outvars[0], 0.0) if eqn.outvars else 0.0
        return self.reads_of(eqn), self.writes_of(eqn), beside

    def root(self, var: Var) -> Var:
        """The value whose bytes ``var`` is."""
        return self.roots.get(var, var)


def fusion_borders(
    jaxpr: Jaxpr | ClosedJaxpr,
    signatures: Signatures | None = None,
    grouped: bool = True,
    alike: Mapping[Var, Alike] = MappingProxyType({}),
) -> FusionBorders:
    """Analyses a step (or one body); its regions are analysed with it.

    Args:
      signatures: of its equations, if they are at hand.
      grouped: whether kernels have several results (``fusion_groups``), as XLA:TPU's.
      alike: values that stand for others. What reads of several layers reads of all.
    """
    top = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    nature = PerSignature(signatures or Signatures(), Nature.of)
    bodies = (top, *all_bodies(top.eqns))
    graphs = [FusionGraph(body, nature, grouped, alike) for body in bodies]
    for graph in graphs:
        graph.decide()
        graph.count_reads()
    return FusionBorders(
        reads={key: times for graph in graphs for key, times in graph.reads.items()},
        writes=frozenset(var for graph in graphs for var in graph.written),
        charged=frozenset(var for graph in graphs for var in graph.charged),
        roots={view: root for graph in graphs for view, root in graph.roots.items()},
        sources={key: found for graph in graphs for key, found in graph.kernels.items()},
        narrow=frozenset(var for graph in graphs for var in graph.written if graph.is_narrow(var)),
        softmaxes={exp: found for graph in graphs for exp, found in graph.softmaxes.items()},
        widened={var: exp for graph in graphs for var, exp in graph.widened.items()},
        beside={key: found for graph in graphs for key, found in graph.beside.items()},
        fused=frozenset(
            var for graph in graphs for var in graph.needed_for if var not in graph.cheap
        ),
    )


def bodies(eqn: JaxprEqn) -> tuple[Jaxpr, ...]:
    """The nested jaxprs of a loop, branch or call, in order; none for other equations."""
    return tuple([region.body for region in regions(eqn) or ()])


def all_bodies(eqns: Iterable[JaxprEqn]) -> Iterator[Jaxpr]:
    """Every nested jaxpr of these equations, outer ones first."""
    for eqn in eqns:
        if eqn.primitive.name not in BODIES:
            continue
        for body in bodies(eqn):
            yield body
            yield from all_bodies(body.eqns)
