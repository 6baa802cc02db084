"""The flow graph of small steps, written down by hand: nodes, hubs, edges, trips, roles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax import lax

from autopar.core.layout import Split, shifted
from autopar.passes.trace import Step, trace
from autopar.search.graph import Edge, Graph, Node, build_graph
from autopar.search.roles import roles

X = jax.ShapeDtypeStruct((8, 4), jnp.float32)
W = jax.ShapeDtypeStruct((4, 4), jnp.float32)


def graph_of(
    fn: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()
) -> tuple[Step, Graph]:
    step = trace(fn, *args, donate=donate)
    return step, build_graph(step)


def node(graph: Graph, name: str) -> Node:
    (found,) = (n for n in graph.nodes if n.name == name)
    return found


def primitives(graph: Graph) -> dict[str, str]:
    """Names of op nodes to their primitives."""
    return {n.name: n.eqn.primitive.name for n in graph.nodes if n.eqn is not None}


def the(graph: Graph, primitive: str) -> str:
    """Name of the only equation of a primitive."""
    (found,) = (name for name, p in primitives(graph).items() if p == primitive)
    return found


def links(graph: Graph) -> set[tuple[str, str]]:
    """Every edge as names of its ends."""
    return {(graph.nodes[e.src].name, graph.nodes[e.dst].name) for e in graph.edges}


def edge(graph: Graph, src: str, dst: str) -> Edge:
    (found,) = (
        e for e in graph.edges if (graph.nodes[e.src].name, graph.nodes[e.dst].name) == (src, dst)
    )
    return found


def test_chain_has_no_hub() -> None:
    wide = jax.ShapeDtypeStruct((4, 6), jnp.float32)
    _, graph = graph_of(lambda x, w: jnp.sin(x @ w), X, wide)
    assert primitives(graph) == {"0": "dot_general", "1": "sin"}
    assert links(graph) == {("in:0", "0"), ("in:1", "0"), ("0", "1"), ("1", "out:0")}
    assert edge(graph, "in:1", "0").slot == 1
    assert {n.kind for n in graph.nodes} == {"input", "op", "output"}
    assert graph.shared_inputs == frozenset()


def test_value_with_two_uses_has_one_hub() -> None:
    def step(x: jax.Array, w: jax.Array) -> jax.Array:
        y = x @ w
        return jnp.sin(y) * jnp.cos(y)

    _, graph = graph_of(step, X, W)
    hub = node(graph, "0.0")
    assert (hub.kind, hub.shape, hub.trips) == ("hub", (8, 4), 1)
    out_of_hub = {dst for src, dst in links(graph) if src == "0.0"}
    assert out_of_hub == {the(graph, "sin"), the(graph, "cos")}
    assert {dst for src, dst in links(graph) if src == "0"} == {"0.0"}


def test_input_with_two_uses_is_shared() -> None:
    _, graph = graph_of(lambda x, w: (x @ w) + x, X, W)
    assert graph.shared_inputs == {0}


def test_every_variable_has_a_source_of_its_shape() -> None:
    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        return lax.scan(lambda c, row: (jnp.tanh(c @ w) + row, c.sum()), x, jnp.stack([x, x]))[
            1
        ].sum()

    step, graph = graph_of(jax.grad(loss, (0, 1)), X, W)
    assert step.jaxpr.jaxpr.outvars
    for var, source in graph.sources.items():
        where = graph.nodes[source.node]
        shape = (
            where.shape if where.eqn is None else tuple(where.eqn.outvars[source.port].aval.shape)
        )
        assert tuple(var.aval.shape)[source.shift :] == shape


def scan_step(x: jax.Array, stacked: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Carry [8, 4]; scans over [5, 4]; uses a constant [4, 4]; stacks [5, 8]."""

    def body(carry: jax.Array, row: jax.Array) -> tuple[jax.Array, jax.Array]:
        carry = jnp.tanh(carry @ w) * row
        return carry, carry.sum(axis=1)

    return lax.scan(body, x, stacked)


ROWS = jax.ShapeDtypeStruct((5, 4), jnp.float32)


def test_scan_crosses_its_border_through_hubs() -> None:
    _, graph = graph_of(scan_step, X, ROWS, W)
    loop = next(n.name for n in graph.nodes if "/body" in n.name).split("/")[0]
    ins = {n.name: n.shape for n in graph.nodes if n.name.startswith(f"{loop}/body.in")}
    assert ins == {f"{loop}/body.in0": (4, 4), f"{loop}/body.in1": (8, 4), f"{loop}/body.in2": (4,)}
    stack = node(graph, f"{loop}.out1")
    assert (stack.kind, stack.shape, stack.trips) == ("hub", (8,), 5)
    assert all(n.trips == 5 for n in graph.nodes if "/body" in n.name)


def test_scan_prices_each_use_as_often_as_it_happens() -> None:
    _, graph = graph_of(scan_step, X, ROWS, W)
    loop = next(n.name for n in graph.nodes if "/body" in n.name).split("/")[0]
    dot = the(graph, "dot_general")
    # Into the loop once, whatever the trips; within it every time.
    weights = edge(graph, "in:2", f"{loop}/body.in0")
    assert (weights.weight, weights.shape, weights.dst_shift) == (1, (4, 4), 0)
    rows = edge(graph, "in:1", f"{loop}/body.in2")
    assert (rows.weight, rows.shape, rows.src_shift, rows.dst_shift) == (1, (5, 4), 0, 1)
    assert edge(graph, f"{loop}/body.in0", dot).weight == 5
    # The carry comes back to the hub it entered by, so its layout is a fixpoint.
    back = [e for e in graph.edges if graph.nodes[e.dst].name == f"{loop}/body.in1"]
    assert sorted(e.weight for e in back) == [1, 5]
    # Stacked results lie on the hub without their loop dimension.
    outs = [e for e in graph.edges if graph.nodes[e.src].name == f"{loop}.out1"]
    assert [(e.src_shift, e.dst_shift, e.shape) for e in outs] == [(1, 0, (5, 8))]


