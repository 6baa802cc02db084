"""Attention that a library runs as one kernel, whose scores never leave the chip.

A compiler left to itself writes the scores, their softmax and the gradients of both to memory,
and this is how such equations are priced. Where ``Chip.attention_efficiency`` is given, they are
priced as the kernels of Dao et al. (arXiv:2205.14135) run. A *score* is the result of a batched
matmul that is larger than either of its operands, and whatever is computed from scores elementwise
at their size. Scores are neither written nor read. What reduces them (row maxima and sums) and the
matmuls they enter are as ever, but for their rate. A body that hands scores on (residuals of a
forward pass, unless it is rematerialised) is no such kernel, and is left alone.

Where a mask of comparisons between positions alone is applied, every other score is void, and such
kernels leave most of them out: half of the FLOPs of the matmuls that make or take scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.cost_model.fusion_nature import elements, is_elementwise, is_view
from autopar.passes.rules import regions

CAUSAL_SHARE = 0.5
"""Share of the scores that a causal kernel computes, for sequences long against its blocks."""

_COMPARISONS = frozenset(("ge", "gt", "le", "lt"))


Charges = tuple[tuple[float, ...], tuple[bool, ...], float, float]
"""Of one equation: per operand, how often it is read; per result, whether it is written; what is
fused into its kernel, in vector instructions per element of its largest operand; and, of a matmul
in an attention kernel, the share of it that is computed, else 0.
"""


@dataclass(frozen=True)
class AttentionKernels:
    """Attributes:
    scores: values that stay on the chip.
    causal: those that are half void.
    """

    scores: frozenset[Var] = frozenset()
    causal: frozenset[Var] = frozenset()

    def of(
        self, eqn: JaxprEqn, reads: tuple[float, ...], writes: tuple[bool, ...], beside: float
    ) -> Charges:
        """The charges of an equation, from those that know of no attention kernel."""
        if not self.scores:
            return reads, writes, beside, 0.0
        taken = [isinstance(v, Var) and v in self.scores for v in eqn.invars]
        made = [v in self.scores for v in eqn.outvars]
        kept = tuple([0.0 if inside else n for inside, n in zip(taken, reads, strict=True)])
        written = tuple([w and not inside for inside, w in zip(made, writes, strict=True)])
        if eqn.primitive.name != "dot_general" or not any((*taken, *made)):
            return kept, written, 0.0 if any((*taken, *made)) else beside, 0.0
        met = {v for v in (*eqn.invars, *eqn.outvars) if isinstance(v, Var)}
        return kept, written, 0.0, CAUSAL_SHARE if met & self.causal else 1.0


NO_ATTENTION = AttentionKernels()
"""What is known where attention does not run as one kernel."""


def attention_kernels(jaxpr: Jaxpr) -> AttentionKernels:
    """Finds the scores of a step and of all its regions."""
    scores: set[Var] = set()
    causal: set[Var] = set()
    outer: dict[Var, Var | Literal] = {}
    makers: dict[Var, JaxprEqn] = {}
    bodies = [jaxpr]
    for body in bodies:
        for eqn in body.eqns:
            makers.update(dict.fromkeys(eqn.outvars, eqn))
            for region in regions(eqn) or ():
                bodies.append(region.body)
                outer.update(
                    {
                        link.inner: link.outer
                        for link in region.inputs
                        if isinstance(link.inner, Var)
                    }
                )
    for body in bodies:
        for group in _groups(body):
            scores |= group
            if any(_is_causal(eqn, group, makers, outer) for eqn in body.eqns):
                causal |= group
    return AttentionKernels(frozenset(scores), frozenset(causal))


def _groups(body: Jaxpr) -> Iterator[set[Var]]:
    """The scores of one body, if none of them leaves it."""
    found: set[Var] = set()
    for eqn in body.eqns:
        if _makes_scores(eqn):
            found.update(eqn.outvars)
        elif is_elementwise(eqn) or is_view(eqn):
            sized = [v for v in eqn.invars if isinstance(v, Var) and v in found]
            found.update(o for o in eqn.outvars if sized and elements(o) >= elements(sized[0]))
    if found and not any(isinstance(v, Var) and v in found for v in body.outvars):
        yield found


def _makes_scores(eqn: JaxprEqn) -> bool:
    if eqn.primitive.name != "dot_general":
        return False
    batched = bool(eqn.params["dimension_numbers"][1][0])
    return batched and elements(eqn.outvars[0]) > max(elements(v) for v in eqn.invars)


def _is_causal(
    eqn: JaxprEqn,
    scores: set[Var],
    makers: dict[Var, JaxprEqn],
    outer: dict[Var, Var | Literal],
) -> bool:
    """Whether the equation blanks scores by a comparison of positions."""
    if eqn.primitive.name != "select_n" or eqn.outvars[0] not in scores:
        return False
    waiting: list[Var | Literal] = [eqn.invars[0]]
    compares = False
    while waiting:
        atom = waiting.pop()
        while isinstance(atom, Var) and atom in outer:
            atom = outer[atom]
        if isinstance(atom, Literal):
            continue
        maker = makers.get(atom)
        if maker is None or not (is_elementwise(maker) or is_view(maker)):
            return False
        compares |= maker.primitive.name in _COMPARISONS
        waiting += maker.invars
    return compares
