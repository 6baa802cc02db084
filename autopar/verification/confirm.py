"""Plans that the compiler has confirmed: what it makes of them fits the memory.

Predicted memory is a model of what a compiler does. Where the compiler is at hand it is asked: a
plan whose program needs more than its budget is searched again for as much less.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import jax

from autopar.core.errors import InfeasibleError
from autopar.core.plan import Plan
from autopar.core.text import format_bytes
from autopar.cost_model import Cluster
from autopar.passes.trace import Step
from autopar.runtime import PlannedStep
from autopar.search.options import Options
from autopar.verification.topology import GENERATIONS, compiler_environment, topology_devices

ATTEMPTS = 4
"""Plans made, until one is compiled to no more than the budget."""

DOUBTFUL = 1.05
"""Of the budget, what the best plan without a limit may need to be asked about all the same."""

SMALLER = 0.99
"""Of what the last plan's error suggests, what the next may need."""

_REFUSED = re.compile(r"[Uu]sed ([0-9.]+)([KMG])i?B? of")
"""What XLA:TPU says of a program that it does not compile because it needs too much memory."""


def confirmed(
    cluster: Cluster,
    options: Options,
    find: Callable[[Options], Plan],
    peak_of: Callable[[Plan], int],
) -> Plan:
    """The plan ``find`` gives for the first request that the compiler keeps within the budget.

    Where less is asked for than any plan needs, the least of all is tried once.

    Args:
      peak_of: bytes a device of the compiled plan, see ``compiled_peak``.

    Raises:
      InfeasibleError: nothing that was found is compiled to fit.
    """
    budget = options.memory_bytes or cluster.chip.usable_bytes
    given, least, floor = options, 0, 0
    for attempt in range(ATTEMPTS):
        try:
            plan = find(given)
        except InfeasibleError as error:
            if not least:
                raise
            if floor or not 0 < (floor := error.least_bytes or 0) <= budget:
                raise _refused(budget, least, str(error)) from None
            plan = find(dataclasses.replace(options, memory_bytes=floor))
        whole = max(plan.unlimited.totals, default=0)
        if not attempt and budget < whole <= DOUBTFUL * budget:
            plan = find(dataclasses.replace(options, memory_bytes=int(DOUBTFUL * budget)))
        options.progress("compiling")
        peak = peak_of(plan)
        if peak <= budget:
            return dataclasses.replace(plan, compiled_bytes=peak, options=options.as_text())
        options.progress(f"compiled to {format_bytes(peak)}, over {format_bytes(budget)}")
        least = min(least or peak, peak)
        asked = int(min(budget, plan.predicted.peak_bytes * budget / peak * SMALLER))
        given = dataclasses.replace(options, memory_bytes=asked)
    raise _refused(budget, least, f"{ATTEMPTS} plans were tried")


def _refused(budget: int, least: int, why: str) -> InfeasibleError:
    return InfeasibleError(
        f"no plan is compiled to fit {format_bytes(budget)} a device: the least was "
        f"{format_bytes(least)} ({why}); give more memory, or leave confirm out",
        least,
    )


def compiled_peak(step: Step, plan: Plan, backend: str) -> int:
    """Bytes a device that the compiler says ``plan`` needs, carried out by ``backend``.

    A TPU slice need not be there, libtpu must; any other cluster must be this process's devices.

    Raises:
      ClusterError, OptionError: there is no compiler for the plan's cluster here.
    """
    cluster = Cluster.from_dict(plan.cluster)
    on_tpu = cluster.chip.name in GENERATIONS
    devices = topology_devices(cluster) if on_tpu else None
    call = PlannedStep(step, plan, devices, backend).call
    with compiler_environment():
        try:
            compiled = call.lower(*step.in_tree.unflatten(step.in_avals)).compile()
        except jax.errors.JaxRuntimeError as error:
            found = _REFUSED.search(str(error))
            if found is None:
                raise
            return int(float(found[1]) * 2 ** {"K": 10, "M": 20, "G": 30}[found[2]])
    return peak_bytes(compiled.memory_analysis(), on_tpu, plan.predicted.host_bytes)


def peak_bytes(memory: Any, on_tpu: bool, host_bytes: int = 0) -> int:
    """Arguments, results and the most temporaries live at once, on the device.

    XLA:TPU counts all arguments, those on the host too, and the temporaries of that memory which
    holds more of them: it may be the host's, so of the device no more than its own sizes say.
    Others give all sizes apart; XLA:CPU takes both memories for one, with ``host_bytes`` in it.
    """
    if on_tpu:
        peak = memory.peak_memory_in_bytes - memory.host_argument_size_in_bytes
        if not memory.host_temp_size_in_bytes:
            return peak
        return min(peak, memory.argument_size_in_bytes + memory.temp_size_in_bytes)
    results = memory.output_size_in_bytes - memory.alias_size_in_bytes
    whole = memory.argument_size_in_bytes + results + memory.temp_size_in_bytes
    return whole - host_bytes
