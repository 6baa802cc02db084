"""The devices of a TPU slice that is not there, for the compiler to compile for.

libtpu (the extra ``tpu``) describes any slice that exists; what is compiled for it cannot be run.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from jax.experimental import topologies

from autopar.core.compat import Device
from autopar.core.errors import ClusterError, OptionError
from autopar.cost_model import Cluster

GENERATIONS: Mapping[str, tuple[str, int, float]] = {
    # Chip: what libtpu calls it, dimensions of its torus, cycles a second. The clock is that at
    # which its matrix units reach the published bf16 peak: 2 x units x side^2 x clock.
    "tpu-v4": ("v4", 3, 1.05e9),
    "tpu-v5e": ("v5e", 2, 1.5e9),
    "tpu-v5p": ("v5p", 3, 1.75e9),
    "tpu-v6e": ("v6e", 2, 1.75e9),
}

_ENVIRONMENT = {
    "TPU_WORKER_HOSTNAMES": "localhost",  # there is none to look for
    "TPU_SKIP_MDS_QUERY": "1",  # no metadata server is asked what machine this is
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # nothing is run, so another process may use it too
}


@contextmanager
def compiler_environment() -> Generator[None]:
    """What libtpu wants to find in the environment; as it was afterwards."""
    before = {name: os.environ.get(name) for name in _ENVIRONMENT}
    os.environ.update(_ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def clock_hz(cluster: Cluster) -> float:
    """Cycles a second of the cluster's chip. ``ClusterError`` if it is no known TPU."""
    return _generation(cluster)[2]


def topology_devices(cluster: Cluster) -> list[Device]:
    """The devices of ``cluster``, in the order in which plans number them.

    Raises:
      ClusterError: the cluster is no TPU, or libtpu knows no such slice.
      OptionError: libtpu is not installed.
    """
    name, rank, _ = _generation(cluster)
    if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
        raise OptionError(
            f"{cluster} is compiled for with libtpu, which is not installed; install autopar[tpu] "
            "(jax[tpu]), or verify on emulated devices, backend='cpu'"
        )
    slices, extents = _extents(cluster, rank)
    layout = f"{name}:{'x'.join(map(str, extents))}"
    # A slice is made of hosts; which of its chips share one changes nothing that is compiled.
    options: dict[str, Any] = {
        "chips_per_host_bounds": (*(math.gcd(2, n) for n in extents[:2]), 1),
        **({"num_slices": slices} if slices > 1 else {}),
    }
    with compiler_environment():
        try:
            found = topologies.get_topology_desc(platform="tpu", topology_name=layout, **options)
        except Exception as error:  # libtpu's own, of several types
            reason = str(error).strip().splitlines()[0]
            raise ClusterError(
                f"{cluster}: the TPU compiler refuses the topology {layout}: {reason}; "
                "give a slice that exists, such as tpu-v5e:4x4"
            ) from None
    devices = sorted(found.devices, key=_place)
    if len(devices) != cluster.device_count:
        raise ClusterError(
            f"{cluster}: the TPU compiler sees {len(devices)} devices in {layout}, the plan is "
            f"for {cluster.device_count}; no program can be compiled for it without the hardware"
        )
    return devices


def _generation(cluster: Cluster) -> tuple[str, int, float]:
    if cluster.chip.name not in GENERATIONS:
        raise ClusterError(
            f"backend='tpu' compiles for {', '.join(GENERATIONS)}; {cluster} is made of "
            f"{cluster.chip.name!r}: use backend='cpu', or plan for one of these"
        )
    return GENERATIONS[cluster.chip.name]


def _extents(cluster: Cluster, rank: int) -> tuple[int, tuple[int, ...]]:
    """The number of slices, and the extents of each."""
    shape = cluster.shape
    slices, torus = (shape[0], shape[1:]) if len(shape) > rank else (1, shape)
    if len(torus) < rank and math.prod(torus) == cluster.device_count // slices:
        torus += (1,) * (rank - len(torus))
    return slices, torus


def _place(device: Device) -> tuple[int, ...]:
    """Row-major in the torus, slices outermost, as levels are numbered."""
    return (getattr(device, "slice_index", None) or 0, *device.coords, device.core_on_chip)
