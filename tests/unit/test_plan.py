# SPDX-License-Identifier: BSD-3-Clause
"""The pure host logic of csrc, without any kernel: the index map, the plan, the strip."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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


# ---- problems and targets ----------------------------------------------------------------------------------


def make(Class: Any, **fields: Any) -> Any:
    made = Class()
    for name, value in fields.items():
        setattr(made, name, value)
    return made


def make_problem(rows: int, share: float, **fields: Any) -> Any:
    """Phases of equal size, where they do not mix; an average one has so large a share of all taps."""
    taps = fields["kernel_h"] * fields["kernel_w"] * share
    rows = fields["phase_rows"] * fields["phase_turns"] * (1 + rows % 3) or rows
    return make(host.CpuProblem, rows=rows, phase_taps=taps, **fields)


SIZES = st.integers(1, 70) | st.integers(1, 3000)
problems = st.builds(
    make_problem,
    batch=st.integers(0, 40),
    groups=st.integers(1, 8),
    channels=SIZES,
    rows=SIZES,
    lr_h=SIZES,
    lr_w=SIZES,
    kernel_h=st.just(3) | st.integers(1, 7),
    kernel_w=st.just(3) | st.integers(1, 7),
    stride_h=st.just(1) | st.integers(1, 4),
    stride_w=st.just(1) | st.integers(1, 4),
    dilation_h=st.just(1) | st.integers(1, 9),
    dilation_w=st.just(1) | st.integers(1, 9),
    run=st.sampled_from([0, 1, 2, 3, 4, 5, 6, 8, 9, 12, 16, 24, 48]),
    rows_dense=st.booleans(),
    late_h=st.integers(0, 1),
    late_w=st.integers(0, 1),
    phase_rows=st.sampled_from([0, 1, 3, 10, 16, 32, 64, 192]),
    phase_turns=st.integers(1, 9),
    share=st.sampled_from([1.0, 0.75, 0.6, 0.25]),
    source_dense=st.booleans(),
    source_planes=st.booleans(),
)
targets = st.builds(
    lambda bytes_and_lanes, **fields: make(
        host.CpuTarget, element_bytes=bytes_and_lanes[0], lanes=bytes_and_lanes[1], **fields
    ),
    bytes_and_lanes=st.sampled_from([(4, 4), (4, 8), (4, 16), (8, 2), (8, 4), (8, 8)]),
    registers=st.sampled_from([16, 32]),
    l2_bytes=st.sampled_from([1 << 17, 1 << 18, 1 << 20, 5 << 18, 1 << 21, 1 << 24]),
    threads=st.sampled_from([1, 2, 3, 16, 64]),
)
EXAMPLES = settings(max_examples=300, deadline=None, derandomize=True)
PLANS = {"conv": host.plan_cpu_conv, "weight_grad": host.plan_cpu_weight_grad}
AVX512 = make(host.CpuTarget, lanes=16, registers=32, l2_bytes=1 << 21, threads=2, element_bytes=4)


def image_problem(**fields: Any) -> Any:
    """A 3x3 head on a small image, but for ``fields``."""
    default = {
        "batch": 1, "groups": 1, "channels": 64, "rows": 12, "lr_h": 64, "lr_w": 64, "kernel_h": 3,
        "kernel_w": 3, "stride_h": 1, "stride_w": 1, "dilation_h": 1, "dilation_w": 1, "run": 2,
        "rows_dense": False, "late_h": 0, "late_w": 0, "phase_rows": 0, "phase_turns": 1,
        "source_dense": False, "source_planes": False,
    }  # fmt: skip
    fields = {**default, **fields}
    return make(host.CpuProblem, **{"phase_taps": fields["kernel_h"] * fields["kernel_w"], **fields})


# ---- properties of every plan ------------------------------------------------------------------------------


@pytest.mark.parametrize("which", PLANS)
@given(problem=problems, target=targets)
@EXAMPLES
def test_blocks_cover_the_output_once(which: str, problem: Any, target: Any) -> None:
    """Blocks of equal size, none of them empty, the last one cut off at the edge."""
    plan = PLANS[which](problem, target)
    for size, block, blocks in (
        (problem.batch, plan.block_n, plan.blocks_n),
        (problem.lr_h - problem.late_h * plan.phased, plan.block_h, plan.blocks_h),
        (problem.lr_w - problem.late_w * plan.phased, plan.block_w, plan.blocks_w),
    ):
        assert block >= 1
        assert block <= max(size, 1)
        assert blocks == -(-size // block)
    assert plan.items == problem.groups * plan.blocks_n * plan.blocks_h * plan.blocks_w


@given(problem=problems, target=targets)
@EXAMPLES
def test_tiles_exist_and_fit_the_registers(problem: Any, target: Any) -> None:
    """What the plan chooses is in the kernels' tables: sums and operands fit the register file."""
    plan = host.plan_cpu_conv(problem, target)
    if plan.kernel == host.CHANNEL_LANES:
        vectors, rest = divmod(plan.tile_rows, target.lanes)
        assert rest == 0
        assert 1 <= vectors <= 4
        assert 1 <= plan.tile_pixels <= host.channel_pixels(vectors, target.registers)
        assert plan.tile_pixels * vectors + vectors + 1 <= target.registers
        assert plan.panel_tiles == plan.turns, "the channel-lane kernel stores tile by tile"
        assert plan.turns * vectors <= 8
    else:
        assert plan.tile_rows in host.TILE_ROWS
        assert plan.tile_pixels == host.pixel_vectors(plan.tile_rows, target.registers)
        assert plan.tile_pixels * (plan.tile_rows + 1) + 1 <= target.registers
    plan = host.plan_cpu_weight_grad(problem, target)
    assert plan.tile_rows in host.TILE_ROWS
    assert plan.tile_pixels == host.gradient_columns(plan.tile_rows, target.registers)


