"""Trace: a training step and the shapes of its arguments become one flat jaxpr with names.

Only shapes and dtypes of the arguments matter; no value is read, nothing is computed.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Var

from autopar.core.compat import PyTreeDef
from autopar.core.errors import AutoparError, OptionError, PlanError, TraceError
from autopar.core.garbage import uncollected
from autopar.passes.fingerprint import Signatures, fingerprint
from autopar.passes.fold import Fold, Layers, fold, number_layers
from autopar.passes.offload import Update, shares, stacks, updates
from autopar.passes.refine import refine
from autopar.passes.remat import rematerialise
from autopar.passes.simplify import simplify
from autopar.passes.sources import explain
from autopar.passes.texts import aval_text, function_name


@dataclass(frozen=True)
class Step:
    """A traced training step.

    Attributes:
      jaxpr: the program, simplified (see ``simplify``).
      in_paths: the name of each flat input, ``/``-joined, from the argument's own name on:
        ``"state/params/block_0/mlp/up/kernel"``.
      out_paths: the name of each flat output, ``"out/0/params/..."``.
      in_tree: the tree of the tuple of arguments.
      out_tree: the tree of the result.
      donated: for each flat input, whether the step may reuse its memory.
      ties: ``(flat output, flat input)`` pairs: outputs that are the next step's inputs.
      signatures: of its equations; one for all passes, and for the programs made of the step, as
        each would write the same again.
    """

    jaxpr: ClosedJaxpr
    in_paths: tuple[str, ...]
    out_paths: tuple[str, ...]
    in_tree: PyTreeDef
    out_tree: PyTreeDef
    donated: tuple[bool, ...]
    ties: tuple[tuple[int, int], ...]
    signatures: Signatures = field(default_factory=Signatures, repr=False, compare=False)

    @property
    def in_avals(self) -> tuple[Any, ...]:
        return tuple(v.aval for v in self.jaxpr.jaxpr.invars)

    @property
    def out_avals(self) -> tuple[Any, ...]:
        return tuple(v.aval for v in self.jaxpr.jaxpr.outvars)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the program, paths and shapes: the same in every process."""
        ins = (f"{p}:{aval_text(a)}" for p, a in zip(self.in_paths, self.in_avals, strict=True))
        outs = (f"{p}:{aval_text(a)}" for p, a in zip(self.out_paths, self.out_avals, strict=True))
        rest = (*ins, *outs, str(self.donated), str(self.ties))
        return fingerprint(self.jaxpr, rest, self.signatures)

    @cached_property
    def programs(self) -> tuple[Step, ...]:
        """The step, and if it has fused dimensions the step on refined ones (see ``refine``).

        Both compute the same; each can be split in ways that the other cannot.
        """
        if self.fold is not None:  # what is cut in blocks is so in every layer, or in none
            part = self.fold.part.jaxpr
            if refine(part, self.signatures) is part:
                return (self,)
        refined = refine(self.jaxpr, self.signatures)
        return (self,) if refined is self.jaxpr else (self, replace(self, jaxpr=refined))

    @cached_property
    def fold(self) -> Fold | None:
        """The step on few of its layers, if they repeat (see ``fold``)."""
        return fold(self.jaxpr, self.ties, self.layers)

    @cached_property
    def layers(self) -> Layers | None:
        """The layers that its equations and inputs are in, if it repeats itself."""
        return number_layers(self.jaxpr, self.signatures.columns(self.jaxpr.jaxpr))

    @cached_property
    def stacks(self) -> Mapping[str, Var]:
        """What loops leave for the backward pass and may rest on the host, by name."""
        return stacks(self.jaxpr.jaxpr)

    @cached_property
    def updates(self) -> tuple[Update, ...]:
        """The elementwise work that makes the next state of this one (see ``offload``)."""
        return updates(self.jaxpr, self.donated, self.ties)

    def shares(self, away: Collection[int], stacks: Collection[str] = ()) -> Mapping[Var, float]:
        """What a device holds of values that these put on the host (see ``offload``)."""
        found = [self.stacks[name] for name in stacks]
        return shares(self.jaxpr.jaxpr, self.updates, away, found) if away or stacks else {}

    def rematerialised(self, recompute: Sequence[str]) -> Step:
        """The step that recomputes these equations in its backward pass (see ``remat``)."""
        if not recompute:
            return self
        return replace(self, jaxpr=rematerialise(self.jaxpr, recompute))

    def program(self, fingerprint: str, recompute: Sequence[str] = ()) -> Step | None:
        """The program of this fingerprint; others than the step itself are made only if need be."""
        if fingerprint == self.fingerprint:
            return self
        for program in self.programs:
            with contextlib.suppress(PlanError):  # the names may be another program's
                found = program.rematerialised(recompute)
                if found.fingerprint == fingerprint:
                    return found
        return None


