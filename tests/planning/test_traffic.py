"""Collectives in program text whose traffic is known."""

# ruff: noqa: E501  (programs as the compiler writes them)

from emu_jax.planning.hlo import read_program
from emu_jax.planning.traffic import Traffic, traffic

TEXT = """HloModule m

%all-reduce-scatter.1 (input: f32[64,4]) -> f32[16,4] {
  %input = f32[64,4]{1,0} parameter(0)
  %all-reduce.7 = f32[64,4]{1,0} all-reduce(%input), channel_id=6, to_apply=%add
  ROOT %mine = f32[16,4]{1,0} dynamic-slice(%all-reduce.7)
}

%overlapped (p: f32[16]) -> f32[64] {
  %p = f32[16]{0} parameter(0)
  ROOT %all-gather.2 = f32[64]{0} all-gather(%p), channel_id=9, dimensions={0}
}

%body (w: s32[]) -> s32[] {
  %w = s32[] parameter(0)
  %g = bf16[8]{0} constant({...})
  %all-gather.1 = bf16[32]{0} all-gather(%g), channel_id=1, dimensions={0}
  %scattered = f32[16,4]{1,0} fusion(%g), kind=kCustom, calls=%all-reduce-scatter.1
  ROOT %next = s32[] add(%w, %w)
}

%cond (c: s32[]) -> pred[] {
  ROOT %c = pred[] parameter(0)
}

ENTRY %main (a: f32[16]) -> f32[64] {
  %a = f32[16]{0} parameter(0)
  %zero = s32[] constant(0)
  %while.1 = s32[] while(%zero), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %start = f32[64]{0} fusion(%a), kind=kLoop, calls=%overlapped
  %token = token[] after-all()
  %send = (f32[100]{0:T(128)}, u32[], token[]) send(%a, %token), channel_id=4, is_host_transfer=true, frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %ar = (f32[4]{0}, f32[]) all-reduce-start(%a, %a), channel_id=5
  %done = (f32[4]{0}, f32[]) all-reduce-done(%ar)
  ROOT %end = f32[64]{0} fusion(%start), kind=kLoop, calls=%overlapped
}
"""


def test_loops_links_and_what_is_overlapped():
    assert traffic(read_program(TEXT)) == [
        Traffic("all-gather", "ICI", 3 + 1, 3 * 32 * 2 + 64 * 4),
        Traffic("all-reduce", "DCN", 1, 100 * 4),
        Traffic("all-reduce", "ICI", 1, 4 * 4 + 4),
        Traffic("reduce-scatter", "ICI", 3, 3 * 16 * 4 * 4),
    ]
