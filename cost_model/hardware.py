"""What a cluster is made of: chips, and the levels of links that join them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Literal, get_args

from autopar.core.errors import ClusterError

DtypeClass = Literal["bf16", "f32", "f32_highest", "int8", "fp8"]
LevelKind = Literal["torus", "switch"]
Overlap = Literal["none", "async", "windowed"]


@dataclass(frozen=True, slots=True)
class Chip:
    """One device, as JAX sees it. Rates are dense peaks; ``_flops`` are FLOP/s, bandwidths bytes/s.

    Attributes:
      bf16_flops: matrix units, 16-bit floating point operands.
      f32_flops: f32 operands at JAX's *default* precision (TPU: one bf16 pass; GPU: TF32 if any).
      f32_highest_flops: f32 operands at ``Precision.HIGHEST`` (TPU: six bf16 passes); f64 too.
      int8_flops: 8-bit integers. fp8_flops: 8-bit floats (the bf16 rate where there is no unit).
      vector_flops: elementwise units, f32.
      hbm_bytes: device memory. hbm_bandwidth: to and from it.
      host_bytes: host memory per device. host_bandwidth: to the host, one way, per device.
      launch_s: fixed time of a kernel, added to every kernel.
      matmul_efficiency: share of the peak that a large matmul reaches.
      hbm_efficiency: share of ``hbm_bandwidth`` that a large copy reaches.
      matmul_tile: matmul dimensions round up to this (the side of the systolic array).
      matmul_half_k: contraction length at which a matmul reaches half of its large-K rate.
      vmem_bytes: on-chip memory that short-lived values may stay in (``Timeline.profile``).
      attention_efficiency: share of the peak that attention reaches where it runs as one kernel
        (``attention``); 0 where it does not, as with XLA's own.
      overlap: what collectives run beside (module ``overlap``): ``none``, nothing; ``async``,
        kernels that do not need them; ``windowed``, chunk by chunk also the matmuls that make or
        take what they move.
    """

    name: str
    bf16_flops: float
    f32_flops: float
    f32_highest_flops: float
    int8_flops: float
    fp8_flops: float
    vector_flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    host_bytes: int
    host_bandwidth: float
    launch_s: float
    matmul_efficiency: float = 0.8
    hbm_efficiency: float = 0.8
    matmul_tile: int = 128
    matmul_half_k: int = 64
    vmem_bytes: int = 0
    attention_efficiency: float = 0.0
    overlap: Overlap = "async"

    def __post_init__(self) -> None:
        if self.overlap not in get_args(Overlap):
            known = ", ".join(map(repr, get_args(Overlap)))
            raise ClusterError(f"chip.overlap is {self.overlap!r}; it must be one of {known}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, (int, float)) and value <= 0 and field.name not in _MAY_BE_ZERO:
                raise ClusterError(f"chip.{field.name} is {value}; it must be positive")
            if isinstance(value, (int, float)) and value < 0:
                raise ClusterError(f"chip.{field.name} is {value}; it must not be negative")
            if field.name.endswith("_efficiency") and value > 1:
                raise ClusterError(f"chip.{field.name} is {value}; it is a share, at most 1")

    @property
    def usable_bytes(self) -> int:
        """Device memory that a plan may fill: less what code and fragmentation take."""
        return int(self.hbm_bytes * (1 - HELD_BACK))

    @property
    def bf16_dots(self) -> bool:
        """Whether f32 products run at the rate of bf16 ones: their operands are stored as bf16."""
        return self.f32_flops == self.bf16_flops

    def peak(self, dtype_class: DtypeClass) -> float:
        """Peak FLOP/s of the matrix units for operands of this class."""
        return getattr(self, f"{dtype_class}_flops")


HELD_BACK = 0.12
"""8 % of device memory that XLA:TPU keeps, and up to 4 % lost to fragmentation (measured, v5e)."""

_MAY_BE_ZERO = frozenset(
    {"launch_s", "host_bytes", "matmul_half_k", "vmem_bytes", "attention_efficiency"}
)


@dataclass(frozen=True, slots=True)
class Level:
    """One physical dimension of a cluster: ``size`` groups of everything inside it.

    Attributes:
      kind: ``torus``: a line or ring of point-to-point links; ``switch``: any to any.
      bandwidth: bytes/s, one direction: of one link (torus), or of one device's port (switch).
      latency_s: of one hop (torus), or of one collective (switch).
      wrap: a torus dimension whose ends are joined.
    """

    name: str
    size: int
    kind: LevelKind
    bandwidth: float
    latency_s: float
    wrap: bool = False

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ClusterError(f"levels.{self.name}.size is {self.size}; it must be at least 1")
        if self.bandwidth <= 0:
            raise ClusterError(
                f"levels.{self.name}.bandwidth is {self.bandwidth}; it must be positive"
            )
        if self.latency_s < 0:
            raise ClusterError(
                f"levels.{self.name}.latency_s is {self.latency_s}; it must not be negative"
            )


@dataclass(frozen=True, slots=True)
class Link:
    """What a collective along one mesh axis really uses.

    Attributes:
      bandwidth: bytes/s at which one device takes part in a gather or reduction. On a ring with
        wrap-around this is both directions together.
      latency_s: of one hop.
      wrap: whether the hops close a ring.
      hops: hops of one all-gather; ``None``: half the ring, or the whole line.
      exchange_bandwidth: bytes/s at which a device gets its local buffer through an all-to-all;
        ``None``: that of a ring or line of ``bandwidth``.
      scatters: whether there is a reduce-scatter, or an all-reduce is made of it (``whole``).
    """

    name: str
    bandwidth: float
    latency_s: float
    wrap: bool = False
    hops: float | None = None
    exchange_bandwidth: float | None = None
    scatters: bool = True


def chip_from_dict(data: Mapping[str, object]) -> Chip:
    """The inverse of ``dataclasses.asdict``; ``ClusterError`` on unknown or missing keys."""
    names = {field.name for field in fields(Chip)}
    for key in data:
        if key not in names:
            raise ClusterError(f"chip.{key} is not known; a chip has {', '.join(sorted(names))}")
    try:
        return Chip(**data)  # pyright: ignore[reportArgumentType]
    except TypeError as error:
        raise ClusterError(f"the chip description is incomplete: {error}") from None
