# SPDX-License-Identifier: BSD-3-Clause
"""The resolvers of one-dimensional calls: those of images of one row, with one number for each option.

Tensors are described as :func:`fused_subpixel.functional_1d.as_rows` makes them, [N, C, 1, L]. Messages show
the shapes and options that the caller gave.
"""

from __future__ import annotations

from ..ops.geometry import Problem
from .checks import TensorInfo, single, two_sides
from .resolve import resolve_conv_transpose2d, resolve_subpixel_conv2d
from .words import SIGNALS


def resolve_subpixel_conv1d(
    input: TensorInfo,
    weight: TensorInfo,
    bias: TensorInfo | None,
    activation_weight: TensorInfo | None,
    residual: TensorInfo | None,
    upscale_factor: object,
    stride: object,
    padding: object,
    dilation: object,
    groups: object,
    activation: object,
    negative_slope: object,
    clamp: object,
    channel_order: object,
) -> Problem:
    """:func:`resolve_subpixel_conv2d` for the arguments of :func:`fused_subpixel.subpixel_conv1d`."""
    if not isinstance(padding, str):
        left, right = two_sides("padding", padding)
        padding = (0, left, 0, right)
    return resolve_subpixel_conv2d(
        input, weight, bias, activation_weight, residual,
        (1, single("upscale_factor", upscale_factor, 1)), (1, single("stride", stride, 1)), padding,
        (1, single("dilation", dilation, 1)), groups, activation, negative_slope, clamp, channel_order,
        words=SIGNALS,
    )  # fmt: skip


def resolve_conv_transpose1d(
    input: TensorInfo,
    weight: TensorInfo,
    bias: TensorInfo | None,
    activation_weight: TensorInfo | None,
    residual: TensorInfo | None,
    stride: object,
    padding: object,
    output_padding: object,
    groups: object,
    dilation: object,
    activation: object,
    negative_slope: object,
    clamp: object,
) -> Problem:
    """:func:`resolve_conv_transpose2d` for the arguments of :func:`fused_subpixel.conv_transpose1d`."""
    return resolve_conv_transpose2d(
        input, weight, bias, activation_weight, residual,
        (1, single("stride", stride, 1)), (0, single("padding", padding, 0)),
        (0, single("output_padding", output_padding, 0)), groups, (1, single("dilation", dilation, 1)),
        activation, negative_slope, clamp, words=SIGNALS,
    )  # fmt: skip
