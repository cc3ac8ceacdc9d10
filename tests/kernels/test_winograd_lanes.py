# SPDX-License-Identifier: BSD-3-Clause
"""3x3 kernels over channels that are neighbours in memory: Winograd's tiles have channels in the lanes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_cpu_library
from torch import Tensor

import fused_subpixel as fs

pytestmark = needs_cpu_library

POISON = 999.0
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dense": lambda x: x.contiguous(memory_format=torch.channels_last),
    "pixels with gaps": lambda x: F.pad(x, (0, 0, 0, 0, 3, 4), value=POISON).to(
        memory_format=torch.channels_last
    )[:, 3:-4],
    "rows with gaps": lambda x: F.pad(x, (2, 1), value=POISON).to(memory_format=torch.channels_last)[
        ..., 2:-1
    ],
    "images with gaps": lambda x: F.pad(x, (0, 0, 1, 2), value=POISON).to(memory_format=torch.channels_last)[
        :, :, 1:-2
    ],
    "rows upwards in columns": lambda x: x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1),
}
ONE = (1, 1, 1, 1)
GROUPS_AND_PADDINGS = ((1, ONE), (2, ONE), (1, (4, 1, 0, 5)), (1, (2, 0, 1, 3)), (1, (0, 0, 0, 0)))
SIZES = ((1, 8, 11), (2, 13, 6), (1, 1, 37), (3, 9, 1), (1, 30, 31))  # images, rows, columns


def integers(*shape: int) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


def described(call: Callable[..., Tensor], *arguments: object, **options: object) -> str:
    return str(fs.explain(call, *arguments, **options).forward)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_exact(isa: int, size: tuple[int, int, int], view: str) -> None:
    """Whole and ragged vectors of channels, paddings from none to more than the kernel, groups."""
    n, h, w = size
    for channels, (groups, padding) in itertools.product((32, 40), GROUPS_AND_PADDINGS):
        top, left, bottom, right = padding
        x = VIEWS[view](integers(n, channels * groups, h, w))
        weight, bias = integers(48 * groups, channels, 3, 3), integers(48 * groups)
        if min(h + top + bottom, w + left + right) < 3:
            continue
        expected = F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, groups=groups)
        found = fs.subpixel_conv2d(x, weight, bias, 1, padding=padding, groups=groups, backend="cpu")
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_half_types_and_shuffles_pack_first(isa: int, dtype: torch.dtype) -> None:
    x, weight = integers(2, 32, 12, 21).to(dtype), integers(32 * 4, 32, 3, 3).to(dtype)
    x, weight = (t.sign().to(memory_format=torch.channels_last) for t in (x, weight))
    found = fs.subpixel_conv2d(x, weight, None, 2, padding=1, backend="cpu")
    expected = F.pixel_shuffle(F.conv2d(x.double(), weight.double(), padding=1), 2).to(dtype)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("channels, r", [(1, 1), (3, 2), (3, 4), (1, 3), (20, 1), (5, 2)])
def test_small_groups_of_output_channels(isa: int, channels: int, r: int) -> None:
    """They interleave in registers, where a register tile holds whole groups."""
    x, weight = integers(1, 64, 26, 37), integers(channels * r * r, 64, 3, 3)
    x = x.to(memory_format=torch.channels_last)
    expected = F.pixel_shuffle(F.conv2d(x, weight, padding=1), r)
    for dtype in (torch.float32, torch.float16):
        found = fs.subpixel_conv2d(x.to(dtype), weight.to(dtype), None, r, padding=1, backend="cpu")
        torch.testing.assert_close(found, expected.to(dtype), rtol=0, atol=0)


@pytest.mark.parametrize("view", VIEWS)
def test_input_gradient(isa: int, view: str) -> None:
    for (n, h, w), (r, padding) in itertools.product(SIZES, ((1, 1), (2, 1), (1, 2))):
        x = integers(n, 40, h, w).to(memory_format=torch.channels_last).requires_grad_()
        weight = integers(32 * r * r, 40, 3, 3)
        found = fs.subpixel_conv2d(x, weight, None, r, padding=padding, backend="cpu")
        gradient = VIEWS[view](integers(*found.shape))
        (found,) = torch.autograd.grad(found, x, gradient)
        expected = F.pixel_shuffle(F.conv2d(x, weight, padding=padding), r)
        torch.testing.assert_close(found, torch.autograd.grad(expected, x, gradient)[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "kernel, padding, output_padding", [(4, 1, 0), (5, 2, 1), (3, 1, 1), (6, 2, 0)], ids=str
)
def test_single_phases(isa: int, kernel: int, padding: int, output_padding: int) -> None:
    x = integers(2, 32, 16, 19).to(memory_format=torch.channels_last)
    weight = integers(32, 64, kernel, kernel).to(memory_format=torch.channels_last)
    found = fs.conv_transpose2d(x, weight, None, 2, padding, output_padding, backend="cpu")
    expected = F.conv_transpose2d(x, weight, None, 2, padding, output_padding)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("residual_view", ["dense", "pixels with gaps", "contiguous"])
@pytest.mark.parametrize("activation", ["relu", "gelu", "leaky_relu"])
def test_epilogue(isa: int, activation: str, residual_view: str) -> None:
    x = torch.randn(1, 32, 10, 23).to(memory_format=torch.channels_last)
    weight, bias, residual = torch.randn(40, 32, 3, 3) / 20, torch.randn(40), torch.randn(1, 40, 10, 23)
    residual = VIEWS.get(residual_view, Tensor.contiguous)(residual)
    arguments = (x, weight, bias, 1)
    options = {"padding": 1, "activation": activation, "residual": residual, "clamp": (-1, 1)}
    expected = fs.subpixel_conv2d(*arguments, **options, backend="reference")
    found = fs.subpixel_conv2d(*arguments, **options, backend="cpu")
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [600, 608])
def test_weights_that_are_transformed_as_they_are_used(isa: int, channels: int) -> None:
    """Few tiles and many channels: K blocks add to one another, and the last one is shorter."""
    x, weight = integers(2, channels, 12, 13).sign(), integers(96, channels, 3, 3).sign()
    x = x.to(memory_format=torch.channels_last)
    found = fs.subpixel_conv2d(x, weight, None, 1, padding=1, backend="cpu")
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=1), rtol=0, atol=0)


def test_where_it_is_chosen() -> None:
    """In channels_last only; the words name single tiles, not vectors of them."""
    weight = torch.randn(64, 64, 3, 3)
    for layout, words in (
        (torch.channels_last, " tiles of 2x2 pixels"),
        (torch.contiguous_format, " vectors of 2x2 tiles"),
    ):
        x = torch.randn(1, 64, 64, 64).to(memory_format=layout)
        found = described(fs.subpixel_conv2d, x, weight, None, 1, padding=1, backend="cpu")
        assert "Winograd F(2x2, 3x3), tile of " in found
        assert words in found


def test_nothing_is_read_beyond_the_image(isa: int) -> None:
    """Neighbours that are not finite do not reach the output."""
    x = VIEWS["pixels with gaps"](integers(1, 32, 9, 10))
    whole = x.new_full((1, 40, 13, 14), float("nan")).to(memory_format=torch.channels_last)
    inner = whole[:, 4:36, 2:-2, 2:-2]
    inner.copy_(x)
    weight = integers(32, 32, 3, 3)
    found = fs.subpixel_conv2d(inner, weight, None, 1, padding=1, backend="cpu")
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=1), rtol=0, atol=0)
