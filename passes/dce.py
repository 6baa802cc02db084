"""Dead code: equations, and inputs, results and carries of regions, whose values nobody reads.

An equation is live if it has an effect or one of its results is read. Liveness runs backwards
through a jaxpr; through a loop it is the least fixpoint over its carries. (JAX has such a pass, but
not for ``while``, and it is private.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import compress

from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

Mask = list[bool]


def prune(jaxpr: Jaxpr, used_out: Sequence[bool], keep_in: Sequence[bool]) -> tuple[Jaxpr, Mask]:
    """Drops what the results in ``used_out`` do not need.

    Returns:
      the smaller jaxpr, with only the used results, and only the inputs that are used or in
      ``keep_in``; and the mask of the inputs it has kept.
    """
    live = {v for v in compress(jaxpr.outvars, used_out) if not isinstance(v, Literal)}
    kept: list[JaxprEqn] = []
    for eqn in reversed(jaxpr.eqns):
        if live.isdisjoint(eqn.outvars) and not eqn.effects:
            continue
        rule = _RULES.get(eqn.primitive.name)
        smaller = rule(eqn, [v in live for v in eqn.outvars]) if rule else eqn
        live.update([v for v in smaller.invars if not isinstance(v, Literal)])
        kept.append(smaller)
    used_in = [keep or v in live for keep, v in zip(keep_in, jaxpr.invars, strict=True)]
    pruned = jaxpr.replace(
        invars=list(compress(jaxpr.invars, used_in)),
        outvars=list(compress(jaxpr.outvars, used_out)),
        eqns=kept[::-1],
    )
    return pruned, used_in


def _prune_scan(eqn: JaxprEqn, used: Mask) -> JaxprEqn:
    """A carry lives if it is read after the loop, or by a body whose results are read."""
    closed: ClosedJaxpr = eqn.params["jaxpr"]
    consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
    used_in: Mask = []
    body = closed.jaxpr
    live, used_ys = used[:carries], used[carries:]
    for _ in range(carries + 1):
        keep = [False] * consts + live + [False] * (len(closed.jaxpr.invars) - consts - carries)
        body, used_in = prune(closed.jaxpr, live + used_ys, keep)
        grown = used_in[consts : consts + carries]
        if grown == live:
            break
        live = grown
    params = dict(
        eqn.params,
        jaxpr=ClosedJaxpr(body, closed.consts),
        num_consts=sum(used_in[:consts]),
        num_carry=sum(live),
    )
    if "linear" in params:
        params["linear"] = tuple(compress(params["linear"], used_in))
    return _smaller(eqn, used_in, live + used_ys, params)


def _prune_while(eqn: JaxprEqn, used: Mask) -> JaxprEqn:
    """A carry lives if it is read after the loop, by the condition, or by a live carry's update."""
    p = eqn.params
    whole: Jaxpr = p["cond_jaxpr"].jaxpr
    n_cond, n_body = p["cond_nconsts"], p["body_nconsts"]
    cond, cond_in = prune(whole, [True], [False] * len(whole.invars))
    live = [u or r for u, r in zip(used, cond_in[n_cond:], strict=True)]
    used_in: Mask = []
    body: Jaxpr = p["body_jaxpr"].jaxpr
    for _ in range(len(live) + 1):
        body, used_in = prune(p["body_jaxpr"].jaxpr, live, [False] * n_body + live)
        if used_in[n_body:] == live:
            break
        live = used_in[n_body:]
    cond_in = cond_in[:n_cond] + live
    cond = cond.replace(invars=list(compress(whole.invars, cond_in)))
    params = dict(
        p,
        cond_jaxpr=ClosedJaxpr(cond, p["cond_jaxpr"].consts),
        body_jaxpr=ClosedJaxpr(body, p["body_jaxpr"].consts),
        cond_nconsts=sum(cond_in[:n_cond]),
        body_nconsts=sum(used_in[:n_body]),
    )
    return _smaller(eqn, cond_in[:n_cond] + used_in, live, params)


def _prune_cond(eqn: JaxprEqn, used: Mask) -> JaxprEqn:
    """An operand lives if a branch reads it."""
    branches: tuple[ClosedJaxpr, ...] = eqn.params["branches"]
    none = [False] * (len(eqn.invars) - 1)
    pruned = [prune(branch.jaxpr, used, none) for branch in branches]
    used_in = [any(reads) for reads in zip(*(mask for _, mask in pruned), strict=True)]
    alike = tuple(
        ClosedJaxpr(body.replace(invars=list(compress(old.jaxpr.invars, used_in))), old.consts)
        for (body, _), old in zip(pruned, branches, strict=True)
    )
    return _smaller(eqn, [True, *used_in], used, dict(eqn.params, branches=alike))


def _prune_remat(eqn: JaxprEqn, used: Mask) -> JaxprEqn:
    body: Jaxpr = eqn.params["jaxpr"]
    pruned, used_in = prune(body, used, [False] * len(body.invars))
    return _smaller(eqn, used_in, used, dict(eqn.params, jaxpr=pruned))


def _smaller(
    eqn: JaxprEqn, used_in: Sequence[bool], used_out: Sequence[bool], params: dict[str, object]
) -> JaxprEqn:
    return eqn.replace(
        invars=list(compress(eqn.invars, used_in)),
        outvars=list(compress(eqn.outvars, used_out)),
        params=params,
    )


_RULES: dict[str, Callable[[JaxprEqn, Mask], JaxprEqn]] = {
    "scan": _prune_scan,
    "while": _prune_while,
    "cond": _prune_cond,
    "remat2": _prune_remat,
    "checkpoint": _prune_remat,
}
