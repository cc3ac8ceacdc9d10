# SPDX-License-Identifier: BSD-3-Clause
"""The CPU library's plans for tile registers (AMX): bfloat16, 16 pixels x 32 channels at a time."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from plan_problems import (
    AMX,
    EXAMPLES,
    host,
    image_problem,
    matrix_targets,
    plan_weight_grad,
    problems,
    targets,
)

PIXELS, CHANNELS, COLUMN = 16, 32, 16  # of a tile: pixels, channels, output channels


def rounded(n: int, to: int) -> int:
    return -(-n // to) * to


@given(problem=problems, target=targets | matrix_targets)
@EXAMPLES
def test_tile_registers_need_finite_weights(problem: Any, target: Any) -> None:
    """And their own type: all plans without them are as if there were none."""
    offered = target.matrix_tiles != host.MatrixTiles.NONE and not problem.no_winograd
    assert (host.plan_conv(problem, target).cycles[host.MATRIX] >= 0) == offered
    assert (plan_weight_grad(problem, target).matrix_cycles >= 0) == offered
    problem.no_winograd = True
    assert host.plan_conv(problem, target).kernel != host.MATRIX
    assert not plan_weight_grad(problem, target).matrix


@given(problem=problems, target=matrix_targets)
@EXAMPLES
def test_tiles_of_a_convolution(problem: Any, target: Any) -> None:
    shape = problem.shape
    plan = host.plan_conv(problem, target)
    if plan.kernel != host.MATRIX:
        return
    assert plan.tile_oc % COLUMN == 0
    assert 0 < plan.tile_oc * plan.interleaved_tiles <= 128, "more than is transposed together"
    assert plan.panel_tiles == plan.interleaved_tiles
    if plan.single_phase:
        assert problem.phase_oc % plan.tile_oc == 0
        assert plan.interleaved_tiles == problem.phase_interleave
    elif problem.interleave in host.REGISTER_INTERLEAVE and plan.panels > 1 and problem.interleave != 9:
        assert plan.tile_oc % problem.interleave == 0, "a panel cuts an interleave group"
    tiles = rounded(shape.ic, CHANNELS) // CHANNELS * shape.kernel_h * shape.kernel_w
    if plan.joined_taps:
        assert shape.ic * shape.kernel_w <= CHANNELS
        assert not plan.single_phase
        assert plan.input_tile.column_step == shape.ic, "neighbouring taps have a gap"
        tiles = shape.kernel_h
    assert plan.panel_elements == plan.panel_tiles * plan.tile_oc // COLUMN * tiles * 256
    assert plan.panels * plan.panel_tiles * plan.tile_oc >= shape.oc
    assert plan.channels_inner
    tile = plan.input_tile
    assert plan.joined_taps or tile.column_step % CHANNELS == 0
    assert tile.column_step >= shape.ic


@given(problem=problems, target=matrix_targets)
@EXAMPLES
def test_strips_of_a_convolution(problem: Any, target: Any) -> None:
    """Strips go from row to row where that computes fewer pixels and the packed input tile has no gap."""
    shape = problem.shape
    plan = host.plan_conv(problem, target)
    if plan.kernel != host.MATRIX:
        return
    spared = problem.spared_w if plan.single_phase else 0
    row = plan.block_w + (shape.kernel_w + spared - 1) * shape.dilation_w
    unit = (shape.stride_h, shape.stride_w) == (1, 1)
    assert plan.flat == (unit and row <= rounded(plan.block_w, PIXELS))
    assert plan.row_pixels == (row if plan.flat else rounded(plan.block_w, PIXELS))
    if plan.flat:
        assert plan.input_tile.row_step == plan.row_pixels * plan.input_tile.column_step
    assert 1 <= plan.chunk_rows <= plan.block_h
    sums = plan.chunk_rows * plan.row_pixels * plan.tile_oc * plan.interleaved_tiles * 4
    assert plan.chunk_rows == 1 or sums <= 32 << 10, "sums leave the first cache"


@given(problem=problems, target=matrix_targets)
@EXAMPLES
def test_tiles_of_a_weight_gradient(problem: Any, target: Any) -> None:
    shape = problem.shape
    plan = plan_weight_grad(problem, target)
    if not plan.matrix:
        return
    for block, channels in ((plan.block_ic, shape.ic), (plan.block_oc, shape.oc)):
        assert block % COLUMN == 0 or block == channels
    row = plan.block_w + (shape.kernel_w - 1) * shape.dilation_w
    unit = (shape.stride_h, shape.stride_w) == (1, 1)
    assert plan.flat == (unit and row <= rounded(plan.block_w, CHANNELS))
    assert plan.row_pixels == (row if plan.flat else rounded(plan.block_w, CHANNELS))
    pixels = (
        rounded((plan.block_h - 1) * row + plan.block_w, CHANNELS)
        if plan.flat
        else plan.block_h * plan.row_pixels
    )
    assert plan.tiles == plan.block_n * pixels
    tile, gradient = plan.input_tile, plan.gradient_tile
    assert tile.column_step == rounded(plan.block_ic, CHANNELS)
    assert gradient.column_step == rounded(plan.block_oc, CHANNELS)
    assert gradient.row_step == plan.row_pixels * gradient.column_step
    assert gradient.image_step >= pixels * gradient.column_step, "a tile reaches into the next image"
    assert not plan.flat or tile.row_step == gradient.row_step // gradient.column_step * tile.column_step


def test_wide_layers_are_multiplied_in_tile_registers_and_tiny_ones_are_not() -> None:
    assert host.plan_conv(image_problem(ic=64, oc=256), AMX).kernel == host.MATRIX
    assert plan_weight_grad(image_problem(ic=64, oc=256), AMX).matrix
    tiny = {"ic": 4, "oc": 4, "lr_h": 8, "lr_w": 8}
    assert host.plan_conv(image_problem(**tiny), AMX).kernel != host.MATRIX


def test_taps_of_few_channels_are_joined() -> None:
    """All that a row of taps reads of a colour image fits one tile, unless phases lack taps."""
    first = {
        "ic": 3, "oc": 64, "lr_h": 128, "lr_w": 128, "ic_interleave": 3, "interleave": 64,
        "oc_contiguous": True,
    }  # fmt: skip
    plan = host.plan_conv(image_problem(**first), AMX)
    assert (plan.kernel, plan.joined_taps) == (host.MATRIX, True)
    for changed in ({"ic": 11}, {"mean_taps": 6.0}, {"dilation_w": 2}, {"stride_w": 2}, {"kernel_w": 1}):
        problem = image_problem(**{**first, **{k: v for k, v in changed.items() if k != "mean_taps"}})
        problem.mean_taps = changed.get("mean_taps", problem.mean_taps)
        assert not host.plan_conv(problem, AMX).joined_taps


def test_words() -> None:
    words = host.describe(host.plan_conv(image_problem(ic=64, oc=256), AMX))
    assert words.startswith("matrix tiles, tile of 64 output channels x 32 pixels, ")
    assert ", OW-vectorised at " in words
    words = host.describe(plan_weight_grad(image_problem(ic=64, oc=256), AMX))
    assert words.startswith("matrix tiles, tile of up to 2 vectors of output channels x 32 input channels, ")
    assert ", products of channels at " in words
    assert ", Winograd F(3x3, 2x2) at " in words
