"""What a traced step says of its inputs and outputs, and what it says when it cannot be traced."""

import dataclasses
import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from autopar.core.errors import OptionError, TraceError
from autopar.passes.fingerprint import Signatures, fingerprint
from autopar.passes.sources import source_line, source_name
from autopar.passes.trace import trace

F32 = jnp.float32
SPEC = jax.ShapeDtypeStruct((4, 2), F32)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class State:
    params: dict[str, Any]
    count: Any


class Batch(NamedTuple):
    x: Any
    y: Any


STATE = State({"dense": {"kernel": jax.ShapeDtypeStruct((2, 3), F32)}}, jnp.int32(0))
BATCH = Batch(SPEC, jax.ShapeDtypeStruct((4, 3), F32))


def train_step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
    def loss(params: dict[str, Any]) -> jax.Array:
        return jnp.mean((batch.x @ params["dense"]["kernel"] - batch.y) ** 2)

    value, grads = jax.value_and_grad(loss)(state.params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    return State(params, state.count + 1), {"loss": value}


def test_paths_begin_with_the_name_of_the_argument() -> None:
    step = trace(train_step, STATE, BATCH)
    assert step.in_paths == ("state/params/dense/kernel", "state/count", "batch/x", "batch/y")
    assert step.out_paths == ("out/0/params/dense/kernel", "out/0/count", "out/1/loss")


def test_trees_rebuild_arguments_and_results() -> None:
    step = trace(train_step, STATE, BATCH)
    state, batch = step.in_tree.unflatten(step.in_paths)
    assert (state.count, batch.y) == ("state/count", "batch/y")
    assert step.out_tree.unflatten(step.out_paths)[1] == {"loss": "out/1/loss"}
    assert [aval.shape for aval in step.in_avals] == [(2, 3), (), (4, 2), (4, 3)]
    assert [aval.shape for aval in step.out_avals] == [(2, 3), (), ()]
    jex.check_jaxpr(step.jaxpr.jaxpr)


def test_names_of_unnamed_arguments() -> None:
    def variadic(x: Any, *rest: Any) -> Any:
        return x + sum(rest)

    assert trace(variadic, 1, 2, 3).in_paths == ("x", "rest/0", "rest/1")
    bound = functools.partial(train_step, STATE_VALUE)
    assert trace(bound, BATCH, donate=()).in_paths == ("batch/x", "batch/y")
    assert trace(jax.jit(train_step), STATE, BATCH).in_paths[0] == "state/params/dense/kernel"


def test_arguments_of_a_function_without_a_signature() -> None:
    def step(x: Any, y: Any) -> Any:
        return x + y

    step.__signature__ = "unknown"  # pyright: ignore[reportFunctionMemberAccess]
    assert trace(step, 1.0, SPEC).in_paths == ("arg0", "arg1")


STATE_VALUE = State({"dense": {"kernel": np.ones((2, 3), np.float32)}}, np.int32(0))


def test_only_shapes_matter() -> None:
    values = Batch(np.ones((4, 2), np.float32), np.zeros((4, 3), np.float32))
    assert trace(train_step, STATE, BATCH).fingerprint == (
        trace(train_step, STATE_VALUE, values).fingerprint
    )


def test_scalars_and_keys_are_arguments_too() -> None:
    def draw(key: jax.Array, scale: float) -> jax.Array:
        return jax.random.normal(key, (2,)) * scale

    step = trace(draw, jax.random.key(0), 2.0, donate=())
    assert [aval.shape for aval in step.in_avals] == [(), ()]
    assert step.in_avals[1].weak_type


def test_donated_and_tied() -> None:
    step = trace(train_step, STATE, BATCH)
    assert step.donated == (True, True, False, False)
    assert step.ties == ((0, 0), (1, 1))


def test_a_result_that_is_the_state_itself() -> None:
    step = trace(lambda state: jax.tree.map(lambda x: x + 1, state), {"b": SPEC, "a": SPEC})
    assert step.ties == ((0, 0), (1, 1))


def test_several_arguments_are_tied_each_to_its_own() -> None:
    def step(params: Any, opt: Any, x: Any) -> Any:
        return {"opt": opt, "loss": x.sum(), "params": params}

    args = ([SPEC], [SPEC], SPEC)
    # Flat results are in key order: loss, opt, params.
    assert trace(step, *args, donate=(0, 1)).ties == ((1, 1), (2, 0))
    assert trace(step, *args, donate=(1,)).ties == ((1, 1),)

    def unnamed(params: Any, opt: Any, x: Any) -> Any:
        return params, opt, x.sum()

    assert trace(unnamed, *args, donate=(0, 1)).ties == ((0, 0), (1, 1))


def test_no_donation_still_ties() -> None:
    step = trace(train_step, STATE, BATCH, donate=())
    assert step.donated == (False,) * 4
    assert step.ties == ((0, 0), (1, 1))


def test_other_shapes_are_not_tied() -> None:
    assert trace(lambda x: x.T, SPEC).ties == ()
    assert trace(lambda x: x.astype(jnp.bfloat16), SPEC).ties == ()


def test_donate_must_name_an_argument() -> None:
    with pytest.raises(OptionError, match=r"donate=\(2,\) names argument 2"):
        trace(train_step, STATE, BATCH, donate=(2,))


def _line(marker: str) -> int:
    lines = Path(__file__).read_text().splitlines()
    (number,) = [n for n, text in enumerate(lines, 1) if text.endswith(f"# {marker}")]
    return number


def branching(x: jax.Array) -> jax.Array:
    if x.sum() > 0:  # the branch
        return x
    return -x


def test_a_branch_on_a_value_is_named_by_file_and_line() -> None:
    with pytest.raises(TraceError) as raised:
        trace(branching, SPEC)
    message = str(raised.value)
    assert message.startswith(f"{__file__}:{_line('the branch')}, in branching: ")
    assert "TracerBoolConversionError" in message
    assert "jnp.where" in message
    assert "jax.lax.cond" in message
    assert isinstance(raised.value.__cause__, jax.errors.TracerBoolConversionError)


class Sized(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(int(x.sum()))(x)  # the size


def test_the_line_is_the_users_below_a_library() -> None:
    def step(x: jax.Array) -> Any:
        return Sized().init(jax.random.key(0), x)

    with pytest.raises(TraceError, match="take what shapes the program") as raised:
        trace(step, SPEC)
    assert f"{__file__}:{_line('the size')}, in step" in str(raised.value)


def test_wrong_arguments() -> None:
    with pytest.raises(TraceError, match=r"train_step: TypeError: .*'batch'.*\ncheck the argu"):
        trace(train_step, STATE)
    with pytest.raises(TraceError, match=r"in train_step: TypeError: dot_general requires"):
        trace(train_step, STATE, Batch(jax.ShapeDtypeStruct((4, 5), F32), BATCH.y))


def test_indexing_by_a_mask() -> None:
    with pytest.raises(TraceError, match=r"NonConcreteBooleanIndexError(.|\n)*jax.numpy"):
        trace(lambda x: x[x > 0], SPEC)


def test_not_a_function() -> None:
    with pytest.raises(TraceError, match="expected a function to trace, got int"):
        trace(3)  # pyright: ignore[reportArgumentType]


def test_a_leaf_that_is_no_array_is_named() -> None:
    with pytest.raises(TraceError, match=r"argument config/name is a str, not an array"):
        trace(lambda config: 0, {"name": "gpt", "x": SPEC})


def test_source_names_and_lines() -> None:
    def step(params: Any, x: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return nn.Dense(3, name="up").apply(params, x).sum()  # the layer

        return jax.grad(loss)(params)

    params = jax.eval_shape(nn.Dense(3).init, jax.random.key(0), SPEC)
    eqns = trace(step, params, SPEC).jaxpr.eqns
    names = [source_name(eqn) for eqn in eqns]
    assert "up/dot_general" not in names[-1]
    assert any(re.fullmatch(r"(\w+/)*dot_general \(grad\)", name) for name in names), names
    assert {source_line(eqn) for eqn in eqns} == {f"test_trace.py:{_line('the layer')}"}


def test_source_of_a_library_function_is_where_it_was_called() -> None:
    """``jnp.where`` is traced once: later uses must not point at the first."""

    def step(x: jax.Array) -> jax.Array:
        y = jnp.where(x > 0, x, 0.0)  # first use
        return jnp.where(y > 1, y, 0.0)  # second use

    selects = [e for e in trace(step, SPEC).jaxpr.eqns if e.primitive.name == "select_n"]
    lines = [source_line(eqn) for eqn in selects]
    assert lines == [f"test_trace.py:{_line(use)}" for use in ("first use", "second use")]


PROGRAM = """
import jax, jax.numpy as jnp, numpy as np
from autopar.passes.trace import trace

policy = jax.checkpoint_policies.save_only_these_names("b", "a", "c")
table = np.arange(6.0, dtype=np.float32)

def step(state, x):
    def loss(w):
        def body(h, _):
            return jax.checkpoint(lambda h: jax.nn.gelu(h @ w) + table, policy=policy)(h), None
        h, _ = jax.lax.scan(body, x, length=2)
        noise = jax.random.normal(jax.random.key(0), h.shape)
        jax.debug.callback(lambda v: None, h.sum())
        return jax.lax.cond(h.sum() > 0, jax.nn.relu, jnp.tanh, h + noise).sum()
    return {"w": state["w"] - jax.grad(loss)(state["w"])}, x

spec = jax.ShapeDtypeStruct((6, 6), jnp.float32)
print(trace(step, {"w": spec}, spec).fingerprint)
"""


def test_fingerprint_is_the_same_in_every_process() -> None:
    found = [
        subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    ]
    assert re.fullmatch(r"[0-9a-f]{64}", found[0])
    assert found[0] == found[1]


def test_fingerprint_tells_programs_apart() -> None:
    def fingerprint_of(fn: Any, *args: Any, **options: Any) -> str:
        return trace(fn, *args, **options).fingerprint

    table = np.ones((4, 2), np.float32)
    other_table = np.zeros((4, 2), np.float32)
    different = [
        fingerprint_of(lambda x: x + 1, SPEC),
        fingerprint_of(lambda x: x + 2, SPEC),
        fingerprint_of(lambda y: y + 1, SPEC),
        fingerprint_of(lambda x: x + 1, SPEC, donate=()),
        fingerprint_of(lambda x: x + 1, jax.ShapeDtypeStruct((4, 3), F32)),
        fingerprint_of(lambda x: x + table, SPEC),
        fingerprint_of(lambda x: x + other_table, SPEC),
        fingerprint_of(lambda x: x.sum(0), SPEC),
        fingerprint_of(lambda x: x.sum(1), SPEC),
    ]
    assert len(set(different)) == len(different)


def test_signatures_have_no_addresses_and_no_paths() -> None:
    def step(x: jax.Array) -> jax.Array:
        jax.debug.print("{}", x)
        return optax.losses.l2_loss(jax.jit(jnp.sin, static_argnums=())(x)).sum()

    closed = trace(step, SPEC).jaxpr
    signatures = Signatures()
    text = "\n".join(map(signatures.of, closed.jaxpr.eqns))
    assert "0x" not in text
    assert "/" not in text
    assert fingerprint(closed, ["a"], signatures) != fingerprint(closed, ["b"], signatures)


BODIES = [
    lambda a, b: (jnp.sin(a) - b, a),
    lambda a, b: (b - jnp.sin(a), a),
    lambda a, b: (jnp.sin(a) - b, b),
    lambda a, b: (jnp.cos(a) - b, a),
    lambda a, b: (a - 0.0, b),
    lambda a, b: (a - -0.0, b),
    lambda a, b: (a.reshape(2, 2).T.reshape(4), b),
    lambda a, b: (a.reshape(1, 4).T.reshape(4), b),
    lambda a, b: (a**2, b),
    lambda a, b: (jax.lax.scan(lambda c, x: (c + x, c), a[0], b)[1], b),
    lambda a, b: (jax.lax.scan(lambda c, x: (c - x, c), a[0], b)[1], b),
]


def test_bodies_known_by_their_columns() -> None:
    """Two of each kind have the text that each has alone; no two kinds have the same."""
    x = jnp.arange(4.0)
    found: list[str] = []
    for body in BODIES:
        both = jax.make_jaxpr(lambda a, f=body: jax.checkpoint(f)(*jax.checkpoint(f)(a, a)))(x)
        first, second = both.jaxpr.eqns
        signatures = Signatures()
        assert signatures.of(first) == signatures.of(second)
        assert signatures.of(second) == Signatures().of(second)
        assert Signatures().body(second.params["jaxpr"]) in signatures.of(second)
        found.append(signatures.of(first))
    assert len(set(found)) == len(BODIES)
    shared = Signatures()
    eqns = [jax.make_jaxpr(jax.checkpoint(body))(x, x).jaxpr.eqns[0] for body in BODIES]
    assert [shared.of(eqn) for eqn in eqns] == found


def test_parameters_that_are_equal_and_not_the_same() -> None:
    marked = jex.Primitive("marked")
    values = [3, 0.0, -0.0, (3,), np.array([3, 4]), np.array([3]), None, "float32", "int32"]
    values += [np.dtype("float32"), np.float32(0.0), np.float32(-0.0), [3]]
    eqn = jax.make_jaxpr(jnp.sin)(1.0).jaxpr.eqns[0]
    eqns = [eqn.replace(primitive=marked, params={"of": value}) for value in (*values, *values)]
    alone = [Signatures().of(one) for one in eqns]
    for order in (eqns, eqns[::-1]):
        signatures = Signatures()
        found = {id(one): signatures.of(one) for one in order}
        assert [found[id(one)] for one in eqns] == alone
