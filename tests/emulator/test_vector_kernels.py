# SPDX-License-Identifier: BSD-3-Clause
"""Tensor-core convolutions that load and store whole 16-byte vectors: exact, wherever one may end."""

from __future__ import annotations

import itertools
import math

import cases
import emulated
import pytest
import torch
from cases import SAME3, Case, variant
from emulated import LARGE, SMALL, Target
from gradients import exact as exact_gradients
from gradients import integer_gradient
from tiers import tiered

FLOATS, TILE_ROWS, PIXELS = 0, 1, 2  # enum class Staging
TYPES = (torch.float16, torch.bfloat16, torch.float32)

# Rows of the output are whole vectors in every type, but for the cases that say otherwise.
CASES = (
    Case("r=3, odd groups", (2, 16, 9, 24), (9, 16, 3, 3), (3, 3), padding=SAME3, activation="relu"),
    Case("r=3 colour", (1, 24, 7, 16), (27, 24, 3, 3), (3, 3), padding=SAME3, order="dcr"),
    Case("r=4", (1, 16, 5, 18), (48, 16, 3, 3), (4, 4), padding=(2, 1, 0, 1), activation="leaky_relu"),
    Case("uneven factors", (2, 16, 6, 20), (48, 16, 2, 3), (4, 2), clamp=(-9.0, 30.0)),
    Case("several rows of tiles", (1, 40, 19, 40), (32, 40, 3, 3), padding=SAME3),
    Case("groups that blocks cut", (1, 16, 6, 9), (4 * 96, 16, 1, 1), activation="prelu", slopes=96),
    Case("groups of two sizes", (1, 24, 5, 12), (2 * 72, 24, 1, 3), (1, 2), padding=(0, 1, 0, 1)),
    Case("crop", (1, 16, 7, 6), (4 * 8, 16, 3, 3), padding=SAME3, crop=(1, 1, 0, 1), clamp=(None, 5.0)),
    Case("crop, late pixels", (2, 16, 6, 5), (4 * 16, 16, 2, 2), padding=(1, 1, 1, 1), crop=(1, 1, 1, 1)),
    Case("crop by a vector", (1, 16, 4, 6), (2 * 8 * 3, 16, 1, 1), (2, 8), crop=(1, 8, 0, 0)),
    Case("small images", (5, 32, 4, 8), (24, 32, 3, 3), (1, 2), padding=SAME3),
    Case("r=1", (3, 16, 5, 8), (12, 16, 3, 3), (1, 1), padding=SAME3, activation="relu"),
    Case("r=1, 40 channels", (2, 24, 6, 16), (40, 24, 3, 1), (1, 1), activation="leaky_relu"),
    Case("one row", (2, 16, 1, 72), (16, 16, 1, 3), (1, 4)),
    Case("one pixel", (1, 16, 1, 1), (32, 16, 1, 1), (2, 2)),
    Case("stride and dilation", (1, 16, 13, 17), (32, 16, 3, 2), stride=(2, 2), dilation=(1, 3)),
    Case("pixels of half vectors", (2, 12, 9, 24), (16, 12, 3, 3), padding=SAME3, activation="relu"),
    Case("pixels of halves, cropped", (1, 60, 5, 16), (24, 60, 3, 3), padding=SAME3, crop=(1, 1, 0, 0)),
    Case("pixels of 8 bytes", (1, 6, 19, 40), (16, 6, 3, 3), padding=SAME3, activation="leaky_relu"),
    Case("rows that end within a vector", (1, 16, 4, 7), (12, 16, 3, 3), padding=SAME3),
)
WIDE = (
    Case("128 rows", (1, 64, 16, 16), (128, 64, 3, 3), padding=SAME3, activation="relu"),
    Case("two images to a tile", (3, 128, 7, 8), (256, 128, 1, 1), activation="prelu", slopes=256),
    Case("late phases", (1, 64, 8, 8), (512, 64, 2, 2), padding=(1,) * 4, crop=(1,) * 4, clamp=(-30.0, 30.0)),
    Case("odd channels", (1, 64, 8, 8), (135, 64, 1, 1), (1, 3)),
    Case("groups of four", (1, 64, 8, 16), (128, 64, 1, 1), (2, 4)),
    Case("136 rows, cropped", (1, 64, 9, 16), (136, 64, 3, 1), (1, 2), crop=(0, 1, 2, 0)),
)
LAYOUTS = {False: torch.contiguous_format, True: torch.channels_last}
every_combination = pytest.mark.parametrize(
    ("of_type", "channels_last"), list(itertools.product(TYPES, LAYOUTS)), ids=str
)


