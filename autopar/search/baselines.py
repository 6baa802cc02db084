"""The plans a user would write by hand, as restrictions of the same search.

Each fixes how inputs rest, as one would with ``in_shardings``, and leaves the rest to the machinery
that prices and runs every plan; so a comparison with ``optimal`` compares plans and nothing else.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from autopar.core.errors import InfeasibleError, OptionError
from autopar.core.layout import B, Layout, Placement, Split, divides, replicated
from autopar.core.mesh import MeshSpec
from autopar.passes.trace import Step
from autopar.search.assemble import Restriction
from autopar.search.domains import State
from autopar.search.graph import Graph, Node
from autopar.search.roles import BATCH, OPTIMIZER, PARAMETERS, roles

COLUMN = re.compile(
    r"(^|[/_.])(q|k|v|qkv|query|key|value|up|gate|fc1|c_attn|c_fc|wi|wq|wk|wv|w1|w3|"
    r"lm_head|head|unembed|logits)(_?proj)?([/_.]|$)"
)
ROW = re.compile(r"(^|[/_.])(o|out|proj|o_proj|out_proj|down|fc2|c_proj|wo|w2)([/_.]|$)")
EMBEDDING = re.compile(r"(embed|wte|embedding)")
DENSE = re.compile(r"[/_.](kernel|weight|w)$")
ATTENTION = re.compile(r"(^|[/_.])(self_?|cross_?)?(attn|attention|cross)([/_.]|$)", re.IGNORECASE)

REDUCTIONS = frozenset(("dot_general", "conv_general_dilated", "reduce_sum", "scatter-add"))
"""What sums gradients over the batch."""

Place = Callable[[str, tuple[int, ...], str], Layout]
"""How an input rests, from its path, shape and role."""


def baseline(name: str, step: Step, graph: Graph, mesh: MeshSpec) -> Restriction:
    """The restriction that makes ``name`` of the search.

    Raises:
      InfeasibleError: the batch cannot be split as the baseline needs.
      OptionError: no baseline has this name.
    """
    width = len(mesh.axes)
    every = range(width)
    if name == "replicated":
        return Restriction(
            {i: (replicated(mesh),) for i in range(len(step.in_paths))},
            {n.index: (replicated(mesh),) for n in graph.nodes if n.kind == "output"},
            lambda node, state: (
                all(f is None for f in state.factors)
                and not any(p != B for layout in state.results for p in layout)
            ),
        )
    if name == "data":
        allow = _replicated_update(step, graph)
        return _with(step, graph, mesh, placement(mesh, every, ()), allow)
    if name == "fsdp":
        return _with(step, graph, mesh, placement(mesh, every, every), None)
    if name == "megatron":
        return _with(step, graph, mesh, placement(mesh, (), (), width - 1), None)
    if name == "fsdp+megatron":
        return _with(step, graph, mesh, placement(mesh, every[:-1], every[:-1], width - 1), None)
    if name == "redco":
        return _with(step, graph, mesh, _redco(mesh, _redco_dims(step, graph)), None)
    raise OptionError(f"search={name!r} is no baseline")


def _with(
    step: Step,
    graph: Graph,
    mesh: MeshSpec,
    place: Place,
    allow: Callable[[Node, State], bool] | None,
) -> Restriction:
    resting: dict[int, tuple[Layout, ...]] = {}
    for position, role in enumerate(roles(step, graph)):
        path, shape = step.in_paths[position], tuple(step.in_avals[position].shape)
        layout = place(path, shape, role)
        if role == BATCH and not divides(shape, layout, mesh):
            raise InfeasibleError(
                f"{path!r} of shape {shape} cannot be split over the mesh {mesh}: its first "
                "dimension is not a multiple of the number of devices; use a larger batch, "
                "fewer devices, or search='optimal', which may split something else"
            )
        resting[position] = (layout,)
    return Restriction(resting, {}, allow)


def _replicated_update(step: Step, graph: Graph) -> Callable[[Node, State], bool]:
    """Plain data parallelism: gradients are reduced whole, every device updates everything.

    The update is the optimiser's side of what reads the state there. What leads to it from the last
    reduction on (transposes, casts, clipping) may wait for the all-reduce, but not be split. Light
    work before that, such as what a bias sums over the batch, is as free as the rest of the step.
    """
    onward: dict[int, list[int]] = defaultdict(list)
    back: dict[int, list[int]] = defaultdict(list)
    for edge in graph.edges:
        if graph.tails[edge.dst] and graph.nodes[edge.dst].kind != "input":
            onward[edge.src].append(edge.dst)
        if graph.tails[edge.src] and not _reduces(graph.nodes[edge.src]):
            back[edge.dst].append(edge.src)
    kinds = enumerate(roles(step, graph))
    update = _reached([i for i, role in kinds if role in (PARAMETERS, OPTIMIZER)], onward)
    leading = _reached(list(update), back)

    def allow(node: Node, state: State) -> bool:
        placements = [p for layout in (*state.operands, *state.results) for p in layout]
        if node.index in update:
            return all(p == B for p in placements)
        return node.index not in leading or not any(isinstance(p, Split) for p in placements)

    return allow


def _reduces(node: Node) -> bool:
    """Whether what comes before is not yet a gradient; summing dimensions of one is no sum."""
    if node.eqn is None:
        return node.kind == "input"
    ends = (node.eqn.invars[0], node.eqn.outvars[0])
    taken, made = (math.prod(getattr(v.aval, "shape", ())) for v in ends)
    trivial = node.eqn.primitive.name == "reduce_sum" and taken == made
    return node.eqn.primitive.name in REDUCTIONS and not trivial


def _reached(waiting: list[int], steps: Mapping[int, list[int]]) -> set[int]:
    found: set[int] = set()
    while waiting:
        new = set(steps.get(waiting.pop(), ())) - found
        found |= new
        waiting += new
    return found


def placement(
    mesh: MeshSpec, batch: Sequence[int], state: Sequence[int], model: int | None = None
) -> Place:
    """How inputs rest where the axes ``batch`` split the batch, the axes ``state`` parameters and
    optimiser state (ZeRO), and the axis ``model`` the layers: column then row parallel kernels, by
    their usual names (Shoeybi et al. 2019).
    """

    def place(path: str, shape: tuple[int, ...], role: str) -> Layout:
        base = replicated(mesh)
        if role == BATCH and shape:
            return _on(mesh, dict.fromkeys(batch, 0))
        if role not in (PARAMETERS, OPTIMIZER):
            return base
        dim = None if model is None else _megatron_dim(path, shape)
        if model is not None and dim is not None:
            split = _on(mesh, {model: dim})
            base = split if divides(shape, split, mesh) else base
        return _largest(shape, mesh, state, base)

    return place


def _megatron_dim(path: str, shape: tuple[int, ...]) -> int | None:
    if not shape:
        return None
    if EMBEDDING.search(path):
        return len(shape) - 2 if len(shape) > 1 and "pos" not in path else None
    if COLUMN.search(path):
        return len(shape) - 1
    if ROW.search(path) and not path.endswith("bias"):
        return len(shape) - 2 if len(shape) > 1 else None
    return None


def _redco(mesh: MeshSpec, dims: Mapping[str, int]) -> Place:
    """Tensor parallelism by two rules on the last axis, data parallelism on the others (Redco)."""
    *data_axes, model = range(len(mesh.axes))

    def place(path: str, shape: tuple[int, ...], role: str) -> Layout:
        if role == BATCH and shape:
            return _on(mesh, dict.fromkeys(data_axes, 0))
        dim = dims.get(_layer(path)) if role in (PARAMETERS, OPTIMIZER) else None
        if dim is None or len(shape) < 2:
            return replicated(mesh)
        split = _on(mesh, {model: len(shape) + dim})
        return split if divides(shape, split, mesh) else replicated(mesh)

    return place


def _redco_dims(step: Step, graph: Graph) -> dict[str, int]:
    """The dimension, from the end, that each matrix of the model is split in, by ``_layer``.

    Two rules (Tan et al., *Redco*, arXiv:2310.16355): an attention's projections are split by
    heads, in their outputs, and the last one in its inputs; other dense layers of a module by turns
    in their outputs and inputs, where those of one shape that follow each other are one turn.
    Embeddings are split by words. What else there is, biases above all, stays whole.
    """
    reads = dict[int, int]()
    for edge in graph.edges:
        reads[edge.src] = min(edge.dst, reads.get(edge.src, edge.dst))
    matrices = [
        i
        for i, role in enumerate(roles(step, graph))
        if role == PARAMETERS and len(step.in_avals[i].shape) > 1 and i in reads
    ]
    dims: dict[str, int] = {}
    turns: dict[str, list[tuple[int, ...]]] = defaultdict(list)
    for i in sorted(matrices, key=reads.__getitem__):
        path, shape = step.in_paths[i], tuple(step.in_avals[i].shape)
        module = path.rsplit("/", 2)[0]
        if EMBEDDING.search(path):
            dim = -2
        elif not DENSE.search(path):
            continue
        elif ATTENTION.search(module):
            dim = -2 if ROW.search(path) else -1
        else:
            if turns[module][-1:] != [shape]:
                turns[module].append(shape)
            dim = -1 - (len(turns[module]) - 1) % 2
        dims.setdefault(_layer(path), dim)
    return dims


def _layer(path: str) -> str:
    """The end of a path: equal for the same layer of every block, and for its moments."""
    return "/".join(path.split("/")[-2:])


def _largest(shape: tuple[int, ...], mesh: MeshSpec, axes: Sequence[int], base: Layout) -> Layout:
    """``base`` with ``axes`` on the largest dimension it leaves whole, if they divide one."""
    taken = {p.dim for p in base if isinstance(p, Split)}
    for dim in sorted(range(len(shape)), key=lambda d: (-shape[d], d)):
        layout = _on(mesh, dict.fromkeys(axes, dim), base)
        if dim not in taken and divides(shape, layout, mesh):
            return layout
    return base


def _on(mesh: MeshSpec, dims: dict[int, int], base: Layout | None = None) -> Layout:
    placements: list[Placement] = list(base or replicated(mesh))
    for axis, dim in dims.items():
        placements[axis] = Split(dim)
    return tuple(placements)
