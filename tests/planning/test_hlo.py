"""Reading programs: small texts whose every number is known."""

# ruff: noqa: E501  (programs as the compiler writes them)

import pytest

from emu_jax.planning.hlo import read_program, shapes

LOOP = """HloModule jit_f, is_scheduled=true

FileNames
1 "/home/me/emu_jax/nn/unet.py"

FunctionNames
1 "UNet.__call__"
2 "Stage.block"

FileLocations
1 {file_name_id=1 function_name_id=1 line=24 end_line=24 column=2 end_column=2}
2 {file_name_id=1 function_name_id=2 line=18 end_line=18 column=8 end_column=8}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}


%fused (p0: f32[8,8]) -> f32[8,8] {
  %p0 = f32[8,8]{1,0:T(8,128)S(1)} parameter(0)
  ROOT %tanh.1 = f32[8,8]{1,0} tanh(%p0), metadata={op_name="jit(f)/tanh"}
}

%body (w: (s32[], f32[8,8])) -> (s32[], f32[8,8]) {
  %w = (s32[]{:T(128)}, /*index=1*/f32[8,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %one = s32[] constant(1)
  %i = s32[] get-tuple-element(%w), index=0
  %next = s32[] add(%i, %one)
  %x = f32[8,8]{1,0} get-tuple-element(%w), index=1
  %act = f32[8,8]{1,0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="jit(f)/jvp()/tanh" stack_frame_id=2}, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %out = (s32[], f32[8,8]{1,0}) tuple(%next, %act)
}

%cond (c: (s32[], f32[8,8])) -> pred[] {
  %limit = s32[] constant(7)
  %c = (s32[], f32[8,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %lt = pred[] compare(%j, %limit), direction=LT
}

ENTRY %main (a: f32[8,8]) -> f32[8,8] {
  %a = f32[8,8]{1,0:T(8,128)} parameter(0), sharding={devices=[4,1]<=[4]}
  %start = s32[] constant(START)
  %moved = s32[] copy(%start)
  %init = (s32[], f32[8,8]{1,0}) tuple(%moved, %a)
  %kernel = (bf16[2,4]{1,0}, f32[]) custom-call(%a), custom_call_target="tpu_custom_call", frontend_attributes={kernel_metadata={
"xprof_metadata":"{\\"block_q\\": 128}"
}}, metadata={op_name="jit(f)/attention_forward"}
  %while.1 = (s32[], f32[8,8]{1,0}) while(%init), condition=%cond, body=%body, backend_config={KNOWN}
  ROOT %got = f32[8,8]{1,0} get-tuple-element(%while.1), index=1
}
"""


def program(start=0, known=""):
    return read_program(LOOP.replace("START", str(start)).replace("KNOWN", known))


@pytest.mark.parametrize(
    ("start", "known", "trips"),
    [(0, "", 7), (3, "", 4), (0, '"known_trip_count":{"n":"5"}', 5)],
)
def test_a_loops_body_runs_as_often_as_the_loop_turns(start, known, trips):
    read = program(start, known)
    assert read.trips(read.by_name["while.1"]) == trips
    assert sum(i.cycles * n for i, n in read.run()) == 100 * trips


def test_a_loop_of_unknown_length_counts_once():
    read = read_program(LOOP.replace("direction=LT", "direction=NE").replace("START", "0"))
    assert read.trips(read.by_name["while.1"]) is None
    assert (read.open_loops(), program().open_loops()) == (1, 0)
    assert sum(i.cycles * n for i, n in read.run()) == 100


def test_what_an_instruction_says_of_itself():
    read = program()
    act, kernel = read.by_name["act"], read.by_name["kernel"]
    assert (act.opcode, act.operands, act.op_name) == ("fusion", ("x",), "jit(f)/jvp()/tanh")
    assert act.calls == {"calls": ("fused",)}
    assert [i.name for i in read.inside(act)] == ["p0", "tanh.1"]
    assert kernel.target == "tpu_custom_call"
    assert kernel.op_name == "jit(f)/attention_forward"  # behind a break in the line
    assert kernel.shapes == [("bf16", (2, 4)), ("f32", ())]
    assert read.by_name["out"].root and not act.root


def test_call_stacks_from_the_outside_in():
    read = program()
    assert [name for _, name in read.frames[2]] == ["UNet.__call__", "Stage.block"]
    assert [name for _, name in read.frames[1]] == ["UNet.__call__"]


BRANCHES = """HloModule m

%cheap (p: f32[2]) -> f32[2] {
  ROOT %p = f32[2]{0} parameter(0)
}

%dear (q: f32[2]) -> f32[2] {
  %q = f32[2]{0} parameter(0)
  ROOT %n = f32[2]{0} negate(%q), backend_config={"estimated_cycles":"9"}
}

ENTRY %main (a: f32[2], i: s32[]) -> f32[2] {
  %a = f32[2]{0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %c = f32[2]{0} conditional(%i, %a, %a), CALLS
}
"""


@pytest.mark.parametrize(
    "calls",
    [
        "branch_computations={%cheap, %dear}",
        "true_computation=%dear, false_computation=%cheap",
    ],
)
def test_of_a_conditional_the_branch_that_costs_most(calls):
    read = read_program(BRANCHES.replace("CALLS", calls))
    assert [(i.name, n) for i, n in read.run()] == [
        ("a", 1),
        ("i", 1),
        ("c", 1),
        ("q", 1),
        ("n", 1),
    ]


def test_shapes_of_a_type():
    assert shapes("(pred[3]{0}, /*index=1*/bf16[2,16]{1,0:T(8,128)(2,1)S(1)}, u32[])") == [
        ("pred", (3,)),
        ("bf16", (2, 16)),
        ("u32", ()),
    ]
