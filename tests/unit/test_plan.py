# SPDX-License-Identifier: BSD-3-Clause
"""The pure host logic of csrc: the index map, and the plans, work queue and plan cache of the CPU library."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import event, given, settings
from hypothesis import strategies as st
from plan_problems import (
    AMX,
    AVX512,
    EXAMPLES,
    image_problem,
    make,
    matrix_targets,
    plan_weight_grad,
    problems,
    streamed_problems,
    targets,
)

import fused_subpixel as fs

host: Any = pytest.importorskip("fused_subpixel_host", reason="not built: python setup.py build_host_tests")

ORDERS = {"crd": host.ChannelOrder.CRD, "dcr": host.ChannelOrder.DCR}


# ---- the index map -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("r_h", [1, 2, 3])
@pytest.mark.parametrize("r_w", [1, 2, 4])
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_index_map_is_the_shuffle(order: str, channels: int, r_h: int, r_w: int) -> None:
    """Shuffle an image whose values are their channels, and look where each one lands. And back."""
    rows = channels * r_h * r_w
    low = torch.arange(rows, dtype=torch.float64).view(1, rows, 1, 1)
    shuffled = fs.pixel_shuffle(low, (r_h, r_w), order)
    if order == "crd" and r_h == r_w:
        assert shuffled.equal(torch.pixel_shuffle(low, r_h))
    for row in range(rows):
        c, i, j = host.phase_of_channel(row, channels, r_h, r_w, ORDERS[order])
        assert shuffled[0, c, i, j] == row
        assert host.channel_of_phase(c, i, j, channels, r_h, r_w, ORDERS[order]) == row


def in_channel_lanes(plan: Any) -> bool:
    """Winograd's kernel for channels that are neighbours, which counts single tiles instead of vectors."""
    return plan.channels_inner and plan.kernel in (host.WINOGRAD, host.WINOGRAD4)


# ---- properties of every plan ------------------------------------------------------------------------------


