# SPDX-License-Identifier: BSD-3-Clause
"""The reference against loops written down from the definition, and against PyTorch's own operators."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import conv_tensors
from torch import Tensor

import fused_subpixel as fs
from fused_subpixel import reference


def by_loops(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    upscale: tuple[int, int],
    *,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    channel_order: str = "crd",
    crop: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Tensor:
    """One output pixel after another, as the definition says."""
    top, left, bottom, right = padding
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows, group_channels, kernel_h, kernel_w = weight.shape
    r_h, r_w = upscale
    channels, group_rows = rows // (r_h * r_w), rows // groups
    lr_h = (padded.shape[2] - dilation[0] * (kernel_h - 1) - 1) // stride[0] + 1
    lr_w = (padded.shape[3] - dilation[1] * (kernel_w - 1) - 1) // stride[1] + 1
    output = np.full((x.shape[0], channels, lr_h * r_h, lr_w * r_w), np.nan)
    for n, c, y, z in np.ndindex(*output.shape):
        (p, i), (q, j) = divmod(y, r_h), divmod(z, r_w)
        row = c * r_h * r_w + i * r_w + j if channel_order == "crd" else (i * r_w + j) * channels + c
        first = row // group_rows * group_channels
        total = float(bias[row])
        for ci, a, b in np.ndindex(group_channels, kernel_h, kernel_w):
            pixel = padded[n, first + ci, p * stride[0] + a * dilation[0], q * stride[1] + b * dilation[1]]
            total += float(weight[row, ci, a, b]) * pixel
        output[n, c, y, z] = total
    height, width = output.shape[2:]
    return torch.from_numpy(output[:, :, crop[0] : height - crop[2], crop[1] : width - crop[3]].copy())


GEOMETRIES: list[tuple[dict[str, Any], tuple[int, ...], tuple[int, ...], tuple[int, int]]] = [
    ({}, (2, 3, 5, 6), (8, 3, 3, 2), (2, 2)),
    ({"channel_order": "dcr"}, (2, 3, 5, 6), (8, 3, 3, 2), (2, 2)),
    ({"stride": (2, 1), "padding": (1, 2, 0, 1)}, (2, 3, 5, 6), (18, 3, 3, 2), (3, 3)),
    ({"dilation": (1, 2), "channel_order": "dcr"}, (1, 2, 4, 7), (12, 2, 2, 3), (2, 3)),
    (
        {"groups": 2, "padding": (1, 1, 1, 1)},
        (1, 4, 3, 5),
        (6, 2, 3, 3),
        (1, 3),
    ),  # a group boundary inside a pixel
    ({"groups": 4, "channel_order": "dcr"}, (1, 4, 3, 5), (8, 1, 1, 2), (2, 1)),
    ({"crop": (1, 0, 2, 1)}, (1, 2, 3, 4), (4, 2, 2, 2), (2, 2)),
    ({"crop": (0, 3, 1, 1), "padding": (2, 2, 1, 1)}, (2, 1, 3, 2), (9, 1, 2, 1), (3, 3)),
]


@pytest.mark.parametrize(("options", "input_shape", "weight_shape", "upscale"), GEOMETRIES)
def test_geometry_by_loops(
    options: dict[str, Any],
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    upscale: tuple[int, int],
) -> None:
    tensors = conv_tensors(input_shape, weight_shape)
    found = reference.subpixel_conv2d(*tensors, upscale, **options)
    torch.testing.assert_close(found, by_loops(*tensors, upscale, **options))


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"padding": "same"}, {"padding": 2, "stride": 2, "groups": 3}])
def test_is_what_people_write(backend: str, factor: int, options: dict[str, Any]) -> None:
    groups = options.get("groups", 1)
    tensors = conv_tensors((2, 3, 5, 6), (6 * factor**2, 3 // groups, 3, 2), dtype=torch.float32)
    expected = F.pixel_shuffle(F.conv2d(*tensors, **options), factor)
    torch.testing.assert_close(fs.subpixel_conv2d(*tensors, factor, **options), expected)


ACTIVATIONS = {
    None: lambda x: x,
    "relu": F.relu,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "silu": F.silu,
    "gelu": F.gelu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "elu": F.elu,
    "mish": F.mish,
    "softplus": F.softplus,
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("clamp", [None, (-0.25, 0.75), (None, 0.5)])
@pytest.mark.parametrize("with_residual", [False, True])
def test_epilogue_order(backend: str, activation: str | None, clamp: Any, with_residual: bool) -> None:
    """bias, activation, residual, clamp."""
    tensors = conv_tensors(dtype=torch.float32)
    residual = torch.randn(2, 2, 6, 10) if with_residual else None
    expected = ACTIVATIONS[activation](F.pixel_shuffle(F.conv2d(*tensors), 2))
    expected = expected if residual is None else expected + residual
    expected = expected if clamp is None else expected.clamp(*clamp)
    found = fs.subpixel_conv2d(
        *tensors, activation=activation, negative_slope=0.2, residual=residual, clamp=clamp
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("kind", ["as is", "upsampled", "shuffled"])
def test_kinds_of_residual(backend: str, order: str, kind: str) -> None:
    x, weight, bias = conv_tensors(dtype=torch.float32)
    shape = {"as is": (2, 2, 6, 10), "upsampled": (2, 2, 3, 5), "shuffled": (2, 8, 3, 5)}[kind]
    residual = torch.randn(shape)
    high = {
        "as is": lambda r: r,
        "upsampled": lambda r: F.interpolate(r, scale_factor=2, mode="nearest"),
        "shuffled": lambda r: fs.pixel_shuffle(r, 2, order),
    }[kind](residual)
    plain = fs.subpixel_conv2d(x, weight, bias, channel_order=order)
    found = fs.subpixel_conv2d(x, weight, bias, channel_order=order, residual=residual)
    torch.testing.assert_close(found, plain + high)


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("size", [1, 2, 8])
def test_prelu_after_and_before_the_shuffle(backend: str, order: str, size: int) -> None:
    x, weight, bias = conv_tensors(dtype=torch.float32)
    slopes = torch.randn(size)
    low = F.conv2d(x, weight, bias)
    shuffled = fs.pixel_shuffle(F.prelu(low, slopes) if size == 8 else low, 2, order)
    expected = shuffled if size == 8 else F.prelu(shuffled, slopes)
    found = fs.subpixel_conv2d(
        x, weight, bias, activation="prelu", activation_weight=slopes, channel_order=order
    )
    torch.testing.assert_close(found, expected)


def test_no_batch_dimension(backend: str) -> None:
    x, weight, bias = conv_tensors(dtype=torch.float32)
    residual = torch.randn(2, 2, 3, 5)
    expected = fs.subpixel_conv2d(x, weight, bias, residual=residual)
    torch.testing.assert_close(fs.subpixel_conv2d(x[0], weight, bias, residual=residual[0]), expected[0])


def variants(x: Tensor) -> dict[str, Tensor]:
    """The same values in other memory."""
    channels_last = x.contiguous(memory_format=torch.channels_last)
    wide = torch.empty(*x.shape[:2], x.shape[2] + 3, x.shape[3] + 2)
    wide[:, :, 1:-2, 2:] = x
    return {
        "contiguous": x.clone(),
        "channels_last": channels_last,
        "window": wide[:, :, 1:-2, 2:],
        "channels_last window": wide.contiguous(memory_format=torch.channels_last)[:, :, 1:-2, 2:],
        "transposed": x.transpose(2, 3).contiguous().transpose(2, 3),
        "offset": torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    }


@pytest.mark.parametrize("name", variants(torch.zeros(1, 1, 1, 1)))
def test_layout_follows_the_input(backend: str, name: str) -> None:
    x, weight, bias = conv_tensors(dtype=torch.float32)
    found = fs.subpixel_conv2d(variants(x)[name], weight.contiguous(memory_format=torch.channels_last), bias)
    torch.testing.assert_close(found, F.pixel_shuffle(F.conv2d(x, weight, bias), 2))
    layout = torch.channels_last if "channels_last" in name else torch.contiguous_format
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtypes(backend: str, dtype: torch.dtype) -> None:
    """Small integers: every sum is exact in every dtype, and every misplaced pixel shows."""
    x, weight, bias = (torch.randint_like(t, -2, 3).to(dtype) for t in conv_tensors())
    found = fs.subpixel_conv2d(x, weight, bias, padding=1)
    expected = F.pixel_shuffle(F.conv2d(x.double(), weight.double(), bias.double(), padding=1), 2)
    assert found.dtype == dtype
    assert found.double().equal(expected)


# ---- shuffles ----------------------------------------------------------------------------------------------


def depth_to_space(x: Tensor, r_h: int, r_w: int) -> Tensor:
    """TensorFlow's, pixel by pixel."""
    *leading, channels, height, width = x.shape
    c = channels // (r_h * r_w)
    output = x.new_empty(*leading, c, height * r_h, width * r_w)
    for i, j, k in itertools.product(range(r_h), range(r_w), range(c)):
        output[..., k, i::r_h, j::r_w] = x[..., (i * r_w + j) * c + k, :, :]
    return output


