"""From one plan's layouts to plans within the budget: storage chosen, then sharding again.

1. Under the layouts, what to keep and what to recompute is chosen (``storage_choice``).
2. The step is rewritten so (``remat``), and the sharding of that program is searched under the
   limit, by the ordinary machinery: all that is accepted is priced and simulated as any plan is.
   While it does not fit, less is kept.
3. Where that may still be faster, or nothing has fitted, state rests on the host
   (``storage_offload``), and so do stacks of loops (``storage_stacks``); 1 and 2 are done with what
   room this leaves.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from autopar.core.errors import InfeasibleError
from autopar.core.plan import Plan
from autopar.cost_model import Cluster, format_bytes
from autopar.passes.fold import NotFoldable
from autopar.passes.trace import Step
from autopar.search import planner
from autopar.search.draft import Draft, unfolded
from autopar.search.options import UNLIMITED, Options
from autopar.search.plan_prices import heaviest_of
from autopar.search.planner import Candidate
from autopar.search.prepared import Away, Prepared
from autopar.search.storage_attempt import Attempt, Room
from autopar.search.storage_choice import Choice, choose, lightest
from autopar.search.storage_joint import MORE, Joint
from autopar.search.storage_model import StorageModel
from autopar.search.storage_names import dropped_names
from autopar.search.storage_offload import HostState, Movable, amounts
from autopar.search.storage_program import NO_LINK, Link
from autopar.search.storage_stacks import stacks_of

ATTEMPTS = 5
"""Choices tried, each for less or more memory by what the last was wrong."""

NEAR = 5e-4
"""Share of the step by which the next choice must promise to be faster to be tried."""

PROVEN = 2e-3
"""Gap at which a plan counts as proven: attempts leave ``NEAR``, their solver as much again."""


@dataclass(frozen=True)
class Start:
    """One program under the layouts of one plan.

    Attributes:
      layouts: the plan, whose mesh is kept.
      least_s: no plan that recomputes nothing is faster.
      budget: bytes a device.
      price: of one in ticks, if the layouts were found by a price.
      joint: what is known of sharding and storage together.
    """

    options: Options
    layouts: Draft
    least_s: float
    budget: int
    price: float = 0.0
    joint: Joint | None = None

    @classmethod
    def of(cls, layouts: Draft, free: Draft, options: Options) -> Start:
        """``free``: the best plan without a limit."""
        budget = options.memory_bytes or layouts.prepared.cluster.chip.usable_bytes
        return cls(options, layouts, free.solver.bound_s, budget)

    @cached_property
    def model(self) -> StorageModel:
        """The choices there are, as long as no state is on the host."""
        with contextlib.suppress(NotFoldable):
            return self._model(self.prepared, self.layouts.found)
        return self.whole

    @cached_property
    def whole(self) -> StorageModel:
        """The same with no layers folded."""
        plain = self.prepared.plain()
        if plain is self.prepared:
            return self.model
        return self._model(plain, unfolded(self.prepared, self.layouts.found, plain))

    def _model(self, prepared: Prepared, found: Candidate) -> StorageModel:
        return StorageModel.of(prepared, found, self.options.remat == "auto")

    @property
    def prepared(self) -> Prepared:
        """The program, prepared."""
        return self.layouts.prepared

    @property
    def step(self) -> Step:
        """The program."""
        return self.prepared.step

    @property
    def cluster(self) -> Cluster:
        """Where it is to run."""
        return self.prepared.cluster

    def plans(self, known: Sequence[Draft | Plan]) -> list[Plan]:
        """What is found, of plans that may be faster than the ``known`` ones."""
        self.options.progress("choosing what to recompute")
        least_s = min((plan.solver.objective_s for plan in known), default=math.inf)
        found = self.rematerialised(known_s=least_s)
        plans = [] if found is None else [found]
        if self._may_pay([*known, *plans]) and self._link(()) is not NO_LINK:
            self.options.progress("choosing what to keep on the host")
            found = self._offloaded()
            plans += [] if found is None else [found]
        return plans

    @cached_property
    def state(self) -> HostState:
        """What of the step's state may rest on the host."""
        return HostState(self.layouts, self.cluster.chip, self.options)

    def _without(self, away: Sequence[Movable]) -> StorageModel:
        """The choices there are with this state on the host."""
        shares = self.step.shares([part.position for part in away])
        return self.whole.lighter(shares) if shares else self.model

    def _link(self, away: Sequence[Movable]) -> Link:
        """What stacks may go over to the host, beside this state; ``NO_LINK``: nothing goes."""
        if self.options.offload == "none" or not (self.state.fitting or self.model.windows):
            return NO_LINK
        room = self.state.room - sum(part.bytes for part in away)
        return Link(self.cluster.chip.host_bandwidth, max(0, room), self.model.windows)

    def rematerialised(
        self, away: Sequence[Movable] = (), link: Link = NO_LINK, known_s: float = math.inf
    ) -> Plan | None:
        """The fastest plan found that recomputes something, on the mesh of ``layouts``, or none;
        what takes ``known_s`` need not be found.

        Choices are tried as long as the next promises to be faster. All share the time limit.
        ``away`` rests on the host; it may be all that it takes.
        """
        model = self._without(away)
        room = Room(float(self.budget), self.room)
        deadline = time.monotonic() + self.options.time_limit_s
        best: Attempt | None = None
        tried: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
        choice = self._choice(model, room, link)
        while (choice.recomputed, choice.away) not in tried and len(tried) < ATTEMPTS:
            left = deadline - time.monotonic()
            if (tried and left <= 0) or (best and not _promises(choice, best)):
                break
            tried.add((choice.recomputed, choice.away))
            options = dataclasses.replace(self._options(), time_limit_s=max(1.0, left))
            parts = (self.prepared, model, choice, self.state, away)
            priced = self._given, 0.0 if away or choice.away else self.price
            least_s = min(known_s, best.objective_s) if best else known_s
            found = Attempt.of(*parts, self._least_s(choice), options, *priced, least_s)
            room.learn(choice, found.needed)
            fits = found.needed <= self.budget
            if fits and (best is None or found.objective_s < best.objective_s):
                best = found
            choice = self._choice(model, room, link)
        if best is None:
            return None
        plan = best.plan(model, away, self.model.windows)
        over = max(0.0, best.choice.peak - best.needed)
        return plan and self._bounded(plan, over, room, link)

    @property
    def _given(self) -> int:
        """Ticks that the layouts lose for memory."""
        free = self.prepared.free[self.layouts.mesh].cost
        return self.layouts.found.solution.cost - free

    @property
    def room(self) -> float:
        """Bytes that a first choice may have."""
        return self.budget - self.model.unseen(self.layouts.peak_bytes)

    @cached_property
    def first(self) -> Choice | None:
        """The fastest choice that has room, by the model; none if there is none."""
        return choose(self.model.values, self.model.base, self.room)

    @property
    def promise_s(self) -> float:
        """Of the step with the first choice."""
        return math.inf if self.first is None else self._least_s(self.first)

    def first_needs(self) -> float:
        """Bytes that the fastest choice takes, about."""
        choice = choose(self.model.values, self.model.base, self.budget)
        return choice.peak if choice else float(self.budget)

    def _choice(self, model: StorageModel, room: Room, link: Link) -> Choice:
        found = choose(model.values, model.base, room.next, link)
        return found or lightest(model.values, model.base, link)

    def _least_s(self, choice: Choice) -> float:
        """Of a step of these layouts that recomputes so; of loops, which then also stack less,
        nothing is said.
        """
        return 0.0 if self.model.windows else self.layouts.solver.objective_s + choice.seconds

    def _bounded(self, plan: Plan, over: float, room: Room, link: Link) -> Plan:
        """What is proven of the plan. On one device there is nothing to choose but storage: the
        bound is that of the last program, which has the room that the simulations left it. On
        several it is that of sharding and storage together, with as much more room as the model
        has of the plan ``over`` what is simulated, or of a step without a limit; with a host, the
        last. Of loops nothing is proven: to stack less may save more than is known of before.
        """
        bound = 0.0 if self.model.windows else self.least_s + self.model.gain_s
        on_device = not (self.model.windows or plan.offloaded)
        if on_device and self.layouts.mesh.device_count == 1:
            last = choose(self.model.values, self.model.base, room.whole, link)
            bound = self.least_s + last.bound if last else bound
        elif on_device and self.joint is not None:
            room_left = self.budget + over
            self.joint.search(room_left, self.price, len(self.joint.points) + MORE)
            bound = max(bound, self.joint.bound_s(room_left))
        cost = plan.solver.objective_s
        status = "stopped" if plan.solver.status == "stopped" else "feasible"
        if on_device and bound >= (1 - PROVEN) * cost:
            status = "optimal"
        solver = dataclasses.replace(plan.solver, bound_s=min(bound, cost), status=status)
        return dataclasses.replace(plan, solver=solver)

    def _may_pay(self, plans: Sequence[Draft | Plan]) -> bool:
        """Whether a plan with no more on the host than is too much may be faster than these."""
        over = max(0, self.layouts.peak_bytes - self.budget)
        waits = 1 if self.model.windows else 2  # a loop's stacks leave while it runs
        seconds = self.layouts.solver.bound_s + waits * over / self.cluster.chip.host_bandwidth
        return all(seconds < plan.solver.objective_s for plan in plans)

    def _offloaded(self) -> Plan | None:
        """A plan with state or stacks on the host, that recomputes what memory still asks for."""
        parts, room = self.state.fitting, self.room
        ranked: list[tuple[float, int, tuple[Movable, ...]]] = []
        for away in ((), *amounts(parts)):
            lighter = self._without(away)
            choice = choose(lighter.values, lighter.base, room, self._link(away))
            if choice is not None and (away or choice.away):
                seconds = choice.seconds + sum(part.seconds for part in away)
                ranked.append((seconds, len(away), away))
        for away in dict.fromkeys((*(away for _, _, away in sorted(ranked)[:2]), tuple(parts))):
            found = self.rematerialised(away, self._link(away))
            if found is not None:
                return found
        return None

    def _least(self, program: Step, rests: Away) -> tuple[int, str]:
        """Bytes that the lightest sharding of a program takes, and what fills them."""
        prepared = Prepared.of(program, self.cluster, self._options(), rests)
        try:
            plan = planner.search(program, self.cluster, self._options(), prepared)
        except InfeasibleError as error:
            return error.least_bytes or UNLIMITED, error.heaviest
        return plan.predicted.peak_bytes, heaviest_of(prepared, plan)

    def _options(self) -> Options:
        """Of the search of a rewritten step."""
        alone = self.layouts.mesh.device_count == 1  # nothing to choose, so nothing to limit
        budget = UNLIMITED if alone else self.budget
        return dataclasses.replace(self.options, mesh=self.layouts.mesh, memory_bytes=budget)

    def infeasible(self, known: tuple[int, str]) -> InfeasibleError:
        """The honest 'no': the least memory found, and what fills it.

        ``known``: the same of plans that recompute nothing.
        """
        state = self.state
        model = self._without(state.fitting)
        choice = lightest(model.values, model.base, self._link(state.fitting))
        names = dropped_names(model.values, model.bodies, choice.recomputed)
        program = self.step.rematerialised(names)
        stacks = stacks_of(program, model.values, choice.away)
        rests = state.away(state.fitting, tuple(stacks))
        needed, heaviest = self._least(program, rests)
        if needed > known[0]:  # the lightest shards more, and recomputes nothing
            needed, heaviest = known
        fills = f", at its peak above all for {heaviest}" if heaviest else ""
        return InfeasibleError(
            f"no plan fits {format_bytes(self.budget)} a device: the least found on mesh "
            f"{self.layouts.mesh}, with all recomputed that helps{state}, needs "
            f"{format_bytes(needed)}{fills}; give more memory, more devices or a smaller batch",
            needed,
        )


def _promises(choice: Choice, best: Attempt) -> bool:
    """Whether a choice may be faster than what came of another."""
    return best.choice.seconds - choice.seconds > NEAR * best.objective_s
