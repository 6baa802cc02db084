"""What may be cut in each operation: one factor rule per primitive, one region per nested body."""

from jax.extend.core import JaxprEqn

from autopar.passes.rules import control_flow as _control_flow
from autopar.passes.rules import conv as _conv
from autopar.passes.rules import custom as _custom
from autopar.passes.rules import dot as _dot
from autopar.passes.rules import elementwise as _elementwise
from autopar.passes.rules import gather_scatter as _gather_scatter
from autopar.passes.rules import linalg as _linalg
from autopar.passes.rules import random_bits as _random_bits
from autopar.passes.rules import reduce as _reduce
from autopar.passes.rules import reshape as _reshape
from autopar.passes.rules import slicing as _slicing
from autopar.passes.rules import sort_cumulative as _sort_cumulative
from autopar.passes.rules.build import Factors, in_shapes, out_shapes, whole
from autopar.passes.rules.control_flow import rebuild as rebuild
from autopar.passes.rules.control_flow import regions as regions
from autopar.passes.rules.factors import AxisStrategy as AxisStrategy
from autopar.passes.rules.factors import Dims as Dims
from autopar.passes.rules.factors import FactorRule as FactorRule
from autopar.passes.rules.factors import Linear as Linear
from autopar.passes.rules.factors import axis_strategies as axis_strategies
from autopar.passes.rules.factors import check_rule as check_rule
from autopar.passes.rules.regions import Atom as Atom
from autopar.passes.rules.regions import Link as Link
from autopar.passes.rules.regions import Region as Region
from autopar.passes.rules.registry import RULES as RULES

FAMILIES = (
    *(_elementwise, _dot, _conv, _reduce, _reshape, _gather_scatter, _slicing),
    *(_sort_cumulative, _random_bits, _linalg, _custom, _control_flow),
)
"""The modules that fill ``RULES``."""


def factor_rule(eqn: JaxprEqn) -> FactorRule | None:
    """The checked rule of ``eqn``; ``None`` if it has none (see ``replicate_rule``)."""
    function = RULES.get(eqn.primitive.name)
    found = None if function is None else function(eqn)
    if found is None:
        return None
    check_rule(found, tuple(in_shapes(eqn)), tuple(out_shapes(eqn)), eqn.primitive.name)
    return found


def replicate_rule(eqn: JaxprEqn) -> FactorRule:
    """The rule that cuts nothing: right for any equation."""
    return Factors().rule(map(whole, in_shapes(eqn)), map(whole, out_shapes(eqn)))
