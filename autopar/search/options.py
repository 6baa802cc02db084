"""What the user asked of the search, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax

from autopar.core.errors import OptionError, PinError
from autopar.core.mesh import MeshSpec

BASELINES = ("replicated", "data", "fsdp", "megatron", "fsdp+megatron", "redco")
SEARCHES = ("optimal", "exhaustive", "random", *BASELINES)
REMATS = ("auto", "none")
OFFLOADS = ("auto", "none")

UNLIMITED = 2**62
"""Bytes; more than any device has."""

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one search.

    Attributes:
      search: one of ``SEARCHES``.
      mesh: the mesh to use, or ``None`` to search over the cluster's own factorisations.
      memory_bytes: budget per device, or ``None`` for the chip's own less a margin.
      pins: layouts fixed by the user, by path.
      seed: what ``search="random"`` draws from.
      time_limit_s: seconds of solver time per mesh; the best plan by then is returned with its gap.
      remat: ``auto``: where memory asks for it, or loops would stack much, the backward pass
        recomputes what the forward pass does not keep; ``none``: never.
      offload: ``auto``: where recomputing is not enough, state of the optimiser rests on the host;
        ``none``: never.
      host_bytes: host memory per device, or ``None`` for the chip's own.
      certify: of a step whose repeated layers choose alike, bound plans whose layers differ too.
      progress: called with a line of text as each stage begins.
    """

    search: str = "optimal"
    mesh: MeshSpec | None = None
    memory_bytes: int | None = None
    pins: Mapping[str, jax.P | str] = field(default_factory=dict)
    seed: int = 0
    time_limit_s: float = 60.0
    remat: str = "auto"
    offload: str = "auto"
    host_bytes: int | None = None
    certify: bool = False
    progress: Progress = lambda _: None

    def __post_init__(self) -> None:
        if self.search not in SEARCHES:
            raise OptionError(
                f"search={self.search!r} is not offered; choose one of {', '.join(SEARCHES)}"
            )
        if self.remat not in REMATS:
            raise OptionError(
                f"remat={self.remat!r} is not offered; choose one of {', '.join(REMATS)}"
            )
        if self.offload not in OFFLOADS:
            raise OptionError(
                f"offload={self.offload!r} is not offered; choose one of {', '.join(OFFLOADS)}"
            )
        limit, seed = self.time_limit_s, self.seed
        if not isinstance(limit, (int, float)) or not limit > 0:  # pyright: ignore
            raise OptionError(
                f"time_limit={limit!r} leaves no time to search; give seconds above zero"
            )
        if not isinstance(seed, int) or seed < 0:  # pyright: ignore
            raise OptionError(f"seed={seed!r} is no whole number from 0 on; give one")
        for pattern, spec in self.pins.items():
            if not isinstance(spec, (jax.P, tuple, str)):  # pyright: ignore
                raise PinError(
                    f"pin {pattern!r} = {spec!r} is no PartitionSpec, and no path of a value to "
                    "lie like; name a mesh axis or None for each dimension: jax.P('data', None)"
                )
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise OptionError(f"memory={self.memory_bytes} bytes; give a positive budget")
        if self.host_bytes is not None and self.host_bytes < 0:
            raise OptionError(f"host_memory={self.host_bytes} bytes; give 0 or more")

    def as_text(self) -> dict[str, str]:
        """The options that shaped the plan, for its record."""
        pins = "; ".join(f"{pattern} = {spec}" for pattern, spec in self.pins.items())
        return {
            "search": self.search,
            "mesh": "searched" if self.mesh is None else str(self.mesh),
            "memory": "chip" if self.memory_bytes is None else str(self.memory_bytes),
            "pins": pins,
            "seed": str(self.seed),
            "remat": self.remat,
            "offload": self.offload,
            "host_memory": "chip" if self.host_bytes is None else str(self.host_bytes),
            **({"certify": "yes"} if self.certify else {}),
        }
