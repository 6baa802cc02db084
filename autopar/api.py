"""The public functions: plan a step, apply a plan, both at once by decoration, verify a plan."""

from __future__ import annotations

import functools
import inspect
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, ParamSpec, TypeVar, overload

import jax

from autopar.core.compat import Device
from autopar.core.errors import FallbackWarning, OptionError, TraceError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan
from autopar.cost_model import Cluster, parse_bytes
from autopar.passes.trace import Step, check_donate, trace
from autopar.runtime import OtherArguments, PlannedStep, check_backend
from autopar.search.cache import cached_search
from autopar.search.options import Options, Progress
from autopar.search.pins import following
from autopar.verification import Report, check, compiled_peak, confirmed

Args = ParamSpec("Args")
Result = TypeVar("Result")

Mesh = MeshSpec | Mapping[str, int] | Sequence[int] | int


def plan(
    step: Callable[..., Any],
    *abstract_args: Any,
    cluster: Cluster | None = None,
    memory: int | str | None = None,
    mesh: Mesh | None = None,
    microbatches: int | str = "auto",
    search: str = "optimal",
    pins: Mapping[str, jax.P] | None = None,
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
    """Finds how best to run ``step`` on ``cluster``. Needs none of the cluster's hardware.

    Args:
      step: any function JAX can trace, ``jax.grad`` and optimiser inside.
      abstract_args: its arguments, as arrays or ``jax.ShapeDtypeStruct``.
      cluster: where it will run; by default the devices of this process.
      memory: budget per device, bytes or ``"14GiB"``; by default the chip's own, less a margin.
      mesh: sizes ``(4, 2)`` or ``{"data": 4, "model": 2}``; by default searched.
      microbatches: only 1 for now (``"auto"`` is 1).
      search: ``optimal``, ``exhaustive``, ``random``, or a baseline by name.
      pins: regular expression over input paths to the ``PartitionSpec`` they must have.
      like: a plan to follow, for an evaluation step beside its training step: the same mesh, and
        inputs of the same name, shape and dtype lie as they do there.
      donate: positional arguments whose memory the step may reuse.
      seed: what ``search="random"`` draws from.
      time_limit: seconds of solver time per mesh.
      remat: ``auto``, by which the backward pass computes again what the memory cannot keep, or
        ``none``. A step that fits is left as it is.
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
    (progress or _quiet)("tracing")
    traced = trace(step, *abstract_args, donate=donate)
    return _plan_traced(
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


def _plan_traced(
    traced: Step,
    *,
    cluster: Cluster | None = None,
    memory: int | str | None = None,
    mesh: Mesh | None = None,
    microbatches: int | str = "auto",
    search: str = "optimal",
    pins: Mapping[str, jax.P] | None = None,
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


_OPTIONS = frozenset(inspect.signature(_plan_traced).parameters) - {"traced"}


class Parallelized(Generic[Args, Result]):
    """A step that plans itself when it first sees its arguments, or carries out a given plan."""

    def __init__(
        self,
        step: Callable[Args, Result],
        plan: Plan | None,
        devices: Sequence[Device] | None,
        backend: str,
        donate: Sequence[int],
        options: Mapping[str, Any],
    ) -> None:
        check_backend(backend)
        if not callable(step):
            raise OptionError(
                f"{step!r} is not a function to parallelize; options go by name: "
                "@autopar.parallelize(memory='14GiB')"
            )
        if plan is not None and not isinstance(plan, Plan):  # pyright: ignore
            raise OptionError(f"{plan!r} is not a Plan; read one with autopar.Plan.load(path)")
        functools.update_wrapper(self, step)
        self._step, self._given = step, plan
        self._devices, self._backend, self._donate = devices, backend, check_donate(donate)
        self._options = dict(options)
        self._bound: PlannedStep | None = None
        self._others: list[PlannedStep] = []
        self._call: Callable[..., Any] = self._first_call

    def __call__(self, *args: Args.args, **kwargs: Args.kwargs) -> Result:
        """Runs the step. The first call plans and compiles; so does the first of other shapes."""
        if kwargs:
            args = self._positional(args, kwargs)  # pyright: ignore[reportAssignmentType]
        try:
            return self._call(*args)
        except (OtherArguments, ValueError, TypeError):  # JAX may see before us that they differ
            if self._bound is not None and self._bound.accepts(args):
                raise
        return self._for(args, {}).first_call(*args)

    def plan(self, *args: Args.args, **kwargs: Args.kwargs) -> Plan:
        """The plan for arguments of these shapes (arrays or ``jax.ShapeDtypeStruct``)."""
        return self._for(args, kwargs).plan

    def init(
        self, init_fn: Callable[..., Any], *init_args: Any, batch: Any, extra: Sequence[Any] = ()
    ) -> Any:
        """The step's first argument, made by ``init_fn(*init_args)`` in the layout of the plan.

        Every device computes its own part: the whole never exists on one.

        Args:
          batch: the step's second argument, as arrays or shapes: what the plan is made for.
          extra: any further arguments of the step.
        """
        state = jax.eval_shape(init_fn, *init_args)
        bound = self._for((state, batch, *extra), {})
        return jax.jit(init_fn, out_shardings=bound.in_shardings[0])(*init_args)

    def trace(self, *args: Args.args, **kwargs: Args.kwargs) -> Any:
        """As of ``jax.jit``."""
        return self._for(args, kwargs).call.trace(*self._positional(args, kwargs))

    def lower(self, *args: Args.args, **kwargs: Args.kwargs) -> Any:
        """As of ``jax.jit``."""
        return self._for(args, kwargs).call.lower(*self._positional(args, kwargs))

    def compile(self, *args: Args.args, **kwargs: Args.kwargs) -> Any:
        """Compiles ahead of time for arguments of these shapes."""
        return self.lower(*args, **kwargs).compile()

    def shardings(self, *args: Args.args, **kwargs: Args.kwargs) -> tuple[Any, Any]:
        """``NamedSharding`` of every argument, and of every result."""
        bound = self._for(args, kwargs)
        return bound.in_shardings, bound.out_shardings

    def _positional(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        if not kwargs:
            return args
        name = getattr(self._step, "__name__", "the step")
        try:
            bound = inspect.signature(self._step).bind(*args, **kwargs)
        except (TypeError, ValueError) as error:
            raise TraceError(f"{name}: {error}; pass arguments as the step names them") from None
        if bound.kwargs:
            raise TraceError(
                f"{name}: {', '.join(bound.kwargs)} cannot be put in order: a planned step takes "
                "arguments by position; give every argument before it too, and bind what is "
                "keyword-only with functools.partial"
            )
        return bound.args

    def _for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> PlannedStep:
        """The bound step for these arguments; plans when there is none yet, or for other shapes."""
        positional = self._positional(args, kwargs)
        for bound in (self._bound, *self._others):
            if bound is not None and bound.accepts(positional):
                return self._keep(bound)
        return self._bind(positional)

    def _bind(self, args: tuple[Any, ...]) -> PlannedStep:
        traced = trace(self._step, *args, donate=self._donate)
        chosen = self._given or _plan_traced(traced, **self._options)
        return self._keep(PlannedStep(traced, chosen, self._devices, self._backend))

    def _keep(self, bound: PlannedStep) -> PlannedStep:
        """Makes ``bound`` the first that is tried; the others are kept for when they return."""
        known = (self._bound, *self._others)
        self._others = [other for other in known if other is not None and other is not bound]
        self._bound, self._call = bound, bound.call
        return bound

    def _first_call(self, *args: Any) -> Any:
        return self._bind(args).first_call(*args)
