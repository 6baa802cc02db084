"""The search over the programs of a step: as it is written, and on refined dimensions.

A fused projection can be split by its blocks only where its dimension is refined, and as a whole
only where it is not: which is cheaper depends on the sizes of weights and activations. Each program
is searched in full, and the faster plan is the answer. Most steps have one program.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

from autopar.core.errors import InfeasibleError
from autopar.core.plan import Plan
from autopar.cost_model import Cluster
from autopar.passes.trace import Step
from autopar.search import planner, storage
from autopar.search.certificate import certified
from autopar.search.options import Options


def search(step: Step, cluster: Cluster, options: Options) -> Plan:
    """Finds the plan, of the program that its ``step`` fingerprint names.

    Raises:
      InfeasibleError: no plan fits the memory budget, or a baseline cannot be formed.
      PinError, ClusterError, OptionError: the request is inconsistent.
    """
    with uncollected():
        plan = _search(step, cluster, options)
        return certified(step, cluster, plan, options) if options.certify else plan


@contextmanager
def uncollected() -> Generator[None]:
    """No cyclic garbage collection meanwhile: a search makes little garbage, and each collection
    goes through the whole jaxpr again (measured: a quarter of the time). What is there at the end
    counts as old, so that the first collection afterwards does not go through all of it either.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            if not gc.get_freeze_count():  # those are the caller's, and would thaw
                gc.freeze()
                gc.unfreeze()
            gc.enable()


def _search(step: Step, cluster: Cluster, options: Options) -> Plan:
    programs = step.programs
    if options.search == "random":  # any program, as any plan
        return planner.search(programs[options.seed % len(programs)], cluster, options)
    plans: list[Plan] = []
    failures: list[InfeasibleError] = []
    for program in programs:
        try:
            plans.append(storage.search(program, cluster, options))
        except InfeasibleError as error:
            failures.append(error)
    if not plans:
        raise planner.nearest(failures)
    return min(plans, key=lambda plan: plan.solver.objective_s)
