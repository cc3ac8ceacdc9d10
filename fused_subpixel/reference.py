# SPDX-License-Identifier: BSD-3-Clause
"""The same operation in plain PyTorch: the oracle of the tests and the fallback everywhere else.

It runs on any device, for any floating dtype, under any transform, and is differentiable to any order.
Shuffles are views and one copy, for ``torch.pixel_shuffle`` fails in the backward of empty batches (PyTorch
2.13) and knows neither unequal factors nor the DCR order. It serves where it is the faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from . import torch_compat
from .dispatch import checks
from .dispatch.resolve import resolve_subpixel_conv2d
from .ops.geometry import (
    ACTIVATIONS,
    CHANNEL_ORDERS,
    Activation,
    ChannelOrder,
    Epilogue,
    Geometry,
    Problem,
)
from .ops.layout import is_channels_last, memory_format

_DCR = CHANNEL_ORDERS["dcr"]


def subpixel_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    upscale_factor: Any = 2,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    activation_weight: Tensor | None = None,
    residual: Tensor | None = None,
    clamp: Any = None,
    channel_order: ChannelOrder = "crd",
    crop: Any = (0, 0, 0, 0),
) -> Tensor:
    """:func:`fused_subpixel.subpixel_conv2d` in plain PyTorch, for a batched input.

    ``crop``: (top, left, bottom, right) high-resolution pixels taken off the output.
    """
    problem = resolve_subpixel_conv2d(
        (input.shape, input.dtype, input.device),
        (weight.shape, weight.dtype, weight.device),
        checks.describe(bias),
        checks.describe(activation_weight),
        checks.describe(residual),
        upscale_factor, stride, padding, dilation, groups, activation, negative_slope, clamp, channel_order,
        crop,
    )  # fmt: skip
    return run(input, weight, bias, activation_weight, residual, problem.geometry, problem.epilogue)


def run(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    epilogue: Epilogue,
) -> Tensor:
    """The operator ``fused_subpixel::subpixel_conv2d`` with its arguments already checked."""
    g = geometry
    layout = memory_format(is_channels_last(input))
    input, padding = symmetric_padding(input, g)
    low = F.conv2d(
        input,
        grouped_weight(weight, g.groups),
        bias,
        (g.stride_h, g.stride_w),
        padding,
        (g.dilation_h, g.dilation_w),
        g.groups,
    )
    output = shuffle_and_crop(low, g)
    output = apply_epilogue(output, activation_weight, residual, g, epilogue)
    return output.contiguous(memory_format=layout)


def run_problem(
    problem: Problem,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """A checked call of any public function."""
    geometry, epilogue, transposed = problem.geometry, problem.epilogue, problem.transposed
    if transposed is None:
        return run(input, weight, bias, activation_weight, residual, geometry, epilogue)
    layout = memory_format(is_channels_last(input))
    output = F.conv_transpose2d(
        input, grouped_weight(weight, geometry.groups), bias, transposed.stride, transposed.padding,
        transposed.output_padding, geometry.groups, transposed.dilation,
    )  # fmt: skip
    output = apply_epilogue(output, activation_weight, residual, Geometry(), epilogue)
    return output.contiguous(memory_format=layout)


def grouped_weight(weight: Tensor, groups: int) -> Tensor:
    """A weight as PyTorch takes it: of a channels_last one its grouped gradient (2.13, on CPUs) is wrong."""
    return weight if groups == 1 or weight.is_contiguous() else weight.contiguous()


def symmetric_padding(input: Tensor, geometry: Geometry) -> tuple[Tensor, tuple[int, int]]:
    """The input and the padding to convolve it with: PyTorch's convolutions know no asymmetric padding."""
    g = geometry
    if g.pad_top == g.pad_bottom and g.pad_left == g.pad_right:
        return input, (g.pad_top, g.pad_left)
    return F.pad(input, (g.pad_left, g.pad_right, g.pad_top, g.pad_bottom)), (0, 0)


def fractionally_strided_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
) -> Tensor:
    """The third face of a transposed convolution: insert zeros between the pixels, then convolve.

    Between neighbouring pixels come stride-1 zeros, around them K-1-padding, and the kernel, flipped by 180
    degrees, moves one output pixel at a time: a fraction 1/stride of an input pixel. Most of its products are
    with zeros; it is here to be understood and to test the others. Arguments and result as of
    :func:`torch.nn.functional.conv_transpose2d`, for a batched input; V. Dumoulin and F. Visin, "A guide to
    convolution arithmetic for deep learning", arXiv 1603.07285.
    """
    (stride_h, stride_w), (pad_h, pad_w) = (
        checks.pair("stride", stride, minimum=1),
        checks.pair("padding", padding, minimum=0),
    )
    extra_h, extra_w = checks.pair("output_padding", output_padding, minimum=0)
    n, channels, height, width = input.shape
    spread = input.new_zeros(n, channels, (height - 1) * stride_h + 1, (width - 1) * stride_w + 1)
    spread[:, :, ::stride_h, ::stride_w] = input
    around_h, around_w = weight.shape[2] - 1 - pad_h, weight.shape[3] - 1 - pad_w
    spread = F.pad(spread, (around_w, around_w + extra_w, around_h, around_h + extra_h))
    grouped = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)  # [C, Ci/groups, K, K]
    return F.conv2d(spread, grouped.flip(2, 3), bias, groups=groups)


# ---- shuffles --------------------------------------------------------------------------------------------


def pixel_shuffle(input: Tensor, upscale_factor: Any, channel_order: ChannelOrder = "crd") -> Tensor:
    """[..., C*r_h*r_w, H, W] -> [..., C, H*r_h, W*r_w], in the input's memory format."""
    upscale_h, upscale_w = checks.pair("upscale_factor", upscale_factor, minimum=1)
    order = checks.lookup("channel_order", channel_order, CHANNEL_ORDERS)
    if input.dim() == 4:
        return shuffle(input, upscale_h, upscale_w, order)
    flat = input.reshape(math.prod(input.shape[:-3]), *input.shape[-3:])
    output = shuffle(flat, upscale_h, upscale_w, order)
    return output.reshape(*input.shape[:-3], *output.shape[1:])


def pixel_unshuffle(input: Tensor, downscale_factor: Any, channel_order: ChannelOrder = "crd") -> Tensor:
    """[..., C, H*r_h, W*r_w] -> [..., C*r_h*r_w, H, W], in the input's memory format."""
    factor_h, factor_w = checks.pair("downscale_factor", downscale_factor, minimum=1)
    order = checks.lookup("channel_order", channel_order, CHANNEL_ORDERS)
    if input.dim() == 4:
        return unshuffle(input, factor_h, factor_w, order)
    flat = input.reshape(math.prod(input.shape[:-3]), *input.shape[-3:])
    output = unshuffle(flat, factor_h, factor_w, order)
    return output.reshape(*input.shape[:-3], *output.shape[1:])


def _native_is_faster(input: Tensor, factor_h: int, factor_w: int, channel_order: int) -> bool:
    """Whether to leave a shuffle to PyTorch's own.

    That one interleaves channels_last pixels on a CPU two to three times as fast as a copy of permuted
    views. On CUDA it loses the layout, and its gradient fails on empty tensors.
    """
    return (
        factor_h == factor_w
        and channel_order != _DCR
        and input.device.type == "cpu"
        and is_channels_last(input)
        and input.numel() > 0
    )


def _native_is_better_known(factor_h: int, factor_w: int, channel_order: int) -> bool:
    """Whether to write PyTorch's own shuffle into a graph, which other programs know as one operator."""
    for_others = torch_compat.is_exporting() or torch.onnx.is_in_onnx_export()
    return for_others and factor_h == factor_w and channel_order != _DCR


def shuffle(input: Tensor, upscale_h: int, upscale_w: int, channel_order: int) -> Tensor:
    """[N, C*r_h*r_w, P, Q] -> [N, C, P*r_h, Q*r_w]."""
    n, lr_channels, p, q = input.shape
    c = lr_channels // (upscale_h * upscale_w)
    # TorchScript, which the older exporter traces to, has no such symbols.
    if torch.onnx.is_in_onnx_export() and torch_compat.jit_tracing_state() is None and upscale_h == upscale_w:
        return torch.onnx.ops.symbolic(
            "DepthToSpace",
            (input,),
            {"blocksize": upscale_h, "mode": "DCR" if channel_order == _DCR else "CRD"},
            dtype=input.dtype,
            shape=(n, c, p * upscale_h, q * upscale_w),
        )
    if _native_is_faster(input, upscale_h, upscale_w, channel_order):
        return F.pixel_shuffle(input, upscale_h)
    if _native_is_better_known(upscale_h, upscale_w, channel_order):
        shuffled = F.pixel_shuffle(input, upscale_h)
        return shuffled.contiguous(memory_format=memory_format(is_channels_last(input)))
    if channel_order == _DCR:
        blocks = input.reshape(n, upscale_h, upscale_w, c, p, q).permute(0, 3, 1, 2, 4, 5)
    else:
        blocks = input.reshape(n, c, upscale_h, upscale_w, p, q)
    # blocks: [N, C, r_h, r_w, P, Q]; the copy is explicit because a reshape would return a view of the input
    # where it can, and a caller may write into what it gets.
    if is_channels_last(input):
        pixels = blocks.permute(0, 4, 2, 5, 3, 1).clone(memory_format=torch.contiguous_format)
        return pixels.view(n, p * upscale_h, q * upscale_w, c).permute(0, 3, 1, 2)
    pixels = blocks.permute(0, 1, 4, 2, 5, 3).clone(memory_format=torch.contiguous_format)
    return pixels.view(n, c, p * upscale_h, q * upscale_w)


def unshuffle(input: Tensor, factor_h: int, factor_w: int, channel_order: int) -> Tensor:
    """[N, C, P*r_h, Q*r_w] -> [N, C*r_h*r_w, P, Q], the inverse (and the gradient) of :func:`shuffle`."""
    n, c, height, width = input.shape
    p, q = height // factor_h, width // factor_w
    lr_channels = c * factor_h * factor_w
    if _native_is_faster(input, factor_h, factor_w, channel_order):
        return F.pixel_unshuffle(input, factor_h)
    if _native_is_better_known(factor_h, factor_w, channel_order):
        unshuffled = F.pixel_unshuffle(input, factor_h)
        return unshuffled.contiguous(memory_format=memory_format(is_channels_last(input)))
    blocks = input.reshape(n, c, p, factor_h, q, factor_w)
    if is_channels_last(input):
        order = (0, 2, 4, 3, 5, 1) if channel_order == _DCR else (0, 2, 4, 1, 3, 5)
        pixels = blocks.permute(order).clone(memory_format=torch.contiguous_format)
        return pixels.view(n, p, q, lr_channels).permute(0, 3, 1, 2)
    order = (0, 3, 5, 1, 2, 4) if channel_order == _DCR else (0, 1, 3, 5, 2, 4)
    return blocks.permute(order).clone(memory_format=torch.contiguous_format).view(n, lr_channels, p, q)


def shuffle_and_crop(low: Tensor, geometry: Geometry) -> Tensor:
    """[N, C*r_h*r_w, P, Q] -> [N, C, P*r_h - crops, Q*r_w - crops]."""
    g = geometry
    plain = g.upscale_h == g.upscale_w == 1
    output = low if plain else shuffle(low, g.upscale_h, g.upscale_w, g.channel_order)
    if not any(g.crop()):
        return output
    return output[
        :, :, g.crop_top : output.shape[2] - g.crop_bottom, g.crop_left : output.shape[3] - g.crop_right
    ]


def uncrop_and_unshuffle(output: Tensor, geometry: Geometry) -> Tensor:
    """The adjoint of :func:`shuffle_and_crop`: what was cropped away gets zeros."""
    g = geometry
    if any(g.crop()):
        output = F.pad(output, (g.crop_left, g.crop_right, g.crop_top, g.crop_bottom))
    return unshuffle(output, g.upscale_h, g.upscale_w, g.channel_order)


