# SPDX-License-Identifier: BSD-3-Clause
"""Wide layers over few pixels on CPUs, whose weights are read where they lie."""

from __future__ import annotations

import pytest
import torch
from conftest import needs_cpu_library

import fused_subpixel as fs

pytestmark = needs_cpu_library


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pixels", [(1, 1), (4, 4), (16, 16)])
def test_auto_keeps_them(dtype: torch.dtype, pixels: tuple[int, int]) -> None:
    x, weight = torch.randn(1, 256, *pixels, dtype=dtype), torch.randn(256, 256, 3, 3, dtype=dtype)
    told = fs.explain(fs.subpixel_conv2d, x, weight, upscale_factor=2, padding=1)
    assert told.backend == "cpu"
    if dtype == torch.float32:
        assert ("streamed weights, tile of" in told.forward) == (pixels < (16, 16))


def test_a_transposed_convolution_says_which_rows_it_reads() -> None:
    x, weight = torch.randn(1, 512, 1, 1), torch.randn(512, 128, 4, 4)
    told = fs.explain(fs.conv_transpose2d, x, weight, stride=2, padding=1)
    assert "streamed weights, tile of" in told.forward
    assert " columns x 1 pixels" in told.forward


def test_the_same_numbers_and_gradients() -> None:
    """By the kernels, and by PyTorch where it is asked for."""
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
    assert results[0][0].equal(results[1][0])
