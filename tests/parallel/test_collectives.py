"""Collectives whose bytes are known, in the text of the compiler."""

import pytest

from emu_jax.parallel.collectives import collective, result_bytes


@pytest.mark.parametrize(
    ("opcode", "result", "expected"),
    [
        ("all-gather", "f32[128,64]{1,0}", ("all-gather", 128 * 64 * 4)),
        # A start holds its operand too, and its done is the same operation.
        (
            "all-gather-start",
            "(bf16[16,64]{1,0}, bf16[128,64]{1,0})",
            ("all-gather", 128 * 64 * 2),
        ),
        ("all-gather-done", "bf16[128,64]{1,0}", None),
        ("all-reduce", "(f32[64]{0}, f32[], pred[3]{0})", ("all-reduce", 64 * 4 + 4 + 3)),
        ("all-reduce-start", "(f32[4]{0}, f32[])", ("all-reduce", 4 * 4 + 4)),
        (
            "collective-permute-start",
            "(f32[8]{0}, f32[8]{0}, u32[], u32[])",
            ("collective-permute", 8 * 4),
        ),
        ("reduce-scatter", "f32[2,64]{1,0}", ("reduce-scatter", 2 * 64 * 4)),
        ("add", "f32[2]{0}", None),
    ],
)
def test_kind_and_bytes(opcode, result, expected):
    assert collective(opcode, result) == expected


def test_bytes_of_a_type():
    assert result_bytes("(s4[3]{0}, f8e4m3fn[5]{0}, pred[2]{0}, f64[])") == 3 + 5 + 2 + 8