@pytest.mark.parametrize("leading", [(), (2,), (0,), (2, 3)])
@pytest.mark.parametrize("factor", [1, 2, (3, 1), (1, 2)])
def test_shuffles(leading: tuple[int, ...], factor: Any) -> None:
    r_h, r_w = factor if isinstance(factor, tuple) else (factor, factor)
    x = torch.randn(*leading, 12, 2, 3)
    dcr, crd = fs.pixel_shuffle(x, factor, "dcr"), fs.pixel_shuffle(x, factor)
    assert dcr.equal(depth_to_space(x, r_h, r_w))
    assert crd.equal(dcr) or math.prod((r_h, r_w)) > 1
    if r_h == r_w and x.numel():
        assert crd.equal(F.pixel_shuffle(x, r_h))
        assert fs.pixel_unshuffle(crd, factor).equal(F.pixel_unshuffle(crd, r_h))
    assert fs.pixel_unshuffle(crd, factor).equal(x)
    assert fs.pixel_unshuffle(dcr, factor, "dcr").equal(x)


@pytest.mark.parametrize("order", ["crd", "dcr"])
def test_shuffles_keep_channels_last(order: str) -> None:
    x = torch.randn(2, 12, 2, 3)
    shuffled = fs.pixel_shuffle(x.contiguous(memory_format=torch.channels_last), 2, order)
    assert shuffled.equal(fs.pixel_shuffle(x, 2, order))
    assert shuffled.is_contiguous(memory_format=torch.channels_last)
    again = fs.pixel_unshuffle(shuffled, 2, order)
    assert again.equal(x)
    assert again.is_contiguous(memory_format=torch.channels_last)


