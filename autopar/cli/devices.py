"""The devices a command trains on: accelerators, or as many emulated ones as are asked for."""

from __future__ import annotations

import contextlib

import jax

from autopar.core.errors import ClusterError

EMULATED = 8
"""Devices emulated where there is no accelerator and no number is asked for."""


def start_devices(count: int | None) -> None:
    """Makes ``count`` emulated devices where there is no accelerator.

    Must run before anything else uses JAX's devices.

    Raises:
      ClusterError: there are accelerators, but not ``count`` of them.
    """
    with contextlib.suppress(RuntimeError):  # JAX has started: what there is must do
        jax.config.update("jax_num_cpu_devices", EMULATED if count is None else count)
    devices = jax.devices()
    if count is not None and len(devices) != count:
        kind = devices[0].device_kind
        raise ClusterError(
            f"--devices {count}: this process has {len(devices)} devices ({kind}); leave --devices "
            f"out to use them all, or set JAX_PLATFORMS=cpu to emulate {count}"
        )
