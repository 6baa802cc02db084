"""Which side of a step a node is on: whether only light work follows it, or precedes it."""

from __future__ import annotations

from collections.abc import Sequence

from autopar.search.network import IntArray


def tails(
    heavy: Sequence[bool], looping: Sequence[bool], readers: Sequence[Sequence[int]]
) -> list[bool]:
    """For each node, whether only light work follows it: the optimiser's side of the step.

    Collectives there are many, small, and wait for nothing, so the compiler combines them: they
    share their latency (measured: 322 of them otherwise cost 63 of 733 ms).

    Args:
      heavy: whether each node is heavy work.
      looping: whether it is a border of a loop, which other trips follow.
      readers: the nodes that read it, inputs of the next step left out. Of those that come before
        it, borders of loops all, nothing more is asked.
    """
    found = [not loops for loops in looping]
    for node in range(len(heavy) - 1, -1, -1):
        if heavy[node]:
            found[node] = False
        elif found[node]:
            found[node] = all(found[reader] for reader in readers[node])
    return found


def heads(heavy: Sequence[bool], inputs: Sequence[bool], ends: IntArray) -> tuple[bool, ...]:
    """For each node, whether only light work on inputs precedes it: weights and their casts.

    Args:
      inputs: whether each node is an input. ends: the nodes of each edge, ``[edge, 2]``.
    """
    readers: list[list[int]] = [[] for _ in heavy]
    waiting = [0] * len(heavy)
    for src, dst in ends.tolist():
        if not inputs[dst]:
            readers[src].append(dst)
            waiting[dst] += 1
    found = [False] * len(heavy)
    ready = [node for node, is_input in enumerate(inputs) if is_input]
    while ready:
        node = ready.pop()
        found[node] = not heavy[node]
        if found[node]:
            for reader in readers[node]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
    return tuple(found)