@uncollected()
def trace(fn: Callable[..., Any], *abstract_args: Any, donate: Sequence[int] = (0,)) -> Step:
    """Traces ``fn`` for arguments of these shapes, simplifies the result, reads and folds it.

    All that goes through every equation is done here, once for whatever is planned for the step.

    Args:
      fn: a function of arrays, pure and traceable.
      abstract_args: arrays, numbers or ``jax.ShapeDtypeStruct``s, or pytrees of them.
      donate: the arguments that the result replaces. Their parts are tied to the outputs of equal
        structure; if empty, every argument is looked at for ties, and none is donated.

    Raises:
      TraceError: ``fn`` cannot be traced, or an argument is not made of arrays.
      OptionError: ``donate`` names an argument that is not there.
    """
    donate = check_donate(donate)
    _check_call(fn, abstract_args, donate)
    names = _names(fn, len(abstract_args))
    in_paths = tuple(
        path for name, arg in zip(names, abstract_args, strict=True) for path in _paths(name, arg)
    )
    leaves, in_tree = jax.tree.flatten(abstract_args)
    args = in_tree.unflatten(map(_abstract, in_paths, leaves))
    try:
        closed, out = jax.make_jaxpr(fn, return_shape=True)(*args)
    except AutoparError:
        raise
    except Exception as error:
        raise TraceError(explain(fn, error)) from error
    step = Step(
        jaxpr=simplify(closed),
        in_paths=in_paths,
        out_paths=tuple(_paths("out", out)),
        in_tree=in_tree,
        out_tree=jax.tree.structure(out),
        donated=tuple(i in donate for i, arg in enumerate(args) for _ in jax.tree.leaves(arg)),
        ties=_ties(args, names, out, donate),
    )
    _ = step.fold
    return step


def check_donate(donate: Any) -> tuple[int, ...]:
    """``donate`` as a tuple of argument numbers; ``OptionError`` if it is anything else."""
    numbers: tuple[int, ...] = tuple(donate) if isinstance(donate, Iterable) else ()
    if not isinstance(donate, Iterable) or not all(type(number) is int for number in numbers):
        raise OptionError(
            f"donate={donate!r} is no sequence of argument numbers; write donate=(0,) for the "
            "first argument, donate=() for none"
        )
    return numbers


def _check_call(fn: Callable[..., Any], args: Sequence[Any], donate: Sequence[int]) -> None:
    if not callable(fn):
        raise TraceError(
            f"expected a function to trace, got {type(fn).__name__}: pass the step itself, not its "
            "result"
        )
    for number in donate:
        if not 0 <= number < len(args):
            raise OptionError(
                f"donate={tuple(donate)} names argument {number}, but {function_name(fn)} was "
                f"given {len(args)}; argument numbers begin at 0"
            )


def _names(fn: Callable[..., Any], count: int) -> list[str]:
    """The parameter name of each positional argument."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    names: list[str] = []
    for index in range(count):
        parameter = parameters[min(index, len(parameters) - 1)] if parameters else None
        if parameter is not None and parameter.kind is parameter.VAR_POSITIONAL:
            names.append(f"{parameter.name}/{index - len(parameters) + 1}")
        elif parameter is not None and index < len(parameters):
            names.append(parameter.name)
        else:
            names.append(f"arg{index}")
    return names


def _paths(root: str, tree: Any) -> list[str]:
    return [
        "/".join(filter(None, (root, jax.tree_util.keystr(path, simple=True, separator="/"))))
        for path, _ in jax.tree.leaves_with_path(tree)
    ]


def _abstract(path: str, leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape of a leaf: all that tracing may depend on."""
    shape, dtype = getattr(leaf, "shape", None), getattr(leaf, "dtype", None)
    if shape is not None and dtype is not None:
        weak = bool(getattr(leaf, "weak_type", False))
        return jax.ShapeDtypeStruct(tuple(shape), dtype, weak_type=weak)
    if isinstance(leaf, (bool, int, float, complex)):
        return jax.ShapeDtypeStruct((), jax.dtypes.result_type(leaf), weak_type=True)
    raise TraceError(
        f"argument {path} is a {type(leaf).__name__}, not an array: pass arrays, numbers or "
        "jax.ShapeDtypeStruct, and bind everything else beforehand with functools.partial"
    )


def _ties(
    args: Sequence[Any], names: Sequence[str], out: Any, donate: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """Ties arguments, leaf by leaf, to results that are like them.

    An argument goes to a result of its own name, if there is one, else to the first that is left.
    """
    starts = np.cumsum([0, *(len(jax.tree.leaves(arg)) for arg in args)]).tolist()
    candidates = _subtrees(out)
    ties: list[tuple[int, int]] = []
    waiting = list(donate or range(len(args)))
    taken: set[int] = set()
    for by_name in (True, False):
        for index in tuple(waiting):
            for name, start, subtree in candidates:
                span = range(start, start + len(jax.tree.leaves(subtree)))
                wanted = name == names[index] or not by_name
                if wanted and span and taken.isdisjoint(span) and _alike(args[index], subtree):
                    taken.update(span)
                    ties.extend(zip(span, range(starts[index], starts[index + 1]), strict=True))
                    waiting.remove(index)
                    break
    return tuple(sorted(ties))


def _subtrees(out: Any) -> list[tuple[str, int, Any]]:
    """The result and its top-level parts: name, first flat output, tree."""
    found = [("", 0, out)]
    start = 0
    for path, child in jax.tree.leaves_with_path(out, is_leaf=lambda node: node is not out):
        if path:
            found.append((jax.tree_util.keystr(path, simple=True), start, child))
        start += len(jax.tree.leaves(child))
    return found


def _alike(a: Any, b: Any) -> bool:
    """Whether two trees have the same structure, shapes and dtypes."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.shape == y.shape and x.dtype == y.dtype
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )
