# SPDX-License-Identifier: BSD-3-Clause
"""A call's arguments, checked, as the plain numbers that the operators take.

Every check runs before anything is computed and is the same on all backends. Nothing here reads tensor data:
a tensor is described by its (shape, dtype, device), which is hashable, so that callers can cache the outcome.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ..ops.geometry import (
    ACTIVATIONS,
    CHANNEL_ORDERS,
    DTYPES,
    Epilogue,
    Geometry,
    Problem,
    Transposed,
    lr_size,
    output_size,
)
from .checks import (
    LARGEST_COUNT_LOG2,
    LARGEST_SIZE,
    TensorInfo,
    check_dtype,
    clamp_bounds,
    fail,
    four_paddings,
    four_sides,
    integer,
    lookup,
    number,
    pair,
    shape_of,
)
from .words import IMAGES, Words


def resolve_subpixel_conv2d(
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
    crop: object = (0, 0, 0, 0),
    *,
    words: Words = IMAGES,
) -> Problem:
    """Check all arguments of a batched call and return them as plain numbers.

    The arguments are those of :func:`fused_subpixel.subpixel_conv2d` with tensors replaced by their
    :func:`describe`; ``crop`` is (top, left, bottom, right) in high-resolution pixels, and ``words`` are
    those of the caller's dimensions.
    """
    shape, dtype, device = input
    weight_shape = weight[0]
    check_ranks(shape, weight_shape, words.weight, words)
    check_dtypes_and_devices(input, weight, bias, activation_weight, residual)

    upscale_h, upscale_w = pair("upscale_factor", upscale_factor, minimum=1)
    stride_h, stride_w = pair("stride", stride, minimum=1)
    dilation_h, dilation_w = pair("dilation", dilation, minimum=1)
    kernel_h, kernel_w = weight_shape[2], weight_shape[3]
    top, left, bottom, right = four_paddings(
        padding, (stride_h, stride_w), (dilation_h, dilation_w), (kernel_h, kernel_w)
    )
    if not torch.compiler.is_compiling():  # no compiled graph should depend on whether a stride is so large
        stride_h = _effective_stride(stride_h, shape[2] + top + bottom, dilation_h * (kernel_h - 1))
        stride_w = _effective_stride(stride_w, shape[3] + left + right, dilation_w * (kernel_w - 1))
    geometry = Geometry(
        upscale_h, upscale_w, stride_h, stride_w, top, left, bottom, right, dilation_h, dilation_w,
        integer("groups", groups, minimum=1),
        *four_sides("crop", crop),
        lookup("channel_order", channel_order, CHANNEL_ORDERS),
    )  # fmt: skip
    _check_channels(geometry, shape, weight_shape, bias, words)
    check_not_empty(shape, words)
    output_shape = _checked_output_shape(geometry, shape, weight_shape, words)
    epilogue = Epilogue(
        lookup("activation", activation, ACTIVATIONS),
        number("negative_slope", negative_slope),
        *clamp_bounds(clamp),
    )
    _check_activation_weight(activation, activation_weight, output_shape[1], weight_shape[0], words)
    if residual is not None:
        low = lr_size(geometry, shape[2], shape[3], kernel_h, kernel_w)
        _check_residual(residual[0], output_shape, weight_shape[0], low, words)
    return Problem(geometry, epilogue, tuple(shape), tuple(weight_shape), output_shape, dtype, device)


def resolve_conv_transpose2d(
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
    *,
    words: Words = IMAGES,
) -> Problem:
    """:func:`resolve_subpixel_conv2d` for the arguments of :func:`fused_subpixel.conv_transpose2d`.

    A transposed convolution of stride s is a convolution whose kernel has ceil(K/s) taps a side, a shuffle by
    s and a crop. Rows of the convolution that the crop would take off whole are not computed: they come off
    its padding instead, and off the input where that is not enough. With dilation the geometry means nothing.
    """
    shape, dtype, device = input
    weight_shape = weight[0]
    check_ranks(shape, weight_shape, words.transposed_weight, words)
    check_dtypes_and_devices(input, weight, bias, activation_weight, residual)
    strides, paddings = pair("stride", stride, minimum=1), pair("padding", padding, minimum=0)
    dilations = pair("dilation", dilation, minimum=1)
    extras = pair("output_padding", output_padding, minimum=0)
    check_output_padding(extras, strides, dilations, words)
    count = integer("groups", groups, minimum=1)
    channels = check_transposed_channels(shape, weight_shape, bias, count, words)
    check_not_empty(shape, words)
    if not torch.compiler.is_compiling() and dilations == (1, 1):
        # Over a single pixel nothing strides; kernels take memory for as many phases as the stride has.
        strides = tuple(  # type: ignore[assignment]
            step if size != 1 else min(step, max(kernel, extra + 1))
            for step, size, kernel, extra in zip(strides, shape[2:], weight_shape[2:], extras, strict=True)
        )

    sides = [
        transposed_side(shape[2 + axis], weight_shape[2 + axis], *numbers)
        for axis, numbers in enumerate(zip(strides, paddings, extras, dilations, strict=True))
    ]
    vertical, horizontal = sides
    least = 0 if shape[0] == 0 else 1  # as PyTorch, which makes an empty image of an empty batch
    if vertical.size < least or horizontal.size < least:
        expected = f"what leaves an output of at least one {words.pixel}"
        found = f"{words.pair(paddings)}, an output of {words.size(vertical.size, horizontal.size)}"
        fail("padding", expected, found)
    geometry = Geometry(
        *strides, 1, 1, vertical.before, horizontal.before, vertical.after, horizontal.after, 1, 1, count,
        vertical.crop_before, horizontal.crop_before, vertical.crop_after, horizontal.crop_after,
        kernel_pad_h=vertical.kernel_pad, kernel_pad_w=horizontal.kernel_pad,
    )  # fmt: skip
    lr_channels = channels * strides[0] * strides[1]
    output_shape = (shape[0], channels, vertical.size, horizontal.size)
    _check_output_size(output_shape, vertical.size, horizontal.size, words)
    epilogue = Epilogue(
        lookup("activation", activation, ACTIVATIONS),
        number("negative_slope", negative_slope),
        *clamp_bounds(clamp),
    )
    _check_activation_weight(activation, activation_weight, channels, channels, words)
    if residual is not None and tuple(residual[0]) != output_shape:
        fail("residual", f"{words.shape(output_shape)}, as the output", words.shape(residual[0]))
    transposed = Transposed(
        tuple(shape),
        tuple(weight_shape),
        strides,
        paddings,
        extras,
        dilations,
        (*horizontal.unused, *vertical.unused),
    )
    return Problem(
        geometry,
        epilogue,
        (shape[0], shape[1], shape[2] + sum(vertical.unused), shape[3] + sum(horizontal.unused)),
        (lr_channels, shape[1] // count, vertical.taps, horizontal.taps),
        output_shape,
        dtype,
        device,
        transposed,
    )


class _Side(NamedTuple):
    """One direction of a transposed convolution as a sub-pixel convolution."""

    size: int  # of the output
    taps: int
    before: int  # padding
    after: int
    crop_before: int
    crop_after: int
    kernel_pad: int
    unused: tuple[int, int]


def transposed_side(
    size: int, kernel: int, stride: int, padding: int, output_padding: int, dilation: int
) -> _Side:
    """One direction of a transposed convolution."""
    output = (size - 1) * stride - 2 * padding + dilation * (kernel - 1) + output_padding + 1
    taps = -(-kernel // stride)
    before, crop_before = taps - 1 - padding // stride, padding % stride
    low = -(-(crop_before + output) // stride)  # pixels before the shuffle
    after = low - 1 + taps - size - before
    return _Side(
        output,
        taps,
        max(before, 0),
        max(after, 0),
        crop_before,
        low * stride - crop_before - output,
        taps * stride - kernel,
        (min(before, 0), min(after, 0)),
    )


def check_output_padding(
    extras: tuple[int, ...], strides: tuple[int, ...], dilations: tuple[int, ...], words: Words
) -> None:
    """Refuse more than what stride and dilation leave open."""
    for extra, step, spread in zip(extras, strides, dilations, strict=True):
        if extra >= max(step, spread):
            expected = f"less than stride {words.pair(strides)} or dilation {words.pair(dilations)}"
            fail("output_padding", expected, words.pair(extras))


def check_transposed_channels(
    shape: Sequence[int], weight_shape: Sequence[int], bias: TensorInfo | None, groups: int, words: Words
) -> int:
    """C, the channels of the output."""
    if min(weight_shape) < 1:
        fail("weight", "sizes of at least 1", words.shape(weight_shape))
    if weight_shape[0] % groups:
        fail("weight", f"a first size divisible by groups={groups}", words.shape(weight_shape))
    if shape[1] != weight_shape[0]:
        found = words.shape(shape) + _channels_at_the_end(shape, weight_shape[0], words)
        fail("input", f"{weight_shape[0]} channels (weight {words.shape(weight_shape)})", found)
    channels = weight_shape[1] * groups
    if bias is not None and (len(bias[0]) != 1 or bias[0][0] != channels):
        fail("bias", f"[{channels}], one value per channel of the output", shape_of(bias[0]))
    return channels


def _effective_stride(stride: int, padded: int, reach: int) -> int:
    """The smallest stride of the same result: one that leaves the image has no second pixel to go to."""
    return min(stride, max(padded - reach, 1))


def check_ranks(
    shape: Sequence[int], weight_shape: Sequence[int], shape_of_weight: str, words: Words, rank: int = 4
) -> None:
    """Refuse tensors of another number of dimensions."""
    if len(shape) != rank:
        fail("input", words.input, words.shape(shape))
    if len(weight_shape) != rank:
        fail("weight", shape_of_weight, words.shape(weight_shape))


def check_dtypes_and_devices(
    input: TensorInfo,
    weight: TensorInfo,
    bias: TensorInfo | None,
    activation_weight: TensorInfo | None,
    residual: TensorInfo | None,
) -> None:
    """Refuse dtypes that no backend computes, and tensors that do not fit the input."""
    _, dtype, device = input
    check_dtype("input", dtype)
    for name, info in (
        ("weight", weight), ("bias", bias), ("activation_weight", activation_weight), ("residual", residual),
    ):  # fmt: skip
        if info is None:
            continue
        if info[1] != dtype:
            if not isinstance(info[1], torch.dtype):
                fail(name, "a torch.Tensor", f"an array of {info[1]}", TypeError)
            hint = "; convert one of them, or call under torch.autocast" if info[1] in DTYPES else ""
            fail(name, f"dtype {dtype} as input has", f"{info[1]}{hint}", TypeError)
        if info[2] != device:
            fail(name, f"device {device} as input has", str(info[2]))


def _channels_at_the_end(shape: Sequence[int], channels: int, words: Words) -> str:
    return words.channels_first if shape[-1] == channels else ""


def check_not_empty(shape: Sequence[int], words: Words) -> None:
    """As PyTorch's convolutions, which take an image without pixels only in an empty batch."""
    if min(shape[2:]) < 1 and shape[0] != 0:
        fail("input", f"{words.sizes} of at least 1", words.shape(shape))


def _check_channels(
    geometry: Geometry,
    shape: Sequence[int],
    weight_shape: Sequence[int],
    bias: TensorInfo | None,
    words: Words,
) -> None:
    lr_channels, channels_per_group, kernel_h, kernel_w = weight_shape
    phases = geometry.upscale_h * geometry.upscale_w
    groups = geometry.groups
    if lr_channels < 1 or channels_per_group < 1 or kernel_h < 1 or kernel_w < 1:
        fail("weight", "sizes of at least 1", words.shape(weight_shape))
    transposed = ""
    if groups == 1 and shape[1] == lr_channels != channels_per_group:
        transposed = words.for_transposed
    if lr_channels % phases:
        fail(
            "weight",
            f"a first size divisible by {words.phases(geometry.upscale_h, geometry.upscale_w)}",
            words.shape(weight_shape) + transposed,
        )
    if lr_channels % groups:
        fail("weight", f"a first size divisible by groups={groups}", words.shape(weight_shape))
    if shape[1] != channels_per_group * groups:
        hint = transposed or _channels_at_the_end(shape, channels_per_group * groups, words)
        fail(
            "input",
            f"{channels_per_group * groups} channels (weight {words.shape(weight_shape)}, groups={groups})",
            words.shape(shape) + hint,
        )
    if bias is not None and (len(bias[0]) != 1 or bias[0][0] != lr_channels):
        fail("bias", f"[{lr_channels}], one value per row of weight", shape_of(bias[0]))