def check(case: Case, of_type: torch.dtype, channels_last: bool, target: Target, seed: int) -> None:
    """Forward pass and input gradient, exact on integers, between guards."""
    layout = LAYOUTS[channels_last]
    tensors, start = cases.integers(case).to(of_type, layout), bool(seed % 2)
    found = emulated.forward(case, tensors, channels_last, target, tf32=True, seed=seed, guard_start=start)
    torch.testing.assert_close(found, cases.exact(case).to(of_type), rtol=0, atol=0)
    if case.stride == (1, 1):
        bare = variant(case, activation=None, slopes=0, clamp=None)
        grad = integer_gradient(bare).to(of_type).contiguous(memory_format=layout)
        weight = cases.integers(bare).weight.to(of_type).contiguous(memory_format=layout)
        found = emulated.input_grad(
            bare, grad, weight, channels_last, target, tf32=True, seed=seed, guard_start=start
        )
        torch.testing.assert_close(found, exact_gradients(bare)[0].to(of_type), rtol=0, atol=0)


@every_combination
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_exact_on_integers(case: Case, of_type: torch.dtype, channels_last: bool) -> None:
    index = CASES.index(case)
    check(case, of_type, channels_last, (LARGE, SMALL)[index % 2], seed=index)


@every_combination
def test_blocks_of_many_tiles(of_type: torch.dtype, channels_last: bool) -> None:
    """After a tile inside the image comes one that is not, by a single row; after one of four images, one of
    three."""
    for case in (
        Case("rows", (1, 16, 24, 96), (16, 16, 3, 3), padding=SAME3),
        Case("images", (27, 16, 4, 8), (16, 16, 1, 1)),
    ):
        plan = emulated.plan(case, of_type, channels_last, LARGE, tf32=True)
        assert plan.staging != FLOATS and plan.tiles > plan.blocks
        check(case, of_type, channels_last, LARGE, seed=1)


@every_combination
@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.name)
def test_hopper(case: Case, of_type: torch.dtype, channels_last: bool) -> None:
    check(case, of_type, channels_last, emulated.HOPPER, seed=WIDE.index(case))


