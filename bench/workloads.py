# SPDX-License-Identifier: BSD-3-Clause
"""What is measured: problems from networks that people use, as data, and the tensors to run them with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


def memory_format(channels_last: bool) -> torch.memory_format:
    """PyTorch's name for a layout. Not the product's function: worker.py runs this with another build."""
    return torch.channels_last if channels_last else torch.contiguous_format


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
    def biases(self) -> int:
        return self.weight_shape[0]

    @property
    def fan_in(self) -> int:
        """How many products an output is the sum of."""
        return self.ci * self.kernel**2

    @property
    def padding(self) -> int | str:
        """As users write it: a number where one will do, for an even kernel "same"."""
        return self.kernel // 2 if self.kernel % 2 else "same"

    def flops(self, backward: bool) -> int:
        """Multiplications and additions; the two gradients take as many each as the forward pass."""
        forward = 2 * self.n * self.h * self.w * math.prod(self.weight_shape)
        return 3 * forward if backward else forward

    def elements(self, backward: bool) -> int:
        """Numbers that no algorithm can avoid to read or write, each once: operands, output, gradients."""
        operands = math.prod(self.input_shape) + math.prod(self.weight_shape) + self.bias * self.biases
        image = math.prod(self.output_shape)
        return 2 * (operands + image) if backward else operands + image


@dataclass(frozen=True)
class Transposed(Workload):
    """A transposed convolution of stride r that was one in its network, so that nobody writes a shuffle."""

    cut: int = 0  # its padding

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.ci, self.c, self.kernel, self.kernel

    @property
    def output_shape(self) -> tuple[int, int, int, int]:
        h, w = ((size - 1) * self.r + self.kernel - 2 * self.cut for size in (self.h, self.w))
        return self.n, self.c, h, w

    @property
    def biases(self) -> int:
        return self.c

    @property
    def fan_in(self) -> int:
        return self.ci * math.ceil(self.kernel / self.r) ** 2


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

# fmt: off
TRANSPOSED = (
    Transposed("dcgan_up",   16, 256,  16,  16, 128, 2, 4, "DCGAN, ConvTranspose2d(.., 4, 2, 1)", cut=1),
    Transposed("unet_up",     1, 128, 128, 128,  64, 2, 2, "U-Net, ConvTranspose2d(.., 2, 2)"),
)
# fmt: on

# So small that its time is what one call costs, whatever it computes.
TINY = Workload("tiny", 1, 4, 8, 8, 1, 2, 3, "the cost of one call")

SUITE = (*WORKLOADS, *TRANSPOSED, TINY)

# What grows, by series: the image (sizes are those of the output), the factor (of a constant input).
GROWTH = {
    "size": tuple(
        Workload(f"size_{h}x{w}", 1, 32, h // 4, w // 4, 3, 4, 3, "ESPCN head x4, to this output size")
        for h, w in ((64, 64), (128, 128), (256, 256), (512, 512), (1080, 1920), (2160, 3840))
    ),
    "narrow": tuple(
        Workload(f"narrow_r{r}", 1, 32, 120, 160, 3, r, 3, "ESPCN head, 32 to 3 channels, input 120x160")
        for r in (1, 2, 3, 4, 6, 8)
    ),
    "wide": tuple(
        Workload(f"wide_r{r}", 1, 64, 48, 48, 64, r, 3, "EDSR-like step, 64 to 64 channels, input 48x48")
        for r in (1, 2, 3, 4, 6, 8)
    ),
    # no head but a layer before it, of a network that upscales first
    "body": tuple(
        Workload(f"body_r{r}", 1, 64, 60 * r, 80 * r, 32, 1, 3, f"ESPCN's second layer, 60x80 upscaled x{r}")
        for r in (1, 2, 3, 4)
    ),
}
GROWING = tuple(workload for series in GROWTH.values() for workload in series)

BY_NAME = {workload.name: workload for workload in (*SUITE, *GROWING)}

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "tf32": torch.float32,  # the same tensors, multiplied by tensor cores
}


class Operands(NamedTuple):
    """The tensors of a workload."""

    input: Tensor  # [N, Ci, H, W]
    weight: Tensor  # [C*r*r, Ci, k, k], of a transposed convolution [Ci, C, k, k]
    bias: Tensor | None  # [C*r*r], [C]
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

    phases = workload.biases // workload.c
    input, weight = randn(*workload.input_shape), randn(*workload.weight_shape) / workload.fan_in**0.5
    bias = randn(workload.biases) if workload.bias else None
    if uniform_bias and bias is not None:
        bias = bias[::phases].repeat_interleave(phases)
    found = (input, weight, bias, randn(*workload.output_shape))
    return Operands(*(None if tensor is None else tensor.to(device, dtype) for tensor in found))
