# SPDX-License-Identifier: BSD-3-Clause
"""The plan of the CPU library's weight gradient."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from plan_problems import AVX512, EXAMPLES, host, image_problem, plan_weight_grad, problems, targets


@given(problem=problems, target=targets)
@EXAMPLES
def test_tiles_fit_the_registers(problem: Any, target: Any) -> None:
    plan = plan_weight_grad(problem, target)
    assert 1 <= plan.tile_vectors <= 4
    assert plan.tile_columns == host.oc_tile_pixels(plan.tile_vectors, target.registers)
    assert plan.tile_columns * plan.tile_vectors + plan.tile_vectors + 1 <= target.registers
    assert 1 <= plan.chain <= 256, "one chain of additions loses digits"


@given(problem=problems, target=targets)
@EXAMPLES
def test_items_cover_all_channels_once(problem: Any, target: Any) -> None:
    """Blocks of channels in whole vectors, whose sums stay in a quarter of the cache if they can."""
    shape = problem.shape
    plan = plan_weight_grad(problem, target)
    for channels, block, blocks in (
        (shape.oc, plan.block_oc, plan.blocks_oc), (shape.ic, plan.block_ic, plan.blocks_ic),
    ):  # fmt: skip
        assert 1 <= block <= channels
        assert blocks == -(-channels // block)
        assert block % target.lanes == 0 or block == channels
    of_pair = plan.segments() if plan.winograd else shape.kernel_h * shape.kernel_w
    sums = plan.block_oc * plan.block_ic * of_pair * target.element_bytes
    smallest = plan.block_oc <= target.lanes and (plan.merged_taps or plan.block_ic <= target.lanes)
    assert sums <= target.l2_bytes / 4 or smallest
    assert plan.items == shape.groups * plan.blocks_oc * plan.blocks_ic * plan.slots


@given(problem=problems, target=targets)
@EXAMPLES
def test_slots_have_blocks_and_threads(problem: Any, target: Any) -> None:
    plan = plan_weight_grad(problem, target)
    blocks = plan.blocks_n * plan.blocks_h * plan.blocks_w
    assert 1 <= plan.slots <= max(min(target.threads, blocks), 1)
    assert plan.parallel or plan.slots == 1


@given(problem=problems, target=targets)
@EXAMPLES
def test_winograd_is_for_small_square_kernels(problem: Any, target: Any) -> None:
    """In float arithmetic and steps of one; tiles of 2x2 pixels are cut by the edge of the image only."""
    shape = problem.shape
    shape.kernel_w = shape.kernel_h  # else hardly any
    plan = plan_weight_grad(problem, target)
    steps = (shape.stride_h, shape.stride_w, shape.dilation_h, shape.dilation_w)
    fits = shape.kernel_h in (2, 3) and steps == (1, 1, 1, 1) and target.element_bytes == 4
    assert (plan.winograd_cycles >= 0) == fits
    assert plan.winograd == (fits and plan.winograd_cycles < plan.direct_cycles)
    if plan.winograd:
        assert plan.block_h % 2 == 0 or plan.block_h == shape.lr_h
        assert plan.block_w % 2 == 0 or plan.block_w == shape.lr_w
        assert plan.segments() == (shape.kernel_h + 1) ** 2
    problem.no_winograd = True
    assert not plan_weight_grad(problem, target).winograd


@given(problem=problems, target=targets)
@EXAMPLES
def test_packed_tiles_hold_all_that_the_taps_read(problem: Any, target: Any) -> None:
    """For all pixels of a block, or its tiles of 2x2; channels are neighbours and pixels do not overlap."""
    shape = problem.shape
    plan = plan_weight_grad(problem, target)
    tile, gradient = plan.input_tile, plan.gradient_tile
    side = 2 if plan.winograd else 1
    height, width = (-(-size // side) * side for size in (plan.block_h, plan.block_w))
    assert tile.rows == (height - 1) * shape.stride_h + (shape.kernel_h - 1) * shape.dilation_h + 1
    assert tile.stride_phases == min(shape.stride_w, (shape.kernel_w - 1) * shape.dilation_w + 1)
    reach = (shape.kernel_w - 1) * shape.dilation_w // shape.stride_w
    assert tile.phase_columns == width + reach
    assert (gradient.rows, gradient.stride_phases, gradient.phase_columns) == (height, 1, width)
    for packed, channels in ((tile, plan.block_ic), (gradient, plan.block_oc)):
        assert packed.channel_step == 1
        assert packed.column_step >= channels
        assert packed.row_step == packed.stride_phases * packed.phase_columns * packed.column_step
        assert packed.image_step == packed.rows * packed.row_step
        vectors = -(-channels // target.lanes)
        without_gap = packed.column_step == channels
        assert without_gap == (vectors <= 4) or packed.column_step == vectors * target.lanes
        assert without_gap or packed.column_step // target.lanes % 2 == 1, "neighbours share their cache sets"
    if plan.merged_taps:
        assert tile.column_step == shape.ic == plan.block_ic, "neighbouring taps have a gap"


@given(problem=problems, target=targets)
@EXAMPLES
def test_packed_pixels_stay_in_the_cache(problem: Any, target: Any) -> None:
    plan = plan_weight_grad(problem, target)
    elements = plan.block_n * (plan.input_tile.image_step + plan.gradient_tile.image_step)
    side = 2 if plan.winograd else 1
    smallest = plan.block_n == 1 and plan.block_h <= side and plan.block_w <= side
    assert elements * target.element_bytes <= target.l2_bytes / 2 or smallest
    assert plan.tiles == plan.block_n * -(-plan.block_h // side) * -(-plan.block_w // side)


def test_the_choice_in_words() -> None:
    plan = plan_weight_grad(image_problem(), AVX512)
    words = host.describe(plan)
    kind = "Winograd F(3x3, 2x2), tile of up to"
    assert words.startswith(
        f"{kind} {plan.tile_vectors} vectors of input channels x {plan.tile_columns} output"
    )
    assert f"1 x {plan.slots} items of 12 output x 64 input channels" in words
    assert f"over blocks of 1 x {plan.block_h} x {plan.block_w} pixels; estimated at " in words
    assert ", products of channels at " in words
    assert "on one thread" not in words
    small = host.describe(plan_weight_grad(image_problem(lr_h=4, lr_w=4, kernel_h=1), AVX512))
    assert small.startswith("products of channels, ")
    assert ", on one thread; estimated at " in small
