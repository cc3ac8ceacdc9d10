# SPDX-License-Identifier: BSD-3-Clause
"""The module of three dimensions."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .functional_3d import conv_transpose3d
from .modules import FusedConvTransposeNd

_PYTORCH_FORWARD: Any = nn.ConvTranspose3d.forward


class ConvTranspose3d(FusedConvTransposeNd, nn.ConvTranspose3d):
    """``nn.ConvTranspose3d`` on the fused kernels: the same arguments, parameters, state_dict and numbers.

    See :func:`fused_subpixel.conv_transpose3d` for how, and for which layers.
    :func:`fused_subpixel.replace_conv_transpose` turns such an ``nn.ConvTranspose3d`` of a model into these.

    The forward of ``nn.ConvTranspose3d`` runs instead in the cases that
    :class:`fused_subpixel.ConvTranspose2d` lists, and ``qconfig`` changes the class in the same way.
    """

    _pytorch_class = nn.ConvTranspose3d

    @staticmethod
    def _is_intact() -> bool:
        return nn.ConvTranspose3d.forward is _PYTORCH_FORWARD and F.conv_transpose3d is torch.conv_transpose3d

    @staticmethod
    def _fused(*arguments: Any) -> Tensor:
        return conv_transpose3d(*arguments)
