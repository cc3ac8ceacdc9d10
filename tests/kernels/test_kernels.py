# SPDX-License-Identifier: BSD-3-Clause
"""The compiled CPU forward against the loop-nest oracle: every instruction set, dtype, layout and tile."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator

import cases
import numpy as np
import oracle
import pytest
import torch
import torch.nn.functional as F
from cases import (
    CPU_BASES,
    CURVED,
    EPILOGUES,
    GEOMETRIES,
    LARGE,
    LAYOUTS,
    NARROW,
    ROWS,
    WIDE,
    Case,
    Tensors,
    variant,
)
from conftest import needs_cpu_library
from rotation import ISA_NAMES, rotated, rotated_layouts, rotated_without_isa
from torch import Tensor

import fused_subpixel as fs
from fused_subpixel import reference

pytestmark = [needs_cpu_library, pytest.mark.usefixtures("one_thread", "poisoned_outputs")]


# ---- the oracle --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("upscale", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": (2, 1), "padding": (1, 2)},
        {"dilation": (1, 2), "groups": 3},
    ],
)
def test_oracle_is_what_people_write(upscale: int, options: dict[str, tuple[int, int]]) -> None:
    groups = options.get("groups", 1)
    x, bias = torch.randn(2, 3, 5, 6, dtype=torch.float64), torch.randn(6 * upscale**2, dtype=torch.float64)
    weight = torch.randn(6 * upscale**2, 3 // groups, 3, 2, dtype=torch.float64)
    expected = F.pixel_shuffle(F.conv2d(x, weight, bias, **options), upscale)
    if "padding" in options:
        options = {**options, "padding": options["padding"] * 2}
    found = oracle.subpixel_conv2d(x.numpy(), weight.numpy(), bias.numpy(), (upscale, upscale), **options)
    torch.testing.assert_close(torch.from_numpy(found), expected)


@pytest.mark.parametrize("case", (*GEOMETRIES, *EPILOGUES), ids=str)
def test_oracle_is_the_reference(case: Case) -> None:
    assert cases.plain(case, cases.integers(case)).equal(cases.exact(case))


# ---- right -------------------------------------------------------------------------------------------------


@rotated("case", (*GEOMETRIES, *EPILOGUES))
def test_exact_on_integers(case: Case, isa: int, dtype: torch.dtype, layout: str) -> None:
    """Sums are exact, so only the one rounding to the output's dtype is allowed; all pixels are written."""
    tensors = cases.integers(case).to(dtype, LAYOUTS[layout])
    found = cases.run(case, tensors)
    assert found.dtype == dtype
    assert found.equal(cases.exact(case).to(dtype))
    assert found.is_contiguous(memory_format=LAYOUTS[layout]) or tensors.input.is_contiguous()


def error(found: Tensor, truth: np.ndarray) -> float:
    return float(np.abs(found.double().numpy() - truth).max())


CURVED_CASES = tuple(
    case
    for base in CPU_BASES
    for case in (
        *(variant(base, activation=name) for name in CURVED),
        variant(base, activation="prelu", slopes=base.channels),
        variant(base, activation="silu", residual="high", clamp=(-0.5, 1.5)),
    )
)


# What took long would show nothing that the others do not.
RANDOM_CASES = [case for case in GEOMETRIES if cases.multiply_adds(case) < 5e6]


@functools.lru_cache(maxsize=4)  # of the instruction sets of one case
def truth_and_error(case: Case, dtype: torch.dtype, layout: str) -> tuple[np.ndarray, float]:
    """The result in float64 or longer, and the largest error of conv2d and pixel_shuffle."""
    tensors = cases.randoms(case, dtype)
    if dtype == torch.float64:  # whose own truth needs more digits
        truth = cases.by_oracle(case, tensors, np.longdouble)
    else:
        truth = cases.plain(case, tensors).numpy()
    return truth, error(cases.plain(case, tensors.to(dtype, LAYOUTS[layout])), truth)


