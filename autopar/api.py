"""The public functions: plan a step, apply a plan, both at once by decoration, verify a plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import jax

from autopar.core.compat import Device
from autopar.core.errors import OptionError
from autopar.core.plan import Plan
from autopar.cost_model import Cluster
from autopar.parallelized import Args, Parallelized, Result
from autopar.passes.trace import Step, trace
from autopar.planning import Mesh, plan_traced
from autopar.search.options import Progress
from autopar.verification import Report, check


def plan(
    step: Callable[..., Any] | Step,
    *abstract_args: Any,
    cluster: Cluster | None = None,
    memory: int | str | None = None,
    mesh: Mesh | None = None,
    microbatches: int | str = "auto",
    search: str = "optimal",
    pins: Mapping[str, jax.P | str] | None = None,
    like: Plan | None = None,
    donate: Sequence[int] = (0,),
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
    r"""Finds how best to run ``step`` on ``cluster``. Needs none of the cluster's hardware.

    Args:
      step: any function JAX can trace, ``jax.grad`` and optimiser inside; or what ``trace`` made of
        one, to plan it again, with other pins, say, or for another cluster.
      abstract_args: its arguments, as arrays or ``jax.ShapeDtypeStruct``; none of what is traced.
      cluster: where it will run; by default the devices of this process.
      memory: budget per device, bytes or ``"14GiB"``; by default the chip's own, less a margin.
      mesh: sizes ``(4, 2)`` or ``{"data": 4, "model": 2}``; by default searched.
      microbatches: only 1 for now (``"auto"`` is 1).
      search: ``optimal``, ``exhaustive``, ``random``, or a baseline by name.
      pins: regular expression over input paths, or else over names of operations as plans print
        them, to how these inputs or results must lie: a ``PartitionSpec`` (``P()``: do not split;
        ``P.UNCONSTRAINED``: this dimension as is best), or the path or name of the value that they
        must lie like, with the groups of the expression: ``{"mu/(.*)": r"params/\1"}``.
      like: a plan to follow, for an evaluation step beside its training step: the same mesh, and
        inputs of the same name, shape and dtype lie as they do there.
      donate: positional arguments whose memory the step may reuse.
      seed: what ``search="random"`` draws from.
      time_limit: seconds of solver time per mesh.
      remat: ``auto``, by which the backward pass computes again what the memory cannot keep, or
        ``none``. A step that fits is left as it is, but for loops that stack more than pays.
      confirm: ``jit`` or ``shard_map``: the plan is also compiled, as it would be run by that
        backend, for a TPU slice ahead of time (with libtpu, no TPU) or for the devices of this
        process. If its program needs more than the budget, it is searched again for less.
      offload: ``auto``, by which the optimiser's state rests in host memory where recomputing is
        not enough, or ``none``.
      host_memory: host memory per device, as ``memory``; by default the chip's share of its host's.
      certify: a deep step is searched with repeated layers alike; also bound how much better plans
        could be whose layers differ (seconds to a minute more; see ``Plan.solver``).
      progress: called with a line of text as each stage begins.
      cache: folder in which plans are kept, so that the same question is searched once; by default
        the one that the environment variable ``AUTOPAR_CACHE`` names, if any.

    Raises:
      TraceError: ``step`` cannot be traced.
      InfeasibleError: nothing fits the memory; says the least that would.
      PinError, ClusterError, OptionError: the request is inconsistent; to ``confirm`` for a
        cluster that is not here.

    Warns:
      FallbackWarning: operations have no rule, and run whole on every device.
    """
    if progress is not None:
        progress("tracing")
    if isinstance(step, Step) and abstract_args:
        raise OptionError("a traced step has its arguments already; leave them out")
    traced = step if isinstance(step, Step) else trace(step, *abstract_args, donate=donate)
    return plan_traced(
        traced,
        cluster=cluster,
        memory=memory,
        mesh=mesh,
        microbatches=microbatches,
        search=search,
        pins=pins,
        like=like,
        seed=seed,
        time_limit=time_limit,
        remat=remat,
        confirm=confirm,
        offload=offload,
        host_memory=host_memory,
        certify=certify,
        progress=progress,
        cache=cache,
    )


def apply(
    step: Callable[Args, Result],
    plan: Plan,
    devices: Sequence[Device] | None = None,
    backend: str = "jit",
    *,
    donate: Sequence[int] = (0,),
) -> Parallelized[Args, Result]:
    """``step`` as ``plan`` says: a function with ``.trace``, ``.lower`` and ``.compile``.

    It is traced when first called (or lowered); a plan made for another step is then an error.

    Raises:
      PlanError: at the first call, if the plan was made for another step.
      ClusterError: there are fewer devices than the plan needs.
    """
    return Parallelized(step, plan, devices, backend, donate, {})


def verify(
    step: Callable[..., Any],
    plan: Plan,
    *args: Any,
    backend: str = "cpu",
    lowering: str = "jit",
    donate: Sequence[int] = (0,),
) -> Report:
    """Compiles ``plan``, and sets what the compiler made of it beside what the plan predicts.

    Args:
      args: the step's arguments, as arrays or ``jax.ShapeDtypeStruct``.
      backend: ``tpu`` compiles for the plan's own TPU slice, which need not be there (libtpu must).
        ``cpu`` compiles for the devices of this process, emulated ones above all; given arrays, it
        runs the step once on them and once on one device, and compares all results.
      lowering: how the plan is carried out, ``jit`` or ``shard_map``.

    Raises:
      PlanError: the plan was made for another step.
      ClusterError: too few devices, or no TPU slice such as the plan's.
      OptionError: libtpu is missing, or an option is not one.
    """
    return check(step, plan, args, backend=backend, lowering=lowering, donate=donate)


@overload
def parallelize(step: Callable[Args, Result], /) -> Parallelized[Args, Result]: ...


@overload
def parallelize(
    *,
    cluster: Cluster | None = ...,
    memory: int | str | None = ...,
    mesh: Mesh | None = ...,
    plan: Plan | str | Path | None = ...,
    devices: Sequence[Device] | None = ...,
    backend: str = ...,
    donate: Sequence[int] = ...,
    **options: Any,
) -> Callable[[Callable[Args, Result]], Parallelized[Args, Result]]: ...


def parallelize(
    step: Callable[..., Any] | None = None,
    /,
    *,
    plan: Plan | str | Path | None = None,
    devices: Sequence[Device] | None = None,
    backend: str = "jit",
    donate: Sequence[int] = (0,),
    **options: Any,
) -> Any:
    """Decorates a training step: planned and compiled at its first call, then as fast as ``jit``.

    ``@autopar.parallelize`` or ``@autopar.parallelize(memory="14GiB", ...)``; the options are those
    of ``autopar.plan``. With ``plan=`` (a ``Plan`` or the path of one) nothing is searched.

    Raises:
      OptionError: an option that ``autopar.plan`` does not have.
    """
    unknown = set(options) - _OPTIONS
    if unknown:
        raise OptionError(
            f"parallelize has no option {sorted(unknown)}; it takes {', '.join(sorted(_OPTIONS))}, "
            "plan, devices, backend and donate"
        )
    idle = sorted(set(options) - {"progress", "cache"})
    if plan is not None and idle:
        raise OptionError(
            f"with plan= nothing is searched, so {', '.join(idle)} would do nothing; leave it out, "
            "or leave plan out"
        )
    if plan is not None and not isinstance(plan, (Plan, str, Path)):  # pyright: ignore
        raise OptionError(f"plan={plan!r} is neither a Plan nor the path of one")

    def decorate(function: Callable[..., Any]) -> Parallelized[..., Any]:
        given = plan if plan is None or isinstance(plan, Plan) else Plan.load(plan)
        return Parallelized(function, given, devices, backend, donate, options)

    return decorate if step is None else decorate(step)


_OPTIONS = frozenset(inspect.signature(plan_traced).parameters) - {"traced"}
