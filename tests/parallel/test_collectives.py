"""Counting in program text whose traffic is known."""

from emu_jax.parallel.collectives import count_collectives

TEXT = """
ENTRY %main (p: f32[16,64]) -> f32[16,64] {
  %p = f32[16,64]{1,0} parameter(0), sharding={devices=[8,1]<=[8]}
  %all-gather.1 = f32[128,64]{1,0} all-gather(%p), channel_id=1, dimensions={0}
  %ags = (bf16[16,64]{1,0}, bf16[128,64]{1,0}) all-gather-start(%q), channel_id=2
  %agd = bf16[128,64]{1,0} all-gather-done(%ags)
  %ar = (f32[64]{0}, f32[], pred[3]{0}) all-reduce(%a, %b, %c), to_apply=%add
  ROOT %rs = f32[2,64]{1,0} reduce-scatter(%all-gather.1), metadata={op_name="all-to-all(x)"}
}
"""


def test_kinds_counts_and_bytes():
    assert count_collectives(TEXT) == {
        "all-gather": (2, 128 * 64 * 4 + 128 * 64 * 2),
        "all-reduce": (1, 64 * 4 + 4 + 3),
        "reduce-scatter": (1, 2 * 64 * 4),
    }


def test_a_program_that_stays_at_home():
    assert count_collectives("ROOT %r = f32[2]{0} add(%a, %b)") == {}