@given(problem=problems, target=targets)
@EXAMPLES
def test_panels_hold_whole_runs(problem: Any, target: Any) -> None:
    """Rows that interleave in registers are in the sums together; panels hold no more than all rows."""
    plan = host.plan_cpu_conv(problem, target)
    tiles = -(-problem.rows // plan.tile_rows)
    assert 1 <= plan.panel_tiles <= tiles
    assert plan.turns in (1, plan.panel_tiles)
    in_registers = problem.run in (1, 2, 3, 4, 6, 8, 9, 12, 16)
    follow = plan.kernel != host.CHANNEL_LANES and plan.turns == 1
    if follow and in_registers and problem.rows % problem.run == 0:
        panel = plan.panel_tiles * plan.tile_rows
        assert panel % problem.run == 0 or plan.panel_tiles == tiles


def strip_of(problem: Any, target: Any, plan: Any) -> Any:
    if plan.kernel == host.WINOGRAD:
        return host.winograd_strip(problem, plan.block_h, plan.block_w, target.lanes)
    return host.strip_shape(problem, plan.block_h, plan.block_w, target.lanes, plan.channels_inner)


@given(problem=problems, target=targets)
@EXAMPLES
def test_strips_fit_their_share_of_the_cache(problem: Any, target: Any) -> None:
    """A third of L2; half of it where the filter does not stay; 2**14 values where that is more.

    The height is extrapolated from strips of one and three rows, roundings included, which at rows of 5/3
    vectors makes 5/3 of that. And some blocks cannot be smaller.
    """
    plan = host.plan_cpu_conv(problem, target)
    if plan.kernel == host.WINOGRAD:
        return
    size = plan.block_n * strip_of(problem, target, plan).image_step * target.element_bytes
    budget = max(target.l2_bytes // (3 if plan.filter_resident else 2), target.element_bytes << 14)
    height, width = {
        host.PIXEL_LANES: (1, target.lanes),
        host.CHANNEL_LANES: (1, plan.tile_pixels),
    }[plan.kernel]
    smallest = plan.block_n == 1 and plan.block_h <= height and plan.block_w <= width
    assert size <= 1.7 * budget or smallest


@given(problem=problems, target=targets)
@EXAMPLES
def test_winograd_only_where_it_is_one(problem: Any, target: Any) -> None:
    """3x3 in float, undilated; blocks of whole 2x2 tiles, but at edges, that fit the cache transformed."""
    problem.kernel_h = problem.kernel_w = 3
    plan = host.plan_cpu_conv(problem, target)
    steps = (problem.stride_h, problem.stride_w, problem.dilation_h, problem.dilation_w)
    if plan.kernel == host.WINOGRAD:
        assert steps == (1, 1, 1, 1)
        assert target.element_bytes == 4
        assert plan.block_n == 1
        assert plan.block_h % 2 == 0 or plan.block_h == problem.lr_h
        assert plan.block_w % (2 * target.lanes) == 0 or plan.block_w == problem.lr_w
        tiles = -(-plan.block_h // 2) * -(-plan.block_w // 2)
        rows, vectors = plan.panel_tiles * plan.tile_rows, -(-tiles // target.lanes)
        values = 16 * (problem.channels + rows) * vectors * target.lanes + 16 * problem.channels * rows
        smallest = plan.block_h <= 2 and plan.block_w <= 2 * target.lanes * plan.tile_pixels
        assert values * target.element_bytes <= target.l2_bytes * 7 / 8 or smallest
    problem.kernel_w = 2
    assert host.plan_cpu_conv(problem, target).kernel != host.WINOGRAD


@given(problem=problems, target=targets)
@EXAMPLES
def test_strip_holds_all_that_the_taps_read(problem: Any, target: Any) -> None:
    """For every pixel of a block rounded up to whole vectors; channels do not overlap."""
    plan = host.plan_cpu_weight_grad(problem, target)
    strip = host.strip_shape(problem, plan.block_h, plan.block_w, target.lanes, False)
    last_row = (plan.block_h - 1) * problem.stride_h + (problem.kernel_h - 1) * problem.dilation_h
    assert strip.rows == last_row + 1
    assert strip.phases == min(problem.stride_w, (problem.kernel_w - 1) * problem.dilation_w + 1)
    width = -(-plan.block_w // target.lanes) * target.lanes
    for tap in range(problem.kernel_w):
        column = tap * problem.dilation_w
        assert column // problem.stride_w + width <= strip.phase_columns
    assert strip.row_step == strip.phases * strip.phase_columns
    assert strip.channel_step >= strip.rows * strip.row_step
    assert strip.channel_step % target.lanes == 0
    assert strip.channel_step // target.lanes % 2 == 1, "neighbouring channels share their cache sets"
    assert strip.image_step == problem.channels * strip.channel_step


@given(problem=problems, target=targets)
@EXAMPLES
def test_strip_of_neighbouring_channels(problem: Any, target: Any) -> None:
    """Columns do not overlap, and no more of them than the block's own taps read."""
    strip = host.strip_shape(problem, 5, 7, target.lanes, True)
    assert strip.channel_step == 1
    assert strip.column_step >= problem.channels
    assert strip.column_step % target.lanes == 0
    assert strip.column_step // target.lanes % 2 == 1, "neighbouring columns share their cache sets"
    reach = (problem.kernel_w - 1) * problem.dilation_w // problem.stride_w
    assert strip.phase_columns == 7 + reach
    assert strip.row_step == strip.phases * strip.phase_columns * strip.column_step
    assert strip.image_step == strip.rows * strip.row_step


@given(problem=problems, target=targets)
@EXAMPLES
def test_pixels_and_taps_are_saved_only_where_every_tile_holds_one_phase(problem: Any, target: Any) -> None:
    plan = host.plan_cpu_conv(problem, target)
    lanes = plan.kernel == host.CHANNEL_LANES
    assert (lanes and problem.source_dense) <= plan.channels_inner
    assert plan.channels_inner <= (lanes and (problem.source_dense or problem.source_planes))
    if plan.phased:
        assert plan.kernel != host.WINOGRAD
        assert problem.late_h or problem.late_w or problem.phase_taps < problem.kernel_h * problem.kernel_w
        assert problem.phase_rows % plan.tile_rows == 0
    assert plan.turns == (problem.phase_turns if plan.phased else 1)
    assert plan.panels == -(-problem.rows // (plan.tile_rows * plan.panel_tiles))


@pytest.mark.parametrize("which", PLANS)
@given(problem=problems, target=targets)
@EXAMPLES
def test_parallel_only_where_it_pays(which: str, problem: Any, target: Any) -> None:
    plan = PLANS[which](problem, target)
    work = math.prod(
        (problem.batch, problem.groups, problem.channels, problem.rows, problem.lr_h, problem.lr_w)
    )
    work *= problem.kernel_h * problem.kernel_w
    if target.threads == 1 or work < 2e5:
        assert not plan.parallel
    if target.threads > 1 and work > 1e7:
        assert plan.parallel


@given(items=st.integers(0, 10**4), threads=st.integers(1, 64))
def test_shares_cover_all_items_once_and_shrink_to_single_ones(items: int, threads: int) -> None:
    shares, done, sizes = host.Shares(items, threads), 0, []
    while (share := shares.take()) != (items, items):
        begin, end = share
        assert begin == done < end <= items
        assert end - begin <= max(1, (items - done) / (2 * threads))  # nobody waits long for who took it
        sizes.append(end - begin)
        done = end
    assert done == items
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) <= 2 * threads * (2 + math.log(items + 1))  # nor do threads meet at every item
    assert shares.take() == (items, items)


# ---- single decisions --------------------------------------------------------------------------------------


def test_few_rows_take_pixel_lanes_and_wide_layers_channel_lanes() -> None:
    narrow = image_problem(kernel_h=5, kernel_w=5)
    wide = image_problem(kernel_h=5, kernel_w=5, rows=256, lr_h=8, lr_w=8, run=512, rows_dense=True)
    assert host.plan_cpu_conv(narrow, AVX512).kernel == host.PIXEL_LANES
    assert host.plan_cpu_conv(wide, AVX512).kernel == host.CHANNEL_LANES


@pytest.mark.parametrize("threads", [2, 3, 4, 8, 16])
@pytest.mark.parametrize("shape", [(1, 360, 640), (1, 64, 64), (16, 24, 24), (5, 33, 70)], ids=str)
def test_threads_get_even_shares(threads: int, shape: tuple[int, int, int]) -> None:
    """The slowest thread does at most a quarter more than the average one."""
    batch, lr_h, lr_w = shape
    target = make(host.CpuTarget, lanes=16, registers=32, l2_bytes=1 << 21, threads=threads, element_bytes=4)
    problem = image_problem(batch=batch, lr_h=lr_h, lr_w=lr_w)
    plan = host.plan_cpu_conv(problem, target)
    assert plan.parallel
    shares = -(-plan.items // threads)  # items of the thread that has most
    block = plan.block_n * plan.block_h * plan.block_w
    assert shares * block * threads <= 1.25 * batch * lr_h * lr_w + block


def test_pixels_that_share_nothing_come_in_small_blocks() -> None:
    """Of a 1x1 convolution in channels_last: a block leaves most of the cache to what the next one reads."""
    problem = image_problem(
        channels=128, rows=256, run=128, rows_dense=True, source_dense=True, kernel_h=1, kernel_w=1
    )
    plan = host.plan_cpu_conv(problem, AVX512)
    assert plan.channels_inner
    assert 4 * 128 * plan.block_h * plan.block_w <= AVX512.l2_bytes / 8
    assert plan.block_w == problem.lr_w, "rows are whole"


def test_planes_are_packed_with_channels_as_neighbours_where_many_rows_read_them() -> None:
    layer = {"channels": 512, "lr_h": 14, "lr_w": 14, "kernel_h": 1, "kernel_w": 1}
    many = image_problem(rows=1024, source_planes=True, **layer)
    few = image_problem(rows=256, source_planes=True, **layer)
    neither = image_problem(rows=1024, **layer)
    plans = [host.plan_cpu_conv(problem, AVX512) for problem in (many, few, neither)]
    assert [plan.kernel for plan in plans] == 3 * [host.CHANNEL_LANES]
    assert [plan.channels_inner for plan in plans] == [True, False, False]


@pytest.mark.parametrize(("channels_last", "rows"), [(False, 512), (True, 512), (False, 12)])
def test_taps_that_phases_lack_are_saved(channels_last: bool, rows: int) -> None:
    """Of 3x3 with stride 2, which has 9 taps in 4 phases; neighbouring rows of NCHW are of two phases."""
    layer = {"channels": 256, "rows": rows, "kernel_h": 2, "kernel_w": 2, "phase_rows": rows // 4}
    turns = {"run": rows // 2, "rows_dense": True} if channels_last else {"run": 2, "phase_turns": 2}
    plan = host.plan_cpu_conv(image_problem(**layer, **turns, phase_taps=9 / 4), AVX512)
    assert plan.kernel == (host.CHANNEL_LANES if rows > 12 else host.PIXEL_LANES)
    assert plan.phased
    assert plan.turns == plan.panel_tiles == (1 if channels_last else 2)
    assert not host.plan_cpu_conv(image_problem(**layer, **turns), AVX512).phased


def test_a_small_filter_stays_and_a_large_one_does_not() -> None:
    assert host.plan_cpu_conv(image_problem(), AVX512).filter_resident
    assert not host.plan_cpu_conv(image_problem(channels=512, rows=512), AVX512).filter_resident


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


@pytest.mark.parametrize("which", PLANS)
@pytest.mark.parametrize(
    "fields",
    [
        {"lr_h": HUGE},
        {"lr_w": HUGE},
        {"lr_h": HUGE, "lr_w": HUGE, "channels": 1, "kernel_h": 1},
        {"batch": HUGE, "lr_h": 2**14, "lr_w": 2**14},
        {"channels": HUGE, "rows": 1, "lr_h": 1, "lr_w": 1},
        {"rows": HUGE, "channels": 1, "run": 1},
        {"kernel_h": 2**15, "kernel_w": 2**15, "lr_h": 2, "lr_w": 3},
        {"dilation_h": 2**20, "dilation_w": 2**20, "channels": 3},
        {"stride_h": 2**20, "stride_w": 2**20, "channels": 3},
        {"groups": 2**20, "channels": 1, "rows": 4},
    ],
    ids=str,
)
def test_absurd_sizes_neither_overflow_nor_take_long(which: str, fields: dict[str, int]) -> None:
    problem = image_problem(**fields)
    plan = PLANS[which](problem, AVX512)
    assert fastest(3, lambda: PLANS[which](problem, AVX512)) < 0.01
    assert plan.items > 0
    assert plan.items == problem.groups * plan.blocks_n * plan.blocks_h * plan.blocks_w
    assert plan.blocks_h == -(-problem.lr_h // plan.block_h)
    assert plan.blocks_w == -(-problem.lr_w // plan.block_w)
    for inner in (False, True):
        assert host.strip_shape(problem, plan.block_h, plan.block_w, AVX512.lanes, inner).image_step > 0


@pytest.mark.parametrize("width", [640, 4096, 65536])
def test_planning_is_fast(width: int) -> None:
    """It happens on every call: 50 us of it would be more than a small convolution takes."""
    problem = image_problem(lr_h=64, lr_w=width)
    assert fastest(20, lambda: host.plan_cpu_conv(problem, AVX512)) < 50e-6