def _checked_output_shape(
    geometry: Geometry, shape: Sequence[int], weight_shape: Sequence[int], words: Words
) -> tuple[int, int, int, int]:
    batch, _, height, width = shape
    lr_channels, _, kernel_h, kernel_w = weight_shape
    g = geometry
    lr_h, lr_w = lr_size(g, height, width, kernel_h, kernel_w)
    if lr_h < 1 or lr_w < 1:
        padded = words.size(height + g.pad_top + g.pad_bottom, width + g.pad_left + g.pad_right)
        fail(
            "weight",
            f"a kernel that fits the padded input of {padded} {words.pixel}s",
            f"{words.size(kernel_h, kernel_w)} with dilation {words.pair((g.dilation_h, g.dilation_w))}",
        )
    out_h, out_w = output_size(g, height, width, kernel_h, kernel_w)
    if out_h < 1 or out_w < 1:
        fail("crop", f"less than the output's {lr_h * g.upscale_h}x{lr_w * g.upscale_w} pixels", g.crop())
    channels = lr_channels // (g.upscale_h * g.upscale_w)
    output_shape = (batch, channels, out_h, out_w)
    _check_output_size(output_shape, lr_h * g.upscale_h, lr_w * g.upscale_w, words)
    return output_shape


def _check_output_size(
    shape: tuple[int, int, int, int], uncropped_h: int, uncropped_w: int, words: Words
) -> None:
    # Not while tracing: no compiled graph should depend on whether its sizes are below these.
    if not torch.compiler.is_compiling() and (
        max(uncropped_h, uncropped_w) > LARGEST_SIZE
        or shape[0] * shape[1] * uncropped_h * uncropped_w >= 2**LARGEST_COUNT_LOG2
    ):
        expected = (
            f"an output at most {LARGEST_SIZE} {words.pixel}s {words.large}, of less than "
            f"2**{LARGEST_COUNT_LOG2} values"
        )
        fail("input", expected, words.shape(shape))


