"""The roofline of GPU programs: kernels whose FLOPs and bytes are known, as XLA writes them."""

# ruff: noqa: E501  (programs as the compiler writes them)

import pytest

from emu_jax.planning.chips import Topology
from emu_jax.planning.cost import totals
from emu_jax.planning.gpus import known_gpu
from emu_jax.planning.hlo import read_program
from emu_jax.planning.plan import Plan
from emu_jax.planning.report import nvlink_exponent
from emu_jax.planning.roofline import kernels, roofline
from emu_jax.planning.traffic import Traffic, traffic

GEMM = 'backend_config={"gemm_backend_config":{"beta":0,"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"],"lhs_batch_dimensions":[],"rhs_batch_dimensions":[]}}}'
STEP = f"""HloModule jit_step, is_scheduled=true

%fused_convert (param_0.8: f32[3,256,256], param_1.12: s32[]) -> bf16[1,256,256] {{
  %param_0.8 = f32[3,256,256]{{2,1,0}} parameter(0)
  %param_1.12 = s32[] parameter(1)
  %constant_4 = s32[] constant(0)
  %scaled = f32[3,256,256]{{2,1,0}} multiply(%param_0.8, %param_0.8)
  %dynamic_slice.6.1 = f32[1,256,256]{{2,1,0}} dynamic-slice(%scaled, %param_1.12, %constant_4, %constant_4), dynamic_slice_sizes={{1,256,256}}
  ROOT %convert.7.1 = bf16[1,256,256]{{2,1,0}} convert(%dynamic_slice.6.1)
}}

%fused_dynamic_update_slice (param_0.2: bf16[3,8,1024,256], param_1.3: s32[], param_2.24: bf16[8,4,1024,64]) -> bf16[3,8,1024,256] {{
  %param_0.2 = bf16[3,8,1024,256]{{3,2,1,0}} parameter(0)
  %param_2.24 = bf16[8,4,1024,64]{{3,1,2,0}} parameter(2)
  %bitcast.10.1 = bf16[1,8,1024,256]{{3,2,1,0}} bitcast(%param_2.24)
  %copy.72 = bf16[1,8,1024,256]{{3,2,1,0}} copy(%bitcast.10.1)
  %param_1.3 = s32[] parameter(1)
  %constant_4_9 = s32[] constant(0)
  ROOT %update = bf16[3,8,1024,256]{{3,2,1,0}} dynamic-update-slice(%param_0.2, %copy.72, %param_1.3, %constant_4_9, %constant_4_9, /*index=5*/%constant_4_9)
}}

%fused_gelu (param_0.3: f32[8192,256]) -> (f32[8192,256], f32[]) {{
  %param_0.3 = f32[8192,256]{{1,0}} parameter(0)
  %act = f32[8192,256]{{1,0}} tanh(%param_0.3)
  %zero = f32[] constant(0)
  %sum = f32[] reduce(%act, %zero), dimensions={{0,1}}, to_apply=%add
  ROOT %both = (f32[8192,256]{{1,0}}, f32[]) tuple(%act, %sum)
}}

%triton_dot (p: bf16[128,64], q: bf16[64,32]) -> bf16[128,32] {{
  %p = bf16[128,64]{{1,0}} parameter(0)
  %q = bf16[64,32]{{1,0}} parameter(1)
  ROOT %dot.1 = bf16[128,32]{{1,0}} dot(%p, %q), lhs_contracting_dims={{1}}, rhs_contracting_dims={{0}}
}}

%body (w: (s32[], bf16[3,8,1024,256], f32[3,256,256])) -> (s32[], bf16[3,8,1024,256], f32[3,256,256]) {{
  %w = (s32[], bf16[3,8,1024,256]{{3,2,1,0}}, f32[3,256,256]{{2,1,0}}) parameter(0)
  %i = s32[] get-tuple-element(%w), index=0
  %stack = bf16[3,8,1024,256]{{3,2,1,0}} get-tuple-element(%w), index=1
  %weights = f32[3,256,256]{{2,1,0}} get-tuple-element(%w), index=2
  %weight = bf16[1,256,256]{{2,1,0}} fusion(%weights, %i), kind=kLoop, calls=%fused_convert, metadata={{op_name="jit(step)/jvp()/convert_element_type"}}
  %q = bf16[8,1024,4,64]{{3,2,1,0}} constant({{...}})
  %fmha = (bf16[8,4,1024,64]{{3,1,2,0}}, f32[8,4,1024]{{2,1,0}}, u8[0]{{0}}) custom-call(%q, %q, %q), custom_call_target="__cudnn$fmhaSoftmax", metadata={{op_name="jit(step)/jvp()/dot_product_attention_fwd"}}
  %out = bf16[8,4,1024,64]{{3,1,2,0}} get-tuple-element(%fmha), index=0
  %lse = f32[8,4,1024]{{2,1,0}} get-tuple-element(%fmha), index=1
  %kept = bf16[3,8,1024,256]{{3,2,1,0}} fusion(%stack, %i, %out), kind=kLoop, calls=%fused_dynamic_update_slice, metadata={{op_name="jit(step)/jvp()/dynamic_update_slice"}}
  %bwd = (bf16[8,4,1024,64]{{3,1,2,0}}, bf16[8,4,1024,64]{{3,1,2,0}}, bf16[8,4,1024,64]{{3,1,2,0}}, u8[0]{{0}}) custom-call(%q, %q, %q, %lse, %q, /*index=5*/%q), custom_call_target="__cudnn$fmhaSoftmaxBackward", metadata={{op_name="jit(step)/transpose(jvp())/dot_product_attention_bwd"}}
  ROOT %next = (s32[], bf16[3,8,1024,256]{{3,2,1,0}}, f32[3,256,256]{{2,1,0}}) tuple(%i, %kept, %weights)
}}

%cond (c: (s32[], bf16[3,8,1024,256], f32[3,256,256])) -> pred[] {{
  ROOT %c = (s32[], bf16[3,8,1024,256]{{3,2,1,0}}, f32[3,256,256]{{2,1,0}}) parameter(0)
}}

ENTRY %main (x: bf16[8,64,64,64], f: bf16[128,3,3,64], w0: f32[3,256,256]) -> bf16[128,32] {{
  %x = bf16[8,64,64,64]{{3,2,1,0}} parameter(0)
  %f = bf16[128,3,3,64]{{3,2,1,0}} parameter(1)
  %w0 = f32[3,256,256]{{2,1,0}} parameter(2)
  %cudnn-conv.3 = (bf16[8,64,64,128]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %f), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", metadata={{op_name="jit(step)/jvp()/conv_general_dilated"}}
  %y = bf16[8,64,64,128]{{3,2,1,0}} get-tuple-element(%cudnn-conv.3), index=0
  %cudnn-conv-bw-filter.3 = (bf16[128,3,3,64]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%x, %y), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", metadata={{op_name="jit(step)/transpose(jvp())/conv_general_dilated"}}
  %cudnn-conv-bw-input.2 = (bf16[8,64,64,64]{{3,2,1,0}}, u8[0]{{0}}) custom-call(%y, %f), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", metadata={{op_name="jit(step)/transpose(jvp())/conv_general_dilated"}}
  %a = bf16[8192,256]{{1,0}} constant({{...}})
  %b = bf16[256,512]{{1,0}} constant({{...}})
  %gemm = (bf16[8192,512]{{1,0}}, s8[33554432]{{0}}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", metadata={{op_name="jit(step)/jvp()/dot_general"}}, {GEMM}
  %c = f32[8192,256]{{1,0}} constant({{...}})
  %gelu = (f32[8192,256]{{1,0}}, f32[]) fusion(%c), kind=kInput, calls=%fused_gelu, metadata={{op_name="jit(step)/jvp()/tanh"}}
  %zero = s32[] constant(0)
  %stack0 = bf16[3,8,1024,256]{{3,2,1,0}} constant({{...}})
  %init = (s32[], bf16[3,8,1024,256]{{3,2,1,0}}, f32[3,256,256]{{2,1,0}}) tuple(%zero, %stack0, %w0)
  %while.1 = (s32[], bf16[3,8,1024,256]{{3,2,1,0}}, f32[3,256,256]{{2,1,0}}) while(%init), condition=%cond, body=%body, backend_config={{"known_trip_count":{{"n":"3"}}}}
  %moved = bf16[8,64,64,64]{{3,2,1,0}} copy(%x)
  %left = bf16[128,64]{{1,0}} constant({{...}})
  %right = bf16[64,32]{{1,0}} constant({{...}})
  ROOT %triton = bf16[128,32]{{1,0}} fusion(%left, %right), kind=kCustom, calls=%triton_dot, metadata={{op_name="jit(step)/optimizer/dot_general"}}
}}
"""
MAP, WIDE, FILTER = 8 * 64 * 64 * 64 * 2, 8 * 64 * 64 * 128 * 2, 128 * 3 * 3 * 64 * 2
TOKENS = 8 * 1024 * 256 * 2  # bytes of the queries of attention, or of one slice of the stack
CONVOLUTION = 2 * (8 * 64 * 64) * 128 * 64 * 9
PAIR = 2 * 8 * 4 * 1024 * 1024 * 64  # one product of attention