@rotated("case", [*RANDOM_CASES, LARGE, ROWS, *CURVED_CASES], together=True)
def test_as_accurate_as_pytorch(case: Case, isa: int, dtype: torch.dtype, layout: str) -> None:
    """At most twice the error of conv2d and pixel_shuffle in the same dtype.

    Plus what the order of summation may do: one rounding per product, in the arithmetic type, adds up like a
    random walk; PyTorch's happens to be short where there are few outputs.
    """
    truth, pytorchs = truth_and_error(case, dtype, layout)
    tensors = cases.randoms(case, dtype).to(dtype, LAYOUTS[layout])
    arithmetic = torch.promote_types(dtype, torch.float32)
    walk = max(2, cases.products(case) ** 0.5 / 4) * torch.finfo(arithmetic).eps * float(np.abs(truth).max())
    assert error(cases.run(case, tensors), truth) <= 2 * pytorchs + walk


# One vector of tiles and several; output channels that fill panels, and that do not.
FEW_TILES = tuple(
    Case(
        f"{channels} to {rows}, {height}x{width}",
        (1, channels, height, width),
        (rows, channels, 3, 3),
        (1, 1),
        padding=cases.SAME3,
    )
    for channels, rows, height, width in ((512, 192, 10, 12), (1100, 40, 10, 12), (530, 61, 10, 11))
)


@rotated_layouts("case", FEW_TILES)
def test_long_sums_of_few_tiles(case: Case, isa: int, layout: str) -> None:
    """Whose weights are transformed a K block at a time, just before they are multiplied."""
    tensors = cases.integers(case).to(torch.float32, LAYOUTS[layout])
    words = fs.explain(fs.subpixel_conv2d, *tensors[:3], case.upscale, padding=1, backend="cpu").forward
    assert "weights packed as they are used" in words
    for number in (1, 2):
        with cases.threads(number):
            assert cases.run(case, tensors).double().equal(cases.exact(case))


