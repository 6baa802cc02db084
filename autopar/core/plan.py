"""The Plan: everything the search decided, as frozen data.

Search writes it, lowering reads it; they exchange nothing else. It is portable: JSON with a schema
version and the fingerprints of the step and cluster it was made for; no pickle, no code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from autopar.core.compat import PyTreeDef
from autopar.core.errors import PlanError
from autopar.core.layout import Layout, show, to_spec
from autopar.core.mesh import MeshSpec

SCHEMA = 6


@dataclass(frozen=True, slots=True)
class ValuePlan:
    """How one input or output of the step lies.

    Attributes:
      path: its place in the arguments or results, ``state/params/dense/kernel``.
      layout: one placement per mesh axis.
      role: ``parameters``, ``optimizer state``, ``batch``, ``other`` or ``outputs``.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    layout: Layout
    role: str

    def spec(self, mesh: MeshSpec) -> jax.P:
        return to_spec(self.layout, mesh, len(self.shape))


@dataclass(frozen=True, slots=True)
class Strategy:
    """The layouts in which one equation reads its operands and leaves its results."""

    operands: tuple[Layout, ...]
    results: tuple[Layout, ...]

    def __str__(self) -> str:
        ins = " ".join(show(layout) for layout in self.operands)
        return f"{ins} -> {' '.join(show(layout) for layout in self.results)}"


@dataclass(frozen=True, slots=True)
class CollectiveUse:
    """Collectives of one kind that one value needs in a step.

    Attributes:
      kind: ``all-gather``, ``reduce-scatter``, ``all-reduce`` or ``all-to-all``.
      axis: the mesh axis it runs over.
      bytes: payload of each, per device (the full local buffer; see ``cost_model.collectives``).
      count: how many a step.
      seconds: time of all of them.
      value: the value moved, by its name in the user's program.
      form: how XLA:TPU carries it out under ``jit``: ``windowed`` (a product and its scattering
        piece by piece), ``whole`` (by an all-reduce), ``small`` (the same, under ``shard_map``
        too), ``joined`` (to an exchange over another axis), or empty: as it is.
      padding: bytes by which XLA:TPU pads what each device keeps of a reduce-scatter (shard_map).
    """

    kind: str
    axis: str
    bytes: int
    count: int
    seconds: float
    value: str
    form: str = ""
    padding: int = 0


@dataclass(frozen=True, slots=True)
class Recomputation:
    """Values of one name that the backward pass computes again instead of reading them.

    Attributes:
      value: their name in the user's program.
      count: how many there are, those of every trip of a loop included.
      bytes: what keeping all of them would hold, per device.
      seconds: of computing all of them again.
    """

    value: str
    count: int
    bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class MemoryCurve:
    """What one device holds in the course of a step.

    Attributes:
      instants: numbers of kernels, in the order they run; of a long step, the fullest instant of
        every stretch.
      bytes: of every category, at these instants.
      fullest: what runs at the peak, by its name in the user's program.
    """

    instants: tuple[int, ...] = ()
    bytes: Mapping[str, tuple[int, ...]] = field(default_factory=dict[str, tuple[int, ...]])
    fullest: str = ""

    @property
    def totals(self) -> tuple[int, ...]:
        """Bytes held at every instant."""
        return tuple(map(sum, zip(*self.bytes.values(), strict=True)))


