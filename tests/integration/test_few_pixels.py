# SPDX-License-Identifier: BSD-3-Clause
"""Wide layers over few pixels on CPUs, which ``auto`` leaves to PyTorch."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_cpu_library

import fused_subpixel as fs

pytestmark = needs_cpu_library


def explained(
    pixels: tuple[int, int],
    channels: int,
    dtype: torch.dtype = torch.float32,
    kernel: tuple[int, int] = (3, 3),
    **options: int,
) -> str:
    x, weight = (
        torch.randn(1, channels, *pixels, dtype=dtype),
        torch.randn(256, channels, *kernel, dtype=dtype),
    )
    return str(fs.explain(fs.subpixel_conv2d, x, weight, upscale_factor=2, padding=1, **options))


def test_the_reason_is_named() -> None:
    assert "slower than PyTorch here: 64 pixels are too few for 262656 weights" in explained((8, 8), 114)
    assert explained((8, 8), 114).startswith("backend reference")
    assert explained((8, 8), 113).startswith("backend cpu")
    assert explained((5, 13), 114).startswith("backend cpu")


def test_more_pixels_where_winograd_cannot_help() -> None:
    assert "256 pixels are too few for 327680 weights" in explained((16, 16), 256, kernel=(1, 5))
    assert explained((1, 257), 256, kernel=(1, 5)).startswith("backend cpu")
    assert explained((10, 10), 114).startswith("backend cpu")
    assert "100 pixels are too few" in explained((10, 10), 114, dilation=2)
    assert "64 pixels are too few" in explained((16, 16), 114, stride=2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_stay(dtype: torch.dtype) -> None:
    assert explained((4, 4), 256, dtype).startswith("backend cpu")


def test_the_same_numbers_and_gradients() -> None:
    """By PyTorch, and by the kernels where they are asked for."""
    torch.manual_seed(0)
    x, weight = torch.randn(1, 160, 3, 5), torch.randn(160, 64, 8, 8) / 80
    grad = torch.randn(1, 64, 12, 20)
    results = []
    for backend in (None, "cpu", "reference"):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        output = fs.conv_transpose2d(*leaves, stride=4, padding=2, activation="relu", backend=backend)
        output.backward(grad)
        results.append([output, *(leaf.grad for leaf in leaves)])
    for found in results[1:]:
        torch.testing.assert_close(found, results[0], rtol=1e-4, atol=1e-4)
    assert results[0][0].equal(results[2][0])
