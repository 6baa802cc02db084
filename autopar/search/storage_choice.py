r"""Which values of the forward pass to keep, recompute, or put on the host, under a memory limit.

For each value $v$, $k_v$ (kept until the backward pass last reads it), $r_v$ (recomputed there),
and of loops $o_v$ (copied to the host, and fetched there, a trip at a time):

$$ \min \sum_v c_v r_v + s_v k_v + l_v o_v + \sum_w e_w \quad\text{subject to}\quad
   k_v + r_v + o_v = 1 \text{ if the backward pass reads } v, \; \le 1 \text{ else}; $$
$$ r_v \le k_u + r_u + o_u \text{ for every source } u \text{ of } v; \qquad
   e_w \ge \sum_{v \in w} l_v o_v - \mathrm{window}_w \text{ for every loop } w, \; e_w \ge 0; $$
$$ \mathrm{base}(t) + \sum_v \left( (b_v k_v + h_v o_v) [t \in K_v] + a_v r_v [t \in R_v] \right)
   \le \mathrm{budget} \quad \text{for every instant } t. $$

$b_v$ is what $v$ holds, kept, $a_v$, recomputed, and $h_v$, on the host: two trips' worth. $c_v$ is
the time of recomputing, $s_v$ that of writing to a stack and reading it, in loops. $l_v$ is one
crossing of the link. Fetching is waited for; what is copied out is waited for ($e_w$) as far as it
takes longer than the forward loop itself, its $\mathrm{window}$. The host has room for so much.
$K_v$ reaches from the forward pass's last read of $v$ to the backward pass's; $R_v$ from the moment
its group is recomputed: a group is what is connected through recomputed values, and runs when the
backward pass first needs one of them. Instants are limited lazily, with what the groups of the
choice at hand bring there, until a choice holds under its own groups. Each program on the way is a
relaxation of the next, so the last one's optimum is the optimum.

Built in ``storage_program``; solved by HiGHS to a thousandth.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autopar.search.storage_program import NO_LINK, Link, Profile, Program
from autopar.search.storage_values import Value

ROUNDS = 40
INSTANTS = 4
"""Instants limited in a round."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What to recompute, and what to put on the host.

    Attributes:
      recomputed: numbers of the values. kept: of those that are held for the backward pass.
      away: of those that are on the host meanwhile.
      seconds: what recomputing and stacking cost. bound: no choice costs less.
      peak: bytes, by the model above. instants: that had to be limited.
    """

    recomputed: tuple[int, ...]
    kept: tuple[int, ...]
    away: tuple[int, ...]
    seconds: float
    bound: float
    peak: float
    instants: tuple[int, ...] = ()


def choose(
    values: Sequence[Value], base: Profile, budget: float, link: Link = NO_LINK
) -> Choice | None:
    """The cheapest choice within ``budget``; ``None`` if there is none, or none was found.

    Args:
      base: bytes at every instant without any of the values beyond their use in the forward pass.
    """
    program = Program(values, base, budget, link)
    for _ in range(ROUNDS):
        found = program.solve()
        if found is None:
            return None
        live = program.profile(found)
        over = _peaks(live, budget)
        if not over:
            masks = (found.again, found.keep, found.away)
            again, keep, away = (tuple(np.flatnonzero(one).tolist()) for one in masks)
            peak = float(live.max(initial=0.0))
            costs = found.seconds, found.bound
            return Choice(again, keep, away, *costs, peak, program.limited)
        if not program.limit(over, found):
            return None
    return None


def lightest(values: Sequence[Value], base: Profile, link: Link = NO_LINK) -> Choice:
    """A choice of about the least memory, to a fiftieth."""
    low, high = (
        float(base.max(initial=0.0)),
        float(base.sum() + sum(v.bytes * v.trips for v in values)),
    )
    best = choose(values, base, high, link)
    assert best is not None
    high = best.peak
    while high - low > 0.02 * high:
        middle = (low + high) / 2
        found = choose(values, base, middle, link)
        if found is None:
            low = middle
        else:
            best, high = found, min(middle, found.peak)
    return best


def _peaks(live: Profile, budget: float) -> list[int]:
    """The highest instants above the budget that are no lower than their neighbours."""
    padded = np.concatenate(([0.0], live, [0.0]))
    tops = (live > budget * (1 + 1e-9)) & (live >= padded[:-2]) & (live > padded[2:])
    return sorted(np.flatnonzero(tops).tolist(), key=lambda i: -live[i])[:INSTANTS]