def _check_activation_weight(
    activation: Any, info: TensorInfo | None, channels: int, lr_channels: int, words: Words
) -> None:
    if activation != "prelu":
        if info is not None:
            fail("activation_weight", f"None where activation is {activation!r}", shape_of(info[0]))
        return
    if info is None:
        fail("activation_weight", "a tensor where activation is 'prelu'", None)
    shape = info[0]
    if len(shape) > 1 or math.prod(shape) not in (1, channels, lr_channels):
        several = f"C={channels} (after the shuffle) or C*{words.factor}={lr_channels} (before it)"
        fail("activation_weight", f"1, {several} values in one dimension", shape_of(shape))


def _check_residual(
    found: Sequence[int],
    output_shape: Sequence[int],
    lr_channels: int,
    low: tuple[int, int],
    words: Words,
) -> None:
    batch, channels = output_shape[:2]
    expected = (
        tuple(output_shape),  # as the output
        (batch, channels, *low),  # low resolution: nearest-neighbour upsampled
        (batch, lr_channels, *low),  # low resolution and channels: shuffled
    )
    if tuple(found) not in expected:
        as_output, upsampled, shuffled = map(words.shape, expected)
        fail(
            "residual",
            f"{as_output} (added), {upsampled} (upsampled) or {shuffled} (shuffled)",
            words.shape(found),
        )
