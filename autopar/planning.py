"""A traced step planned as a caller asks: what is asked in words becomes options of the search."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax

from autopar.core.errors import FallbackWarning, OptionError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.cost_model import Cluster, parse_bytes
from autopar.passes.trace import Step
from autopar.runtime import check_backend
from autopar.search.cache import cached_search
from autopar.search.options import Options, Progress
from autopar.search.pins import following
from autopar.verification import compiled_peak, confirmed

Mesh = MeshSpec | Mapping[str, int] | Sequence[int] | int


def plan_traced(
    traced: Step,
    *,
    cluster: Cluster | None = None,
    memory: int | str | None = None,
    mesh: Mesh | None = None,
    microbatches: int | str = "auto",
    search: str = "optimal",
    pins: Mapping[str, jax.P | str] | None = None,
    like: Plan | None = None,
    seed: int = 0,
    time_limit: float = 60.0,
    remat: str = "auto",
    confirm: str | None = None,
    offload: str = "auto",
    host_memory: int | str | None = None,
    certify: bool = False,
    progress: Progress | None = None,
    cache: str | Path | None = None,
) -> Plan:
    """``api.plan`` of a step that has been traced; arguments and errors as there."""
    if cluster is not None and not isinstance(cluster, Cluster):  # pyright: ignore
        raise OptionError(
            f"cluster={cluster!r} is no Cluster; write Cluster.preset('tpu-v5e', (4, 4)), or "
            "Cluster.from_toml(path)"
        )
    if microbatches not in ("auto", 1):
        raise OptionError(
            f"microbatches={microbatches!r} is not offered yet: the step runs its batch whole; "
            "leave it out, or give 1"
        )
    asked = None if mesh is None else MeshSpec.of(mesh)
    if like is not None:
        asked = _mesh_of(like, asked)
        pins = {**following(like, traced), **(pins or {})}
    options = Options(
        search=search,
        mesh=asked,
        memory_bytes=None if memory is None else parse_bytes(memory),
        pins=dict(pins or {}),
        seed=seed,
        time_limit_s=time_limit,
        remat=remat,
        offload=offload,
        host_bytes=None if host_memory is None else parse_bytes(host_memory),
        certify=certify,
        progress=progress or _quiet,
    )
    target = cluster or Cluster.detect()
    named = cache or os.environ.get("AUTOPAR_CACHE")
    folder = Path(named) if named else None
    find = lambda given: cached_search(traced, target, given, folder)  # noqa: E731
    if confirm is None:
        found = find(options)
    else:
        check_backend(confirm)
        peak_of = lambda plan: compiled_peak(traced, plan, confirm)  # noqa: E731
        found = confirmed(target, options, find, peak_of)
    _warn_of_fallbacks(found)
    return found


def _mesh_of(like: Plan, asked: MeshSpec | None) -> MeshSpec:
    if not isinstance(like, Plan):  # pyright: ignore
        raise OptionError(f"like={like!r} is not a Plan; read one with autopar.Plan.load(path)")
    if asked is not None and asked != like.mesh:
        raise OptionError(
            f"mesh={asked} is not the mesh of the plan to follow, {like.mesh}; leave mesh out"
        )
    return like.mesh


def _warn_of_fallbacks(plan: Plan) -> None:
    if plan.fallbacks:
        named = ", ".join(f"{name} x{count}" for name, count in sorted(plan.fallbacks.items()))
        warnings.warn(
            f"no sharding rule for {named}: every device does the whole of each, and what it reads "
            "is gathered; write it with operations that have a rule (docs/operations.md), or in a "
            "jax.shard_map over the axes of the mesh",
            FallbackWarning,
            stacklevel=4,
        )


def _quiet(line: str) -> None:
    del line
