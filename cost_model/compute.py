"""Seconds of one equation on one device: a roofline over local shapes.

::

    seconds = launch + time_scale * max(
        matmul / (peak * efficiency), vector / vector_peak, bytes / hbm_bandwidth)

``bytes`` are those of fusion borders only: operands that must be read from device memory and
results that must be written to it (``fusion``). ``time_scale`` is the one fitted constant of a chip
generation. ``efficiency`` knows two things: the matrix unit works in square tiles, so ``m, n, k``
round up to ``matmul_tile``, and a short contraction does not fill its pipeline: ``k / (k +
matmul_half_k)``, which with v5e's scale gives 0.65 of peak at k = 512 and 0.72 at 4096 (measured:
0.55 to 0.76 at 512). A product with a vector (``m`` or ``n`` of one) is done by the vector units,
as XLA does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from autopar.cost_model.hardware import Chip
from autopar.cost_model.work import Shape, Work

SHOWING = 0.1
"""Share of a fused operation's arithmetic that the memory traffic of its kernel does not hide. It
is small, as XLA overlaps the two, but not zero: no work is free, so that plans never repeat it
idly."""


def equation_seconds(
    work: Work,
    operands: tuple[Shape, ...],
    results: tuple[Shape, ...],
    chip: Chip,
    reads: Sequence[float],
    writes: Sequence[bool],
) -> float:
    """Seconds of an equation whose operands and results have these *local* shapes.

    Args:
      work: ``work(eqn)``; look it up once per equation.
      operands: their local shapes.
      results: theirs.
      chip: whose rates count.
      reads: per operand, how often its bytes come from device memory (``FusionBorders.reads_of``).
      writes: per result, whether its writing is charged here (``FusionBorders.writes_of``).

    An equation that lies inside a fusion (no reads, no writes) costs a little of its arithmetic.
    Loops and other regions cost nothing themselves: their bodies are priced.
    """
    if work.kind == "region":
        return 0.0
    matmul_s, vector_ops = 0.0, work.vector_flops(operands, results)
    dims = work.matmul_dims(operands, results)
    if dims is not None:
        if min(dims[1], dims[2]) == 1:
            vector_ops += 2.0 * math.prod(dims)
        else:
            matmul_s = _matmul_seconds(dims, work, chip)
    moved = _moved_bytes(work, operands, results, reads, writes)
    vector_s = vector_ops / chip.vector_flops
    if not moved:
        vector_s *= SHOWING
    seconds = max(matmul_s, vector_s, moved / chip.hbm_bandwidth)
    return chip.time_scale * seconds + (chip.launch_s if any(writes) else 0.0)


def _moved_bytes(
    work: Work,
    operands: tuple[Shape, ...],
    results: tuple[Shape, ...],
    reads: Sequence[float],
    writes: Sequence[bool],
) -> float:
    moved = 0.0
    for index, times in enumerate(reads):
        if times:
            moved += times * work.operand_bytes(index, operands, results)
    for index, written in enumerate(writes):
        if written:
            moved += work.result_bytes(index, operands, results)
    return moved


def _matmul_seconds(dims: tuple[int, int, int, int], work: Work, chip: Chip) -> float:
    tile = chip.matmul_tile
    batch, m, n, k = dims[0], *(-(-extent // tile) * tile for extent in dims[1:])
    padded = batch * m * n * k
    efficiency = k / (k + chip.matmul_half_k)
    return 2.0 * padded / (chip.peak(work.dtype_class) * efficiency)
