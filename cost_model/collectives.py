"""Seconds and bytes of one collective along one mesh axis.

With ``n`` devices on the axis, ``V`` payload bytes, ``W`` the link's bandwidth, ``a`` the latency
of one hop and ``h`` the hops (``n/2`` round a ring, ``n-1`` along a line)::

    all-gather          h a +     V (n-1)/n / W
    reduce-scatter      h a +     V (n-1)/n / W
    all-reduce        2 h a + 2 V (n-1)/n / W       (reduce-scatter, then all-gather)
    all-to-all          h a +     V n / 4 / W       (ring or line; V (n-1)/n / W through a switch)
    collective-permute    a +     V / (one direction of W)
    slice               0                           (every device keeps a part of what it has)

Where a link has no reduce-scatter (``Link.scatters``), one costs what an all-reduce does.
The **payload is the full local buffer**: the gathered result of an all-gather, the unreduced
operand of a reduce-scatter or all-reduce, the local operand (as large as the result) of an
all-to-all or a permute. Sources: "How to Scale Your Model" (jax-ml.github.io/scaling-book, chapter
Sharding): an all-to-all costs a quarter of the all-gather of the ``n V`` bytes the axis holds;
Thakur, Rabenseifner and Gropp, "Optimization of Collective Communication Operations in MPICH"
(2005), for ``a + V b``.
"""

from __future__ import annotations

from typing import Literal

from autopar.core.errors import OptionError
from autopar.cost_model.hardware import Link

CollectiveKind = Literal[
    "all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "slice"
]
KINDS: tuple[CollectiveKind, ...] = (
    "all-gather",
    "reduce-scatter",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "slice",
)


def collective_line(kind: CollectiveKind, link: Link, size: int) -> tuple[float, float]:
    """``(latency in s, s per payload byte)`` of a collective over ``size`` devices."""
    if kind not in KINDS:
        raise OptionError(f"{kind!r} is not a collective; expected one of {', '.join(KINDS)}")
    if size <= 1 or kind == "slice":
        return 0.0, 0.0
    hops = link.hops if link.hops is not None else size // 2 if link.wrap else size - 1
    if kind == "collective-permute":
        return link.latency_s, (2.0 if link.wrap else 1.0) / link.bandwidth
    if kind == "all-to-all":
        exchange = link.exchange_bandwidth or 4.0 * link.bandwidth / size
        return hops * link.latency_s, 1.0 / exchange
    reduces = kind == "all-reduce" or (kind == "reduce-scatter" and not link.scatters)
    rounds = 2.0 if reduces else 1.0
    return rounds * hops * link.latency_s, rounds * (size - 1) / size / link.bandwidth


def collective_seconds(kind: CollectiveKind, payload_bytes: float, link: Link, size: int) -> float:
    """Seconds of one collective; see the module for the payload convention."""
    latency, per_byte = collective_line(kind, link, size)
    return latency + payload_bytes * per_byte


def collective_wire_bytes(kind: CollectiveKind, payload_bytes: float, size: int) -> float:
    """Bytes that leave one device."""
    if kind not in KINDS:
        raise OptionError(f"{kind!r} is not a collective; expected one of {', '.join(KINDS)}")
    if size <= 1 or kind == "slice":
        return 0.0
    if kind == "collective-permute":
        return float(payload_bytes)
    return (2.0 if kind == "all-reduce" else 1.0) * payload_bytes * (size - 1) / size
