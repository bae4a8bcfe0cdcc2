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


MANY_KINDS = """\
HloModule jit_others

%inner (a: bf16[4,4], b: bf16[4,4]) -> bf16[4,4] {
  %a = bf16[4,4]{1,0} parameter(0)
  %b = bf16[4,4]{1,0} parameter(1)
  ROOT %dot.1 = bf16[4,4]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%outer (c: bf16[4,4], d: bf16[4,4]) -> bf16[4,4] {
  %c = bf16[4,4]{1,0} parameter(0)
  %d = bf16[4,4]{1,0} parameter(1)
  ROOT %within = bf16[4,4]{1,0} fusion(%c, %d), kind=kOutput, calls=%inner
}

%fused_rows (table: f32[1000,8], rows: s32[2], row: s32[]) -> f32[3,8] {
  %table = f32[1000,8]{1,0} parameter(0)
  %rows = s32[2]{0} parameter(1)
  %row = s32[] parameter(2)
  %zero = s32[] constant(0)
  %two = f32[2,8]{1,0} gather(%table, %rows), slice_sizes={1,8}
  %one = f32[1,8]{1,0} dynamic-slice(%table, %row, %zero), dynamic_slice_sizes={1,8}
  ROOT %three = f32[3,8]{1,0} concatenate(%two, %one), dimensions={0}
}

%fused_whole (table.1: f32[1000,8], other: f32[1000,8], row.1: s32[]) -> f32[1,8] {
  %table.1 = f32[1000,8]{1,0} parameter(0)
  %other = f32[1000,8]{1,0} parameter(1)
  %row.1 = s32[] parameter(2)
  %zero.1 = s32[] constant(0)
  %add.1 = f32[1000,8]{1,0} add(%other, %table.1)
  %own = f32[1,8]{1,0} dynamic-slice(%table.1, %row.1, %zero.1), dynamic_slice_sizes={1,8}
  %sum = f32[1,8]{1,0} dynamic-slice(%add.1, %row.1, %zero.1), dynamic_slice_sizes={1,8}
  ROOT %multiply.1 = f32[1,8]{1,0} multiply(%own, %sum)
}

%body (state: (f32[1000,8], bf16[4,4], s32[2], s32[])) -> (f32[1000,8], bf16[4,4], s32[2], s32[]) {
  %state = (f32[1000,8]{1,0}, bf16[4,4]{1,0}, s32[2]{0}, s32[]) parameter(0)
  %data = f32[1000,8]{1,0} get-tuple-element(%state), index=0
  %w = bf16[4,4]{1,0} get-tuple-element(%state), index=1
  %chosen = s32[2]{0} get-tuple-element(%state), index=2
  %step = s32[] get-tuple-element(%state), index=3
  %nested = bf16[4,4]{1,0} fusion(%w, %w), kind=kOutput, calls=%outer
  %product = bf16[4,4]{1,0} custom-call(%nested, %w), custom_call_target="__cublas$gemm"
  %some = f32[3,8]{1,0} fusion(%data, %chosen, %step), kind=kLoop, calls=%fused_rows
  %all = f32[1,8]{1,0} fusion(%data, %data, %step), kind=kLoop, calls=%fused_whole
  %best = f32[1,2]{1,0} custom-call(%all), custom_call_target="TopK"
  ROOT %next = (f32[1000,8]{1,0}, bf16[4,4]{1,0}, s32[2]{0}, s32[]) tuple(%data, %w, %chosen, %step)
}

%copying (large: f32[1000000]) -> f32[1000000] {
  %large = f32[1000000]{0} parameter(0)
  ROOT %copy.1 = f32[1000000]{0} copy(%large)
}

ENTRY %main (p: f32[4,8]) -> f32[4,8] {
  %p = f32[4,8]{1,0} parameter(0)
  %longer = f32[1000000]{0} while(%p), condition=%true, body=%copying
  ROOT %loop = (f32[1000,8]{1,0}, bf16[4,4]{1,0}, s32[2]{0}, s32[]) while(%p), body=%body
}
"""


def test_products_within_fusions_are_found_and_what_is_read_in_parts_and_whole_is_read_whole():
    found = hlo.loop(MANY_KINDS)  # the loop of most kernels, not the one that moves most
    assert found.kernels == {
        "products": 2, "reductions": 0, "fusions": 2, "calls": 1, "others": 0
    }  # fmt: skip
    products = 2 * 3 * 32  # of bfloat16
    some = (64 + 32) + 8 + 4 + 96  # of the table two rows and one
    whole = 2 * 32_000 + 4 + 32
    assert found.bytes_moved == products + some + whole + (32 + 8)


def test_a_program_without_a_loop_is_refused():
    with pytest.raises(ValueError, match="no loop"):
        hlo.loop(PROGRAM[: PROGRAM.index("%body")])
