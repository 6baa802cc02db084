"""What is read from the text of a compiled program: every collective once, whatever its form."""

import pytest

from autopar.core.errors import AutoparError
from autopar.core.mesh import MeshSpec
from autopar.verification.groups import axis_of, device_groups
from autopar.verification.hlo import Collective, read_program
from autopar.verification.module import parse

DATA4 = MeshSpec.of({"data": 4})
GRID = MeshSpec.of({"data": 4, "model": 2})
ALL = "replica_groups={{0,1,2,3}}"


def program(*entry: str, others: str = "") -> str:
    lines = "\n".join(f"  {line}" for line in entry)
    return f"HloModule jit_step\n\n{others}\nENTRY %main (p: f32[4]) -> f32[4] {{\n{lines}\n}}\n"


def one(text: str, mesh: MeshSpec = DATA4) -> Collective:
    (found,) = read_program(text, mesh).collectives
    return found


@pytest.mark.parametrize(
    ("line", "payload", "sent"),
    [
        ("f32[16]{0:T(128)} all-gather(%p), channel_id=1, dimensions={0}", 64, 48),
        ("(f32[4], f32[16]) all-gather-start(%p), channel_id=1, dimensions={0}", 64, 48),
        ("(bf16[16], /*index=1*/f32[4]) all-reduce(%p, %p), channel_id=1", 48, 72),
        ("f32[4]{0} reduce-scatter(%p), channel_id=1, dimensions={0}", 64, 48),
        ("f32[16]{0} all-to-all(%p), channel_id=1, dimensions={0}", 64, 48),
    ],
)
def test_bytes_of_each_kind(line: str, payload: int, sent: float):
    found = one(program(f"%c = {line.replace('channel_id', ALL + ', channel_id')}"))
    assert (found.payload_bytes, found.wire_bytes, found.axis) == (payload, sent, "data")


def test_the_end_of_an_asynchronous_collective_is_not_another():
    text = program(
        f"%s = (f32[4], f32[16]) all-gather-start(%p), {ALL}, dimensions={{0}}",
        "%d = f32[16] all-gather-done(%s)",
    )
    assert one(text).kind == "all-gather"


PIECES = """
%fused_computation (a: f32[4]) -> f32[16] {
  ROOT %g = f32[16] all-gather(%a), channel_id=3, dimensions={0}, {chain_id="7"}
}

%async_collective_fusion.1 (a: f32[4]) -> f32[16] {
  ROOT %g.1 = f32[16] all-gather(%a), channel_id=3, dimensions={0}, {chain_id="7"}
}

%all-reduce-scatter (a: f32[16]) -> f32[4] {
  %r = f32[16] all-reduce(%a), channel_id=3, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %d = f32[4] dynamic-slice(%r, %i), dynamic_slice_sizes={4}
}
"""


def test_pieces_in_fusions_are_one_collective_and_a_scatter_hides_in_a_reduction():
    text = program(
        "%f = f32[16] fusion(%p), kind=kCustom, calls=%fused_computation",
        "%m = f32[16] fusion(%p), kind=kCustom, calls=%async_collective_fusion.1, "
        'backend_config={"window_config":{"estimated_cycles":"500"}}',
        "%s = f32[4] fusion(%f), kind=kCustom, calls=%all-reduce-scatter",
        "%other = f32[16] all-gather(%p), channel_id=3, " + ALL,
        others=PIECES,
    )
    found = read_program(text, DATA4)
    assert sorted(c.kind for c in found.collectives) == [
        *("all-gather", "all-gather", "reduce-scatter")
    ]
    assert [c.wire_bytes for c in found.collectives] == [48, 48, 48]
    assert found.cycles == 500


WINDOWED = """
%cond (s: (u32[], f32[4])) -> pred[] {
  %n = u32[]{:T(128)} constant(8)
  %i = u32[] get-tuple-element(%s), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

%f (a: f32[4]) -> f32[4] {
  ROOT %c = f32[4] convolution(%a, %a), dim_labels=bf_io->bf
}

%wide.windowed_dot_general_body_rs.clone (s: (u32[], f32[4])) -> (u32[], f32[4]) {
  %i.1 = u32[] get-tuple-element(%s), index=0
  %two = u32[] constant(2)
  %next = u32[] add(%i.1, %two)
  %x = f32[4] get-tuple-element(%s), index=1
  %cp = (f32[4], f32[4], u32[], u32[]) collective-permute-start(%x), channel_id=1
  %cpd = f32[4] collective-permute-done(%cp)
  %k = f32[4] fusion(%cpd), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"10"}
  ROOT %t = (u32[], f32[4]) tuple(%next, %k)
}
"""


