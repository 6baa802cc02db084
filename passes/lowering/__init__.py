"""Lowering: the jaxpr of a step becomes a program that carries out a plan."""

from autopar.passes.lowering.constraints import lower as lower

__all__ = ["lower"]
