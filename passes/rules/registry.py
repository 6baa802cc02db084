"""The one table from primitive name to sharding rule."""

from __future__ import annotations

import os
from collections.abc import Callable

from jax.extend.core import JaxprEqn

from autopar.core.errors import RuleError
from autopar.passes.rules.factors import FactorRule

RuleFn = Callable[[JaxprEqn], FactorRule | None]
"""The rule of one equation of a primitive; ``None`` if this one cannot be cut by any."""

RULES: dict[str, RuleFn] = {}
"""Primitive name to rule. Filled by the modules of this package when it is imported."""


def rule(*primitives: str) -> Callable[[RuleFn], RuleFn]:
    """Registers a rule for the named primitives. ``RuleError`` if one already has a rule."""

    def register(function: RuleFn) -> RuleFn:
        for name in primitives:
            if name in RULES:
                raise RuleError(
                    f"{_place(function)}: primitive {name!r} already has a rule, at "
                    f"{_place(RULES[name])}; a primitive has exactly one: remove one of them"
                )
            RULES[name] = function
        return function

    return register


def _place(function: RuleFn) -> str:
    """The file and line in which a rule is written, and its name."""
    code = function.__code__
    return f"{os.path.basename(code.co_filename)}:{code.co_firstlineno} ({function.__name__})"
