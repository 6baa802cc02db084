"""What a model's name on the command line stands for.

A name is a preset of ``autopar.models`` (``gpt:125m``) or ``package.module:function``, imported
from where Python finds it or from the current folder. The function takes no arguments and returns

* either ``(step, args)``: a function JAX can trace, and the tuple of its arguments, arrays or
  ``jax.ShapeDtypeStruct``s, the training state first and the batch second. Enough to plan::

      def tiny():
          state, batch = jax.eval_shape(init), jax.ShapeDtypeStruct((64, 32), "float32")
          return train_step, (state, batch)

* or a workload: any object with the attributes of ``Trainable``, as ``autopar.models.Workload`` has
  them. Enough to train as well, and lets ``--batch`` set the batch size.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

from autopar.core.errors import OptionError
from autopar.models import UnknownPreset, preset, preset_names


class Trainable(Protocol):
    """All that is needed to train a model.

    Attributes:
      train_step: ``(state, batch) -> (state, metrics)``; ``metrics["loss"]`` is a scalar.
      init: ``(key, batch) -> state``; of the batch only shapes matter.
      batch_size: global batch where none is asked for.
      tokens_per_example: positions an example is counted as, for tokens per second.
    """

    @property
    def train_step(self) -> Callable[[Any, Any], tuple[Any, Any]]: ...
    @property
    def init(self) -> Callable[[Any, Any], Any]: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def tokens_per_example(self) -> int: ...
    def abstract_batch(self, global_batch: int | None = None) -> Any:
        """Shapes of a batch of this size."""
        ...

    def abstract_state(self, batch: Any = None) -> Any:
        """Shapes of the training state."""
        ...

    def batches(self, seed: int = 0, *, batch: int | None = None) -> Iterator[Any]:
        """Endless batches of arrays, the same for the same seed."""
        ...


_ATTRIBUTES = (
    *("train_step", "init", "batch_size", "tokens_per_example"),
    *("abstract_batch", "abstract_state", "batches"),
)


@dataclass(frozen=True, slots=True)
class Job:
    """A step to plan, and what to call it with.

    Attributes:
      args: the step's arguments, abstract or not.
      workload: what trains it; ``None`` where only the step is known.
    """

    name: str
    step: Callable[..., Any]
    args: tuple[Any, ...]
    workload: Trainable | None


def find_job(
    spec: str, batch: int | None = None, overrides: Mapping[str, Any] | None = None
) -> Job:
    """The job that ``spec`` names, for a global batch of ``batch``.

    Args:
      overrides: fields of a preset's configuration that are to be otherwise.

    Raises:
      OptionError: there is no such preset, module or function, or it returns something else.
    """
    if _names_function(spec):
        if overrides:
            raise OptionError(f"--set: {spec} is no preset; change what the function returns")
        made = _call(spec)
        if isinstance(made, tuple):
            return _job_of_pair(spec, cast("tuple[Any, ...]", made), batch)
        workload = _check_workload(spec, made)
    else:
        try:
            workload = preset(spec, **(overrides or {}))
            workload.abstract_state()  # a value may be found wrong only when it is used
        except UnknownPreset as error:
            raise OptionError(f"{error} (or write package.module:function)") from None
        except (TypeError, ValueError) as error:
            raise OptionError(f"--set: {error}") from None
    size = workload.batch_size if batch is None else batch
    shapes = workload.abstract_batch(size)
    return Job(spec, workload.train_step, (workload.abstract_state(shapes), shapes), workload)


def find_workload(spec: str, overrides: Mapping[str, Any] | None = None) -> Trainable:
    """As ``find_job``, for training.

    Raises:
      OptionError: also if what ``spec`` names can be planned only.
    """
    workload = find_job(spec, overrides=overrides).workload
    if workload is None:
        raise OptionError(
            f"{spec} gives a step and its arguments, which can be planned but not trained; return "
            f"an object with {', '.join(_ATTRIBUTES)}, as autopar.models.Workload has them"
        )
    return workload


def _names_function(spec: str) -> bool:
    """Whether ``spec`` looks like ``package.module:function`` and not like one of the presets."""
    families = {name.split(":")[0] for name in preset_names()}
    match = re.fullmatch(r"([A-Za-z_][\w.]*):([A-Za-z_][\w.]*)", spec)
    return match is not None and match[1] not in families


def _call(spec: str) -> Any:
    """What the function named by ``spec`` returns."""
    module_name, function_name = spec.split(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise OptionError(f"{spec}: {module_name} needs {error.name!r}, not found") from None
        raise OptionError(
            f"{spec}: there is no module {error.name!r}; run autopar in the folder that holds it, "
            f"or install it (presets: {', '.join(preset_names())})"
        ) from None
    for part in function_name.split("."):
        if not hasattr(found, part):
            raise OptionError(f"{spec}: module {module_name} has no {function_name!r}")
        found = getattr(found, part)
    if not callable(found):
        raise OptionError(f"{spec} is {found!r:.60}, not a function without arguments")
    return found()


def _job_of_pair(spec: str, made: tuple[Any, ...], batch: int | None) -> Job:
    if len(made) != 2 or not callable(made[0]) or not isinstance(made[1], tuple):
        raise _not_a_model(spec, f"a tuple of {', '.join(type(part).__name__ for part in made)}")
    if batch is not None:
        raise OptionError(
            f"--batch: {spec} gives its arguments itself, batch size and all; leave --batch out"
        )
    return Job(spec, made[0], made[1], None)


def _check_workload(spec: str, made: Any) -> Trainable:
    missing = [name for name in _ATTRIBUTES if not hasattr(made, name)]
    if missing:
        raise _not_a_model(spec, f"{made!r:.60}, without {', '.join(missing)}")
    return made


def _not_a_model(spec: str, found: str) -> OptionError:
    return OptionError(
        f"{spec} returns {found}; it must return (step, (state, batch)), or an object with "
        f"{', '.join(_ATTRIBUTES)}"
    )
