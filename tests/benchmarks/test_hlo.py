"""Counting on a program written by hand, whose kernels and bytes are counted by hand, too."""

import pytest

from benchmarks import hlo

PROGRAM = """\
HloModule jit_epoch, is_scheduled=true

%sum (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %add.1 = f32[] add(%a, %b)
}

%fused_rows (images: u8[60000,4], row: s32[]) -> f32[1,4] {
  %images = u8[60000,4]{1,0} parameter(0)
  %row = s32[] parameter(1)
  %zero = s32[] constant(0)
  %dynamic_slice.1 = u8[1,4]{1,0} dynamic-slice(%images, %row, %zero), dynamic_slice_sizes={1,4}
  ROOT %convert.1 = f32[1,4]{1,0} convert(%dynamic_slice.1)
}

%fused_reduce (y: f32[1,8]) -> f32[8] {
  %y = f32[1,8]{1,0:T(8,128)} parameter(0)
  %zero.1 = f32[] constant(0)
  ROOT %reduce.1 = f32[8]{0} reduce(%y, %zero.1), dimensions={0}, to_apply=%sum
}

%fused_dot (x: f32[1,4], w: f32[4,8]) -> f32[1,8] {
  %x = f32[1,4]{1,0} parameter(0)
  %w = f32[4,8]{1,0} parameter(1)
  ROOT %convolution.1 = f32[1,8]{1,0} convolution(%x, %w), dim_labels=bf_io->bf
}

%fused_update (w.1: f32[4,8], d: f32[8]) -> (f32[4,8], pred[]) {
  %w.1 = f32[4,8]{1,0} parameter(0)
  %d = f32[8]{0} parameter(1)
  ROOT %tuple.2 = (f32[4,8]{1,0}, pred[]) tuple(%w.1, %w.1)
}

%commands (c: f32[8]) -> f32[8] {
  %c = f32[8]{0} parameter(0)
  ROOT %negate.1 = f32[8]{0} negate(%c)
}

%body (state: (f32[4,8], u8[60000,4], s32[])) -> (f32[4,8], u8[60000,4], s32[]) {
  %state = (f32[4,8]{1,0:T(8,128)}, u8[60000,4]{1,0}, s32[]{:T(128)}) parameter(0)
  %weights = f32[4,8]{1,0} get-tuple-element(%state), index=0
  %data = u8[60000,4]{1,0} get-tuple-element(%state), index=1
  %step = s32[]{:T(128)} get-tuple-element(%state), index=2
  %rows = f32[1,4]{1,0} fusion(%data, %step), kind=kLoop, calls=%fused_rows
  %product = (f32[1,8]{1,0}, s8[33554432]{0}) custom-call(%rows, %weights), CUBLAS
  %y.1 = f32[1,8]{1,0} get-tuple-element(%product), index=0
  %again = f32[1,8]{1,0:T(8,128)} fusion(%rows, %weights), kind=kOutput, calls=%fused_dot
  %total = f32[8]{0} fusion(%y.1), kind=kInput, calls=%fused_reduce
  %everywhere = f32[8]{0} all-reduce-start(%total), replica_groups={{0,1}}, to_apply=%sum
  %summed = f32[8]{0} all-reduce-done(%everywhere)
  %negative = f32[8]{0} call(%summed), to_apply=%commands
  %updated = (f32[4,8]{1,0}, pred[]) fusion(%weights, %negative), kind=kLoop, calls=%fused_update
  %new = f32[4,8]{1,0} get-tuple-element(%updated), index=0
  ROOT %next = (f32[4,8]{1,0}, u8[60000,4]{1,0}, s32[]) tuple(%new, %data, %step)
}

%small_body (n: s32[]) -> s32[] {
  %n = s32[] parameter(0)
  ROOT %negate.2 = s32[] negate(%n)
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %sorted = s32[] while(%p), condition=%true, body=%small_body
  ROOT %loop = (f32[4,8]{1,0}, u8[60000,4]{1,0}, s32[]) while(%p), condition=%true, body=%body
}
""".replace("CUBLAS", 'custom_call_target="__cublas$lt$matmul"')

ROWS = 4 + 4 + 16  # one row of the images, not all 60,000; its number; its four floats
PRODUCT = 16 + 128 + 32  # without cuBLAS's scratch memory
REDUCTION, ALL_REDUCE, NEGATION = 32 + 32, 32 + 32, 32 + 32
UPDATE = 128 + 32 + 128 + 1


def test_the_largest_loop_is_counted_by_kind():
    found = hlo.loop(PROGRAM)
    assert found.kernels == {
        "products": 2, "reductions": 1, "fusions": 2, "calls": 0, "others": 1
    }  # fmt: skip
    assert found.collectives == {"all-reduce": 1}
    assert found.collective_bytes == 32
    moved = ROWS + 2 * PRODUCT + REDUCTION + ALL_REDUCE + NEGATION + UPDATE
    assert found.bytes_moved == moved


def test_of_a_tpu_fusions_and_calls_alone_are_counted():
    found = hlo.loop(PROGRAM, fusions_alone=True)
    assert sum(found.kernels.values()) == 5
    assert found.kernels["others"] == 0
    moved = ROWS + 2 * PRODUCT + REDUCTION + ALL_REDUCE + UPDATE
    assert found.bytes_moved == moved


def test_a_program_without_a_loop_is_refused():
    with pytest.raises(ValueError, match="no loop"):
        hlo.loop(PROGRAM[: PROGRAM.index("%body")])
