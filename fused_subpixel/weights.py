# SPDX-License-Identifier: BSD-3-Clause
"""A deconvolution is a convolution: the parameters of the one from those of the other.

For r = stride, W of shape [C*r_h*r_w, Ci/groups, k_h, k_w] (crd order) and Wt of shape
[Ci, C/groups, k_h*r_h, k_w*r_w]::

    Wt[ci, c, r_h*a + i, r_w*b + j] = W[(c*r_h + i)*r_w + j, ci, k_h-1-a, k_w-1-b]
    conv_transpose2d(x, Wt, stride=r, padding=r*(k-1-p)) == pixel_shuffle(conv2d(x, W, padding=p), r)

W. Shi et al., "Is the deconvolution layer the same as a convolutional layer?", arXiv 1609.07009. All
functions are differentiable and keep dtype and device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .dispatch import checks
from .ops.geometry import CHANNEL_ORDERS, ChannelOrder, Geometry, Problem, Transposed

_DCR = CHANNEL_ORDERS["dcr"]


def conv_transpose_weight_to_subpixel(
    weight: Tensor, stride: int | Sequence[int], *, groups: int = 1, channel_order: ChannelOrder = "crd"
) -> Tensor:
    """The sub-pixel convolution's weight that does what a transposed convolution's does.

    A kernel that is no multiple of the stride is extended by zeros, below and to the right, to the next one:
    k = ceil(K / stride).

    Args:
        weight: [Ci, C/groups, K_h, K_w], of ``nn.ConvTranspose2d``.
        stride: of the transposed convolution, an int or (vertical, horizontal); the upscale factor.
        groups: of both.
        channel_order: of the result's rows, see :func:`fused_subpixel.subpixel_conv2d`.

    Returns:
        [C*stride_h*stride_w, Ci/groups, k_h, k_w], contiguous.

    Raises:
        TypeError, ValueError: a shape or option does not fit.
    """
    _check_weight("weight", weight, "[Ci, C/groups, K_h, K_w]")
    factor = checks.pair("stride", stride, minimum=1)
    groups = _check_groups(groups, weight)
    order = checks.lookup("channel_order", channel_order, CHANNEL_ORDERS)
    kernel_pad = (-weight.shape[2] % factor[0], -weight.shape[3] % factor[1])
    height, width = weight.shape[2] + kernel_pad[0], weight.shape[3] + kernel_pad[1]
    checks.check_count("stride", (*weight.shape[:2], height, width))
    return _to_rows(_split_phases(weight, factor, kernel_pad, groups), order)


def subpixel_weight_to_conv_transpose(
    weight: Tensor,
    upscale_factor: int | Sequence[int],
    *,
    groups: int = 1,
    channel_order: ChannelOrder = "crd",
    kernel_size: int | Sequence[int] | None = None,
) -> Tensor:
    """The transposed convolution's weight that does what a sub-pixel convolution's does.

    Args:
        weight: [C*r_h*r_w, Ci/groups, k_h, k_w], of ``nn.Conv2d`` before ``nn.PixelShuffle``.
        upscale_factor: r, or (r_h, r_w); the transposed convolution's stride.
        groups: of both.
        channel_order: of the rows of ``weight``, see :func:`fused_subpixel.subpixel_conv2d`.
        kernel_size: K, or (K_h, K_w), with ceil(K / r) = k: undoes an kernel_pad by zeros; by default k*r.

    Returns:
        [Ci, C/groups, K_h, K_w], contiguous.

    Raises:
        TypeError, ValueError: a shape or option does not fit.
    """
    _check_weight("weight", weight, "[C*r_h*r_w, Ci/groups, k_h, k_w]")
    factor_h, factor_w = checks.pair("upscale_factor", upscale_factor, minimum=1)
    order = checks.lookup("channel_order", channel_order, CHANNEL_ORDERS)
    groups = _check_groups(groups, weight)
    rows, per_group, taps_h, taps_w = weight.shape
    channels, rest = divmod(rows, factor_h * factor_w)
    if rest or channels % groups:
        expected = f"a first size divisible by {factor_h}*{factor_w} and, over that, by groups={groups}"
        raise ValueError(f"weight: expected {expected}, got {list(weight.shape)}")
    full = (taps_h * factor_h, taps_w * factor_w)
    checks.check_count("upscale_factor", (groups * per_group, channels // groups, *full))
    size = full if kernel_size is None else checks.pair("kernel_size", kernel_size, minimum=1)
    if (-(-size[0] // factor_h), -(-size[1] // factor_w)) != (taps_h, taps_w):
        least = f"{full[0] - factor_h + 1}x{full[1] - factor_w + 1}"
        expected = f"at least {least} and at most {full[0]}x{full[1]}"
        raise ValueError(f"kernel_size: expected {expected}, got {size[0]}x{size[1]}")
    if order == _DCR:
        split = weight.view(factor_h, factor_w, channels, per_group, taps_h, taps_w).permute(2, 0, 1, 3, 4, 5)
    else:
        split = weight.view(channels, factor_h, factor_w, per_group, taps_h, taps_w)
    flipped = split.flip(4, 5)
    # [g, C/g, r_h, r_w, Ci/g, k_h, k_w]. Batched gradients come here too, and have no rule for unflatten, nor
    # for an index that leaves everything as it is.
    grouped = flipped.reshape(groups, channels // groups, *flipped.shape[1:])
    merged = grouped.permute(0, 4, 1, 5, 2, 6, 3).reshape(groups * per_group, channels // groups, *full)
    return merged.narrow(2, 0, size[0]).narrow(3, 0, size[1]).contiguous()


def conv_transpose_bias_to_subpixel(
    bias: Tensor, stride: int | Sequence[int], *, channel_order: ChannelOrder = "crd"
) -> Tensor:
    """The bias [C*r_h*r_w] before the shuffle from the bias [C] after it: every phase has the same.

    Raises TypeError or ValueError where an argument does not fit.
    """
    _check_vector(bias)
    factor_h, factor_w = checks.pair("stride", stride, minimum=1)
    order = checks.lookup("channel_order", channel_order, CHANNEL_ORDERS)
    phases = factor_h * factor_w
    checks.check_count("stride", (bias.shape[0] * phases,))
    return bias.repeat(phases) if order == _DCR else bias.repeat_interleave(phases)


def subpixel_bias_to_conv_transpose(
    bias: Tensor, upscale_factor: int | Sequence[int], *, channel_order: ChannelOrder = "crd"
) -> Tensor:
    """The bias [C] after the shuffle from the bias [C*r_h*r_w] before it, whose phases must be equal.

    A transposed convolution has one bias for all phases of a channel. Where they differ, keep a transposed
    convolution without bias and add ``pixel_shuffle(bias.view(1, -1, 1, 1), r)``, repeated over the image.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the size does not divide, or the phases of some channel differ.
    """
    _check_vector(bias)
    factor_h, factor_w = checks.pair("upscale_factor", upscale_factor, minimum=1)
    order = checks.lookup("channel_order", channel_order, CHANNEL_ORDERS)
    phases = factor_h * factor_w
    if bias.numel() % phases:
        found = list(bias.shape)
        raise ValueError(f"bias: expected a size divisible by {factor_h}*{factor_w}={phases}, got {found}")
    by_phase = bias.view(phases, -1).t() if order == _DCR else bias.view(-1, phases)  # [C, phases]
    if not bool((by_phase == by_phase[:, :1]).all()):
        raise ValueError(
            "bias: expected the same value for all phases of a channel, for a transposed convolution has one "
            "bias per channel, got different ones"
        )
    return by_phase[:, 0].clone()


# ---- for calls that are checked --------------------------------------------------------------------------


def subpixel_operands(
    problem: Problem, input: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(input, weight, bias) of the sub-pixel convolution, crd order, from a transposed convolution's."""
    assert problem.transposed is not None
    weight, bias = subpixel_weight_and_bias(weight, bias, problem.geometry)
    return used_input(problem.transposed, input), weight, bias


