"""A step bound to a plan and to devices: called like the function it came from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from autopar.core.compat import Device
from autopar.core.errors import ClusterError, OptionError, PlanError
from autopar.core.mesh import MeshSpec
from autopar.core.plan import Plan, ValuePlan
from autopar.passes.lowering import lower, lower_exact
from autopar.passes.trace import Step

BACKENDS: Mapping[str, Callable[[Step, Plan, Mesh], Callable[..., list[Any]]]] = {
    "jit": lower,
    "shard_map": lower_exact,
}
"""The ways to carry out a plan: the compiler's partitioner held to it, or explicit collectives."""


class OtherArguments(PlanError):
    """The step was called with other shapes, or another structure, than it was planned for."""


def check_backend(name: str) -> None:
    """Raises ``OptionError`` if no backend has this name."""
    if name not in BACKENDS:
        raise OptionError(f"backend={name!r} is not offered; choose one of {', '.join(BACKENDS)}")


class PlannedStep:
    """A traced step bound to a plan and to devices.

    ``call`` is the jitted function itself: nothing of autopar runs between steps.

    Raises:
      PlanError: the plan was made for another step.
      ClusterError: there are fewer devices than the plan's mesh has.
    """

    def __init__(
        self,
        step: Step,
        plan: Plan,
        devices: Sequence[Device] | None = None,
        backend: str = "jit",
    ) -> None:
        check_backend(backend)
        step = step.program(plan.step, plan.recompute) or step
        check_same_step(step, plan)
        self.plan = plan.with_trees(step.in_tree, step.out_tree)
        self.mesh = device_mesh(plan.mesh, devices)
        self.step = step
        self.in_shardings, self.out_shardings = _shardings(step, self.plan, self.mesh)
        shardings = self.in_shardings, self.out_shardings
        self.call = _jitted(step, self.plan, self.mesh, backend, *shardings)

    def accepts(self, args: tuple[Any, ...]) -> bool:
        """Whether the step was planned for arguments of these shapes."""
        leaves, tree = jax.tree.flatten(args)
        return tree == self.step.in_tree and all(map(_is_like, leaves, self.plan.inputs))

    def first_call(self, *args: Any) -> Any:
        """``call`` on arguments that no step has laid out yet.

        What a step gives back has another type for JAX than what was never on the mesh, and ``jit``
        would compile again for it. So what the next call takes from this one goes there now.
        """
        leaves, tree = jax.tree.flatten(args)
        shardings = jax.tree.leaves(self.in_shardings)
        state = sorted({source for _, source in self.step.ties})
        placed = jax.device_put([leaves[i] for i in state], [shardings[i] for i in state])
        for i, leaf in zip(state, placed, strict=True):
            leaves[i] = leaf
        return self.call(*jax.tree.unflatten(tree, leaves))


def _is_like(leaf: Any, value: ValuePlan) -> bool:
    try:
        shape, dtype = jax.numpy.shape(leaf), jax.numpy.result_type(leaf)
    except TypeError:  # not an array at all
        return False
    return (shape, str(dtype)) == (value.shape, value.dtype)


def device_mesh(mesh: MeshSpec, devices: Sequence[Device] | None = None) -> Mesh:
    """Lays ``mesh`` over ``devices``, physically near ones along its minor axes.

    Raises:
      ClusterError: too few devices, or something else than devices.
    """
    found = list(jax.devices() if devices is None else devices)
    need = mesh.device_count
    if not all(isinstance(device, Device) for device in found) or len(set(found)) < len(found):
        raise ClusterError(
            f"devices={devices!r} are not distinct devices; give some of jax.devices(), each once"
        )
    if len(found) < need:
        remedy = (
            "to emulate them on a CPU, call "
            f'jax.config.update("jax_num_cpu_devices", {need}) before any other use of JAX'
            if devices is None
            else "give more of jax.devices(), or plan for fewer"
        )
        there = "there are" if devices is None else "it was given"
        raise ClusterError(
            f"the plan needs {need} devices ({mesh}), but {there} {len(found)}; {remedy}"
        )
    auto = (AxisType.Auto,) * len(mesh.axes)
    if devices is None and found[0].platform != "cpu":
        return jax.make_mesh(mesh.sizes, mesh.names, axis_types=auto, devices=found[:need])
    return Mesh(np.array(found[:need]).reshape(mesh.sizes), mesh.names, axis_types=auto)


