"""Copies of equations, with variables of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.extend import source_info_util
from jax.extend.core import Jaxpr, JaxprEqn, Literal, Var

from autopar.core import compat
from autopar.passes.remat.sides import Atom
from autopar.passes.rules import rebuild, regions

Env = dict[Var, Var]

RECOMPUTED = "rematted_computation"
"""JAX's own name for what runs a second time."""


def read(env: Env, atom: Atom) -> Atom:
    """What ``atom`` has become."""
    return atom if isinstance(atom, Literal) else env.get(atom, atom)


def again(eqns: Sequence[JaxprEqn], env: Env, under: Any = None) -> list[JaxprEqn]:
    """The equations once more, on the values of ``env``, to which their results are added.

    ``under``: a name stack to put in front of theirs.
    """
    copied: list[JaxprEqn] = []
    scope = source_info_util.new_name_stack(RECOMPUTED)
    scope = scope if under is None else under + scope
    for eqn in eqns:
        info = eqn.source_info
        copy = _copied(eqn, env)
        copied.append(copy.replace(source_info=info.replace(name_stack=scope + info.name_stack)))
    return copied


def _copied(eqn: JaxprEqn, env: Env) -> JaxprEqn:
    nested = regions(eqn)
    params = rebuild(eqn, [_fresh(r.body) for r in nested]) if nested else eqn.params
    invars = [read(env, atom) for atom in eqn.invars]
    outvars = [compat.like_var(var) for var in eqn.outvars]
    env.update(zip(eqn.outvars, outvars, strict=True))
    return eqn.replace(invars=invars, outvars=outvars, params=params)


def _fresh(body: Jaxpr) -> Jaxpr:
    """A body with variables of its own: each is bound once in the whole step."""
    env: Env = {var: compat.like_var(var) for var in body.invars}
    invars = [env[var] for var in body.invars]
    eqns = [_copied(eqn, env) for eqn in body.eqns]
    return body.replace(invars=invars, outvars=[read(env, a) for a in body.outvars], eqns=eqns)
