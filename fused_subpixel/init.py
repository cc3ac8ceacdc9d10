# SPDX-License-Identifier: BSD-3-Clause
"""Initialisation of sub-pixel convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .dispatch import checks
from .ops.geometry import CHANNEL_ORDERS, ChannelOrder


def icnr_(
    weight: Tensor,
    upscale_factor: int | Sequence[int] = 2,
    initializer: Callable[[Tensor], Any] = torch.nn.init.kaiming_normal_,
    channel_order: ChannelOrder = "crd",
    *,
    transposed: bool = False,
) -> Tensor:
    """Fill ``weight`` so that the r_h*r_w phases of every output channel start equal: no checkerboard.

    The layer then starts as a convolution followed by nearest-neighbour upsampling. A. Aitken et al.,
    "Checkerboard artifact free sub-pixel convolution: A note on sub-pixel convolution, resize convolution and
    convolution resize", arXiv 1707.02937.

    Args:
        weight: [C*r_h*r_w, Ci/groups, k_h, k_w], written in place.
        upscale_factor: r, or (r_h, r_w); of a transposed convolution the stride.
        initializer: fills the [C, Ci/groups, k_h, k_w] that all phases share, in place, as the functions of
            ``torch.nn.init``, or returns such a tensor.
        channel_order: ``"crd"`` or ``"dcr"``, as the convolution's.
        transposed: ``weight`` is that of a transposed convolution, [Ci, C, r_h*k_h, r_w*k_w], whose phases
            lie in the kernel. The shape does not always tell: without this, its channels would be taken for
            phases. Of a grouped one initialise each part of ``weight.chunk(groups)``.

    Returns:
        ``weight``.

    Raises:
        TypeError: an argument has the wrong type, or ``weight`` is not dense or not of floating point.
        ValueError: a size of ``weight`` is not divisible by the factor, its values overlap in memory,
            ``channel_order`` is unknown, or the initializer left values undefined.
    """
    _check_weight(weight)
    factor_h, factor_w = checks.pair("upscale_factor", upscale_factor, minimum=1)
    order = checks.lookup("channel_order", channel_order, CHANNEL_ORDERS)
    if not callable(initializer):
        raise TypeError(f"initializer: expected a function, got one of type {type(initializer).__name__}")
    if transposed:
        return _icnr_transposed_(weight, factor_h, factor_w, initializer)
    phases = factor_h * factor_w
    if weight.dim() < 2 or weight.shape[0] % phases:
        expected = f"a first size divisible by {factor_h}*{factor_w}={phases}"
        hint = "; transposed=True takes a transposed convolution's" if weight.dim() == 4 else ""
        raise ValueError(f"weight: expected {expected}, got {list(weight.shape)}{hint}")
    with torch.no_grad():
        shared = _filled(weight.new_empty(weight.shape[0] // phases, *weight.shape[1:]), initializer)
        if order == CHANNEL_ORDERS["crd"]:
            weight.copy_(shared.repeat_interleave(phases, dim=0))
        else:
            weight.copy_(torch.cat([shared] * phases))
    return weight


def _icnr_transposed_(
    weight: Tensor, factor_h: int, factor_w: int, initializer: Callable[[Tensor], Any]
) -> Tensor:
    if weight.dim() != 4 or weight.shape[2] % factor_h or weight.shape[3] % factor_w:
        # with other kernels some phases have more taps than others
        expected = f"[Ci, C, K_h, K_w] with a kernel divisible by the stride {factor_h}x{factor_w}"
        raise ValueError(f"weight: expected {expected}, got {list(weight.shape)}")
    channels_in, channels, height, width = weight.shape
    with torch.no_grad():
        # as of a convolution, by whose shape initializers know how many products a sum has
        shared = weight.new_empty(channels, channels_in, height // factor_h, width // factor_w)
        shared = _filled(shared, initializer).transpose(0, 1).flip(2, 3)
        weight.copy_(shared.repeat_interleave(factor_h, 2).repeat_interleave(factor_w, 3))
    return weight


def _check_weight(weight: Tensor) -> None:
    if torch.nn.parameter.is_lazy(weight):
        raise ValueError("weight: expected one that has a shape, got a lazy parameter; call its module first")
    checks.check_tensor("weight", weight)
    if not (weight.is_floating_point() or weight.is_complex()):
        raise TypeError(f"weight: expected a floating-point dtype, got {weight.dtype}")
    if any(size > 1 and step == 0 for size, step in zip(weight.shape, weight.stride(), strict=True)):
        raise ValueError("weight: expected a place in memory for every value, got an expanded tensor")


def _filled(shared: Tensor, initializer: Callable[[Tensor], Any]) -> Tensor:
    """What ``initializer`` makes of ``shared``: itself, filled, or another tensor."""
    # what nobody fills shows
    shared.fill_(torch.nan)
    result = initializer(shared)
    if result is None:
        result = shared
    if not isinstance(result, Tensor):
        kind = type(result).__name__
        raise TypeError(
            f"initializer: expected to fill its tensor or return one, got one that returns {kind}"
        )
    if result.shape != shared.shape:
        expected, found = list(shared.shape), list(result.shape)
        raise ValueError(f"initializer: expected to return {expected}, as it gets, got {found}")
    # of tensors that have values
    if type(result) is Tensor and result.device.type != "meta" and bool(result.isnan().any()):
        raise ValueError("initializer: expected to fill its tensor or return one, got undefined values")
    return result
