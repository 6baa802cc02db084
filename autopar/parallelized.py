"""A step that is called as it was written, and runs as its plan says."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

import jax

from autopar.core.compat import Device
from autopar.core.errors import OptionError, TraceError
from autopar.core.plan import Plan
from autopar.passes.trace import check_donate, trace
from autopar.planning import plan_traced
from autopar.runtime import OtherArguments, PlannedStep, check_backend

Args = ParamSpec("Args")
Result = TypeVar("Result")


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
        chosen = self._given or plan_traced(traced, **self._options)
        return self._keep(PlannedStep(traced, chosen, self._devices, self._backend))

    def _keep(self, bound: PlannedStep) -> PlannedStep:
        """Makes ``bound`` the first that is tried; the others are kept for when they return."""
        known = (self._bound, *self._others)
        self._others = [other for other in known if other is not None and other is not bound]
        self._bound, self._call = bound, bound.call
        return bound

    def _first_call(self, *args: Any) -> Any:
        return self._bind(args).first_call(*args)
