"""The yardstick on program text, term by term."""

# ruff: noqa: E501  (programs as the compiler writes them)

import pytest

from emu_jax.errors import UserError
from emu_jax.planning.chips import CHIPS
from emu_jax.planning.cost import module_of, part_of, spent, totals
from emu_jax.planning.hlo import read_program
from emu_jax.planning.kernels import work_of

CHIP = CHIPS["v5e"]
CYCLES = 'backend_config={"estimated_cycles":"1500"}'  # a microsecond at 1.5 GHz
TEXT = f"""HloModule m

%product (p: bf16[8,8]) -> bf16[8,8] {{
  %p = bf16[8,8]{{1,0}} parameter(0)
  ROOT %conv.1 = bf16[8,8]{{1,0}} convolution(%p, %p), metadata={{op_name="jit(step)/transpose(jvp())/dot_general"}}
}}

%convolved (p.1: bf16[8,8]) -> bf16[8,8] {{
  %p.1 = bf16[8,8]{{1,0}} parameter(0)
  %conv.2 = bf16[8,8]{{1,0}} convolution(%p.1, %p.1), metadata={{op_name="jit(step)/jvp()/conv_general_dilated"}}
  ROOT %act = bf16[8,8]{{1,0}} tanh(%conv.2)
}}

%moved (p.2: bf16[8,8]) -> bf16[8,8] {{
  %p.2 = bf16[8,8]{{1,0}} parameter(0)
  ROOT %turned = bf16[8,8]{{0,1}} transpose(%p.2), metadata={{op_name="jit(step)/jvp()/transpose"}}
}}

%updated (p.3: f32[8,8]) -> f32[8,8] {{
  %p.3 = f32[8,8]{{1,0}} parameter(0)
  %moment = f32[8,8]{{1,0}} multiply(%p.3, %p.3), metadata={{op_name="jit(step)/optimizer/mul"}}
  ROOT %kept = f32[8,8]{{1,0}} select(%p.3, %moment), metadata={{op_name="jit(step)/jit(_where)/select_n"}}
}}

ENTRY %main (a: bf16[2,512,256]) -> bf16[8,8] {{
  %a = bf16[2,512,256]{{2,1,0}} parameter(0)
  %attention = bf16[2,512,256]{{2,1,0}} custom-call(%a, %a, %a), custom_call_target="tpu_custom_call", metadata={{op_name="jit(step)/jvp(attention_64_of_4x512x512x64_forward)/pallas_call"}}
  %f1 = bf16[8,8]{{1,0}} fusion(%a), calls=%product, metadata={{op_name="jit(step)/transpose(jvp())/dot_general"}}, {CYCLES}
  %f2 = bf16[8,8]{{1,0}} fusion(%f1), calls=%convolved, metadata={{op_name="jit(step)/jvp()/tanh"}}, {CYCLES}
  %f3 = bf16[8,8]{{0,1}} fusion(%f2), calls=%moved, {CYCLES}
  %f4 = f32[8,8]{{1,0}} fusion(%f3), calls=%updated, metadata={{op_name="jit(step)/jit(_where)/select_n"}}, {CYCLES}
  ROOT %sum = f32[] reduce(%f4), metadata={{op_name="jit(step)/reduce_sum"}}, {CYCLES}
}}
"""


def test_every_term_finds_its_part_and_its_sort():
    terms = list(spent(read_program(TEXT), CHIP))
    product = 2 * 2 * 4 * 512 * 512 * 64
    kernel = 2 * product / (CHIP.peak / 2)  # heads of 64 on a unit of 128
    micro = pytest.approx(1e-6)
    assert totals(terms, "sort") == {
        "matrix product": micro,
        "convolution": micro,
        "copy": micro,
        "elementwise": pytest.approx(2e-6),
        "kernel": pytest.approx(kernel),
    }
    assert totals(terms, "part") == {
        "backward": micro,
        "forward": pytest.approx(2e-6 + kernel),
        "optimiser": micro,
        "rest": micro,
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("jit(step)/jvp()/while/body/closed_call/tanh", "forward"),
        ("jit(step)/jvp(jit(silu))/mul", "forward"),
        ("jit(step)/transpose(jvp())/dot_general", "backward"),
        ("jit(step)/transpose(jvp())/checkpoint/rematted_computation/dot_general", "recomputed"),
        ("jit(step)/optimizer/jit(clip)/mul", "optimiser"),
        ("jit(step)/ema/add", "average"),
        ("jit(step)/reduce_sum", "rest"),
        ("", "rest"),
    ],
)
def test_parts_of_a_step(name, part):
    assert part_of(name) == part


@pytest.mark.parametrize(
    ("stack", "module"),
    [
        (("emu_jax/nn/unet.py UNet.__call__", "emu_jax/nn/unet.py Stage.block"), "UNet/Stage"),
        (
            (
                "emu_jax/nn/functional.py Network.__call__",
                "emu_jax/nn/attention.py Attention.__call__",
                "flax/nnx/nn/linear.py Linear.__call__",
            ),
            "Attention/Linear",
        ),
        (
            ("emu_jax/nn/layers.py GroupNorm.__call__", "emu_jax/nn/layers.py GroupNorm._mean"),
            "GroupNorm",
        ),
        (
            ("emu_jax/training/step.py make_step.<locals>.step", "optax/tree.py tree_norm"),
            "make_step",
        ),
        ((), "without a name"),
    ],
)
def test_modules(stack, module):
    calls = [call.split(" ") for call in stack]
    assert module_of(tuple((f"/home/me/{file}", name) for file, name in calls)) == module


@pytest.mark.parametrize(("heads", "d", "lanes"), [(5, 40, 64), (4, 64, 64), (2, 128, 128)])
def test_attentions_kernels_come_to_the_flops_of_plain_attention(heads, d, lanes):
    columns = -(-heads * lanes // 128) * 128
    q, k = ("bf16", (2, 640, columns)), ("bf16", (2, 128, columns))
    name = f"jit(f)/jvp(attention_{lanes}_of_{heads}x600x77x{d}"
    works = [work_of(f"{name}_{kind})/pallas_call", [q, k, k]) for kind in ("forward", "backward")]
    executed, product = 2 * 2 * 640 * 128 * columns, 2 * 2 * heads * 600 * 77 * d
    assert [work.flops / executed for work in works] == [2, 5]
    assert sum(work.model_flops for work in works) == 6 * product
    assert {work.head_width for work in works} == {lanes}


def test_queries_in_parts_are_together_no_more_than_at_once():
    k = ("bf16", (2, 128, 128))
    name = "attention_64_of_2x600x128x64_backward"
    parts = [work_of(name, [("bf16", (2, rows, 128)), k, k]) for rows in (256, 256, 128)]
    whole = work_of(name, [("bf16", (2, 640, 128)), k, k])
    assert sum(part.flops for part in parts) == whole.flops
    assert sum(part.model_flops for part in parts) == pytest.approx(whole.model_flops)


def test_an_unknown_kernel_is_refused():
    with pytest.raises(UserError, match="FLOPs of the kernel 'fused_norm' are unknown"):
        work_of("fused_norm", [("bf16", (2, 4, 64))])