def check_same_step(step: Step, plan: Plan) -> None:
    """Raises ``PlanError``, saying what differs, unless ``plan`` was made for ``step``."""
    if step.fingerprint == plan.step:
        return
    raise PlanError(
        f"this plan was made for another step: {_difference(step, plan)}; plan this step again "
        "(autopar.plan), or apply the plan to the step it was made for"
    )


def _difference(step: Step, plan: Plan) -> str:
    mine = _described(zip(step.in_paths, step.in_avals, strict=True))
    planned = {v.path: f"{v.dtype}{list(v.shape)}" for v in plan.inputs}
    for path, text in planned.items():
        if path not in mine:
            return f"it has an input {path!r} ({text}) that this step lacks"
        if mine[path] != text:
            return f"its input {path!r} is {text}, here {mine[path]}"
    extra = [path for path in mine if path not in planned]
    if extra:
        return f"this step has an input {extra[0]!r} ({mine[extra[0]]}) that it lacks"
    here, there = len(step.out_paths), len(plan.outputs)
    if here != there:
        return f"it has {there} results, this step {here}"
    return "same inputs and outputs, but the computation between them, or what is donated, differs"


def _described(values: Any) -> dict[str, str]:
    return {path: f"{aval.dtype}{list(aval.shape)}" for path, aval in values}


def _shardings(step: Step, plan: Plan, mesh: Mesh) -> tuple[Any, Any]:
    """Of the arguments and of the results, in their structures; state on the host stays there."""
    away = {one.value for one in plan.offloaded if not one.stack}
    inputs = [_sharding(v, mesh, plan, v.path in away) for v in plan.inputs]
    kept = {out for out, source in step.ties if plan.inputs[source].path in away}
    outputs = [_sharding(v, mesh, plan, out in kept) for out, v in enumerate(plan.outputs)]
    return jax.tree.unflatten(step.in_tree, inputs), jax.tree.unflatten(step.out_tree, outputs)


def _sharding(value: ValuePlan, mesh: Mesh, plan: Plan, on_host: bool) -> NamedSharding:
    spec = value.spec(plan.mesh)
    return (
        NamedSharding(mesh, spec, memory_kind="pinned_host")
        if on_host
        else NamedSharding(mesh, spec)
    )


def _jitted(
    step: Step, plan: Plan, mesh: Mesh, backend: str, in_shardings: Any, out_shardings: Any
) -> Any:
    """``jax.jit`` of the lowered step, with the plan's shardings and the step's donation."""
    flat = BACKENDS[backend](step, plan, mesh)

    def run(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        _check_call(step, plan.inputs, leaves, tree)
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # whatever the caller's is
            return jax.tree.unflatten(step.out_tree, flat(*leaves))

    run.__name__ = run.__qualname__ = "planned_step"
    positions = range(len(step.in_tree.children()))
    return jax.jit(
        run,
        in_shardings=in_shardings,
        out_shardings=out_shardings,
        donate_argnums=tuple(i for i in positions if _donated(step, i)),
    )


def _donated(step: Step, argument: int) -> bool:
    """Whether to donate it: not if no result could take its place, of which JAX would warn."""
    counts = [child.num_leaves for child in step.in_tree.children()]
    start = sum(counts[:argument])
    leaves = slice(start, start + counts[argument])
    results = {(aval.shape, aval.dtype) for aval in step.out_avals}
    useful = any((aval.shape, aval.dtype) in results for aval in step.in_avals[leaves])
    return useful and all(step.donated[leaves])


def _check_call(
    step: Step, inputs: tuple[ValuePlan, ...], leaves: Sequence[Any], tree: Any
) -> None:
    """Runs while tracing only: the arguments must be those the step was planned for."""
    if tree != step.in_tree:
        raise OtherArguments(
            f"the arguments have another structure than the step was planned for: {tree} "
            f"instead of {step.in_tree}; plan again for these arguments"
        )
    for value, leaf in zip(inputs, leaves, strict=True):
        if (tuple(leaf.shape), str(leaf.dtype)) != (value.shape, value.dtype):
            raise OtherArguments(
                f"{value.path!r} is {leaf.dtype}{list(leaf.shape)}, but the step was planned for "
                f"{value.dtype}{list(value.shape)}; plan again for these arguments"
            )
