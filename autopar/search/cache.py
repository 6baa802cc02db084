"""Plans kept between runs, in a folder: the same question is searched once.

A file's name is a hash of all that the answer depends on: the step and the cluster (by their
fingerprints), the options, the versions of JAX and the solvers, and autopar's own source. So a plan
is never stale; what has changed is another question. A file that cannot be read is searched anew
and replaced.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
from pathlib import Path

from autopar.core.errors import OptionError, PlanError
from autopar.core.garbage import uncollected
from autopar.core.plan import Plan
from autopar.cost_model import Cluster
from autopar.passes.trace import Step
from autopar.search.options import Options
from autopar.search.programs import search

DECIDING = ("jax", "jaxlib", "numpy", "scipy", "pytoulbar2")
"""Packages whose version may change a plan."""


def cached_search(step: Step, cluster: Cluster, options: Options, folder: Path | None) -> Plan:
    """The plan, from ``folder`` if it is there; else it is searched and put there.

    Args:
      folder: made if it does not exist; ``None`` keeps nothing.

    Raises:
      OptionError: ``folder`` is not a folder, and cannot be made.
      InfeasibleError, PinError, ClusterError: as of ``search``.
    """
    if folder is None:
        return search(step, cluster, options)
    _make(folder)
    with uncollected():
        path = folder / f"{question(step, cluster, options)}.json"
        found = _read(path, step)
    if found is None:
        found = search(step, cluster, options)
        found.save(path)
    else:
        options.progress(f"found in {folder}")
    return found


def question(step: Step, cluster: Cluster, options: Options) -> str:
    """A hash of all that the plan depends on."""
    parts = [
        step.fingerprint,
        cluster.fingerprint,
        options.as_text(),
        options.time_limit_s,
        _versions(),
        source_hash(),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(
            f"cache={str(folder)!r} is no folder for plans: {error.strerror}; give one that exists "
            "or can be made"
        ) from None


def _read(path: Path, step: Step) -> Plan | None:
    try:
        plan = Plan.load(path)
    except PlanError:
        return None
    return (
        plan.with_trees(step.in_tree, step.out_tree)
        if step.program(plan.step, plan.recompute)
        else None
    )


@functools.cache
def _versions() -> list[str]:
    found: list[str] = []
    for name in DECIDING:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(name)
    return found


@functools.cache
def source_hash() -> str:
    """A hash of autopar's own code."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for folder, _, names in sorted(os.walk(package, followlinks=True)):  # passes/ is a link
        for name in sorted(names):
            if name.endswith(".py"):
                digest.update(Path(folder, name).read_bytes())
    return digest.hexdigest()
