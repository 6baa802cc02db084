"""Who makes what each equation reads, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn, Var
from numpy.typing import NDArray

from autopar.passes.fingerprint import Columns, IntArray
from autopar.passes.fold.runs import Run
from autopar.passes.rules import regions

SUMS = frozenset(("add", "add_any"))
"""Sums of sums, where only the next reads each, gather something of every layer: the gradient of a
shared bias, or losses. How far it is to their end says nothing of a layer, so that neither ``fold``
nor the classes of nodes alike look along them."""


@dataclass(frozen=True, slots=True)
class Flow:
    """The operands of a program. A *code* is the number of an equation, or ``count`` and that of an
    input, or -1: a constant or literal.

    Attributes:
      count: equations. inputs: inputs.
      makers: the code of every operand, equation by equation.
      first: where the operands of each equation begin; one more entry, for the end.
      outputs: the codes of the results.
      through: by code, how many steps lead through it, at least: more than one through a body.
      onward: by code, how many steps it is to a reader: two, if a value has several.
      sums: by code, whether it is a sum (see ``SUMS``).
    """

    count: int
    inputs: int
    makers: IntArray
    first: IntArray
    outputs: IntArray
    through: IntArray
    onward: IntArray
    sums: NDArray[np.bool_]

    @classmethod
    def of(cls, jaxpr: Jaxpr, columns: Columns) -> Flow:
        """Of the equations of a program; what is within them counts as one."""
        count, inputs = len(jaxpr.eqns), len(jaxpr.invars)
        numbers = np.arange(count)
        makers = np.repeat(numbers, columns.results)
        codes = np.concatenate(
            (np.full(len(jaxpr.constvars), -1), count + np.arange(inputs), makers)
        )
        reads = np.where(columns.reads < 0, -1, codes[columns.reads])
        first = np.concatenate(([0], np.cumsum(columns.operands)))
        uses = np.bincount(reads[reads >= 0], minlength=count)[:count]
        onward = 1 + ((uses > 1) & (columns.results == 1))
        _, some, kinds = np.unique(columns.kinds, return_index=True, return_inverse=True)
        alike = [jaxpr.eqns[i] for i in some.tolist()]
        through = np.array([_crossing(eqn) for eqn in alike], np.int64)[kinds]
        sums = np.array([eqn.primitive.name in SUMS for eqn in alike], np.bool_)[kinds]
        rest = np.ones(inputs + 1, np.int64)
        return cls(
            count,
            inputs,
            makers=reads[: first[-1]],
            first=first,
            outputs=reads[first[-1] :],
            through=np.concatenate((through, rest)),
            onward=np.concatenate((onward, rest)),
            sums=np.concatenate((sums, np.zeros(inputs + 1, np.bool_))),
        )

    def slots(self, run: Run) -> tuple[IntArray, IntArray]:
        """The makers of what a run reads, ``[repetition, operand]``; and which equation of the
        period each operand is of.
        """
        ends = self.first[run.start : run.start + run.period + 1]
        width = int(ends[-1] - ends[0])
        found = self.makers[ends[0] : ends[0] + run.count * width].reshape(run.count, width)
        return found, np.repeat(np.arange(run.period), np.diff(ends))

    def readers(self) -> IntArray:
        """The equation that each operand is of."""
        return np.repeat(np.arange(self.count), np.diff(self.first))


def _crossing(eqn: JaxprEqn) -> int:
    """Steps through an equation; into its bodies, through them and out again, if it has some."""
    nested = regions(eqn)
    if not nested:
        return 1
    return min([_steps(region.body) for region in nested]) + 2


def _steps(body: Jaxpr) -> int:
    """The fewest equations between an input of a body and a result."""
    far: dict[Var, int] = dict.fromkeys(body.invars, 0)
    for eqn in body.eqns:
        reached = [far[atom] for atom in eqn.invars if isinstance(atom, Var) and atom in far]
        if reached:
            far.update(dict.fromkeys(eqn.outvars, min(reached) + 1))
    return min(
        [far[atom] for atom in body.outvars if isinstance(atom, Var) and atom in far], default=0
    )
