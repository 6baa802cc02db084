"""Plans to test with: one of a small GPT, made by hand, and any plan at all."""

import jax
from hypothesis import strategies as st

from autopar.core.layout import B, Layout, Partial, Split
from autopar.core.mesh import MeshAxis, MeshSpec
from autopar.core.plan import (
    CollectiveUse,
    MemoryCurve,
    Offloaded,
    Plan,
    Prediction,
    Recomputation,
    SolverReport,
    Strategy,
    ValuePlan,
)
from autopar.models import preset

MESH = MeshSpec.of({"data": 4, "model": 2})
COLUMN, ROW = (Split(0), Split(1)), (Split(1), Split(0))
WHOLE, BATCH = (B, B), (Split(0), B)
GRADIENT = "GPT/block_{}/mlp/up/dot_general (grad)"


def gpt_plan(**changes) -> Plan:
    """A plan of ``gpt:tiny`` on 4 x 2 devices: Megatron's kernels, and ZeRO for the embedding."""
    workload = preset("gpt:tiny")
    inputs = (*_values("state", workload.abstract_state()), *_values("batch", BATCH_SHAPES))
    uses = [
        CollectiveUse(kind, axis, 2**14 * (layer + 1), 4, 1e-4, GRADIENT.format(layer))
        for layer in range(4)
        for kind, axis in (("all-gather", "data"), ("all-reduce", "model"))
    ]
    fields = {
        "step": "0123",
        "cluster": {"name": "cpu", "shape": [8], "chip": {"hbm_bytes": 2**32}},
        "cluster_fingerprint": "4567",
        "mesh": MESH,
        "inputs": inputs,
        "outputs": (ValuePlan("out/1/loss", (), "float32", WHOLE, "outputs"),),
        "strategies": {str(i): Strategy((BATCH, COLUMN), (BATCH,)) for i in range(3)}
        | {"3/body/0": Strategy((ROW,), ((Partial(), Partial("max")),))},
        "hubs": {"2.0": BATCH},
        "predicted": Prediction(
            step_s=1.25e-3,
            compute_s=1e-3,
            comm_s=0.5e-3,
            exposed_s=0.25e-3,
            peak_bytes=12_000_000,
            exact_peak_bytes=11_000_000,
            host_bytes=0,
            memory={"parameters": 3 * 2**20, "activations": 8 * 2**20, "batch": 0},
            collectives=tuple(uses),
            curve=MemoryCurve(
                (0, 3, 7),
                {"parameters": (2**20,) * 3, "activations": (0, 9 * 2**20, 4 * 2**20)},
                "GPT/block_0/mlp/up/dot_general",
            ),
        ),
        "solver": SolverReport("toulbar2", "optimal", 1.25e-3, 1.25e-3, 0.31, 223, 900, True),
        "fallbacks": {},
        "options": {"search": "optimal", "mesh": "searched"},
    }
    return Plan(**{**fields, **changes})


BATCH_SHAPES = preset("gpt:tiny").abstract_batch()


def _values(root, tree):
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = f"{root}/{jax.tree_util.keystr(path, simple=True, separator='/')}"
        role, layout = _role_and_layout(name, leaf.shape)
        yield ValuePlan(name, leaf.shape, str(leaf.dtype), layout, role)


def _role_and_layout(path: str, shape: tuple[int, ...]) -> tuple[str, Layout]:
    if path.startswith("batch"):
        return "batch", BATCH
    layout = WHOLE
    if len(shape) == 2 and "pos_embed" not in path:
        layout = COLUMN if any(part in path for part in ("/q/", "/k/", "/v/", "/up/")) else ROW
    if "/params/" in path:
        return "parameters", layout
    return ("optimizer state" if shape else "other"), layout


names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
floats = st.floats(allow_nan=False)
counts = st.integers(0, 2**60)
placements = st.one_of(
    st.just(B),
    st.builds(Split, st.integers(0, 3)),
    st.builds(Partial, st.sampled_from(["add", "max"])),
)


@st.composite
def _curves(draw) -> MemoryCurve:
    instants = draw(st.lists(counts, max_size=3).map(tuple))
    bytes_at = st.lists(counts, min_size=len(instants), max_size=len(instants)).map(tuple)
    return MemoryCurve(instants, draw(st.dictionaries(names, bytes_at, max_size=2)), draw(names))


curves = _curves()


@st.composite
def plans(draw) -> Plan:
    """Any plan that the types allow."""
    axis_names = draw(st.lists(st.text("abcxyz", min_size=1), unique=True, max_size=3))
    axes = [
        MeshAxis(name, draw(st.integers(1, 64)), draw(st.sampled_from(["space", "time"])))
        for name in axis_names
    ]
    layouts = st.tuples(*[placements] * len(axes))
    shapes = st.lists(st.integers(0, 2**40), min_size=4, max_size=5).map(tuple)
    sides = st.lists(layouts, max_size=3).map(tuple)
    value = st.builds(ValuePlan, names, shapes, names, layouts, names)
    values = st.lists(value, max_size=3).map(tuple)
    use = st.builds(CollectiveUse, names, names, counts, counts, floats, names)
    inputs = draw(values)
    return Plan(
        step=draw(names),
        cluster=draw(
            st.dictionaries(names, st.one_of(names, counts, st.lists(counts)), max_size=2)
        ),
        cluster_fingerprint=draw(names),
        mesh=MeshSpec(tuple(axes)),
        inputs=inputs,
        outputs=draw(values),
        strategies=draw(st.dictionaries(names, st.builds(Strategy, sides, sides), max_size=4)),
        hubs=draw(st.dictionaries(names, layouts, max_size=3)),
        predicted=Prediction(
            *(draw(floats) for _ in range(4)),
            peak_bytes=draw(counts),
            exact_peak_bytes=draw(counts),
            host_bytes=draw(counts),
            memory=draw(st.dictionaries(names, counts, max_size=2)),
            collectives=draw(st.lists(use, max_size=2).map(tuple)),
            curve=draw(curves),
        ),
        solver=draw(
            st.builds(
                SolverReport, names, names, floats, floats, floats, counts, counts, st.booleans()
            )
        ),
        fallbacks=draw(st.dictionaries(names, counts, max_size=2)),
        options=draw(st.dictionaries(names, names, max_size=2)),
        recompute=draw(st.lists(names, max_size=2).map(tuple)),
        recomputed=draw(
            st.lists(st.builds(Recomputation, names, counts, counts, floats), max_size=2).map(tuple)
        ),
        unlimited=draw(curves),
        compiled_bytes=draw(counts),
        offloaded=tuple(Offloaded(v.path, draw(counts), draw(floats)) for v in inputs[:2]),
    )
