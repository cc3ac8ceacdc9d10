# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels in the emulator of tests/simt, called with tensors as the operators are."""

from __future__ import annotations

from typing import Any, NamedTuple

import cases
import fused_subpixel_simt as simt
import torch
from cases import SAME3, Case, Tensors
from torch import Tensor

from fused_subpixel.ops.geometry import ACTIVATIONS
from fused_subpixel.ops.layout import is_channels_last

RESIDUALS = (None, "high", "nearest", "low")
GENERIC, MMA, WGMMA = 0, 1, 2
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Target(NamedTuple):
    """A GPU for the plan. Few multiprocessors: then blocks go from tile to tile although images are small."""

    sm: int = 90
    multiprocessors: int = 2
    shared_bytes: int = 227 << 10


LARGE = Target()
SMALL = Target(86, 132, 99 << 10)  # less shared memory, and a block for every tile
HOPPER = Target(90, 1)  # one multiprocessor: what computes more at a time wins
OLD = Target(75, 40, 64 << 10)  # no tensor cores that these kernels use
TARGETS = {"large": LARGE, "small": SMALL}

# For Hopper's own kernel. Two images to a tile or one, several chunks, tiles and blocks of rows, crops.
WIDE = (
    Case("128 rows, 3x3", (1, 64, 16, 15), (128, 64, 3, 3), (2, 2), padding=SAME3),
    Case("256 rows, 1x1", (3, 256, 7, 8), (256, 256, 1, 1), (2, 2)),
    Case("160 rows, 2x2", (1, 128, 17, 9), (160, 128, 2, 2)),
    Case("144 rows, r 3", (2, 72, 8, 8), (144, 72, 1, 1), (3, 3)),
    Case("128 rows, dilated", (1, 64, 16, 8), (128, 64, 3, 2), (4, 2), dilation=(2, 3), padding=(2, 2, 1, 2)),
    Case("248 rows, 1x3", (3, 200, 8, 7), (248, 200, 1, 3), (1, 2), padding=(0, 0, 1, 1)),
    Case("128 rows, cropped", (1, 128, 15, 16), (128, 128, 3, 3), (2, 2), padding=SAME3, crop=(1, 3, 2, 1)),
)


def error(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).abs().max())


def geometry(case: Case, tf32: bool = False) -> list[int]:
    """The fields of csrc/common/op_arguments.h's Geometry."""
    g = case.geometry
    return [
        *case.input, case.channels, *case.weight[2:], g.upscale_h, g.upscale_w, g.stride_h, g.stride_w,
        g.pad_top, g.pad_left, g.pad_bottom, g.pad_right, g.dilation_h, g.dilation_w, g.groups, *case.low,
        g.crop_top, g.crop_left, *case.output[2:], g.channel_order, int(tf32), g.kernel_pad_h, g.kernel_pad_w,
    ]  # fmt: skip


def array(tensor: Tensor | None) -> Any:
    """Address, bytes spanned, sizes, strides."""
    if tensor is None:
        return None
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    bytes = (last + 1) * tensor.element_size() if tensor.numel() else 0
    return tensor.data_ptr(), bytes, list(tensor.shape), list(tensor.stride())


def empty(shape: tuple[int, ...], like: Tensor, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, memory_format=layout)


def forward(
    case: Case, tensors: Tensors, channels_last: bool, target: Target = LARGE, *, tf32: bool = False,
    seed: int = 0, guard_start: bool = False,
) -> Tensor:  # fmt: skip
    """The output of the operator for tensors of any strides."""
    simt.set_seed(seed)
    output = empty(case.output, tensors.input, channels_last)
    epilogue = case.epilogue
    slopes = tensors.activation_weight
    simt.forward(
        geometry(case, tf32), DTYPES.index(output.dtype), array(tensors.input), array(tensors.weight),
        array(tensors.bias), array(slopes), 0 if slopes is None else slopes.numel(), array(tensors.residual),
        RESIDUALS.index(case.residual), ACTIVATIONS[case.activation], epilogue.negative_slope,
        epilogue.clamp_min, epilogue.clamp_max, array(output), list(target), guard_start,
    )  # fmt: skip
    return output


