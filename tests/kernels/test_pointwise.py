# SPDX-License-Identifier: BSD-3-Clause
"""1x1 kernels: rows, and images, that follow one another in memory are computed as one row."""

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

CHANNELS = 12
VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "rows with gaps": lambda x: F.pad(x, (2, 1), value=999.0)[..., 2:-1],
    "rows of pixels with gaps": lambda x: F.pad(x, (0, 3), value=999.0).to(memory_format=torch.channels_last)[
        ..., :-3
    ],
    "images with gaps": lambda x: torch.cat([x, x + 999], 1)[:, : x.shape[1]],
    "images of pixels with gaps": lambda x: F.pad(x, (0, 0, 0, 1), value=999.0).to(
        memory_format=torch.channels_last
    )[:, :, :-1],
    "every second image": lambda x: torch.stack([x, x + 999], 1)[:, 0],
    "columns before rows": lambda x: x.mT.contiguous().mT,
    "images within rows": lambda x: x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
}
SIZES = ((1, 1, 1), (3, 1, 1), (2, 1, 5), (2, 7, 1), (1, 5, 7), (3, 4, 9), (2, 16, 3))


def integers(*shape: int) -> Tensor:
    return torch.randint(-4, 5, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_exact(isa: int, size: tuple[int, int, int], view: str) -> None:
    n, h, w = size
    for dtype, groups in itertools.product((torch.float32, torch.float64, torch.bfloat16), (1, 2)):
        x = VIEWS[view](integers(n, CHANNELS, h, w).to(dtype))
        weight, bias = integers(20, CHANNELS // groups, 1, 1).to(dtype), integers(20).to(dtype)
        found = fs.subpixel_conv2d(x, weight, bias, 1, groups=groups, backend="cpu")
        torch.testing.assert_close(found, F.conv2d(x, weight, bias, groups=groups), rtol=0, atol=0)


@pytest.mark.parametrize("residual_view", VIEWS)
@pytest.mark.parametrize("view", ("contiguous", "channels_last"))
def test_residual(isa: int, view: str, residual_view: str) -> None:
    for n, h, w in SIZES:
        x, weight = VIEWS[view](integers(n, CHANNELS, h, w)), integers(20, CHANNELS, 1, 1)
        residual = VIEWS[residual_view](integers(n, 20, h, w))
        found = fs.subpixel_conv2d(x, weight, None, 1, residual=residual, activation="relu", backend="cpu")
        expected = F.conv2d(x, weight).relu() + residual
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("gradient_view", VIEWS)
@pytest.mark.parametrize("view", ("contiguous", "channels_last"))
def test_input_gradient(isa: int, view: str, gradient_view: str) -> None:
    for (n, h, w), activation in itertools.product(SIZES, (None, "relu")):
        x, weight = VIEWS[view](integers(n, CHANNELS, h, w)), integers(20, CHANNELS, 1, 1)
        gradient = VIEWS[gradient_view](integers(n, 20, h, w))
        x.requires_grad_()
        result = fs.subpixel_conv2d(x, weight, None, 1, activation=activation, backend="cpu")
        (found,) = torch.autograd.grad(result, x, gradient)
        plain = F.conv2d(x, weight)
        (expected,) = torch.autograd.grad(plain.relu() if activation else plain, x, gradient)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_one_row_is_planned() -> None:
    weight = integers(64, 64, 1, 1)
    for view, size in (("contiguous", (1, 30, 20)), ("channels_last", (3, 10, 20))):
        x = VIEWS[view](integers(size[0], 64, *size[1:]))
        told = fs.explain(fs.subpixel_conv2d, x, weight, None, 1, backend="cpu").forward
        assert " of 1 x 1 x " in told, told


@pytest.mark.parametrize(
    "options", ({"padding": 1}, {"stride": 2}, {"padding": (0, 1)}, {"stride": (1, 2)}), ids=str
)
def test_not_every_1x1_kernel_is_pointwise(isa: int, options: dict[str, int]) -> None:
    for view, (n, h, w) in itertools.product(("contiguous", "channels_last"), SIZES):
        x, weight = VIEWS[view](integers(n, CHANNELS, h, w)), integers(20, CHANNELS, 1, 1)
        found = fs.subpixel_conv2d(x, weight, None, 1, **options, backend="cpu")
        torch.testing.assert_close(found, F.conv2d(x, weight, **options), rtol=0, atol=0)


def test_shuffled_output_has_rows_of_its_own(isa: int) -> None:
    for view, (n, h, w) in itertools.product(("contiguous", "channels_last"), SIZES):
        x, weight = VIEWS[view](integers(n, CHANNELS, h, w)), integers(32, CHANNELS, 1, 1)
        found = fs.subpixel_conv2d(x, weight, None, 2, backend="cpu")
        torch.testing.assert_close(found, F.pixel_shuffle(F.conv2d(x, weight), 2), rtol=0, atol=0)


def test_crop_to_as_many_pixels(isa: int) -> None:
    """Phases of a 2x2 kernel with stride 2 are 1x1 kernels. The crop leaves an image of the input's size."""
    for view, n in itertools.product(("contiguous", "channels_last"), (1, 3)):
        x, weight = VIEWS[view](integers(n, CHANNELS, 2, 2)), integers(CHANNELS, 20, 2, 2)
        found = fs.conv_transpose2d(x, weight, None, 2, 1, backend="cpu")
        torch.testing.assert_close(found, F.conv_transpose2d(x, weight, None, 2, 1), rtol=0, atol=0)
