"""The search over the programs of a step: as it is written, and on refined dimensions.

A fused projection can be split by its blocks only where its dimension is refined, and as a whole
only where it is not: which is cheaper depends on the sizes of weights and activations. Each program
is searched in full, and the faster plan is the answer. Most steps have one program.
"""

from __future__ import annotations

from autopar.core.errors import InfeasibleError
from autopar.core.garbage import uncollected
from autopar.core.plan import Plan
from autopar.cost_model import Cluster
from autopar.passes.trace import Step
from autopar.search import planner, storage
from autopar.search.certificate import certified
from autopar.search.options import Options
from autopar.search.pins import names_results


def search(step: Step, cluster: Cluster, options: Options) -> Plan:
    """Finds the plan, of the program that its ``step`` fingerprint names.

    Raises:
      InfeasibleError: no plan fits the memory budget, or a baseline cannot be formed.
      PinError, ClusterError, OptionError: the request is inconsistent.
    """
    with uncollected():
        plan = _search(step, cluster, options)
        return certified(step, cluster, plan, options) if options.certify else plan


def _search(step: Step, cluster: Cluster, options: Options) -> Plan:
    # A refined program has other values than those that pins may name.
    programs = (step,) if names_results(options.pins, step) else step.programs
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