@tiered(
    ("channels", "of_type", "channels_last"),
    itertools.product([8, 24, 40], TYPES, LAYOUTS),
    fast=[(24, TYPES[0], True), (40, TYPES[1], False), (8, TYPES[2], True)],
)
def test_a_weight_is_read_where_it_is(channels: int, of_type: torch.dtype, channels_last: bool) -> None:
    """A small one of whole vectors, by blocks that stay. Others of the same shapes are packed: same bits."""
    for kernel, order, rows in ((3, "crd", 12), (3, "dcr", 48), (1, "crd", 96)):
        case = Case("direct", (3, channels, 16, 32), (rows, channels, kernel, kernel), order=order,
                    padding=(kernel // 2,) * 4)  # fmt: skip
        packs = emulated.plan(case, of_type, channels_last, LARGE, tf32=True).packs_weight
        assert packs == (not (channels_last or kernel == 1))
        tensors = cases.integers(case).to(of_type, LAYOUTS[channels_last])
        shifted = torch.empty(tensors.weight.numel() + 1, dtype=of_type)[1:]
        odd = shifted.as_strided(tensors.weight.shape, tensors.weight.stride()).copy_(tensors.weight)
        last = tensors.weight.contiguous(memory_format=torch.channels_last)
        for weight in (tensors.weight, last, odd):
            found = emulated.forward(
                case, tensors._replace(weight=weight), channels_last, LARGE, tf32=True, guard_start=True
            )
            torch.testing.assert_close(found, cases.exact(case).to(of_type), rtol=0, atol=0)
        rounded = cases.randoms(case, of_type).to(of_type, LAYOUTS[channels_last])
        found = [
            emulated.forward(
                case, rounded._replace(weight=weight.copy_(rounded.weight)), channels_last, LARGE, tf32=True
            )
            for weight in (last, odd)
        ]
        assert found[0].equal(found[1])


@every_combination
@pytest.mark.parametrize("case", WIDE, ids=lambda case: case.name)
def test_a_weight_of_whole_vectors_is_packed_by_vectors(
    case: Case, of_type: torch.dtype, channels_last: bool
) -> None:
    """The same bits as from a weight that is read element by element."""
    tensors = cases.randoms(case, of_type).to(of_type, LAYOUTS[channels_last])
    found = [
        emulated.forward(
            case,
            tensors._replace(weight=tensors.weight.contiguous(memory_format=layout)),
            channels_last,
            emulated.HOPPER,
            tf32=True,
            guard_start=True,
        )
        for layout in LAYOUTS.values()
    ]
    assert found[0].equal(found[1])
    truth = cases.plain(case, tensors.double())
    assert emulated.error(found[1], truth) < 0.02 * float(truth.abs().max())


def stagings(some: tuple[Case, ...], target: Target) -> set[tuple[int, torch.dtype, bool, int]]:
    """(kernel, type, channels_last, staging) that plans of these cases have."""
    return {
        (plan[0], of_type, channels_last, plan[5])
        for case, of_type, channels_last in itertools.product(some, TYPES, LAYOUTS)
        for plan in [emulated.plan(case, of_type, channels_last, target, tf32=True)]
    }


def test_the_cases_meet_every_kernel() -> None:
    met = stagings(CASES, LARGE) | stagings(WIDE, emulated.HOPPER)
    for of_type in TYPES:
        for kernel in (emulated.MMA, emulated.WGMMA):
            assert {(kernel, of_type, last, TILE_ROWS) for last in LAYOUTS} <= met
            assert (kernel, of_type, True, PIXELS) in met
        assert {(emulated.MMA, of_type, last, FLOATS) for last in LAYOUTS} <= met


def test_a_tile_that_reaches_too_far_is_stored_by_elements() -> None:
    """The kernels for whole vectors count bytes within a tile in 32 bits: a row of 2 GB is too long, and so
    are four of 512 MB."""
    staging = {
        width: emulated.plan(
            Case("long rows", (1, 64, 16, width), (16, 64, 3, 3), padding=SAME3), torch.float16, True
        )[5]
        for width in (1 << 14, 1 << 22, 1 << 24)
    }
    assert staging == {1 << 14: TILE_ROWS, 1 << 22: FLOATS, 1 << 24: FLOATS}


def test_a_cropped_gradient_is_not_planned_as_a_whole_one() -> None:
    """unshuffle_reduce makes it whole. What that cannot count is gathered, whatever
    has been planned before."""
    whole = Case("whole", (1, 16, 8, 8), (32, 16, 3, 3), padding=SAME3)
    for scale, lowered, staging in ((1, 1, TILE_ROWS), (1 << 10, 0, FLOATS)):
        large = variant(whole, input=(1, 16, 8 * scale, 8 * scale))
        for crop in ((0,) * 4, (1,) * 4, (0,) * 4):
            found = emulated.plan(
                variant(large, crop=crop), torch.float16, True, emulated.HOPPER, which=cases.INPUT_GRAD
            )
            assert (found.lowered, found.staging) == ((lowered, staging) if any(crop) else (0, TILE_ROWS))


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "leaky_relu", "prelu"])
def test_infinities_and_nan(activation: str | None) -> None:
    """As PyTorch has them, with a clamp and without."""
    slopes = 1 if activation == "prelu" else 0
    case = Case("one", (1, 16, 1, 8), (16, 16, 1, 1), (1, 1), activation=activation, slopes=slopes)
    assert emulated.plan(case, torch.float16, True, LARGE)[5] == TILE_ROWS
    for clamp in (None, (-2.0, 3.0), (2.0, None), (7.0, 8.0), (None, -1.0)):
        changed = variant(case, clamp=clamp)
        tensors = cases.integers(changed).to(torch.float16, torch.channels_last)
        tensors.input[0, 0, 0, :4] = torch.tensor([math.inf, -math.inf, math.nan, 60000.0])
        tensors.weight[:, 0] = 1
        found = emulated.forward(changed, tensors, True, LARGE)
        expected = cases.plain(changed, tensors.double()).half()
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=0, equal_nan=True)


def test_a_residual_and_a_curve_are_stored_by_elements() -> None:
    """Their plans are others; the numbers are tested with those of every epilogue."""
    case = Case("64 rows", (1, 16, 8, 8), (64, 16, 3, 3), padding=SAME3)
    for changes in ({"residual": "high"}, {"activation": "sigmoid"}, {"activation": "hardswish"}):
        changed = variant(case, **changes)
        tensors = cases.randoms(changed, torch.float16).to(torch.float16, torch.channels_last)
        found = emulated.forward(changed, tensors, True, LARGE)
        assert emulated.error(found, cases.plain(changed, tensors.double())) < 0.05
