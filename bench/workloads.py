# SPDX-License-Identifier: BSD-3-Clause
"""What is measured: problems from networks that people use, as data, and the tensors to run them with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fused_subpixel._layout import memory_format


@dataclass(frozen=True)
class Workload:
    """A convolution of stride 1 and "same" padding, then a pixel shuffle, then the activation."""

    name: str
    n: int
    ci: int
    h: int  # of the input; the output has h*r x w*r pixels
    w: int
    c: int  # of the output; the convolution has c*r*r
    r: int
    kernel: int
    what: str
    bias: bool = True
    activation: str | None = None  # None or "relu"

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.ci, self.h, self.w

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.c * self.r**2, self.ci, self.kernel, self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h * self.r, self.w * self.r

    @property
    def padding(self) -> int | str:
        """As users write it: a number where one will do, for an even kernel "same"."""
        return self.kernel // 2 if self.kernel % 2 else "same"

    def flops(self, backward: bool) -> int:
        """Multiplications and additions; the two gradients take as many each as the forward pass."""
        forward = 2 * self.n * self.h * self.w * self.c * self.r**2 * self.ci * self.kernel**2
        return 3 * forward if backward else forward

    def elements(self, backward: bool) -> int:
        """Numbers that no algorithm can avoid to read or write, each once: operands, output, gradients."""
        operands = math.prod(self.input_shape) + math.prod(self.weight_shape) + self.bias * self.c * self.r**2
        image = math.prod(self.output_shape)
        return 2 * (operands + image) if backward else operands + image


# fmt: off
WORKLOADS = (
    #         name            n   ci    h    w    c  r  k
    Workload("espcn_x3_y",    1,  32, 360, 640,   1, 3, 3, "ESPCN head, luminance, to 1080p"),
    Workload("espcn_x3_rgb",  1,  32, 360, 640,   3, 3, 3, "the same in RGB"),
    Workload("srvgg_x4",      1,  64, 270, 480,   3, 4, 3, "Real-ESRGAN compact (animevideo) head, to 1080p"),
    Workload("srvgg_x2",      1,  64, 540, 960,   3, 2, 3, "the same x2"),
    Workload("edsr_base_x2",  1,  64, 192, 192,  64, 2, 3, "EDSR-baseline, RCAN, SwinIR upsampler step"),
    Workload("edsr_x2",       1, 256,  96,  96, 256, 2, 3, "EDSR upsampler step"),
    Workload("swinir_lw_x2",  1,  60, 256, 256,   3, 2, 3, "SwinIR lightweight head"),
    Workload("compressai",    1, 192,  32,  48, 192, 2, 3, "learned compression, subpel_conv3x3"),
    Workload("fastai_1x1",    4, 512,  14,  14, 256, 2, 1, "U-Net decoder step, 1x1"),
    Workload("nafnet_1x1",    1, 128, 128, 128,  64, 2, 1, "NAFNet up step, 1x1, no bias", bias=False),
    Workload("mnist_up1",   256,  32,   7,   7,  32, 2, 2, "autoencoder's first up step", activation="relu"),
    Workload("mnist_up2",   256,  32,  14,  14,   1, 2, 2, "autoencoder's second up step"),
)
# fmt: on

# So small that its time is what one call costs, whatever it computes.
TINY = Workload("tiny", 1, 4, 8, 8, 1, 2, 3, "the cost of one call")

BY_NAME = {workload.name: workload for workload in (*WORKLOADS, TINY)}


class Operands(NamedTuple):
    """The tensors of a workload."""

    input: Tensor  # [N, Ci, H, W]
    weight: Tensor  # [C*r*r, Ci, k, k]
    bias: Tensor | None  # [C*r*r]
    gradient: Tensor  # [N, C, H*r, W*r], what the backward pass starts from

    def to_layout(self, channels_last: bool) -> Operands:
        """The same numbers, images and weight in the layout that model.to(memory_format=...) gives them."""
        layout = memory_format(channels_last)
        input, weight, gradient = (
            tensor.contiguous(memory_format=layout) for tensor in (self.input, self.weight, self.gradient)
        )
        return Operands(input, weight, self.bias, gradient)

    def clone(self) -> Operands:
        """The same numbers elsewhere."""
        return Operands(*(None if tensor is None else tensor.clone() for tensor in self))


def operands(
    workload: Workload, dtype: torch.dtype, device: str = "cpu", uniform_bias: bool = False
) -> Operands:
    """Random tensors, contiguous, always the same; scaled for outputs of about one.

    A uniform bias is the same for all convolution channels that become one channel of the output: a
    transposed convolution has no other.
    """
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    fan_in, phases = workload.ci * workload.kernel**2, workload.r**2
    input, weight = randn(*workload.input_shape), randn(*workload.weight_shape) / fan_in**0.5
    bias = randn(workload.weight_shape[0]) if workload.bias else None
    if uniform_bias and bias is not None:
        bias = bias[::phases].repeat_interleave(phases)
    found = (input, weight, bias, randn(*workload.output_shape))
    return Operands(*(None if tensor is None else tensor.to(device, dtype) for tensor in found))