# Instruction -> times, kind, FLOPs, bytes.
EXPECTED = {
    "cudnn-conv.3": (1, "convolution", CONVOLUTION, MAP + FILTER + WIDE),
    "cudnn-conv-bw-filter.3": (1, "convolution", CONVOLUTION, MAP + FILTER + WIDE),
    "cudnn-conv-bw-input.2": (1, "convolution", CONVOLUTION, MAP + FILTER + WIDE),
    "gemm": (1, "matrix product", 2 * 8192 * 256 * 512, 2 * (8192 * 768 + 256 * 512)),
    "gelu": (1, "elementwise", 0, 2 * 8192 * 256 * 4 + 4),
    # One of three slices in fp32 and its index are read, one is written in bf16.
    "weight": (3, "elementwise", 0, 256 * 256 * (4 + 2) + 4),
    "fmha": (3, "attention", 2 * PAIR, 4 * TOKENS + 8 * 4 * 1024 * 4),
    "bwd": (3, "attention", 5 * PAIR, 8 * TOKENS + 8 * 4 * 1024 * 4),
    # The update is read and written; the rest of the stack stays where it is.
    "kept": (3, "copy", 0, 2 * TOKENS + 4),
    "moved": (1, "copy", 0, 2 * MAP),
    "triton": (1, "matrix product", 2 * 128 * 64 * 32, 2 * (128 * 64 + 64 * 32 + 128 * 32)),
}


