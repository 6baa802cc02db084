"""Simplify: one flat program with unique variables, loops and rematerialised bodies nested in it.

Before: a closed jaxpr as JAX traced it. After:

* calls (``jit``, ``custom_jvp_call`` and the like) are inlined, in nested bodies too; the shardings
  that the author of a ``jit`` gave become sharding constraints on its operands and results;
* every ``Var``, in nested regions too, is bound exactly once in the whole step;
* array constants are constants of the outermost jaxpr alone: regions get them as inputs;
* what nobody reads is gone (see ``dce``); the inputs and results of the step are unchanged;
* an equation's name stack is relative to the region it stands in, as JAX has it, and begins with
  the name stacks of the calls it was inlined from, so ``transpose(jvp(...))`` marks survive.

Linear in the number of equations of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var

from autopar.core import compat
from autopar.core.errors import TraceError
from autopar.passes.dce import prune

Atom = Var | Literal
Env = dict[Var, Atom]

CALLS = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
    "custom_vmap_call": "call",
    "composite": "jaxpr",
}
"""Primitives that mean just their body, and the parameter that holds it."""

_SOLVES = frozenset(("custom_linear_solve",))
"""Those that mean one of their bodies."""


def simplify(closed: ClosedJaxpr) -> ClosedJaxpr:
    """Inlines calls, makes variables unique, hoists constants and drops dead code."""
    jaxpr, consts = _copy_body(closed.jaxpr, closed.consts)
    n = len(consts)
    pruned, used = prune(
        jaxpr, [True] * len(jaxpr.outvars), [False] * n + [True] * (len(jaxpr.invars) - n)
    )
    kept = [const for const, keep in zip(consts, used[:n], strict=True) if keep]
    top = pruned.replace(constvars=pruned.invars[: len(kept)], invars=pruned.invars[len(kept) :])
    return ClosedJaxpr(top.replace(debug_info=closed.jaxpr.debug_info), kept)


class _Scope:
    """The body under construction: its equations, and the constants it has met."""

    def __init__(self) -> None:
        self.eqns: list[JaxprEqn] = []
        self._consts: dict[int, tuple[Var, Any]] = {}

    def capture(self, value: Any, aval: Any) -> Var:
        """The variable that stands for the constant ``value``; one per object."""
        if id(value) not in self._consts:
            self._consts[id(value)] = (compat.new_var(aval), value)
        return self._consts[id(value)][0]

    @property
    def const_vars(self) -> list[Var]:
        return [var for var, _ in self._consts.values()]

    @property
    def const_values(self) -> list[Any]:
        return [value for _, value in self._consts.values()]


def _copy_body(jaxpr: Jaxpr, consts: Sequence[Any]) -> tuple[Jaxpr, list[Any]]:
    """A copy with variables of its own whose constants, returned, are its first inputs."""
    scope = _Scope()
    env: Env = {v: compat.like_var(v) for v in jaxpr.invars}
    invars = [env[v] for v in jaxpr.invars]
    outvars = _inline(scope, jaxpr, consts, env, None)
    copied = jaxpr.replace(
        constvars=[], invars=[*scope.const_vars, *invars], outvars=outvars, eqns=scope.eqns
    )
    return copied, scope.const_values


def _inline(
    scope: _Scope, jaxpr: Jaxpr, consts: Sequence[Any], env: Env, caller: JaxprEqn | None
) -> list[Atom]:
    """Appends the equations of ``jaxpr`` to ``scope``, and returns what its results have become."""
    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = scope.capture(const, var.aval)
    for eqn in jaxpr.eqns:
        if eqn.effects:
            _reject_refs(eqn)
        invars = [atom if isinstance(atom, Literal) else env[atom] for atom in eqn.invars]
        name = eqn.primitive.name
        if name in CALLS or name in _SOLVES:
            placed = _placed(eqn, invars, caller, jaxpr)
            body, operands = _call(placed)
            operands = _constrained(scope, operands, "in_shardings", placed)
            inner: Env = dict(zip(body.jaxpr.invars, operands, strict=True))
            results = _inline(scope, body.jaxpr, body.consts, inner, placed)
            results = _constrained(scope, results, "out_shardings", placed)
            env.update(zip(eqn.outvars, results, strict=True))
            continue
        outvars = [compat.like_var(v) for v in eqn.outvars]
        env.update(zip(eqn.outvars, outvars, strict=True))
        nest = _NESTS.get(name)
        if caller is None and nest is None:
            scope.eqns.append(eqn.replace(invars=invars, outvars=outvars))
            continue
        placed = _placed(eqn, invars, caller, jaxpr)
        scope.eqns.append((nest(scope, placed) if nest else placed).replace(outvars=outvars))
    return [_read(env, atom) for atom in jaxpr.outvars]


def _placed(
    eqn: JaxprEqn, invars: Sequence[Atom], caller: JaxprEqn | None, jaxpr: Jaxpr
) -> JaxprEqn:
    """The equation of ``jaxpr`` on other operands, where ``caller`` calls that."""
    placed = eqn.replace(invars=list(invars))
    return placed if caller is None else _called_from(caller, jaxpr, placed)


def _read(env: Env, atom: Atom) -> Atom:
    return atom if isinstance(atom, Literal) else env[atom]


def _call(eqn: JaxprEqn) -> tuple[ClosedJaxpr, Sequence[Atom]]:
    """What a call is inlined as: a body and its operands."""
    if eqn.primitive.name in _SOLVES:
        return _solve_call(eqn)
    body = eqn.params[CALLS[eqn.primitive.name]]
    return (ClosedJaxpr(body, ()) if isinstance(body, Jaxpr) else body), eqn.invars


def _solve_call(eqn: JaxprEqn) -> tuple[ClosedJaxpr, Sequence[Atom]]:
    """A custom linear solve runs its ``solve``, on that function's constants and the right sides.

    Operands are the constants of its functions, in the order of the tuple, and the right sides.
    """
    lengths = eqn.params["const_lengths"]
    start = lengths.matvec + lengths.vecmat
    sides = eqn.invars[sum(lengths) :]
    return eqn.params["jaxprs"].solve, (*eqn.invars[start : start + lengths.solve], *sides)


def _constrained(
    scope: _Scope, atoms: Sequence[Atom], shardings: str, call: JaxprEqn
) -> list[Atom]:
    """The operands (results) of a ``jit``, each laid as its author says, if at all."""
    found = list(atoms)
    for i, sharding in enumerate(call.params.get(shardings, ())):
        atom = found[i]
        given = sharding is not None and not compat.is_unspecified(sharding)
        if given and isinstance(atom, Var) and getattr(atom.aval, "shape", ()):
            found[i] = compat.like_var(atom)
            scope.eqns.append(_constraint(atom, found[i], sharding, call))
    return found


def _constraint(before: Var, after: Atom, sharding: Any, call: JaxprEqn) -> JaxprEqn:
    """``after`` is ``before`` under a sharding constraint that stands where ``call`` does."""
    like = jax.ShapeDtypeStruct(before.aval.shape, before.aval.dtype)  # pyright: ignore
    made = jax.make_jaxpr(lambda x: jax.lax.with_sharding_constraint(x, sharding))(like)
    (eqn,) = made.jaxpr.eqns
    return eqn.replace(invars=[before], outvars=[after], ctx=call.ctx, source_info=call.source_info)


def _called_from(caller: JaxprEqn, jaxpr: Jaxpr, eqn: JaxprEqn) -> JaxprEqn:
    """Gives ``eqn`` the name of its caller in front of its own.

    A library's function keeps the trace of its first call (``jnp.where`` is traced once and
    reused), so its equations take the caller's place in the source.
    """
    info = eqn.source_info.replace(
        name_stack=caller.source_info.name_stack + eqn.source_info.name_stack
    )
    source = jaxpr.debug_info.func_src_info or ""
    _, _, place = source.partition(" at ")
    if not place or compat.is_library_file(place):
        info = info.replace(traceback=caller.source_info.traceback)
    return eqn.replace(source_info=info)


def _reject_refs(eqn: JaxprEqn) -> None:
    if any(hasattr(effect, "input_index") or hasattr(effect, "input") for effect in eqn.effects):
        raise TraceError(
            f"the step uses a mutable reference (primitive {eqn.primitive.name!r}); autopar plans "
            "pure functions only: pass the value in and return the new one"
        )


def _nest_scan(scope: _Scope, eqn: JaxprEqn) -> JaxprEqn:
    body, consts = _copy_closed(eqn.params["jaxpr"])
    params = dict(eqn.params, jaxpr=body, num_consts=eqn.params["num_consts"] + len(consts))
    if "linear" in params:
        params["linear"] = (False,) * len(consts) + tuple(params["linear"])
    return _with_consts(scope, eqn, params, ((0, body, consts),))


def _nest_while(scope: _Scope, eqn: JaxprEqn) -> JaxprEqn:
    cond, cond_consts = _copy_closed(eqn.params["cond_jaxpr"])
    body, body_consts = _copy_closed(eqn.params["body_jaxpr"])
    at = eqn.params["cond_nconsts"]
    params = dict(
        eqn.params,
        cond_jaxpr=cond,
        body_jaxpr=body,
        cond_nconsts=at + len(cond_consts),
        body_nconsts=eqn.params["body_nconsts"] + len(body_consts),
    )
    return _with_consts(scope, eqn, params, ((0, cond, cond_consts), (at, body, body_consts)))


def _nest_cond(scope: _Scope, eqn: JaxprEqn) -> JaxprEqn:
    """All branches take the same operands: each gets the constants of them all."""
    copies = [_copy_closed(branch) for branch in eqn.params["branches"]]
    shared: dict[int, tuple[Any, Any]] = {}
    for branch, consts in copies:
        for value, var in zip(consts, branch.jaxpr.invars, strict=False):
            shared.setdefault(id(value), (value, var.aval))
    branches: list[ClosedJaxpr] = []
    for branch, consts in copies:
        own = dict(zip(map(id, consts), branch.jaxpr.invars, strict=False))
        heads = [own.get(key) or compat.new_var(aval) for key, (_, aval) in shared.items()]
        invars = heads + branch.jaxpr.invars[len(consts) :]
        branches.append(ClosedJaxpr(branch.jaxpr.replace(invars=invars), ()))
    params = dict(eqn.params, branches=tuple(branches))
    return _with_consts(scope, eqn, params, ((1, branches[0], [v for v, _ in shared.values()]),))


def _nest_remat(scope: _Scope, eqn: JaxprEqn) -> JaxprEqn:
    body, consts = _copy_body(eqn.params["jaxpr"], ())
    params = dict(eqn.params, jaxpr=body)
    return _with_consts(scope, eqn, params, ((0, ClosedJaxpr(body, ()), consts),))


def _copy_closed(closed: ClosedJaxpr) -> tuple[ClosedJaxpr, list[Any]]:
    body, consts = _copy_body(closed.jaxpr, closed.consts)
    return ClosedJaxpr(body, ()), consts


def _with_consts(
    scope: _Scope,
    eqn: JaxprEqn,
    params: dict[str, Any],
    hoisted: Sequence[tuple[int, ClosedJaxpr, list[Any]]],
) -> JaxprEqn:
    """Inserts the constants of bodies among the operands of ``eqn``, each group at its place."""
    invars = list(eqn.invars)
    for at, body, consts in reversed(hoisted):
        inner = body.jaxpr.invars[: len(consts)]
        invars[at:at] = [scope.capture(c, v.aval) for c, v in zip(consts, inner, strict=True)]
    return eqn.replace(invars=invars, params=params)


_NESTS: dict[str, Callable[[_Scope, JaxprEqn], JaxprEqn]] = {
    "scan": _nest_scan,
    "while": _nest_while,
    "cond": _nest_cond,
    "remat2": _nest_remat,
    "checkpoint": _nest_remat,
}
