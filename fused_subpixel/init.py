# SPDX-License-Identifier: BSD-3-Clause
"""Initialisation of sub-pixel convolutions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _arguments
from ._arguments import CHANNEL_ORDERS


def icnr_(
    weight: Tensor,
    upscale_factor: int | Sequence[int] = 2,
    initializer: Callable[[Tensor], Any] = torch.nn.init.kaiming_normal_,
    channel_order: str = "crd",
) -> Tensor:
    """Fill ``weight`` so that the r_h*r_w phases of every output channel start equal: no checkerboard.

    The layer then starts as a convolution followed by nearest-neighbour upsampling. A. Aitken et al.,
    "Checkerboard artifact free sub-pixel convolution: A note on sub-pixel convolution, resize convolution and
    convolution resize", arXiv 1707.02937.

    Args:
        weight: [C*r_h*r_w, Ci/groups, k_h, k_w], written in place.
        upscale_factor: r, or (r_h, r_w).
        initializer: fills the [C, Ci/groups, k_h, k_w] that all phases share, in place.
        channel_order: ``"crd"`` or ``"dcr"``, as the convolution's.

    Returns:
        ``weight``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: the first size of ``weight`` is not divisible by r_h*r_w, or ``channel_order`` is unknown.
    """
    _arguments.check_tensor("weight", weight)
    factor_h, factor_w = _arguments.pair("upscale_factor", upscale_factor, minimum=1)
    order = _arguments.lookup("channel_order", channel_order, CHANNEL_ORDERS)
    phases = factor_h * factor_w
    if weight.dim() < 2 or weight.shape[0] % phases:
        expected = f"a first size divisible by {factor_h}*{factor_w}={phases}"
        raise ValueError(f"weight: expected {expected}, got {list(weight.shape)}")
    with torch.no_grad():
        shared = weight.new_empty(weight.shape[0] // phases, *weight.shape[1:])
        initializer(shared)
        if order == CHANNEL_ORDERS["crd"]:
            weight.copy_(shared.repeat_interleave(phases, dim=0))
        else:
            weight.copy_(torch.cat([shared] * phases))
    return weight
