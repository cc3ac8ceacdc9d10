# SPDX-License-Identifier: BSD-3-Clause
"""Shape functions of the operators ("fakes"), and their operation counts for torch.utils.flop_counter."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from .. import torch_compat
from .geometry import Geometry, Transposed, lr_size, output_size, subpixel_weight_shape
from .layout import is_channels_last, memory_format
from .library import has_kernel, operators, qualified

_Function = TypeVar("_Function", bound=Callable[..., Any])


def _register_fake(operator: str) -> Callable[[_Function], _Function]:
    def register(fake: _Function) -> _Function:
        if not has_kernel(operator, "Meta"):
            torch.library.register_fake(qualified(operator), fake)
        return fake

    return register


def _register_flops(operator: str) -> Callable[[_Function], _Function]:
    def register(formula: _Function) -> _Function:
        packet = getattr(operators, operator)
        if packet not in flop_registry:
            register_flop_formula(packet)(formula)
        return formula

    return register


def _empty(like: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    layout = memory_format(channels_last)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


@_register_fake("subpixel_conv2d")
def fake_subpixel_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    numbers: Sequence[int],
    activation: int,
    negative_slope: float,
    clamp_min: float | None,
    clamp_max: float | None,
    transposed_weight: bool = False,
) -> Tensor:
    """The output, without values."""
    torch_compat.keep_call_in_inductor(qualified("subpixel_conv2d"))
    geometry = Geometry(*numbers)
    batch, _, height, width = input.shape
    shape: Sequence[int] = weight.shape
    if transposed_weight:
        shape = subpixel_weight_shape(shape, geometry)
    lr_channels, _, kernel_h, kernel_w = shape
    size = output_size(geometry, height, width, kernel_h, kernel_w)
    channels = lr_channels // (geometry.upscale_h * geometry.upscale_w)
    return _empty(input, (batch, channels, *size), is_channels_last(input))


@_register_fake("subpixel_conv2d_input_grad")
def _(
    grad_output: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    numbers: Sequence[int],
    channels_last: bool,
    *saved: Any,
) -> Tensor:
    groups = Geometry(*numbers).groups
    shape = (grad_output.shape[0], weight.shape[1] * groups, height, width)
    return _empty(grad_output, shape, channels_last)


@_register_fake("subpixel_conv2d_weight_grad")
def _(
    grad_output: Tensor, input: Tensor, kernel_h: int, kernel_w: int, numbers: Sequence[int], *saved: Any
) -> tuple[Tensor, Tensor]:
    geometry = Geometry(*numbers)
    lr_channels = grad_output.shape[1] * geometry.upscale_h * geometry.upscale_w
    weight_shape = (lr_channels, input.shape[1] // geometry.groups, kernel_h, kernel_w)
    return grad_output.new_empty(weight_shape), grad_output.new_empty(lr_channels)


@_register_fake("unshuffle_reduce")
def _(grad_output: Tensor, numbers: Sequence[int], *saved: Any) -> tuple[Tensor, Tensor]:
    g, (batch, channels, height, width) = Geometry(*numbers), grad_output.shape
    low = (
        (height + g.crop_top + g.crop_bottom) // g.upscale_h,
        (width + g.crop_left + g.crop_right) // g.upscale_w,
    )
    lr_channels = channels * g.upscale_h * g.upscale_w
    shape = (batch, lr_channels + vector_padding(lr_channels, grad_output.dtype), *low)
    return _empty(grad_output, shape, channels_last=True), grad_output.new_empty(lr_channels)


def vector_padding(channels: int, dtype: torch.dtype) -> int:
    """The channels of zeros that :func:`unshuffle_reduce` adds: whole vectors of 16 bytes."""
    return -channels % (16 // dtype.itemsize)


@_register_fake("shuffle")
def fake_shuffle(input: Tensor, factor_h: int, factor_w: int, channel_order: int, inverse: bool) -> Tensor:
    """The output, without values."""
    torch_compat.keep_call_in_inductor(qualified("shuffle"))
    n, c, h, w = input.shape
    phases = factor_h * factor_w
    shape = (
        (n, c * phases, h // factor_h, w // factor_w)
        if inverse
        else (n, c // phases, h * factor_h, w * factor_w)
    )
    return _empty(input, shape, is_channels_last(input))


class _Counted(threading.local):
    """The transposed convolution whose operators run: their operands do not always tell that it is one."""

    transposed: Transposed | None = None


_counted = _Counted()


@contextlib.contextmanager
def _counted_as(transposed: Transposed) -> Iterator[None]:
    outer, _counted.transposed = _counted.transposed, transposed
    try:
        yield
    finally:
        _counted.transposed = outer


def counting(transposed: Transposed | None) -> contextlib.AbstractContextManager[None]:
    """Let a transposed convolution's operators count, where one counts, as many operations as PyTorch's."""
    if transposed is None or torch_compat.dispatch_mode_depth() == 0:
        return contextlib.nullcontext()
    return _counted_as(transposed)


@_register_flops("subpixel_conv2d")
def _(input: torch.Size, weight: torch.Size, *rest: Any, transposed_weight: bool = False, **_: Any) -> int:
    if (transposed_weight or len(rest) > 8) and _counted.transposed is None:
        return 2 * input[0] * input[2] * input[3] * math.prod(weight)
    return _flops(Geometry(*rest[3]), input[0], (input[2], input[3]), weight)


@_register_flops("subpixel_conv2d_input_grad")
def _(grad_output: torch.Size, weight: torch.Size, height: int, width: int, *rest: Any, **_: Any) -> int:
    return _flops(Geometry(*rest[0]), grad_output[0], (height, width), weight)


@_register_flops("subpixel_conv2d_weight_grad")
def _(grad_output: torch.Size, input: torch.Size, *rest: Any, out_shape: Any, **_: Any) -> int:
    geometry = Geometry(*rest[2])  # of a weight's gradient PyTorch counts the products between groups, too
    return geometry.groups * _flops(geometry, input[0], (input[2], input[3]), out_shape[0])


def _flops(geometry: Geometry, batch: int, size: tuple[int, int], weight: Sequence[int]) -> int:
    """Two per tap and pixel of the convolution, as PyTorch counts; its gradients have as many.

    PyTorch counts a transposed convolution by its input's pixels: what padding takes off is in, too.
    """
    if (transposed := _counted.transposed) is not None:
        batch, _, *size_before = transposed.input_shape
        return 2 * batch * math.prod(size_before) * math.prod(transposed.weight_shape)
    lr_h, lr_w = lr_size(geometry, *size, weight[2], weight[3])
    return 2 * batch * lr_h * lr_w * math.prod(weight)