def test_every_kernel_has_its_flops_and_bytes():
    found = {
        k.instruction.name: (k.times, k.sort, k.flops, k.bytes) for k in kernels(read_program(STEP))
    }
    assert found == EXPECTED


def test_the_modeled_time_is_the_longer_of_arithmetic_and_memory_times_the_factors():
    gpu = known_gpu("h200")
    terms = [term for _, term in roofline(read_program(STEP), gpu, (0,))]
    expected = dict.fromkeys(("convolution", "matrix product", "attention", "elementwise"), 0.0)
    expected["copy"] = 0.0
    for times, sort, flops, moved in EXPECTED.values():
        expected[sort] += times * max(flops / 989e12, moved / 4.8e12)
    for sort in expected:
        expected[sort] *= gpu.factors.kinds[sort] * gpu.factors.rest
    assert totals(terms, "sort") == pytest.approx(expected)
    assert totals(terms, "part").keys() == {"forward", "backward", "optimiser", "rest"}
    plain = [term for _, term in roofline(read_program(STEP), known_gpu("b200"), (0,))]
    assert totals(plain, "sort")["copy"] == pytest.approx(
        (2 * MAP + 3 * (2 * TOKENS + 4)) / 7.67232e12
    )


def test_products_in_fp32_have_half_the_rate():
    text = STEP.replace("bf16[128,64]", "f32[128,64]").replace("bf16[64,32]", "f32[64,32]")
    one, other = (
        next(k for k in kernels(read_program(program)) if k.instruction.name == "triton")
        for program in (STEP, text)
    )
    gpu = known_gpu("h200")
    assert (one.dtype, other.dtype) == ("bf16", "f32") and one.flops == other.flops
    fast = gpu.__class__(**{**vars(gpu), "bandwidth": 1e30})
    assert other.seconds(fast) == pytest.approx(2 * one.seconds(fast))


