# SPDX-License-Identifier: BSD-3-Clause
"""The check of three-dimensional calls, and what can be computed slice by slice."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from .checks import LARGEST_COUNT_LOG2, TensorInfo, fail, integer, triple
from .resolve import (
    check_dtypes_and_devices,
    check_not_empty,
    check_output_padding,
    check_ranks,
    check_transposed_channels,
    transposed_side,
)
from .words import VOLUMES


class Volumes(NamedTuple):
    """The options of a transposed convolution of volumes, each as (depth, vertical, horizontal)."""

    kernel: tuple[int, ...]
    stride: tuple[int, int, int]
    padding: tuple[int, int, int]
    output_padding: tuple[int, int, int]
    groups: int
    dilation: tuple[int, int, int]
    output: tuple[int, ...] = ()  # the shape, where it is known

    def options(self) -> tuple[Any, Any, Any, Any, Any]:
        """Those of ``conv_transpose3d``, in the order of its arguments."""
        return self[1:6]

    @classmethod
    def of(cls, layer: Any) -> Volumes:
        """Those of an ``nn.ConvTranspose3d``."""
        return cls(*(getattr(layer, name) for name in ("kernel_size", *cls._fields[1:6])))

    def why_not_by_slices(self) -> str | None:
        """Why a slice of the output comes from more than one slice of the input, if it does."""
        if self.dilation != (1, 1, 1):
            return f"dilation {self.dilation}: no sub-pixel convolution"
        if self.kernel[0] != self.stride[0]:
            return f"in depth the kernel has {self.kernel[0]} taps and a stride of {self.stride[0]}"
        if self.padding[0] or self.output_padding[0]:
            return "there is padding in depth"
        return None


def resolve_conv_transpose3d(
    input: TensorInfo,
    weight: TensorInfo,
    bias: TensorInfo | None,
    stride: object,
    padding: object,
    output_padding: object,
    groups: object,
    dilation: object,
) -> Volumes:
    """Check the arguments of a batched :func:`fused_subpixel.conv_transpose3d`."""
    shape, weight_shape, words = input[0], weight[0], VOLUMES
    check_ranks(shape, weight_shape, words.transposed_weight, words, rank=5)
    check_dtypes_and_devices(input, weight, bias, None, None)
    volumes = Volumes(
        tuple(weight_shape[2:]),
        triple("stride", stride, minimum=1),
        triple("padding", padding, minimum=0),
        triple("output_padding", output_padding, minimum=0),
        integer("groups", groups, minimum=1),
        triple("dilation", dilation, minimum=1),
    )
    strides, paddings, extras, count, dilations = volumes.options()
    check_output_padding(extras, strides, dilations, words)
    channels = check_transposed_channels(shape, weight_shape, bias, count, words)
    check_not_empty(shape, words)
    sizes = [
        transposed_side(*numbers).size
        for numbers in zip(shape[2:], volumes.kernel, strides, paddings, extras, dilations, strict=True)
    ]
    if min(sizes) < (0 if shape[0] == 0 else 1):
        found = f"{paddings}, an output of {'x'.join(map(str, sizes))}"
        fail("padding", f"what leaves an output of at least one {words.pixel}", found)
    output = shape[0], channels, *sizes
    if not torch.compiler.is_compiling() and math.prod(output) >= 2**LARGEST_COUNT_LOG2:
        fail("input", f"an output of less than 2**{LARGEST_COUNT_LOG2} values", words.shape(shape))
    return volumes._replace(output=output)
