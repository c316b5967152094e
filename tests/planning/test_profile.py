"""Kernel times of a profile by kind, from a profile and a program whose numbers are known."""

import pytest
from jax.profiler import ProfileData

from emu_jax.errors import UserError
from emu_jax.planning.gpus import known_gpu
from emu_jax.planning.profile import compared, gpu_of, kernel_seconds

PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main (a: bf16[128,64], b: bf16[64,32]) -> bf16[128,32] {
  %a = bf16[128,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %moved = bf16[128,64]{1,0} copy(%a)
  ROOT %gemm = bf16[128,32]{1,0} dot(%moved, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
MOVED = 2 * (128 * 64 + 64 * 32 + 128 * 32)  # bytes of the product, which are its roofline
# Two kernels of one instruction and one of a CUDA graph.
EVENTS = """
  events { metadata_id: 1 duration_ps: 3000000 stats { metadata_id: 1 str_value: "gemm" } }
  events { metadata_id: 1 duration_ps: 5000000 stats { metadata_id: 1 str_value: "gemm" } }
  events { metadata_id: 1 duration_ps: 2000000 }
"""


def plane(number, name, *lines):
    described = (
        'event_metadata { key: 1 value { id: 1 name: "sm90_kernel" } } '
        'stat_metadata { key: 1 value { id: 1 name: "hlo_op" } }'
    )
    found = "".join(f'lines {{ id: {i} name: "{x}" {EVENTS} }} ' for i, x in enumerate(lines))
    return f'planes {{ id: {number} name: "{name}" {found} {described} }}\n'


def test_kernels_of_the_first_gpu_by_instruction():
    text = plane(1, "/device:GPU:1", "Stream #13") + plane(3, "/host:CPU", "Stream")
    text += plane(2, "/device:GPU:0", "Stream #13(Compute)", "XLA Ops")
    serialized = ProfileData.text_proto_to_serialized_xspace(text)
    profile = ProfileData.from_serialized_xspace(serialized)
    assert kernel_seconds(profile) == pytest.approx({"gemm": 8e-6, "other": 2e-6})


def test_factors_are_measured_time_over_roofline():
    gpu = known_gpu("h200")
    found = compared(PROGRAM, gpu, {"gemm": 8e-6, "graph": 3e-6}, 15e-6)
    assert found["seconds"] == pytest.approx({"matrix product": 8e-6, "other": 3e-6})
    roof = MOVED / gpu.bandwidth
    assert found["roofline_seconds"]["matrix product"] == pytest.approx(roof)
    assert found["factors"]["kinds"] == pytest.approx({"matrix product": 8e-6 / roof})
    assert found["factors"]["rest"] == pytest.approx(15 / 11)
    assert found["launched"] == 2


def test_a_device_that_is_no_known_gpu_is_refused():
    assert gpu_of("NVIDIA H200").name == "h200"
    with pytest.raises(UserError, match="cpu is none of"):
        gpu_of("cpu")