def used_input(transposed: Transposed, input: Tensor) -> Tensor:
    """The pixels of a transposed convolution's input that reach its output; a view."""
    return F.pad(input, transposed.unused) if any(transposed.unused) else input  # negative paddings


def subpixel_weight_and_bias(
    weight: Tensor, bias: Tensor | None, geometry: Geometry
) -> tuple[Tensor, Tensor | None]:
    """(weight, bias) of the sub-pixel convolution, crd order, from a transposed convolution's."""
    g = geometry
    channels = weight.shape[1] * g.groups
    factor, kernel_pad = (g.upscale_h, g.upscale_w), (g.kernel_pad_h, g.kernel_pad_w)
    weight = _to_rows(_split_phases(weight, factor, kernel_pad, g.groups), CHANNEL_ORDERS["crd"])
    if bias is not None and channels != weight.shape[0]:
        bias = bias.repeat_interleave(weight.shape[0] // channels)
    return weight, bias


def _split_phases(
    weight: Tensor, factor: tuple[int, int], kernel_pad: tuple[int, int], groups: int
) -> Tensor:
    """[Ci, C/g, K_h, K_w] as [g, C/g, r_h, r_w, Ci/g, k_h, k_w], taps still flipped.

    A view, if the kernel needs no padding.
    """
    if any(kernel_pad):
        weight = F.pad(weight, (0, kernel_pad[1], 0, kernel_pad[0]))
    channels, per_group, height, width = weight.shape
    split = weight.view(
        groups, channels // groups, per_group, height // factor[0], factor[0], width // factor[1], factor[1]
    )
    return split.permute(0, 2, 4, 6, 1, 3, 5)


def _to_rows(phases: Tensor, order: int) -> Tensor:
    """[g, C/g, r_h, r_w, Ci/g, k_h, k_w] to [C*r_h*r_w, Ci/g, k_h, k_w], the taps flipped back."""
    flipped = phases.flip(5, 6).flatten(0, 1)  # [C, r_h, r_w, Ci/g, k_h, k_w]
    if order == _DCR:
        flipped = flipped.permute(1, 2, 0, 3, 4, 5)
    return flipped.reshape(-1, *flipped.shape[3:])


def _check_weight(name: str, weight: Tensor, shape: str) -> None:
    checks.check_tensor(name, weight)
    if weight.dim() != 4:
        raise ValueError(f"{name}: expected {shape}, got {list(weight.shape)}")


def _check_vector(bias: Tensor) -> None:
    checks.check_tensor("bias", bias)
    if bias.dim() != 1:
        raise ValueError(f"bias: expected one dimension, got {list(bias.shape)}")


def _check_groups(groups: int, weight: Tensor) -> int:
    groups = checks.integer("groups", groups, minimum=1)
    if weight.shape[0] % groups:
        raise ValueError(
            f"weight: expected a first size divisible by groups={groups}, got {list(weight.shape)}"
        )
    return groups