# ---- epilogue --------------------------------------------------------------------------------------------


def apply_epilogue(
    output: Tensor,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    geometry: Geometry,
    epilogue: Epilogue,
) -> Tensor:
    """activation, then residual, then clamp, on the shuffled and cropped convolution (bias included)."""
    return add_and_clamp(
        _activate(output, activation_weight, geometry, epilogue), residual, geometry, epilogue
    )


def add_and_clamp(output: Tensor, residual: Tensor | None, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    """What comes after the activation. Of two dtypes, which autocast gives, the sum has the wider."""
    if residual is not None:
        output = output + residual_in_high_resolution(residual, output, geometry)
    if epilogue.clamps():
        output = output.clamp(epilogue.clamp_min, epilogue.clamp_max)
    return output


def _activate(output: Tensor, weight: Tensor | None, geometry: Geometry, epilogue: Epilogue) -> Tensor:
    activation = epilogue.activation
    if activation == ACTIVATIONS["relu"]:
        return F.relu(output)
    if activation == ACTIVATIONS["leaky_relu"]:
        return F.leaky_relu(output, epilogue.negative_slope)
    if activation == ACTIVATIONS["prelu"]:
        assert weight is not None
        return _prelu(output, weight, geometry)
    if activation == ACTIVATIONS["gelu_tanh"]:
        return F.gelu(output, approximate="tanh")
    return _WITHOUT_OPTIONS[activation](output) if activation in _WITHOUT_OPTIONS else output


_WITHOUT_OPTIONS: dict[int, Callable[[Tensor], Tensor]] = {
    ACTIVATIONS["silu"]: F.silu,
    ACTIVATIONS["gelu"]: F.gelu,
    ACTIVATIONS["tanh"]: torch.tanh,
    ACTIVATIONS["sigmoid"]: torch.sigmoid,
    ACTIVATIONS["relu6"]: F.relu6,
    ACTIVATIONS["hardswish"]: F.hardswish,
    ACTIVATIONS["hardsigmoid"]: F.hardsigmoid,
    ACTIVATIONS["elu"]: F.elu,
    ACTIVATIONS["mish"]: F.mish,
    ACTIVATIONS["softplus"]: F.softplus,
}


def _prelu(output: Tensor, weight: Tensor, geometry: Geometry) -> Tensor:
    weight = weight.to(output.dtype)  # which differ under autocast
    if weight.numel() in (1, output.shape[1]):
        return F.prelu(output, weight)
    # One slope per channel before the shuffle: shuffle an image of slopes, the same for the whole batch.
    low = lr_size_of(output, geometry)
    slopes = shuffle_and_crop(weight.view(1, -1, 1, 1).expand(1, -1, *low), geometry)
    return torch.where(output > 0, output, slopes * output)


def residual_in_high_resolution(residual: Tensor, output: Tensor, geometry: Geometry) -> Tensor:
    """The residual as it is added to ``output``; its shape tells which of the three kinds it is."""
    if residual.shape == output.shape:
        return residual
    if residual.shape[1] != output.shape[1]:
        return shuffle_and_crop(residual, geometry)
    # Nearest-neighbour upsampling is the shuffle of a tensor whose r_h*r_w phases are all the same.
    g = geometry
    n, c, p, q = residual.shape
    phases = g.upscale_h * g.upscale_w
    repeated = residual[:, :, None].expand(n, c, phases, p, q).reshape(n, c * phases, p, q)
    return shuffle_and_crop(repeated, g._replace(channel_order=CHANNEL_ORDERS["crd"]))


def lr_size_of(output: Tensor, geometry: Geometry) -> tuple[int, int]:
    """(P, Q) of the convolution whose shuffled, cropped result is ``output``."""
    g = geometry
    return (
        (output.shape[2] + g.crop_top + g.crop_bottom) // g.upscale_h,
        (output.shape[3] + g.crop_left + g.crop_right) // g.upscale_w,
    )
