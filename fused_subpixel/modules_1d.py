# SPDX-License-Identifier: BSD-3-Clause
"""The modules of one dimension: for audio and other signals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import checks
from .dispatch.words import SIGNALS
from .functional_1d import conv_transpose1d, subpixel_conv1d
from .modules import FusedConvTransposeNd, SubpixelConvNd
from .ops.geometry import Activation, ChannelOrder


class SubpixelConv1d(SubpixelConvNd):
    """``nn.Conv1d`` and a shuffle in one: [N, Ci, L] -> [N, C, Q*r].

    Parameters are named, shaped and initialised, with the same random numbers, as those of
    ``nn.Conv1d(in_channels, out_channels*r, kernel_size, ...)``, so its checkpoints load strictly: ``weight``
    [C*r, Ci/groups, k] and ``bias`` [C*r].

    Args:
        in_channels: Ci.
        out_channels: C, the channels of the output: those of the convolution over r.
        kernel_size: k.
        upscale_factor: r.
        stride, padding, dilation, groups, bias: of the convolution, as in ``nn.Conv1d``; ``padding`` also
            takes (left, right).
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; all but zeros pad the
            input in a pass of their own.
        activation, negative_slope, clamp, channel_order: see :func:`fused_subpixel.subpixel_conv1d`.
        prelu_parameters: how many slopes the parameter ``activation_weight`` of activation ``"prelu"`` has:
            1, C (after the shuffle) or C*r (before). They start at 0.25, as in ``nn.PReLU``.
        icnr: start with equal phases, see :func:`fused_subpixel.icnr_`.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: as :func:`fused_subpixel.subpixel_conv1d`, as far as known without an input.
    """

    _words = SIGNALS
    _convolution = nn.Conv1d
    _function = staticmethod(subpixel_conv1d)

    @staticmethod
    def _sizes(name: str, value: Any) -> tuple[int, ...]:
        return (checks.single(name, value, 1),)

    def _sides(self, padding: Any) -> tuple[int, ...]:
        return checks.two_paddings(padding, self.stride[0], self.dilation[0], self.kernel_size[0])

    @classmethod
    def from_conv1d(
        cls,
        conv: nn.Conv1d,
        upscale_factor: int | Sequence[int] = 2,
        *,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        activation_weight: nn.Parameter | None = None,
        clamp: Sequence[float | None] | None = None,
        channel_order: ChannelOrder = "crd",
    ) -> SubpixelConv1d:
        """Build the module that does what ``conv`` and a shuffle do, on the same parameters.

        ``activation_weight`` is the parameter of the ``nn.PReLU`` between or after them.

        Raises TypeError if ``conv`` is not an ``nn.Conv1d`` with plain parameters, ValueError if its channels
        are not divisible by r.
        """
        return cls._from_conv(
            conv, upscale_factor, activation_weight, activation,
            negative_slope=negative_slope, clamp=clamp, channel_order=channel_order,
        )  # fmt: skip


_PYTORCH_FORWARD: Any = nn.ConvTranspose1d.forward


class ConvTranspose1d(FusedConvTransposeNd, nn.ConvTranspose1d):
    """``nn.ConvTranspose1d`` on the fused kernels: the same arguments, parameters, state_dict and numbers.

    See :func:`fused_subpixel.conv_transpose1d` for how. :func:`fused_subpixel.replace_conv_transpose` turns
    the ``nn.ConvTranspose1d`` of a model into these. The output is contiguous, whatever the strides of the
    input are, because the code behind an ``nn.ConvTranspose1d`` may rely on it.

    The forward of ``nn.ConvTranspose1d`` runs instead in the cases that
    :class:`fused_subpixel.ConvTranspose2d` lists, and ``qconfig`` changes the class in the same way.
    """

    _pytorch_class = nn.ConvTranspose1d

    @staticmethod
    def _is_intact() -> bool:
        return nn.ConvTranspose1d.forward is _PYTORCH_FORWARD and F.conv_transpose1d is torch.conv_transpose1d

    @staticmethod
    def _fused(*arguments: Any) -> Tensor:
        return conv_transpose1d(*arguments).contiguous()
