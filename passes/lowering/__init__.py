"""Lowering: the jaxpr of a step becomes a program that carries out a plan."""

from autopar.passes.lowering.constraints import lower as lower
from autopar.passes.lowering.exact import lower_exact as lower_exact

__all__ = ["lower", "lower_exact"]