def test_a_windowed_loop_is_a_reduce_scatter_and_runs_as_its_counter_says():
    text = program(
        "%w = (u32[], f32[4]) while(%init), condition=%cond, "
        "body=%wide.windowed_dot_general_body_rs.clone",
        "%half = f32[4] get-tuple-element(%w), index=1",
        "%last = f32[4] collective-permute(%half), channel_id=9, "
        "source_target_pairs={{0,1},{1,2},{2,3},{3,0}}",
        '%light = f32[4] copy(%half), backend_config={"estimated_cycles":"3"}',
        others=WINDOWED,
    )
    found = read_program(text, DATA4)
    assert [(c.kind, c.form, c.count, c.wire_bytes) for c in found.collectives] == [
        ("reduce-scatter", "collective-permute", 1, 16),
        ("reduce-scatter", "collective-permute", 4, 16),
    ]
    assert found.cycles == 43
    assert found.product_cycles == 40


HIDING = """
%piece (a: f32[4]) -> f32[16] {
  ROOT %g = f32[16] all-gather(%a), dimensions={0}, {chain_id="7"}, METADATA
}

%windowed_dot_general_body_rs (x: f32[4]) -> f32[4] {
  ROOT %h = f32[16] fusion(%x), kind=kCustom, calls=%piece
}

%body (x: f32[4]) -> f32[4] {
  %w = f32[4] while(%x), condition=%cond, body=%windowed_dot_general_body_rs, TWO
  ROOT %h.1 = f32[16] fusion(%w), kind=kCustom, calls=%piece
}
"""


@pytest.mark.parametrize(("name", "count"), [("while/body/dot", 3), ("lm_head/convert", 1)])
def test_pieces_of_a_collective_in_loops_that_hide_it_are_one(name: str, count: int):
    text = program(
        "%w.1 = f32[4] while(%p), condition=%cond, body=%body, "
        'backend_config={"known_trip_count":{"n":"3"}}',
        others=HIDING.replace("METADATA", f'{ALL}, metadata={{op_name="{name}"}}').replace(
            "TWO", 'backend_config={"known_trip_count":{"n":"2"}}'
        ),
    )
    assert one(text).count == count


def test_a_known_trip_count_is_believed():
    text = program(
        "%w = f32[4] while(%p), condition=%cond, body=%b, "
        'backend_config={"known_trip_count":{"n":"12"}}',
        others="%b (x: f32[4]) -> f32[4] {\n  ROOT %r = f32[4] all-reduce(%x), "
        f"{ALL}, to_apply=%add\n}}\n",
    )
    assert one(text).count == 12


@pytest.mark.parametrize(
    ("attributes", "axis"),
    [
        ("replica_groups={{0,2,4,6},{1,3,5,7}}", "data"),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", "model"),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", "data"),
        ("replica_groups=[1,8]<=[8]", "data+model"),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", "model"),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}", "model"),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", "data"),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=(0,2,4,6,1,3,5,7) {'b'}", "data"),
        ("replica_groups=mesh['a'=8] {'a':(1)4}", "data"),
        ("replica_groups=mesh['a'=8] {'a':(4)2}", "model"),
        ("source_target_pairs={{0,1},{1,0},{2,3},{3,2},{4,5},{5,4},{6,7},{7,6}}", "model"),
        ("replica_groups={{0,3},{1,2},{4,7},{5,6}}", "?"),
        ("replica_groups={}", "data+model"),
    ],
)
def test_groups_are_mesh_axes(attributes: str, axis: str):
    assert axis_of(device_groups(attributes, 8), GRID) == axis


def test_groups_in_an_unknown_form_are_refused():
    with pytest.raises(AutoparError, match="form not known: replica_groups=new"):
        device_groups("replica_groups=new_form[8]", 8)


def test_instructions_are_taken_apart():
    module = parse(
        program(
            "ROOT %t.1 = (bf16[2,3]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/u32[]) tuple(%a, %b.2), x=1"
        )
    )
    (found,) = module.computations[module.entry]
    assert (found.name, found.opcode, found.is_root) == ("t.1", "tuple", True)
    assert (found.arrays, found.operands) == ((12, 4), ("a", "b.2"))