@pytest.mark.parametrize("plan_of", [host.plan_conv, plan_weight_grad], ids=["conv", "weight_grad"])
@given(problem=problems, target=targets)
@EXAMPLES
def test_blocks_cover_the_output_once(plan_of: Any, problem: Any, target: Any) -> None:
    """Blocks of equal size, none of them empty, the last one cut off at the edge."""
    plan = plan_of(problem, target)
    single_phase = plan_of is host.plan_conv and plan.single_phase
    for size, block, blocks in (
        (problem.shape.batch, plan.block_n, plan.blocks_n),
        (problem.shape.lr_h - problem.spared_h * single_phase, plan.block_h, plan.blocks_h),
        (problem.shape.lr_w - problem.spared_w * single_phase, plan.block_w, plan.blocks_w),
    ):
        assert block >= 1
        assert block <= max(size, 1)
        assert blocks == -(-size // block)
    if plan_of is host.plan_conv:
        by_passes = plan.scheme == host.WINOGRAD_PASSES or plan.kernel == host.WINOGRAD_ROW
        passes = -(-plan.panels // plan.pass_panels) if by_passes else 1
        blocks = plan.blocks_n * plan.blocks_h * plan.blocks_w
        parts = plan.parts if plan.kernel == host.STREAMED else 1
        assert plan.items == problem.shape.groups * blocks * passes * parts


@given(problem=streamed_problems, target=targets)
@settings(EXAMPLES, max_examples=1000)
def test_parts_cover_the_channels_once(problem: Any, target: Any) -> None:
    """Those whose weights are streamed: channels after the shuffle, if rows are those of an input channel."""
    plan = host.plan_conv(problem, target)
    if plan.kernel != host.STREAMED:
        return
    of_output = plan.weight_row == host.WeightRow.OF_OUTPUT
    channels = problem.shape.oc // (1 if of_output else problem.phases)
    assert plan.part_channels >= 1
    assert plan.parts == -(-channels // plan.part_channels)
    assert plan.items == problem.shape.groups * plan.parts
    assert plan.row_chunk >= 1
    if of_output:
        assert plan.row_chunk % target.lanes == 0
        groups = problem.interleave in (1, 2, 3, 16)  # of output channels that interleave in registers
        assert plan.parts == 1 or not groups or plan.part_channels % problem.interleave == 0
    else:
        assert plan.tile_oc <= problem.row_length, "nothing is read beyond a row"
        assert plan.row_chunk <= problem.shape.ic
    event(f"streamed, {plan.weight_row}, {min(plan.parts, 3)} parts")


@pytest.mark.parametrize("plan_of", [host.plan_conv, plan_weight_grad], ids=["conv", "weight_grad"])
@pytest.mark.parametrize("empty", ["batch", "lr_h", "lr_w", "ic"])
@given(problem=problems, target=targets)
@EXAMPLES
def test_nothing_to_compute(empty: str, plan_of: Any, problem: Any, target: Any) -> None:
    """A plan all the same, for explain()."""
    setattr(problem.shape, empty, 0)
    problem.spared_h = problem.spared_w = 0
    assert host.describe(plan_of(problem, target))


@given(problem=problems, target=targets)
@EXAMPLES
def test_tiles_exist_and_fit_the_registers(problem: Any, target: Any) -> None:
    """What the plan chooses is in the kernels' tables: sums and operands fit the register file."""
    plan = host.plan_conv(problem, target)
    if plan.kernel == host.OC_VECTORISED or in_channel_lanes(plan):
        vectors, rest = divmod(plan.tile_oc, target.lanes)
        assert rest == 0
        assert 1 <= vectors <= 4
        assert 1 <= plan.tile_pixels <= host.oc_tile_pixels(vectors, target.registers)
        assert plan.tile_pixels * vectors + vectors + 1 <= target.registers
    if plan.kernel == host.OC_VECTORISED:
        assert plan.panel_tiles == plan.interleaved_tiles, "the channel-lane kernel stores tile by tile"
        assert plan.interleaved_tiles * vectors <= 8
    elif not in_channel_lanes(plan):
        assert plan.tile_oc in host.TILE_OC
        assert plan.tile_pixels == host.ow_tile_vectors(plan.tile_oc, target.registers)
        assert plan.tile_pixels * (plan.tile_oc + 1) + 1 <= target.registers


@given(problem=problems, target=targets)
@EXAMPLES
def test_panels_hold_whole_interleave_groups(problem: Any, target: Any) -> None:
    """Output channels that interleave in registers are accumulated together; panels hold no more than all."""
    plan = host.plan_conv(problem, target)
    tiles = -(-problem.shape.oc // plan.tile_oc)
    in_registers = problem.interleave in host.REGISTER_INTERLEAVE
    if in_channel_lanes(plan):
        return  # channels are neighbours, and nothing interleaves
    if plan.kernel in (host.WINOGRAD, host.WINOGRAD4):  # whole vectors, of a single phase one of each phase
        whole = math.lcm(target.lanes * plan.interleaved_tiles, plan.tile_oc)
        if plan.single_phase:
            assert plan.panel_tiles * plan.tile_oc % whole == 0
        elif in_registers:
            whole = math.lcm(whole, problem.interleave)
        assert plan.panel_tiles >= 1
        assert plan.panel_tiles <= tiles or plan.panel_tiles * plan.tile_oc - whole < problem.shape.oc
    else:
        assert 1 <= plan.panel_tiles <= tiles
        assert plan.interleaved_tiles in (1, plan.panel_tiles)
    follow = plan.kernel != host.OC_VECTORISED and plan.interleaved_tiles == 1
    if follow and in_registers and problem.shape.oc % problem.interleave == 0:
        panel = plan.panel_tiles * plan.tile_oc
        assert panel % problem.interleave == 0 or plan.panel_tiles == tiles


@given(problem=problems, target=targets)
@EXAMPLES
def test_packed_input_tiles_fit_their_share_of_the_cache(problem: Any, target: Any) -> None:
    """A third of L2; half of it where the weights do not stay; 2**14 values where that is more.

    The height is extrapolated from tiles of one and three rows, roundings included, which at rows of 5/3
    vectors makes 5/3 of that. And some blocks cannot be smaller.
    """
    plan = host.plan_conv(problem, target)
    if plan.kernel not in (host.OW_VECTORISED, host.OC_VECTORISED):
        return
    size = plan.block_n * plan.input_tile.image_step * target.element_bytes
    budget = max(target.l2_bytes // (3 if plan.weights_resident else 2), target.element_bytes << 14)
    height, width = {
        host.OW_VECTORISED: (1, target.lanes),
        host.OC_VECTORISED: (1, plan.tile_pixels),
    }[plan.kernel]
    smallest = plan.block_n == 1 and plan.block_h <= height and plan.block_w <= width
    assert size <= 1.7 * budget or smallest


@given(problem=problems, target=targets)
@EXAMPLES
def test_winograd_only_where_it_is_one(problem: Any, target: Any) -> None:
    """A window of 3x3 in float, undilated; blocks of whole tiles, but at edges, that fit the cache."""
    shape = problem.shape
    shape.kernel_h = shape.kernel_w = 3
    plan = host.plan_conv(problem, target)
    steps = (
        shape.stride_h,
        shape.stride_w,
        shape.dilation_h,
        shape.dilation_w,
    )
    if (side := {host.WINOGRAD: 2, host.WINOGRAD4: 4}.get(plan.kernel)) is not None:
        assert steps == (1, 1, 1, 1)
        assert target.element_bytes == 4
        assert side == 2 or problem.inexact
        assert plan.block_n == 1
        height = shape.lr_h - plan.single_phase * problem.spared_h
        width = shape.lr_w - plan.single_phase * problem.spared_w
        assert not plan.single_phase or (problem.spared_h, problem.spared_w) == (0, 0)
        assert plan.block_h % side == 0 or plan.block_h == height
        unit = 1 if plan.channels_inner else target.lanes  # tiles
        assert not plan.channels_inner or problem.ic_contiguous
        assert plan.block_w % (side * unit) == 0 or plan.block_w == width
        tiles = -(-plan.block_h // side) * -(-plan.block_w // side)
        positions = (side + 2) ** 2
        oc, units = plan.panel_tiles * plan.tile_oc, -(-tiles // unit)
        cache, tiles = target.l2_bytes / target.element_bytes, units * unit
        smallest = plan.block_h <= side and plan.block_w <= side * unit * plan.tile_pixels
        one = positions * target.lanes * (oc + -(-tiles // target.lanes) * target.lanes) <= cache * 3 / 8
        if plan.scheme == host.WINOGRAD_PASSES:  # whole images of few tiles, and fresh weights
            assert (plan.block_h, plan.block_w) == (height, width)
            assert plan.k_channels <= shape.ic and plan.panel_tiles * plan.tile_oc * plan.panels >= shape.oc
            assert (plan.pass_panels - 1) * positions * oc * tiles <= cache * 3 / 8
            assert positions * plan.k_channels * (oc + tiles) <= cache * 3 / 4 or not one
        elif plan.scheme == host.WINOGRAD_PANELS:
            assert (plan.pass_panels, plan.k_channels) == (1, shape.ic)
            values = positions * ((shape.ic + oc) * tiles + shape.ic * oc)
            assert values <= cache * 7 / 8 or smallest
        else:  # position by position, with all accumulators
            assert plan.scheme == host.WINOGRAD_POSITIONS
            assert (plan.pass_panels, plan.k_channels) == (plan.panels, shape.ic)
            fits = positions * (shape.ic + shape.oc) * tiles <= 4 * cache
            assert (fits and shape.ic * tiles <= cache / 3) or smallest
    shape.kernel_w = 2
    plan = host.plan_conv(problem, target)
    if plan.kernel in (host.WINOGRAD, host.WINOGRAD4):
        assert plan.single_phase and problem.spared_h == 0
    shape.kernel_w = 1
    assert host.plan_conv(problem, target).kernel not in (host.WINOGRAD, host.WINOGRAD4)


@given(problem=problems, target=targets)
@EXAMPLES
def test_tiles_of_a_row_only_where_their_outputs_share_pixels(problem: Any, target: Any) -> None:
    """As many taps as outputs, a step of one, float; blocks of one image, whose accumulators fit."""
    shape = problem.shape
    plan = host.plan_conv(problem, target)
    if plan.kernel == host.WINOGRAD_ROW:
        assert shape.kernel_w >= plan.row_outputs
        assert shape.stride_w == 1
        assert target.element_bytes == 4
        assert plan.block_n == 1
        of_pixel = {2: 4 / 2, 4: 12 / 4}[plan.row_outputs]  # accumulators
        oc = plan.pass_panels * plan.panel_tiles * plan.tile_oc
        values = of_pixel * oc * plan.block_h * plan.block_w
        runs = plan.row_outputs * shape.dilation_w * max(target.lanes // shape.dilation_w, 1)
        smallest = plan.block_h == 1 and plan.block_w <= runs
        assert values * target.element_bytes <= target.l2_bytes * 5 / 8 or smallest
        reach = (shape.kernel_w - 1) * shape.dilation_w
        if plan.row_outputs == 4 and shape.kernel_w % 2 == 1:  # a pixel that a tap of zero reads
            reach += shape.dilation_w
        assert plan.input_tile.phase_columns >= plan.block_w + reach
    problem.no_winograd = True
    assert host.plan_conv(problem, target).kernel in (host.OW_VECTORISED, host.OC_VECTORISED)


@given(problem=problems, target=targets)
@EXAMPLES
def test_packed_input_tile_holds_all_that_the_taps_read(problem: Any, target: Any) -> None:
    """For every pixel of a block rounded up to whole vectors; channels do not overlap."""
    shape = problem.shape
    height, width = 5, 37
    tile = host.input_tile(shape, height, width, target.lanes, False)
    last_row = (height - 1) * shape.stride_h + (shape.kernel_h - 1) * shape.dilation_h
    assert tile.rows == last_row + 1
    assert tile.stride_phases == min(shape.stride_w, (shape.kernel_w - 1) * shape.dilation_w + 1)
    width = -(-width // target.lanes) * target.lanes
    for tap in range(shape.kernel_w):
        column = tap * shape.dilation_w
        assert column // shape.stride_w + width <= tile.phase_columns
    assert tile.row_step == tile.stride_phases * tile.phase_columns
    assert tile.channel_step >= tile.rows * tile.row_step
    assert tile.channel_step % target.lanes == 0
    assert tile.channel_step // target.lanes % 2 == 1, "neighbouring channels share their cache sets"
    assert tile.image_step == shape.ic * tile.channel_step


@given(problem=problems, target=targets)
@EXAMPLES
def test_packed_input_tile_of_neighbouring_channels(problem: Any, target: Any) -> None:
    """Columns do not overlap, and no more of them than the block's own taps read."""
    tile = host.input_tile(problem.shape, 5, 7, target.lanes, True)
    assert tile.channel_step == 1
    assert tile.column_step >= problem.shape.ic
    assert tile.column_step % target.lanes == 0
    assert tile.column_step // target.lanes % 2 == 1, "neighbouring columns share their cache sets"
    reach = (problem.shape.kernel_w - 1) * problem.shape.dilation_w // problem.shape.stride_w
    assert tile.phase_columns == 7 + reach
    assert tile.row_step == tile.stride_phases * tile.phase_columns * tile.column_step
    assert tile.image_step == tile.rows * tile.row_step


@given(problem=problems, target=targets)
@EXAMPLES
def test_pixels_and_taps_are_saved_only_where_every_tile_holds_one_phase(problem: Any, target: Any) -> None:
    plan = host.plan_conv(problem, target)
    oc_vectorised = plan.kernel == host.OC_VECTORISED
    assert (oc_vectorised and problem.ic_contiguous) <= plan.channels_inner
    inner = oc_vectorised and (problem.ic_contiguous or problem.planar_input)
    assert plan.channels_inner <= (inner or in_channel_lanes(plan))
    taps = problem.shape.kernel_h * problem.shape.kernel_w
    if plan.single_phase:
        assert problem.phase_oc % plan.tile_oc == 0
        if plan.kernel in (host.WINOGRAD, host.WINOGRAD4):  # a vector of output channels has one phase
            assert problem.unused_h or problem.unused_w
            assert problem.phase_oc % target.lanes == 0
            assert plan.panel_tiles * plan.tile_oc % (problem.phase_interleave * target.lanes) == 0
        else:
            assert plan.kernel in (host.OW_VECTORISED, host.OC_VECTORISED)
            assert problem.spared_h or problem.spared_w or problem.mean_taps < taps
    assert plan.interleaved_tiles == (problem.phase_interleave if plan.single_phase else 1)
    assert plan.panels == -(-problem.shape.oc // (plan.tile_oc * plan.panel_tiles))


@pytest.mark.parametrize("plan_of", [host.plan_conv, plan_weight_grad], ids=["conv", "weight_grad"])
@given(problem=problems, target=targets)
@EXAMPLES
def test_parallel_only_where_it_pays(plan_of: Any, problem: Any, target: Any) -> None:
    plan = plan_of(problem, target)
    shape = problem.shape
    work = math.prod((shape.batch, shape.groups, shape.ic, shape.oc, shape.lr_h, shape.lr_w))
    work *= shape.kernel_h * shape.kernel_w
    if target.threads == 1 or work < 2e5:
        assert not plan.parallel
    if target.threads > 1 and work > 1e7:
        assert plan.parallel


@given(items=st.integers(0, 10**4), threads=st.integers(1, 64))
def test_the_work_queue_gives_all_items_once_in_shrinking_ranges(items: int, threads: int) -> None:
    queue, done, sizes = host.WorkQueue(items, threads), 0, []
    while (range_ := queue.take()) != (items, items):
        begin, end = range_
        assert begin == done < end <= items
        assert end - begin <= max(1, (items - done) / (2 * threads))  # nobody waits long for who took it
        sizes.append(end - begin)
        done = end
    assert done == items
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= 2 * threads * (2 + math.log(items + 1))  # nor do threads meet at every item
    assert queue.take() == (items, items)


# ---- single decisions --------------------------------------------------------------------------------------


def test_few_output_channels_are_ow_vectorised_and_wide_layers_oc_vectorised() -> None:
    narrow = image_problem(kernel_h=5, kernel_w=1)
    wide = image_problem(kernel_h=5, kernel_w=5, oc=256, lr_h=8, lr_w=8, interleave=512, oc_contiguous=True)
    assert host.plan_conv(narrow, AVX512).kernel == host.OW_VECTORISED
    assert host.plan_conv(wide, AVX512).kernel == host.OC_VECTORISED


@pytest.mark.parametrize("kernel_w", range(4, 12))
@pytest.mark.parametrize("dilation_w", [1, 3])
def test_the_pixel_of_a_zero_tap_is_packed(kernel_w: int, dilation_w: int) -> None:
    """Rows of odd length get a tap of zero, in tiles of four outputs."""
    problem = image_problem(
        kernel_h=1, kernel_w=kernel_w, dilation_w=dilation_w, oc=64, lr_h=1, lr_w=6144, interleave=1
    )
    plan = host.plan_conv(problem, AVX512)
    assert (plan.kernel, plan.row_outputs) == (host.WINOGRAD_ROW, 4)
    assert plan.block_w % AVX512.lanes == 0, "a ragged block has room for the pixel anyway"
    taps = kernel_w + kernel_w % 2
    assert plan.input_tile.phase_columns == plan.block_w + (taps - 1) * dilation_w


@pytest.mark.parametrize("threads", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("shape", [(1, 360, 640), (1, 64, 64), (16, 24, 24), (5, 33, 70)], ids=str)
def test_threads_get_even_shares(threads: int, shape: tuple[int, int, int]) -> None:
    """The slowest thread does at most a quarter more than the average one."""
    batch, lr_h, lr_w = shape
    target = make(host.Target, lanes=16, registers=32, l2_bytes=1 << 21, threads=threads, element_bytes=4)
    problem = image_problem(batch=batch, lr_h=lr_h, lr_w=lr_w)
    plan = host.plan_conv(problem, target)
    assert plan.parallel
    shares = -(-plan.items // threads)  # items of the thread that has most
    block = plan.block_n * plan.block_h * plan.block_w
    assert shares * block * threads <= 1.25 * batch * lr_h * lr_w + block


def test_tiles_of_one_vector_where_a_multiply_add_takes_a_cycle() -> None:
    """In channels_last, of sums that are not too short; wider ones elsewhere."""
    target = make(
        host.Target, lanes=16, registers=32, l2_bytes=1 << 20, threads=2, element_bytes=4, half_rate=True
    )
    inner: dict[str, Any] = {
        "ic": 64, "oc": 256, "interleave": 256, "oc_contiguous": True, "ic_contiguous": True, "kernel_h": 1,
        "kernel_w": 1, "lr_h": 128, "lr_w": 128,
    }  # fmt: skip
    assert host.plan_conv(image_problem(**inner), target).tile_oc == 16
    assert host.plan_conv(image_problem(**inner), AVX512).tile_oc > 16
    assert host.plan_conv(image_problem(**inner | {"ic": 8}), target).tile_oc > 16
    planar = inner | {"interleave": 1, "oc_contiguous": False, "ic_contiguous": False}
    plans = [host.plan_conv(image_problem(**planar), machine) for machine in (target, AVX512)]
    assert plans[0].tile_oc == plans[1].tile_oc


def test_planar_rows_are_long_where_few_output_channels_share_them() -> None:
    """Beginning with another row of a channel takes as long as some of its products."""
    heads = {"ic": 64, "oc": 12, "lr_h": 540, "lr_w": 960, "interleave": 2}
    planar, inner = (
        host.plan_conv(image_problem(**heads, planar_input=planar), AVX512) for planar in (True, False)
    )
    assert (planar.kernel, inner.kernel) == (host.WINOGRAD, host.WINOGRAD)
    assert planar.block_w >= 320 > inner.block_w


def test_pixels_that_share_nothing_come_in_small_blocks() -> None:
    """Of a 1x1 convolution in channels_last: a block leaves most of the cache to what the next one reads."""
    problem = image_problem(
        ic=128, oc=256, interleave=128, oc_contiguous=True, ic_contiguous=True, kernel_h=1, kernel_w=1
    )
    plan = host.plan_conv(problem, AVX512)
    assert plan.channels_inner
    assert 4 * 128 * plan.block_h * plan.block_w <= AVX512.l2_bytes / 8
    assert plan.block_w == problem.shape.lr_w, "rows are whole"


def test_planes_are_packed_with_channels_as_neighbours_where_many_output_channels_read_them() -> None:
    layer = {"ic": 512, "lr_h": 14, "lr_w": 14, "kernel_h": 1, "kernel_w": 1}
    many = image_problem(oc=1024, planar_input=True, **layer)
    few = image_problem(oc=256, planar_input=True, **layer)
    neither = image_problem(oc=1024, **layer)
    plans = [host.plan_conv(problem, AVX512) for problem in (many, few, neither)]
    assert [plan.kernel for plan in plans] == 3 * [host.OC_VECTORISED]
    assert [plan.channels_inner for plan in plans] == [True, False, False]


@pytest.mark.parametrize(("channels_last", "oc"), [(False, 512), (True, 512), (False, 12)])
def test_taps_that_phases_lack_are_saved(channels_last: bool, oc: int) -> None:
    """3x3 with stride 2 has 9 taps in 4 phases; neighbouring output channels of NCHW are of two phases."""
    layer = {"ic": 256, "oc": oc, "kernel_h": 2, "kernel_w": 2, "phase_oc": oc // 4}
    order = (
        {"interleave": oc // 2, "oc_contiguous": True}
        if channels_last
        else {"interleave": 2, "phase_interleave": 2}
    )
    plan = host.plan_conv(image_problem(**layer, **order, mean_taps=9 / 4), AVX512)
    assert plan.kernel == (host.OC_VECTORISED if oc > 12 else host.OW_VECTORISED)
    assert plan.single_phase
    assert plan.interleaved_tiles == plan.panel_tiles == (1 if channels_last else 2)
    assert not host.plan_conv(image_problem(**layer, **order), AVX512).single_phase


def test_small_weights_stay_and_large_ones_do_not() -> None:
    assert host.plan_conv(image_problem(), AVX512).weights_resident
    assert not host.plan_conv(image_problem(ic=512, oc=512), AVX512).weights_resident


# ---- words ------------------------------------------------------------------------------------------------


@given(problem=problems, target=targets | matrix_targets)
@EXAMPLES
def test_a_plan_says_what_it_chose_and_what_else_it_could_have_chosen(problem: Any, target: Any) -> None:
    plan = host.plan_conv(problem, target)
    words = host.describe(plan)
    names = [
        "OW-vectorised", "OC-vectorised", "Winograd F(2x2, 3x3)", "Winograd F(2, 3) along rows",
        "Winograd F(4x4, 3x3)", "matrix tiles", "streamed weights",
    ]  # fmt: skip
    rows = "columns" if plan.weight_row == host.WeightRow.OF_INPUT else "output channels"
    assert words.startswith(f"{names[plan.kernel]}, tile of {plan.tile_oc} {rows} x {plan.tile_pixels} ")
    several = plan.kernel == host.WINOGRAD_ROW and plan.pass_panels < plan.panels
    passes = several or plan.scheme == host.WINOGRAD_PASSES
    items = f"{plan.items} passes over blocks of" if passes else f"{plan.items} blocks of"
    if plan.kernel == host.STREAMED:
        items = f"{plan.items} parts of {plan.part_channels} channels over"
    assert f"{items} {plan.block_n} x {plan.block_h} x {plan.block_w} pixels" in words
    assert ("of one phase" in words) == plan.single_phase
    assert ("on one thread" in words) == (not plan.parallel)
    for name, cycles in zip(names, plan.cycles, strict=True):
        assert (name in words) == (cycles >= 0)
    assert plan.cycles[plan.kernel] == min(cycles for cycles in plan.cycles if cycles >= 0)


# ---- the cache of plans ------------------------------------------------------------------------------------


def test_plans_of_recent_calls_are_kept() -> None:
    cache = host.PlanCache()
    entries = cache.ENTRIES
    for number in range(entries):
        assert cache.get([number, 7], number, 100) == number
    assert len(cache) == entries
    assert cache.get([0, 7], -1, 100) == 0, "made again"
    assert cache.get([entries, 7], entries, 100) == entries
    assert len(cache) == entries
    assert cache.get([0, 7], -1, 100) == 0, "the least recently used one goes"
    assert cache.get([1, 7], -1, 100) == -1, "and nothing else stays"


@given(calls=st.lists(st.tuples(st.integers(0, 99), st.integers(1, 1 << 19)), max_size=300))
@EXAMPLES
def test_a_cache_answers_by_key_and_stays_within_its_bounds(calls: list[tuple[int, int]]) -> None:
    cache, last = host.PlanCache(), {}
    for call, (key, size) in enumerate(calls):
        found = cache.get([key], call, size)
        assert found in (call, last.get(key))
        last[key] = found
        assert len(cache) <= cache.ENTRIES
        assert 0 <= cache.bytes <= cache.BYTES
        assert cache.get([key], -1, size) == found


def test_no_plan_of_an_extreme_layer_is_kept() -> None:
    cache = host.PlanCache()
    assert cache.get([1], 1, cache.BYTES) == 1
    assert len(cache) == cache.bytes == 0


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=64), st.data())
@EXAMPLES
def test_keys_that_differ_in_one_number_are_different(numbers: list[int], data: Any) -> None:
    cache = host.PlanCache()
    place = data.draw(st.integers(0, len(numbers) - 1))
    other = [*numbers[:place], numbers[place] ^ 1, *numbers[place + 1 :]]
    for number, key in enumerate((numbers, other, numbers[:-1])):
        assert cache.get(key, number, 1) == number
    with pytest.raises(RuntimeError, match="too many"):
        cache.get([0] * 65, 0, 1)


# ---- absurd sizes ------------------------------------------------------------------------------------------

HUGE = 2**31 - 1


def fastest(repetitions: int, function: Callable[[], object]) -> float:
    """Seconds of the fastest of several calls."""
    times = []
    for _ in range(repetitions):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


@pytest.mark.parametrize("plan_of", [host.plan_conv, plan_weight_grad], ids=["conv", "weight_grad"])
@pytest.mark.parametrize("target", [AVX512, AMX], ids=["avx512", "amx"])
@pytest.mark.parametrize(
    "fields",
    [
        {"lr_h": HUGE},
        {"lr_w": HUGE},
        {"lr_h": HUGE, "lr_w": HUGE, "ic": 1, "kernel_h": 1},
        {"batch": HUGE, "lr_h": 2**14, "lr_w": 2**14},
        {"ic": HUGE, "oc": 1, "lr_h": 1, "lr_w": 1},
        {"oc": HUGE, "ic": 1, "interleave": 1},
        {"kernel_h": 2**15, "kernel_w": 2**15, "lr_h": 2, "lr_w": 3},
        {"dilation_h": 2**20, "dilation_w": 2**20, "ic": 3},
        {"stride_h": 2**20, "stride_w": 2**20, "ic": 3},
        {"groups": 2**20, "ic": 1, "oc": 4},
    ],
    ids=str,
)
def test_absurd_sizes_neither_overflow_nor_take_long(
    plan_of: Any, fields: dict[str, int], target: Any
) -> None:
    problem = image_problem(**fields)
    plan = plan_of(problem, target)
    assert fastest(3, lambda: plan_of(problem, target)) < 0.01
    assert plan.items > 0
    if plan_of is host.plan_conv:
        assert plan.items == problem.shape.groups * plan.blocks_n * plan.blocks_h * plan.blocks_w
    assert plan.blocks_h == -(-problem.shape.lr_h // plan.block_h)
    assert plan.blocks_w == -(-problem.shape.lr_w // plan.block_w)
    for inner in (False, True):
        assert host.input_tile(problem.shape, plan.block_h, plan.block_w, target.lanes, inner).image_step > 0


@pytest.mark.parametrize("width", [640, 4096, 65536])
def test_planning_is_fast(width: int) -> None:
    """It happens on every first call of a shape: 50 us of it would be more than a small convolution takes."""
    problem = image_problem(lr_h=64, lr_w=width)
    assert fastest(20, lambda: host.plan_conv(problem, AVX512)) < 50e-6
