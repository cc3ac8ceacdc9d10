# SPDX-License-Identifier: BSD-3-Clause
"""What a checked call is, in plain numbers: geometry, epilogue and problem.

The numbers of the enumerations here are those of csrc/common.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch

# The names, for type checkers, and their numbers, which follow from their order.
ChannelOrder = Literal["crd", "dcr"]
Activation = Literal[
    "relu", "leaky_relu", "prelu", "silu", "gelu", "tanh", "sigmoid", "relu6", "hardswish", "hardsigmoid",
    "gelu_tanh", "elu", "mish", "softplus",
]  # fmt: skip
CHANNEL_ORDERS: dict[str, int] = {name: number for number, name in enumerate(get_args(ChannelOrder))}
ACTIVATIONS: dict[str | None, int] = {
    name: number for number, name in enumerate((None, *get_args(Activation)))
}
_READ_FROM_OUTPUT = frozenset(ACTIVATIONS[name] for name in ("relu", "relu6", "tanh", "sigmoid"))
# enum Isa of csrc/cpu, but for the stand-ins of the tests
INSTRUCTION_SETS = ("portable", "AVX2", "AVX-512", "AVX512-BF16", "AMX", "NEON-BF16")
# In the order of enum DType of csrc/common/scalar.h.
KERNEL_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# Named tuples here have no properties: torch.compile of torch 2.10 cannot read these.


class Geometry(NamedTuple):
    """Where the taps and the pixels are; the names and order of the operators' arguments."""

    upscale_h: int = 1
    upscale_w: int = 1
    stride_h: int = 1
    stride_w: int = 1
    pad_top: int = 0
    pad_left: int = 0
    pad_bottom: int = 0
    pad_right: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1
    crop_top: int = 0  # in high-resolution pixels, taken off the shuffled output
    crop_left: int = 0
    crop_bottom: int = 0
    crop_right: int = 0
    channel_order: int = 0
    tf32: int = 0  # whether float32 may be computed as tf32 on GPUs, or with no larger error on CPUs
    # Rows and columns of zeros that extend a transposed convolution's kernel, below and to the right, to a
    # multiple of its stride, the upscale factor: so many phases, the last ones, lack the first row (column)
    # of taps. Kernels need not read them.
    kernel_pad_h: int = 0
    kernel_pad_w: int = 0

    def crop(self) -> tuple[int, int, int, int]:
        """(top, left, bottom, right)."""
        return self.crop_top, self.crop_left, self.crop_bottom, self.crop_right


class Epilogue(NamedTuple):
    """What happens to an accumulated value before it is stored: bias, activation, residual, clamp."""

    activation: int = 0
    negative_slope: float = 0.01
    clamp_min: float = -math.inf
    clamp_max: float = math.inf

    def numbers(self) -> tuple[int, float, float | None, float | None]:
        """As the operators take it: None where there is no bound, for AOTInductor cannot write infinity."""
        activation, slope, low, high = self
        return activation, slope, None if low == -math.inf else low, None if high == math.inf else high

    @classmethod
    def of(cls, activation: int, slope: float, low: float | None, high: float | None) -> Epilogue:
        """From what an operator was given."""
        return cls(activation, slope, -math.inf if low is None else low, math.inf if high is None else high)

    def has_grad_from_output(self, has_residual: bool) -> bool:
        """Whether the gradient before the epilogue can be computed from its output alone.

        Without activation and clamp the gradient is one, whatever was added. relu, relu6 (whose derivative is
        zero at both ends), leaky_relu (with a finite slope that keeps the sign), tanh and sigmoid have
        derivatives in terms of their results, if nothing was added to these. prelu's slopes may have any
        sign, a clamp hides what it cut off, and the others are not monotonic, or rounding hides where they
        bend: a result of hardsigmoid may be 1 where its derivative is not 0.
        """
        if self.clamps():
            return False
        if self.activation == ACTIVATIONS[None]:
            return True
        if has_residual:
            return False
        if self.activation == ACTIVATIONS["leaky_relu"]:
            return 0 <= self.negative_slope < math.inf
        return self.activation in _READ_FROM_OUTPUT

    def clamps(self) -> bool:
        """Whether there is a bound."""
        return self.clamp_min != -math.inf or self.clamp_max != math.inf


class Transposed(NamedTuple):
    """What a transposed convolution says that :class:`Geometry`, its sub-pixel convolution, does not."""

    input_shape: tuple[int, ...]  # [N, Ci, H, W]
    weight_shape: tuple[int, ...]  # [Ci, C/groups, K_h, K_w]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    dilation: tuple[int, int]
    # Input pixels that reach no output pixel, as negative paddings of F.pad: (left, right, top, bottom).
    unused: tuple[int, int, int, int]


class Problem(NamedTuple):
    """A checked call, without its tensors."""

    geometry: Geometry
    epilogue: Epilogue
    input_shape: tuple[int, ...]  # [N, Ci, H, W]
    weight_shape: tuple[int, ...]  # [C*r_h*r_w, Ci/groups, k_h, k_w]
    output_shape: tuple[int, ...]  # [N, C, P*r_h - crops, Q*r_w - crops]
    dtype: torch.dtype
    device: torch.device
    # Set where the caller's weight, bias and input are those of a transposed convolution. The shapes above
    # are the sub-pixel convolution's all the same.
    transposed: Transposed | None = None


def lr_size(geometry: Geometry, height: int, width: int, kernel_h: int, kernel_w: int) -> tuple[int, int]:
    """(P, Q): the size of the convolution's output before the shuffle."""
    g = geometry
    padded_h, padded_w = height + g.pad_top + g.pad_bottom, width + g.pad_left + g.pad_right
    return (
        (padded_h - g.dilation_h * (kernel_h - 1) - 1) // g.stride_h + 1,
        (padded_w - g.dilation_w * (kernel_w - 1) - 1) // g.stride_w + 1,
    )


def output_size(geometry: Geometry, height: int, width: int, kernel_h: int, kernel_w: int) -> tuple[int, int]:
    """The size of the shuffled and cropped output."""
    g = geometry
    lr_h, lr_w = lr_size(g, height, width, kernel_h, kernel_w)
    return (
        lr_h * g.upscale_h - g.crop_top - g.crop_bottom,
        lr_w * g.upscale_w - g.crop_left - g.crop_right,
    )


def subpixel_weight_shape(weight: Sequence[int], geometry: Geometry) -> tuple[int, int, int, int]:
    """The shape of the sub-pixel convolution's weight from a transposed convolution's, [Ci, C, K_h, K_w]."""
    g, (channels_in, channels, height, width) = geometry, weight
    lr_channels = channels * g.upscale_h * g.upscale_w
    kernel_h, kernel_w = (height + g.kernel_pad_h) // g.upscale_h, (width + g.kernel_pad_w) // g.upscale_w
    return lr_channels, channels_in, kernel_h, kernel_w
