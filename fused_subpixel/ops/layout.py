# SPDX-License-Identifier: BSD-3-Clause
"""The one question about memory layout: channels_last or contiguous."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import torch_compat


def is_channels_last(tensor: Tensor) -> bool:
    """Whether a result computed from ``tensor`` is to be channels_last, by the rule of PyTorch's own kernels.

    The rule looks at the order of the strides, so that a cropped channels_last image still counts; the C++
    kernels apply the function of the same name.
    """
    if (
        torch_compat.jit_tracing_state() is not None
    ):  # torch.jit.trace: sizes are tensors here, which that function does not take
        return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()
    return torch_compat.suggest_memory_format(tensor) is torch.channels_last


def memory_format(channels_last: bool) -> torch.memory_format:
    """PyTorch's name for a layout."""
    return torch.channels_last if channels_last else torch.contiguous_format


def follows_weight(weight: Tensor) -> bool:
    """Whether PyTorch's convolution with ``weight`` takes and gives channels_last, whatever its input is."""
    return weight.stride(1) == 1 and is_channels_last(weight)


def in_channels_last(input: Tensor) -> Tensor:
    """[N, C, H, W] in channels_last; where C = 1, too, where both layouts are the same memory."""
    input = input.contiguous(memory_format=torch.channels_last)
    _, channels, height, width = input.shape
    return input.as_strided(input.shape, (height * width, 1, width, 1)) if channels == 1 else input
