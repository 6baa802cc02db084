"""Convolutions: the number of groups is an extent, and is cut with the groups."""

from __future__ import annotations

from typing import Any

from autopar.passes.lowering.local.site import Site, Values, local


@local("conv_general_dilated")
def _conv(site: Site, operands: Values) -> list[Any]:
    """As many feature groups as the input features here hold those of a kernel.

    Batch groups shrink as the batch does.
    """
    params = site.eqn.params
    numbers = params["dimension_numbers"]
    batch, feature = numbers.lhs_spec[:2]
    lhs, rhs = site.operand_shape(0), site.operand_shape(1)
    whole = site.whole_shape(0)[batch]
    groups, batch_groups = params["feature_group_count"], params["batch_group_count"]
    if groups > 1:
        groups = lhs[feature] // rhs[numbers.rhs_spec[1]]
    elif batch_groups > 1:
        batch_groups = batch_groups * lhs[batch] // whole
    return site.bind(operands, feature_group_count=groups, batch_group_count=batch_groups)
