"""Seconds of one equation on one device: a roofline over local shapes.

::

    seconds = launch + max(
        matmul / (peak * matmul_efficiency * k / (k + matmul_half_k)),
        vector / vector_peak,
        bytes / (hbm_bandwidth * hbm_efficiency))

``bytes`` are those of fusion borders only: operands that must be read from device memory and
results that must be written to it (``fusion``). The two efficiencies are the measured constants of
a chip generation: what a large matmul, and a large copy, reach of the peaks. The matrix unit works
in square tiles, so ``m, n, k`` round up to ``matmul_tile``, and a short contraction does not fill
its pipeline, hence ``k / (k + matmul_half_k)``. A product with a vector (``m`` or ``n`` of one) is
done by the vector units, as XLA does.

A chip with on-chip memory of its own (TPU) convolves on it. There the result of a convolution is
handled after the products, and what has no room is moved besides (the compiler's cycles, v5e)::

    seconds = launch + matmul + vector + (bytes - ON_CHIP * vmem_bytes) / hbm
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from autopar.cost_model.hardware import Chip, DtypeClass
from autopar.cost_model.work import Shape, Work

SHOWING = 0.1
"""Share of a fused operation's arithmetic that the memory traffic of its kernel does not hide. It
is small, as XLA overlaps the two, but not zero: no work is free, so that plans never repeat it
idly."""

ON_CHIP = 0.5
"""Share of on-chip memory that what a convolution reads and writes may lie in (measured, v5e: of
images that fit, XLA reads and writes an eighth in device memory)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What one equation asks of a device, whichever device it is.

    Attributes:
      matmul: ``(batch, m, n, k)``. dtype_class: its operands'.
      attention_share: of a matmul in an attention kernel, what is computed of it; else 0.
      convolves: whether the matmul is a convolution.
      vector_ops: operations of the vector units. moved_bytes: to and from device memory.
      launches: whether a kernel ends here.
    """

    dtype_class: DtypeClass = "bf16"
    matmul: tuple[int, int, int, int] | None = None
    attention_share: float = 0.0
    convolves: bool = False
    vector_ops: float = 0.0
    moved_bytes: float = 0.0
    launches: bool = False

    def seconds(self, chip: Chip) -> float:
        """The roofline; see the module."""
        matmul_s = 0.0
        if self.matmul is not None:
            matmul_s = self._matmul_seconds(self.matmul, chip)
        vector_s = self.vector_ops / chip.vector_flops
        if not self.launches:
            vector_s *= SHOWING
        memory_s = self.moved_bytes / (chip.hbm_bandwidth * chip.hbm_efficiency)
        seconds = max(matmul_s, vector_s, memory_s)
        if self.convolves and chip.vmem_bytes:
            held = min(1.0, ON_CHIP * chip.vmem_bytes / max(1.0, self.moved_bytes))
            seconds = matmul_s + vector_s + memory_s * (1 - held)
        return seconds + (chip.launch_s if self.launches else 0.0)

    def _matmul_seconds(self, dims: tuple[int, int, int, int], chip: Chip) -> float:
        peak = chip.peak(self.dtype_class)
        if self.attention_share:
            return 2.0 * math.prod(dims) * self.attention_share / (peak * chip.attention_efficiency)
        tile = chip.matmul_tile
        batch, m, n, k = dims[0], *(-(-extent // tile) * tile for extent in dims[1:])
        efficiency = chip.matmul_efficiency * k / (k + chip.matmul_half_k)
        return 2.0 * batch * m * n * k / (peak * efficiency)


NOTHING = Load()


def equation_load(
    work: Work,
    operands: tuple[Shape, ...],
    results: tuple[Shape, ...],
    reads: Sequence[float],
    writes: Sequence[bool],
    beside: float = 0.0,
    attention_share: float = 0.0,
) -> Load:
    """What an equation whose operands and results have these *local* shapes asks of a device.

    Args:
      work: ``work(eqn)``; look it up once per equation.
      operands: their local shapes.
      results: theirs.
      reads: per operand, how often its bytes come from device memory (``FusionBorders.reads_of``).
      writes: per result, whether its writing is charged here (``FusionBorders.writes_of``).
      beside: what is fused into its kernel (``FusionBorders.beside``).
      attention_share: see ``Load`` (``AttentionKernels.of``).

    An equation that lies inside a fusion (no reads, no writes) costs a little of its arithmetic.
    Loops and other regions cost nothing themselves: their bodies are priced.
    """
    if work.kind == "region":
        return NOTHING
    vector_ops = work.vector_flops(operands, results)
    dims = work.matmul_dims(operands, results)
    if dims is not None and min(dims[1], dims[2]) == 1:
        vector_ops += 2.0 * math.prod(dims)
        dims = None
    if beside:
        vector_ops += beside * max(map(math.prod, operands))
    moved = _moved_bytes(work, operands, results, reads, writes)
    convolves = work.kind == "conv"
    return Load(work.dtype_class, dims, attention_share, convolves, vector_ops, moved, any(writes))


def equation_seconds(
    work: Work,
    operands: tuple[Shape, ...],
    results: tuple[Shape, ...],
    chip: Chip,
    reads: Sequence[float],
    writes: Sequence[bool],
    beside: float = 0.0,
    attention_share: float = 0.0,
) -> float:
    """Seconds of ``equation_load`` on a chip."""
    return equation_load(work, operands, results, reads, writes, beside, attention_share).seconds(
        chip
    )


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
