# SPDX-License-Identifier: BSD-3-Clause
"""Depthwise convolutions on CPUs: PyTorch is faster in float32 and bfloat16, the kernels in other dtypes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_cpu_library
from torch import nn

import fused_subpixel as fs

pytestmark = needs_cpu_library

DTYPES = {torch.float32: "reference", torch.bfloat16: "reference", torch.float64: "cpu", torch.float16: "cpu"}


@pytest.mark.parametrize("dtype, backend", DTYPES.items(), ids=str)
def test_who_computes_them(dtype: torch.dtype, backend: str) -> None:
    x, weight = torch.randn(1, 32, 9, 9, dtype=dtype), torch.randn(32, 1, 3, 3, dtype=dtype)
    told = fs.explain(fs.subpixel_conv2d, x, weight, upscale_factor=1, padding=1, groups=32)
    assert told.backend == backend
    assert ("a depthwise convolution multiplies no pixel more than once" in str(told)) == (
        backend == "reference"
    )
    asked = fs.explain(
        fs.subpixel_conv2d, x, weight, upscale_factor=1, padding=1, groups=32, backend="cpu"
    )  # fmt: skip
    assert asked.backend == "cpu"


@pytest.mark.parametrize("options", [{"dilation": 2}, {}])
def test_where_gradients_of_pytorch_may_be_wrong(options: dict[str, int]) -> None:
    """In bfloat16, of taps that are apart and of images of few columns."""
    x = torch.randn(1, 32, 9, 9 if options else 8, dtype=torch.bfloat16)
    weight = torch.randn(32, 1, 3, 3, dtype=torch.bfloat16)
    told = fs.explain(fs.subpixel_conv2d, x, weight, upscale_factor=1, padding=1, groups=32, **options)
    assert told.backend == "cpu"


@pytest.mark.parametrize("channels, rows", [(1, 2), (2, 1), (2, 2)])
def test_others_stay(channels: int, rows: int) -> None:
    x, weight = torch.randn(1, 16 * channels, 9, 9), torch.randn(16 * rows, channels, 3, 3)
    told = fs.explain(fs.subpixel_conv2d, x, weight, upscale_factor=1, padding=1, groups=16)
    assert told.backend == "cpu"
    up = fs.explain(fs.conv_transpose2d, x, torch.randn(16 * channels, rows, 4, 4), stride=2, groups=16)
    assert up.backend == "cpu"


def test_the_same_numbers() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 8, 6, 7), torch.randn(8, 1, 3, 3), torch.randn(8)
    expected = F.silu(F.conv2d(x, weight, bias, 1, 1, 1, 8))
    for backend in (None, "cpu"):
        found = fs.subpixel_conv2d(
            x, weight, bias, 1, padding=1, groups=8, activation="silu", backend=backend
        )
        torch.testing.assert_close(found, expected)


def test_graphs_keep_them() -> None:
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1), nn.ReLU()).eval()
    x = torch.randn(1, 8, 9, 9)
    fused = fs.fuse(torch.export.export(model, (x,)), plain=True)
    names = [str(node.target) for node in fused.graph.nodes]
    assert sum("subpixel_conv2d" in name for name in names) == 1
    torch.testing.assert_close(fused.module()(x), model(x))