def test_shuffles_never_alias() -> None:
    x = torch.zeros(1, 4, 1, 1)
    for function, factor in ((fs.pixel_shuffle, 2), (fs.pixel_shuffle, 1), (fs.pixel_unshuffle, 1)):
        function(x, factor).add_(1)
    assert not x.any()


# ---- without a library -------------------------------------------------------------------------------------


def test_without_a_library_there_is_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """And it names the file of the caller, not one of ours."""
    import warnings

    from fused_subpixel.dispatch import choose
    from fused_subpixel.ops import library

    monkeypatch.setitem(
        library.libraries, "cpu", library.LoadedLibrary(problem="x.so does not exist: not built")
    )
    monkeypatch.setattr(library, "_told", set())
    choose.prepare_cached.cache_clear()
    module = fs.SubpixelConv2d(3, 2, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            module(torch.zeros(1, 3, 4, 5))
    choose.prepare_cached.cache_clear()
    assert [(w.category, w.filename) for w in caught] == [(RuntimeWarning, __file__)]
    assert "x.so does not exist: not built. Build it with 'pip install" in str(caught[0].message)


def test_library_folder_from_the_environment(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from fused_subpixel.ops import library

    monkeypatch.setenv("FUSED_SUBPIXEL_LIBRARY_DIR", str(tmp_path))
    assert (
        library._load("fused_subpixel_cpu").problem
        == f"{tmp_path}/fused_subpixel_cpu.so does not exist: not built"
    )
    (tmp_path / "fused_subpixel_cpu.so").write_bytes(b"not a library")
    assert "does not load" in str(library._load("fused_subpixel_cpu").problem)