def gradient(case: Case, grad: Tensor, output: Tensor | None, tf32: bool = False) -> Any:
    """The gradient of the output; with an output, that of the case's activation is still to be applied."""
    saved = (None, 0, 0.0)
    if output is not None:
        saved = (array(output), ACTIVATIONS[case.activation], case.epilogue.negative_slope)
    return simt.Gradient(geometry(case, tf32), DTYPES.index(grad.dtype), array(grad), *saved)


class Kernels(NamedTuple):
    """Who computed the gradients of the input and of the weight, and whether unshuffle_reduce ran first."""

    input: int
    weight: int
    lowered: int


def gradients(
    case: Case, grad: Tensor, tensors: Tensors, channels_last: bool, target: Target = LARGE, *,
    output: Tensor | None = None, tf32: bool = False, seed: int = 0, guard_start: bool = False,
) -> tuple[tuple[Tensor, Tensor, Tensor], Kernels]:  # fmt: skip
    """Of input, weight and bias, in one call; and who computed them."""
    simt.set_seed(seed)
    found = (
        empty(case.input, grad, channels_last),
        grad.new_empty(case.weight),
        grad.new_empty(case.weight[:1]),
    )
    kernels = simt.gradients(
        gradient(case, grad, output, tf32), array(tensors.weight), array(found[0]), array(tensors.input),
        array(found[1]), array(found[2]), list(target), guard_start,
    )  # fmt: skip
    return found, Kernels(*kernels)


def input_grad(
    case: Case, grad: Tensor, weight: Tensor, channels_last: bool, target: Target = LARGE, *,
    output: Tensor | None = None, tf32: bool = False, seed: int = 0, guard_start: bool = False,
) -> Tensor:  # fmt: skip
    simt.set_seed(seed)
    found = empty(case.input, grad, channels_last)
    simt.gradients(
        gradient(case, grad, output, tf32), array(weight), array(found), None, None, None, list(target),
        guard_start,
    )  # fmt: skip
    return found


def weight_grad(
    case: Case, grad: Tensor, input: Tensor, target: Target = LARGE, *, output: Tensor | None = None,
    tf32: bool = False, seed: int = 0, guard_start: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    simt.set_seed(seed)
    weight, bias = grad.new_empty(case.weight), grad.new_empty(case.weight[:1])
    simt.gradients(
        gradient(case, grad, output, tf32), None, None, array(input), array(weight), array(bias),
        list(target), guard_start,
    )  # fmt: skip
    return weight, bias


def unshuffle_reduce(
    case: Case, grad: Tensor, target: Target = LARGE, *, output: Tensor | None = None, seed: int = 0,
    guard_start: bool = False,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The low-resolution gradient, [N, padded channels, P, Q] in channels_last, and the bias's."""
    simt.set_seed(seed)
    channels, vector = case.weight[0], 16 // grad.element_size()
    low = empty((grad.shape[0], -(-channels // vector) * vector, *case.low), grad, True)
    bias = grad.new_empty(channels)
    simt.unshuffle_reduce(
        gradient(case, grad, output), array(low), array(bias), list(target), guard_start,
    )  # fmt: skip
    return low, bias


class Planned(NamedTuple):
    """csrc/cuda/launch.h's PassPlan. pixels, columns: of a tile."""

    kernel: int
    refusal: int
    pixels: int
    columns: int
    blocks: int
    staging: int
    block_k_bytes: int
    tiles: int
    packs_weight: int
    lowered: int


def plan(
    case: Case, dtype: torch.dtype, channels_last: bool, target: Target = LARGE, *,
    which: int = cases.FORWARD, tf32: bool = False, activated: bool = False,
) -> Planned:  # fmt: skip
    """``activated``: the gradient of an activation is still to be applied."""
    numbers = DTYPES.index(dtype), channels_last, activated, list(target)
    return Planned(*simt.plan(which, geometry(case, tf32), *numbers))


def shuffle(input: Tensor, factors: tuple[int, int], order: int, inverse: bool, guard_start: bool) -> Tensor:
    """The shuffle of a [N, C, H, W] tensor, in the layout that its strides suggest."""
    n, c, h, w = input.shape
    r_h, r_w = factors
    shape = (n, c * r_h * r_w, h // r_h, w // r_w) if inverse else (n, c // (r_h * r_w), h * r_h, w * r_w)
    channels_last = is_channels_last(input)
    output = empty(shape, input, channels_last)
    simt.shuffle(
        [*shape, *factors], order, inverse, channels_last, input.element_size(), array(input), array(output),
        guard_start,
    )  # fmt: skip
    return output