@dataclass(frozen=True, slots=True)
class Offloaded:
    """An input of the step that rests in host memory, and is updated there piece by piece; or a
    stack of values that a forward loop copies there, trip by trip, and a backward loop fetches.

    Attributes:
      value: the input's path; of a stack, what is stacked, in the user's program.
      bytes: of its part, per device.
      seconds: of its crossings of the link, each step, but those that a loop's work hides.
      stack: of a stack: the equation that makes it and which result it is, ``12.3``; else empty.
    """

    value: str
    bytes: int
    seconds: float
    stack: str = ""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the cost model expects of one step, per device. Seconds and bytes.

    Attributes:
      step_s: of the step: ``compute_s + exposed_s``, and transfers to the host and back.
      compute_s: of all equations. comm_s: of all collectives.
      exposed_s: by how much collectives prolong the step; computation hides the rest of them.
      memory: bytes at the peak, by what they are for.
      peak_bytes: most bytes live at once; exact_peak_bytes: the same under ``backend="shard_map"``,
        where products whose results are scattered are not run piece by piece.
      windowed_s: what such products take longer for it on TPUs, under ``backend="jit"``. It is in
        none of the others.
    """

    step_s: float
    compute_s: float
    comm_s: float
    exposed_s: float
    peak_bytes: int
    exact_peak_bytes: int
    host_bytes: int
    memory: Mapping[str, int]
    collectives: tuple[CollectiveUse, ...]
    curve: MemoryCurve = MemoryCurve()
    windowed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class SolverReport:
    """How good the plan is known to be, under the cost model.

    Attributes:
      status: ``optimal`` (proven), ``feasible`` (not proven: see ``gap``) or ``stopped`` (not
        proven because the time limit was over).
      objective_s: cost of the plan; bound_s: no plan of this mesh costs less (0: nothing is known).
      seconds: time the search took, without tracing.
      variables: variables of the network before it was shrunk; nodes: of the step's flow graph.
      layers_alike: whether the bound is only for plans whose repeated layers share their choices,
        as those that are searched do where a step is large. ``certify`` bounds all others too.
    """

    name: str
    status: str
    objective_s: float
    bound_s: float
    seconds: float = field(compare=False)
    variables: int
    nodes: int
    layers_alike: bool

    @property
    def gap(self) -> float:
        """Relative distance of the objective from the bound; 0 when proven optimal."""
        if self.objective_s <= self.bound_s:
            return 0.0
        return (self.objective_s - self.bound_s) / self.objective_s


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision for one step on one cluster. Printing it gives a table.

    Attributes:
      step: fingerprint of the simplified jaxpr, paths and shapes.
      cluster: the cluster it was priced for, as data; cluster_fingerprint of the same.
      mesh: the mesh axes chosen.
      inputs, outputs: how every flat argument and result lies.
      strategies: for every equation (``12``, ``30/body/4``) how it reads and leaves its values.
      hubs: for every value with several uses or at a loop's border, its materialised layout.
      fallbacks: primitives that had no rule and were replicated, with their counts.
      options: what the user asked for (search, memory, pins, ...), as text.
      recompute: the equations of the step as traced whose results the backward pass computes again.
        ``step`` and all other names are those of the program that this makes.
      recomputed: what these are in the user's program, what they save and cost.
      compiled_bytes: peak memory a device by the compiler, where it was asked; else 0.
      unlimited: what the best plan without a limit would hold, where this one was made to fit.
      offloaded: the inputs that rest in host memory, as do the outputs that they become; and what
        loops stack there.
    """

    step: str
    cluster: Mapping[str, Any]
    cluster_fingerprint: str
    mesh: MeshSpec
    inputs: tuple[ValuePlan, ...]
    outputs: tuple[ValuePlan, ...]
    strategies: Mapping[str, Strategy]
    hubs: Mapping[str, Layout]
    predicted: Prediction
    solver: SolverReport
    fallbacks: Mapping[str, int]
    options: Mapping[str, str]
    recompute: tuple[str, ...] = ()
    recomputed: tuple[Recomputation, ...] = ()
    unlimited: MemoryCurve = MemoryCurve()
    compiled_bytes: int = 0
    offloaded: tuple[Offloaded, ...] = ()
    schema: int = SCHEMA
    in_tree: PyTreeDef | None = field(default=None, compare=False, repr=False)
    out_tree: PyTreeDef | None = field(default=None, compare=False, repr=False)

    @property
    def in_specs(self) -> Any:
        """``PartitionSpec`` of every argument, in the structure of the arguments.

        A plan read from a file gives nested dicts by path until it is applied to its step.
        """
        return self._tree(self.inputs, self.in_tree)

    @property
    def out_specs(self) -> Any:
        """``PartitionSpec`` of every result; see ``in_specs``."""
        return self._tree(self.outputs, self.out_tree)

    def _tree(self, values: tuple[ValuePlan, ...], tree: PyTreeDef | None) -> Any:
        specs = [value.spec(self.mesh) for value in values]
        if tree is not None:
            return jax.tree.unflatten(tree, specs)
        nested: dict[str, Any] = {}
        for value, spec in zip(values, specs, strict=True):
            *parents, leaf = value.path.split("/")
            level = nested
            for part in parents:
                level = level.setdefault(part, {})
            level[leaf] = spec
        return nested

    def with_trees(self, in_tree: PyTreeDef, out_tree: PyTreeDef) -> Plan:
        return dataclasses.replace(self, in_tree=in_tree, out_tree=out_tree)

    def spec_of(self, path: str) -> jax.P:
        """``PartitionSpec`` of the one input whose path is, or ends with, ``path``."""
        found = [v for v in self.inputs if v.path == path or v.path.endswith("/" + path)]
        if len(found) != 1:
            names = ", ".join(v.path for v in found[:4])
            raise PlanError(
                f"{path!r} names {len(found)} inputs of this plan"
                + (f" ({names} ...): give more of the path" if found else "")
            )
        return found[0].spec(self.mesh)

    def save(self, path: str | Path) -> None:
        """Writes the plan as JSON. An existing file is replaced whole, or not at all."""
        from autopar.core.plan_json import save

        save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Reads a plan. ``PlanError`` if the file is no plan, cut short, or of another schema."""
        from autopar.core.plan_json import load

        return load(Path(path))

    def picture(self, path: str | Path) -> None:
        """Draws device memory over the step, by category, to an SVG, PNG or PDF file.

        Needs matplotlib (``pip install "autopar[pictures]"``).

        Raises:
          PlanError: matplotlib is not there, or the file cannot be written.
        """
        from autopar.core.plan_picture import draw

        draw(self, Path(path))

    def __str__(self) -> str:
        from autopar.core.plan_table import render

        return render(self)