def test_nested_scans_multiply() -> None:
    def step(x: jax.Array) -> jax.Array:
        inner = lambda c, _: (jnp.sin(c), None)  # noqa: E731
        outer = lambda c, _: (lax.scan(inner, c, None, length=3)[0], None)  # noqa: E731
        return lax.scan(outer, x, None, length=7)[0]

    _, graph = graph_of(step, X)
    assert node(graph, the(graph, "sin")).trips == 21


def test_cond_joins_its_branches() -> None:
    def step(flag: jax.Array, x: jax.Array) -> jax.Array:
        return lax.cond(flag > 0, jnp.sin, jnp.cos, x)

    _, graph = graph_of(step, jax.ShapeDtypeStruct((), jnp.int32), X)
    join = next(n.name for n in graph.nodes if n.name.endswith(".out0"))
    feeders = {src for src, dst in links(graph) if dst == join}
    assert feeders == {the(graph, "sin"), the(graph, "cos")}
    assert {"/branch0.in0", "/branch1.in0"} == {
        n.name[n.name.index("/") :] for n in graph.nodes if ".in" in n.name
    }


def test_while_holds_condition_and_body() -> None:
    def step(x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda c: jnp.sum(c) < 9.0, lambda c: c * 2.0, x)

    _, graph = graph_of(step, X)
    names = {n.name.split("/")[1].split(".")[0] for n in graph.nodes if "/" in n.name}
    assert names == {"cond", "body"}
    assert edge(
        graph, the(graph, "mul"), next(n.name for n in graph.nodes if n.name.endswith("body.in0"))
    )


def test_remat_is_planned_in_place() -> None:
    def loss(w: jax.Array, x: jax.Array) -> jax.Array:
        return jax.checkpoint(lambda w: jnp.sin(x @ w))(w).sum()

    _, graph = graph_of(jax.grad(loss), W, X)
    inside = [n for n in graph.nodes if "/body/" in n.name and n.kind == "op"]
    assert "dot_general" in {n.eqn.primitive.name for n in inside if n.eqn is not None}
    assert all(n.trips == 1 for n in inside)


def test_ties_close_the_circle() -> None:
    step, graph = graph_of(lambda w, x: w - 0.1 * (x.T @ (x @ w)), W, X, donate=(0,))
    assert step.ties == ((0, 0),)
    back = [e for e in graph.edges if e.dst == 0]
    assert [graph.nodes[e.src].name for e in back] == [the(graph, "sub")]
    assert not any(n.kind == "output" for n in graph.nodes)


def test_input_handed_back_unchanged_is_no_edge() -> None:
    _, graph = graph_of(lambda w, x: (w, x.sum()), W, X, donate=(0,))
    assert [e for e in graph.edges if e.src == 0] == []


def train(params: Any, opt_state: Any, batch: Any, rate: jax.Array) -> Any:
    def loss(p: Any) -> jax.Array:
        return jnp.mean((jnp.tanh(batch["x"] @ p["w"] + p["b"]) - batch["y"]) ** 2)

    value, grads = jax.value_and_grad(loss)(params)
    updates, opt_state = optax.adam(1e-3).update(grads, opt_state)
    params = jax.tree.map(lambda p, u: p + rate * u, params, updates)
    return params, opt_state, value


@pytest.fixture(scope="module")
def trained() -> tuple[Step, Graph]:
    params = {"w": W, "b": jax.ShapeDtypeStruct((4,), jnp.float32)}
    state = jax.eval_shape(optax.adam(1e-3).init, params)
    batch = {"x": X, "y": X}
    rate = jax.ShapeDtypeStruct((), jnp.float32)
    return graph_of(train, params, state, batch, rate, donate=(0, 1))


def test_roles_are_read_off_the_flow(trained: tuple[Step, Graph]) -> None:
    step, graph = trained
    found = dict(zip(step.in_paths, roles(step, graph), strict=True))
    assert {role for path, role in found.items() if path.startswith("params/")} == {"parameters"}
    assert {p.split("/")[-2] for p, role in found.items() if role == "optimizer state"} == {
        "mu",
        "nu",
    }
    assert (found["batch/x"], found["batch/y"]) == ("batch", "batch")
    assert (found["rate"], found["opt_state/0/count"]) == ("other", "other")


def test_tails_are_the_optimisers_side(trained: tuple[Step, Graph]) -> None:
    """The moments are read by nothing but the tail; gradients are reduced on their way into it."""
    step, graph = trained
    moments = [i for i, p in enumerate(step.in_paths) if "/mu/" in p or "/nu/" in p]
    readers = {e.dst for e in graph.edges if e.src in moments}
    assert readers
    assert all(graph.tails[i] for i in readers)
    dots = [
        n.index for n in graph.nodes if n.eqn is not None and n.eqn.primitive.name == "dot_general"
    ]
    assert not any(graph.tails[i] for i in dots)


def test_shift_of_a_layout() -> None:
    assert shifted((Split(0), Split(2)), 1) == (Split(1), Split(3))
    assert shifted((Split(1),), 0) == (Split(1),)