@pytest.mark.parametrize("rows", [12, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("channels", "kernel"), [(256, 3), (8192, 1)])
def test_long_sums_are_as_accurate(
    channels: int, kernel: int, rows: int, dtype: torch.dtype, isa: int
) -> None:
    """In the root mean square, which luck moves little; the longer sums fail in a single chain."""
    case = Case(f"{channels} channels", (1, channels, 6, 20), (rows, channels, kernel, kernel))
    tensors = cases.randoms(case, dtype)
    truth = cases.by_oracle(case, tensors, np.longdouble)
    tensors = tensors.to(dtype)
    ours, pytorch = (
        float(np.square(f(case, tensors).double().numpy() - truth).mean() ** 0.5)
        for f in (cases.run, cases.plain)
    )
    assert ours <= 2 * pytorch


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ties_round_to_even(isa: int, dtype: torch.dtype, layout: str) -> None:
    """Sums halfway between two values of a half type: 2 * n + 1 where only even numbers are left."""
    case = Case("ties", (1, 1, 4, 37), (16, 1, 1, 1), (1, 1))
    first = {torch.bfloat16: 256, torch.float16: 2048}[dtype]
    x = (first + 2 * torch.arange(4 * 37).remainder(100)).view(case.input).to(dtype)
    ones = torch.ones(case.weight, dtype=dtype)
    tensors = Tensors(x.contiguous(memory_format=LAYOUTS[layout]), ones, ones.flatten())
    found, exact = cases.run(case, tensors), (x.double() + 1).expand(case.output)
    assert (found.double() - exact).abs().eq(1).all()
    assert found.equal(exact.to(dtype))


# ---- every tile --------------------------------------------------------------------------------------------


def tile_cases(dtype: torch.dtype, layout: str) -> Iterator[tuple[cases.Plan, Case]]:
    """One problem for every (kernel, tile rows, tile pixels) that the plan chooses somewhere on a grid."""
    seen = set()
    grid = itertools.product(
        (*range(1, 41), 48, 64, 96, 100, 128, 192),  # rows
        (*range(1, 21), 31, 35, 64),  # columns of pixels
        ((1, 1), (6, 1), (160, 1), (2, 3), (24, 3)),  # channels and kernel
    )
    for rows, width, (channels, kernel) in grid:
        r = next(r for r in (4, 3, 2, 1) if rows % r**2 == 0)
        pad = (kernel // 2,) * 4
        shape = (1, channels, 2, width)
        case = Case(f"{rows} rows", shape, (rows, channels, kernel, kernel), (r, r), padding=pad)
        plan = cases.plan_of(case, dtype, layout)
        if plan[:3] not in seen:
            seen.add(plan[:3])
            yield plan, case


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tile_that_the_plan_chooses(isa: int, dtype: torch.dtype, layout: str) -> None:
    heights: dict[int, set[int]] = {}
    for plan, case in tile_cases(dtype, layout):
        heights.setdefault(plan.kernel, set()).add(plan.tile_oc)
        tensors = cases.integers(case)
        expected = cases.plain(case, tensors).to(dtype)
        assert cases.run(case, tensors.to(dtype, LAYOUTS[layout])).equal(expected), case
    assert len(heights[cases.OW_VECTORISED]) >= 4, "few heights of OW-vectorised tiles: widen the grid"
    assert len(heights[cases.OC_VECTORISED]) >= 2, "few widths of OC-vectorised tiles: widen the grid"


def test_the_cases_take_every_way_through_the_plan(isa: int) -> None:
    """All kernels; blocks of several images, several blocks of rows and of columns; rows that stay packed
    from one block to the next; panels of several tiles; filters that do not stay packed. Sizes are for L2
    caches of up to 2 MB; with more, blocks are larger.
    """
    planned = [
        (case, cases.plan_of(case, dtype, layout))
        for case in GEOMETRIES
        for dtype in (torch.float32, torch.float64)
        for layout in LAYOUTS
    ]
    plans = [plan for _, plan in planned]
    assert {plan.kernel for plan in plans} == set(cases.KERNELS.values())
    assert any(plan.block_n > 1 for plan in plans)
    assert any(plan.panel_tiles > 1 for plan in plans)
    if cases.operators._cpu_capability()[2] <= 2 << 20:
        rows_stay = {plan.kernel for case, plan in planned if plan.blocks_h > 1 and cases.shared_rows(case)}
        assert rows_stay == set(cases.KERNELS.values()) - {cases.STREAMED}, "which has one block"
        assert any(plan.blocks_w > 1 for plan in plans)
        assert not all(plan.weights_resident for plan in plans)


@pytest.mark.parametrize(("base", "kernel"), cases.KERNELS.items(), ids=str)
def test_the_bases_take_every_kernel(isa: int, base: Case, kernel: int) -> None:
    assert kernel in {cases.plan_of(base, torch.float32, layout).kernel for layout in LAYOUTS}


@pytest.mark.parametrize("base", [NARROW, WIDE], ids=str)
@pytest.mark.parametrize("upscale", [1, 2, 3, 4])
def test_every_ragged_width(isa: int, layout: str, base: Case, upscale: int) -> None:
    rows = base.weight[0] // 4 * upscale**2
    for width in range(1, 36):
        shape = (1, 2, 2, width)
        case = Case(f"width {width}", shape, (rows, 2, 2, 2), (upscale, upscale), padding=(0, 0, 1, 1))
        tensors = cases.integers(case)
        found = cases.run(case, tensors.to(torch.float32, LAYOUTS[layout]))
        assert found.double().equal(cases.plain(case, tensors)), width


# ---- any memory --------------------------------------------------------------------------------------------

VIEWS = tuple(cases.views(torch.zeros(1, 1, 1, 1)))
VIEWED = tuple(
    variant(base, residual=kind, crop=crop, order=order)
    for base in CPU_BASES
    for kind, crop, order in (
        ("high", (0, 0, 0, 0), "crd"),
        ("low", (1, 2, 0, 1), "dcr"),
        ("nearest", (0, 0, 0, 0), "crd"),
    )
)  # fmt: skip


@rotated_without_isa(
    "case, view, name",
    itertools.product(VIEWED, VIEWS, ("input", "weight", "residual")),
    ["dtype"], [(torch.float32,), (torch.bfloat16,)],
)  # fmt: skip
def test_views(case: Case, name: str, view: str, dtype: torch.dtype) -> None:
    """Around every view lies NaN, and nothing that is not in it counts."""
    tensors = cases.integers(case).to(dtype)
    tensors = tensors._replace(**{name: cases.views(getattr(tensors, name))[view]})
    before = [None if t is None else t.clone() for t in tensors]
    expected = cases.plain(case, tensors.double()).to(dtype)
    for isa in cases.usable_isas():
        with cases.instruction_set(isa):
            assert cases.run(case, tensors).equal(expected)
    assert all(t is None or t.equal(b) for t, b in zip(tensors, before, strict=True)), (
        "an input was written to"
    )


@pytest.mark.parametrize(
    "case", [variant(base, activation="prelu", slopes=base.weight[0]) for base in CPU_BASES], ids=str
)
def test_views_of_vectors(case: Case, isa: int) -> None:
    tensors = cases.integers(case).to(torch.float32)
    expected = cases.run(case, tensors)
    spread = [
        torch.stack([t, torch.full_like(t, math.nan)], 1)[:, 0]
        for t in (tensors.bias, tensors.activation_weight)
    ]
    assert cases.run(case, tensors._replace(bias=spread[0], activation_weight=spread[1])).equal(expected)
    same = tensors._replace(bias=tensors.bias[:1].expand(case.weight[0]))
    assert cases.run(case, same).equal(cases.run(case, same._replace(bias=same.bias.clone())))


@rotated_layouts("case", VIEWED)
def test_residual_in_the_other_layout(case: Case, isa: int, layout: str) -> None:
    tensors = cases.integers(case).to(torch.float32, LAYOUTS[layout])
    other = next(format for name, format in LAYOUTS.items() if name != layout)
    tensors = tensors._replace(residual=tensors.residual.contiguous(memory_format=other))
    assert cases.run(case, tensors).double().equal(cases.exact(case))


@pytest.mark.parametrize("dim", range(4))
def test_offsets_past_32_bits(isa: int, dim: int) -> None:
    """Images, channels, rows or columns that lie 2**31 elements apart, in memory that is hardly touched."""
    case = variant(NARROW, residual="high")
    tensors = cases.integers(case).to(torch.bfloat16)
    room = cases.untouched(2**31 + 2**26, torch.bfloat16)
    expected = cases.exact(case).to(torch.bfloat16)
    for name in ("input", "weight", "residual"):
        tensor = getattr(tensors, name)
        strides = [1, 1 << 7, 1 << 14]
        strides.insert(dim, 2**31 // (tensor.shape[dim] - 1) + 1)
        far = room.as_strided(tensor.shape, strides)
        far.copy_(tensor)
        assert cases.run(case, tensors._replace(**{name: far})).equal(expected), name


@pytest.mark.full
def test_output_past_32_bits() -> None:
    """The last images of a batch whose output has more than 2**31 elements; all images are the same one."""
    if available_bytes() < 6 << 30:
        pytest.skip("needs 6 GB of memory")
    images, side = 2**11 + 1, 2**9
    case = Case("huge", (images, 1, side, side), (4, 1, 1, 1))
    one = cases.integers(Case("huge", (1, 1, side, side), (4, 1, 1, 1))).to(torch.bfloat16)
    found = cases.run(case, one._replace(input=one.input.expand(case.input)))
    assert found.numel() > 2**31
    expected = cases.plain(case, one)[0]
    for n in (0, 1, images // 2 - 1, images // 2, images - 2, images - 1):
        assert found[n].equal(expected), n


def available_bytes() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable"))


# ---- edges -------------------------------------------------------------------------------------------------


@rotated("base, value", itertools.product((NARROW, WIDE), (math.nan, math.inf, -math.inf)))
def test_special_values_go_where_a_window_covers_them(
    isa: int, dtype: torch.dtype, layout: str, base: Case, value: float
) -> None:
    """And nowhere else: lanes past an edge, which read neighbouring pixels, are dropped."""
    case = variant(base, stride=(1, 2), padding=(0, 1, 1, 0), crop=(1, 0, 0, 1))
    tensors = cases.integers(case)
    tensors = tensors._replace(weight=tensors.weight.abs() + 1)  # no 0 * inf
    for n, c, y, x in ((0, 0, 0, 0), (1, 2, 2, case.input[3] - 1), (0, 1, 1, case.input[3] // 2)):
        tensors.input[n, c, y, x] = value
    expected = torch.from_numpy(cases.by_oracle(case, tensors)).to(dtype)
    found = cases.run(case, tensors.to(dtype, LAYOUTS[layout]))
    assert not found.isfinite().all()
    assert found.isfinite().any()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_special_values_stay_in_their_winograd_tiles(isa: int, layout: str, value: float) -> None:
    """2x2 pixels before the shuffle, whose values mix all that their windows cover."""
    tensors = cases.integers(LARGE)
    tensors = tensors._replace(weight=tensors.weight.abs() + 1)
    clean = cases.plain(LARGE, tensors).float()
    tensors.input[0, 7, 3, 30] = value
    covered = ~cases.plain(LARGE, tensors).isfinite()
    found = cases.run(LARGE, tensors.to(torch.float32, LAYOUTS[layout]))
    tiles = torch.zeros_like(covered)
    tiles[:, :, 2 * 2 : 2 * 6, 2 * 28 : 2 * 32] = True  # those of pixels 2..4, 29..31, shuffled by 2
    assert tiles[covered].all()
    assert not found[covered].isfinite().any()
    assert found[~tiles].equal(clean[~tiles])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("taps", [2, 3, 4, 5, 7, 8])
@pytest.mark.parametrize("dilation", [1, 3])
def test_special_values_go_where_a_window_covers_them_in_rows(
    isa: int, layout: str, dilation: int, taps: int, value: float
) -> None:
    """An infinity may become NaN there, and nothing else changes.

    Outputs that share a tile read no more than their own pixels. But for the last tap, of zero, of kernels
    of odd width: it must not turn an infinity into NaN.
    """
    weight = (*ROWS.weight[:3], taps)
    case = variant(ROWS, weight=weight, padding=(1, 0, 0, taps * dilation), dilation=(1, dilation))
    tensors = cases.integers(case)
    tensors = tensors._replace(weight=tensors.weight.abs() + 1)
    clean = cases.plain(case, tensors).float()
    for y, x in ((3, 30), (1, 101), (5, 63), (6, 204), (0, 99)):  # each place in a tile
        tensors.input[0, 7, y, x] = value
    covered = ~cases.plain(case, tensors).isfinite()
    found = cases.run(case, tensors.to(torch.float32, LAYOUTS[layout]))
    assert not found[covered].isfinite().any()
    assert found[~covered].equal(clean[~covered])


@pytest.mark.parametrize("activation", [None, "relu", "relu6", "leaky_relu", "prelu", *CURVED])
@pytest.mark.parametrize("base", CPU_BASES, ids=str)
def test_activations_of_special_values(isa: int, base: Case, activation: str | None) -> None:
    """NaN, infinities and what overflows exp, with a clamp that NaN must pass."""
    for clamp in (None, (-2, 2)):
        case = variant(base, activation=activation, slopes=1 if activation == "prelu" else 0, clamp=clamp)
        tensors = cases.integers(case).to(torch.float32)
        tensors.weight.zero_()
        special = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -1e30, 200.0, -200.0, 0.0, -0.0, 1e-40])
        tensors = tensors._replace(bias=special.repeat(8)[: case.weight[0]])
        # in float64: PyTorch's vectorised float32 gelu makes NaN of infinity
        expected = cases.plain(case, tensors.double()).float()
        torch.testing.assert_close(cases.run(case, tensors), expected, equal_nan=True)


def without_padding(case: Case, tensors: Tensors) -> Tensor:
    """The sums over pixels that exist alone, in float64: no zero of the padding meets a weight."""
    x, weight, bias = (t.double() for t in tensors[:3])
    top, left = case.padding[:2]
    low = bias.view(1, -1, 1, 1).expand(x.shape[0], -1, *case.low).clone()
    for a, b in itertools.product(range(weight.shape[2]), range(weight.shape[3])):
        for h, w in itertools.product(range(case.low[0]), range(case.low[1])):
            y = h * case.stride[0] + a * case.dilation[0] - top
            column = w * case.stride[1] + b * case.dilation[1] - left
            if 0 <= y < x.shape[2] and 0 <= column < x.shape[3]:
                for group, (rows, channels) in enumerate(
                    zip(
                        weight[:, :, a, b].chunk(case.groups),
                        x[:, :, y, column].chunk(case.groups, 1),
                        strict=True,
                    )
                ):
                    first = group * rows.shape[0]
                    low[:, first : first + rows.shape[0], h, w] += channels @ rows.t()
    return reference.shuffle_and_crop(low, case.geometry)


INFINITE = (
    *(variant(base, input=(*base.input[:2], 4, 9)) for base in CPU_BASES),
    Case("strided", (2, 5, 7, 9), (12, 5, 3, 3), stride=(2, 3), dilation=(2, 1), padding=(2, 1, 3, 0)),
    Case("groups", (1, 8, 5, 7), (16, 4, 3, 2), groups=2, padding=(1, 1, 1, 0), order="dcr"),
    Case("late", (1, 6, 4, 7), (64, 6, 2, 2), padding=cases.SAME3, crop=(1, 1, 1, 1)),
)


@functools.lru_cache(maxsize=2)  # of the instruction sets of one case
def infinite_weights(case: Case, value: float) -> tuple[Tensors, Tensor]:
    """Integers with weights that are not finite, and their result."""
    tensors = cases.integers(case)
    tensors.input[tensors.input == 0] = 1  # no 0 * inf but those of the padding
    for row, channel, a, b in ((1, 2, 0, 0), (3, 0, -1, -1), (case.weight[0] - 1, 1, -1, 0)):
        tensors.weight[row, channel, a, b] = value
    return tensors, without_padding(case, tensors)


@rotated("case, value", itertools.product(INFINITE, (math.inf, math.nan)), together=True)
def test_padding_does_not_meet_infinite_weights(
    isa: int, dtype: torch.dtype, layout: str, case: Case, value: float
) -> None:
    """Nor do Winograd's transforms subtract them. Of rows whose weights are finite, nothing changes."""
    tensors, expected = infinite_weights(case, value)
    expected = expected.to(dtype)
    found = cases.run(case, tensors.to(dtype, LAYOUTS[layout]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert found.isfinite().any()
    assert not found.isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_images(layout: str) -> None:
    case = Case("no images", (0, 3, 4, 5), (12, 3, 3, 3))
    found = cases.run(case, cases.integers(case).to(torch.float32, LAYOUTS[layout]))
    assert found.shape == (0, 3, 4, 6)


@pytest.mark.parametrize("crop", [(4, 0, 0, 0), (1, 1, 3, 1), (0, 6, 0, 0), (2, 2, 2, 4)])
def test_nothing_left_of_the_output(crop: tuple[int, int, int, int]) -> None:
    case = Case("all cropped", (2, 3, 4, 5), (12, 3, 3, 3), crop=crop)
    assert cases.run(case, cases.integers(case).to(torch.float32)).shape == case.output
    assert 0 in case.output


@pytest.mark.parametrize("size", [(0, 5), (4, 0), (0, 0)])
def test_only_padding(size: tuple[int, int]) -> None:
    """An image without pixels, padded: every output is its bias."""
    case = Case("only padding", (2, 3, *size), (12, 3, 2, 2), padding=(1, 2, 3, 2))
    tensors = cases.integers(case)
    found = cases.operators.subpixel_conv2d(*tensors.to(torch.float32), case.geometry, *case.epilogue)
    assert found.double().equal(cases.exact(case))


# ---- always the same ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", CPU_BASES, ids=str)
def test_threads_and_repetition_change_nothing(dtype: torch.dtype, layout: str, base: Case) -> None:
    shape = (3, 16, 33, 70)
    case = Case(base.name, shape, (base.weight[0], 16, 3, 3), padding=cases.SAME3, activation="silu")
    tensors = cases.randoms(case, dtype).to(dtype, LAYOUTS[layout])
    first = cases.run(case, tensors)
    for number in (1, 2, 3):
        with cases.threads(number):
            assert cases.plan_of(case, dtype, layout).parallel == (number > 1), (
                "not a problem for several threads"
            )
            assert cases.run(case, tensors).equal(first), number


@pytest.mark.parametrize("number", [2, 3])
@pytest.mark.parametrize("dilation", [1, 3])
def test_threads_begin_in_the_middle_of_a_block(isa: int, layout: str, dilation: int, number: int) -> None:
    """A block is computed in passes, and a thread takes some of them."""
    case = Case("passes", (2, 40, 1, 997), (250, 40, 1, 8), (1, 1), dilation=(1, dilation))
    tensors = cases.integers(case).to(torch.float32, LAYOUTS[layout])
    with cases.threads(number):
        assert cases.run(case, tensors).double().equal(cases.exact(case))


def test_a_missing_instruction_set_is_refused() -> None:
    with pytest.raises(RuntimeError, match="lacks instruction set"):
        cases.operators._cpu_select_isa(len(ISA_NAMES))