@pytest.mark.parametrize(
    ("sizes", "exponent"), [((70, 77), 0.1375), ((70, 0), None), ((70,), None)]
)
def test_how_bytes_over_nvlink_grow(sizes, exponent):
    plans = [
        Plan(
            Topology(f"h100:{2 * 2**i}", known_gpu("h100"), 1, [None] * (2 * 2**i)),
            *({}, 8, 1.0, 1.0),
            traffic=[
                Traffic("all-gather", "NVLink", 1, size),
                Traffic("all-reduce", "network", 1, 9),
            ],
        )
        for i, size in enumerate(sizes)
    ]
    assert nvlink_exponent(plans) == pytest.approx(exponent, abs=1e-4)


# Four GPUs on each of two hosts, which have the logical numbers 0 to 3 and 4 to 7.
COLLECTIVES = """HloModule jit_f, is_scheduled=true

ENTRY %main (a: bf16[512,128], g: f32[64,512]) -> f32[64,512] {
  %a = bf16[512,128]{0,1} parameter(0)
  %g = f32[64,512]{1,0} parameter(1)
  %all-gather-start = (bf16[512,128]{0,1}, bf16[512,512]{0,1}) all-gather-start(%a), channel_id=1, replica_groups=mesh['axis_0'=1,'axis_1'=1,'axis_2'=4,'axis_3'=2], device_ids=([2,4]T(1,0)) {'axis_2'}, dimensions={1}, use_global_device_ids=true
  %all-gather-done = bf16[512,512]{0,1} all-gather-done(%all-gather-start)
  %reduce-scatter-start = ((f32[256,512]{1,0}), f32[64,512]{1,0}) reduce-scatter-start(%g), channel_id=1, replica_groups={{0,1,2,3},{4,5,6,7}}, use_global_device_ids=true, dimensions={0}, to_apply=%add
  %reduce-scatter-done = f32[64,512]{1,0} reduce-scatter-done(%reduce-scatter-start)
  %all-reduce-start = f32[64,512]{1,0} all-reduce-start(%g), channel_id=1, replica_groups=[4,2]<=[2,4]T(1,0), use_global_device_ids=true, to_apply=%add
  %all-reduce-done = f32[64,512]{1,0} all-reduce-done(%all-reduce-start)
  %all-reduce-start.1 = f32[] all-reduce-start(%g), channel_id=3, replica_groups=mesh['axis_0'=8,'axis_1'=1] {'axis_0'}, use_global_device_ids=true, to_apply=%add
  %all-reduce-done.1 = f32[] all-reduce-done(%all-reduce-start.1)
  %collective-permute-start = (f32[64,512]{1,0}, f32[64,512]{1,0}) collective-permute-start(%g), channel_id=1, source_target_pairs={{0,4},{4,0}}
  ROOT %collective-permute-done = f32[64,512]{1,0} collective-permute-done(%collective-permute-start)
}
"""


def test_collectives_stay_on_a_host_or_leave_it():
    program, hosts = read_program(COLLECTIVES), (0,) * 4 + (1,) * 4
    weights, gradient = 512 * 512 * 2, 64 * 512 * 4
    assert traffic(program, hosts) == [
        Traffic("all-gather", "NVLink", 1, weights),
        Traffic("all-reduce", "network", 2, gradient + 4),
        Traffic("collective-permute", "network", 1, gradient),
        Traffic("reduce-scatter", "NVLink", 1, gradient),
    ]
    sent = [(k.bytes, k.host) for k in kernels(program, hosts)]
    assert sent == [
        (weights * 3 / 4, True),
        (gradient * 3, True),
        (gradient, False),  # 2 (n - 1) / n of two GPUs
        (4 * 2 * 7 / 8, False),
        (gradient, False),
    ]
    gpu = known_gpu("h100")
    seconds = sum(term.seconds for _, term in roofline(program, gpu, hosts)) / gpu.factors.rest
    inside, between = weights * 3 / 4 + gradient * 3, 2 * gradient + 7
    assert seconds == pytest.approx(inside / 450e9 + between / 50e9)
