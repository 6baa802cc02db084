"""Random cost function networks."""

from __future__ import annotations

import numpy as np

from autopar.search.network import FORBIDDEN, IntArray, Limit, Network

AXES = 3
CHOICES = np.array(np.meshgrid(*([[0, 1]] * AXES), indexing="ij")).reshape(AXES, -1).T
"""Every variable has two choices on each of three axes: eight values."""


def random_network(
    seed: int, *, limits: int = 0, forbidden: float = 0.0, most: int = 6, density: float = 0.6
) -> Network:
    """A network of up to ``most`` variables of up to four values, ties and zero costs included."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, rng.integers(1, most + 1)).tolist()
    top = int(rng.choice([3, 50, 10**4]))  # small costs make ties; all are below RESOLUTIONS: exact

    def costs(*shape: int) -> IntArray:
        drawn = rng.integers(0, top, shape)
        return np.where(rng.random(shape) < forbidden, FORBIDDEN, drawn)

    unary = tuple(costs(size) for size in sizes)
    pairs = {
        (i, j): costs(sizes[i], sizes[j])
        for i in range(len(sizes))
        for j in range(i + 1, len(sizes))
        if rng.random() < density
    }
    found = tuple(_limit(rng, sizes) for _ in range(limits))
    return Network(unary, pairs, found, offset=int(rng.integers(0, 100)))


def _limit(rng: np.random.Generator, sizes: list[int]) -> Limit:
    """Small whole weights, which every solver represents exactly."""
    chosen = [i for i in range(len(sizes)) if rng.random() < 0.8]
    weights = {i: rng.integers(0, 10, sizes[i]) for i in chosen}
    least = sum(int(w.min()) for w in weights.values())
    most = sum(int(w.max()) for w in weights.values())
    return Limit(weights, int(rng.integers(max(0, least - 1), most + 1)))


def dense(seed: int, limited: bool) -> Network:
    """Six variables, all of them in pairs: nothing can be eliminated."""
    rng = np.random.default_rng(seed)

    def costs(*shape: int) -> IntArray:
        drawn = rng.integers(0, 10**4, shape)
        return np.where(rng.random(shape) < 0.1, FORBIDDEN, drawn)

    count, size = 6, len(CHOICES)
    pairs = {(i, j): costs(size, size) for i in range(count) for j in range(i + 1, count)}
    limits = ()
    if limited:
        weights = {i: rng.integers(0, 10, size) for i in range(count)}
        limits = (Limit(weights, int(rng.integers(5, 40))),)
    return Network(tuple(costs(size) for _ in range(count)), pairs, limits, 7)
