# SPDX-License-Identifier: BSD-3-Clause
"""The operations as modules. A module owns parameters and options; all else is in functional.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import checks
from .functional import conv_transpose2d, subpixel_conv2d
from .init import icnr_
from .ops.geometry import ACTIVATIONS, CHANNEL_ORDERS, DTYPES
from .ops.layout import follows_weight, in_channels_last

_DEFAULTS = {
    "stride": (1, 1), "padding": (0, 0, 0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros",
    "activation": None, "negative_slope": 0.01, "clamp": None, "channel_order": "crd",
}  # fmt: skip
_PADDING_MODES = {"zeros": 0, "reflect": 1, "replicate": 2, "circular": 3}


class SubpixelConv2d(nn.Module):
    """``nn.Conv2d`` and ``nn.PixelShuffle`` in one: [N, Ci, H, W] -> [N, C, P*r_h, Q*r_w].

    Parameters are named, shaped and initialised, with the same random numbers, as those of
    ``nn.Conv2d(in_channels, out_channels*r_h*r_w, kernel_size, ...)``, so its checkpoints load strictly:
    ``weight`` [C*r_h*r_w, Ci/groups, k_h, k_w] and ``bias`` [C*r_h*r_w].

    Args:
        in_channels: Ci.
        out_channels: C, the channels of the high-resolution output: those of the convolution over r_h*r_w.
        kernel_size: k, or (k_h, k_w).
        upscale_factor: r, or (r_h, r_w).
        stride, padding, dilation, groups, bias: of the convolution, as in ``nn.Conv2d``; ``padding`` also
            takes (top, left, bottom, right).
        padding_mode: ``"zeros"``, ``"reflect"``, ``"replicate"`` or ``"circular"``; all but zeros pad the
            input in a pass of their own.
        activation, negative_slope, clamp, channel_order: see :func:`fused_subpixel.subpixel_conv2d`.
        prelu_parameters: how many slopes the parameter ``activation_weight`` of activation ``"prelu"`` has:
            1, C (after the shuffle) or C*r_h*r_w (before). They start at 0.25, as in ``nn.PReLU``.
        icnr: start with equal phases, see :func:`fused_subpixel.icnr_`.
        device, dtype: of the parameters.

    Raises:
        TypeError, ValueError: as :func:`fused_subpixel.subpixel_conv2d`, as far as known without an input.
    """

    bias: Tensor | None
    activation_weight: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        upscale_factor: int | Sequence[int] = 2,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        prelu_parameters: int = 1,
        clamp: Sequence[float | None] | None = None,
        channel_order: str = "crd",
        icnr: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = checks.integer("out_channels", out_channels, 1)
        self.kernel_size = checks.pair("kernel_size", kernel_size, 1)
        self.upscale_factor = checks.pair("upscale_factor", upscale_factor, 1)
        self.stride = checks.pair("stride", stride, 1)
        self.dilation = checks.pair("dilation", dilation, 1)
        self.groups = checks.integer("groups", groups, 1)
        # (top, left, bottom, right), "same" resolved: the kernel's size is known here.
        self.padding = checks.four_paddings(padding, self.stride, self.dilation, self.kernel_size)
        checks.lookup("padding_mode", padding_mode, _PADDING_MODES)
        self.padding_mode = padding_mode
        checks.lookup("activation", activation, ACTIVATIONS)
        self.activation = activation
        self.negative_slope = checks.number("negative_slope", negative_slope)
        lowest, highest = checks.clamp_bounds(clamp)
        self.clamp = None if (lowest, highest) == (-math.inf, math.inf) else (lowest, highest)
        checks.lookup("channel_order", channel_order, CHANNEL_ORDERS)
        self.channel_order = channel_order
        self.icnr = bool(icnr)

        lr_channels = self.out_channels * self.upscale_factor[0] * self.upscale_factor[1]
        if self.in_channels % self.groups or lr_channels % self.groups:
            raise ValueError(
                f"groups: expected a divisor of in_channels={self.in_channels} and of "
                f"out_channels*r_h*r_w={lr_channels}, got {self.groups}"
            )
        weight_shape = (lr_channels, self.in_channels // self.groups, *self.kernel_size)
        self.weight = nn.Parameter(torch.empty(weight_shape, device=device, dtype=dtype))
        self._register("bias", lr_channels if bias else 0, device, dtype)
        if activation == "prelu" and prelu_parameters not in (1, self.out_channels, lr_channels):
            raise ValueError(
                f"prelu_parameters: expected 1, {self.out_channels} or {lr_channels}, got {prelu_parameters}"
            )
        self._register("activation_weight", prelu_parameters if activation == "prelu" else 0, device, dtype)
        self.reset_parameters()

    def _register(
        self, name: str, size: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """A parameter of ``size`` values, or None where there are none."""
        self.register_parameter(
            name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)) if size else None
        )

    def reset_parameters(self) -> None:
        """Draw the parameters as ``nn.Conv2d`` draws them, in the same order."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        if self.activation_weight is not None:
            nn.init.constant_(self.activation_weight, 0.25)
        if self.icnr:
            icnr_(self.weight, self.upscale_factor, channel_order=self.channel_order)

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        upscale_factor: int | Sequence[int] = 2,
        *,
        activation: str | None = None,
        negative_slope: float = 0.01,
        activation_weight: nn.Parameter | None = None,
        clamp: Sequence[float | None] | None = None,
        channel_order: str = "crd",
    ) -> SubpixelConv2d:
        """Build the module that does what ``conv`` and a pixel shuffle do, on the same parameters.

        ``activation_weight`` is the parameter of the ``nn.PReLU`` between or after them.

        Raises TypeError if ``conv`` is not an ``nn.Conv2d`` with plain parameters, ValueError if its channels
        are not divisible by r_h*r_w.
        """
        if not isinstance(conv, nn.Conv2d) or not isinstance(conv.weight, nn.Parameter):
            raise TypeError(f"conv: expected an nn.Conv2d whose weight is a Parameter, got {conv}")
        factor_h, factor_w = checks.pair("upscale_factor", upscale_factor, 1)
        if conv.out_channels % (factor_h * factor_w):
            raise ValueError(
                f"conv: expected out_channels divisible by {factor_h}*{factor_w}, got {conv.out_channels}"
            )
        module = cls(
            conv.in_channels,
            conv.out_channels // (factor_h * factor_w),
            conv.kernel_size,
            (factor_h, factor_w),
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            False,
            conv.padding_mode,
            activation=activation,
            negative_slope=negative_slope,
            prelu_parameters=1 if activation_weight is None else activation_weight.numel(),
            clamp=clamp,
            channel_order=channel_order,
            device="meta",  # nothing is allocated and no random number drawn
        )
        module.weight, module.bias = conv.weight, conv.bias
        if (activation == "prelu") != (activation_weight is not None):
            raise ValueError("activation_weight: expected a Parameter where activation is 'prelu', else None")
        module.activation_weight = activation_weight
        return module.train(conv.training)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the convolution to ``input``; ``residual`` as in :func:`fused_subpixel.subpixel_conv2d`."""
        padding: Sequence[int] = self.padding
        if self.padding_mode != "zeros":
            top, left, bottom, right = padding
            input = F.pad(input, (left, right, top, bottom), mode=self.padding_mode)
            padding = (0, 0, 0, 0)
        return subpixel_conv2d(
            input,
            self.weight,
            self.bias,
            self.upscale_factor,
            stride=self.stride,
            padding=padding,
            dilation=self.dilation,
            groups=self.groups,
            activation=self.activation,
            negative_slope=self.negative_slope,
            activation_weight=self.activation_weight,
            residual=residual,
            clamp=self.clamp,
            channel_order=self.channel_order,
        )

    def extra_repr(self) -> str:
        """List the sizes and what differs from the defaults, for ``repr``."""
        shown: dict[str, Any] = {"kernel_size": self.kernel_size, "upscale_factor": self.upscale_factor}
        for name, default in _DEFAULTS.items():
            if getattr(self, name) != default:
                shown[name] = getattr(self, name)
        if self.bias is None:
            shown["bias"] = False
        options = (f"{name}={value!r}" for name, value in shown.items())
        return ", ".join((f"{self.in_channels}, {self.out_channels}", *options))


_PYTORCH_FORWARD: Any = nn.ConvTranspose2d.forward
_PYTORCH_OUTPUT_PADDING: Any = nn.ConvTranspose2d._output_padding


class ConvTranspose2d(nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` on the fused kernels: the same arguments, parameters, state_dict and numbers.

    See :func:`fused_subpixel.conv_transpose2d` for how. :func:`fused_subpixel.replace_conv_transpose` turns
    the ``nn.ConvTranspose2d`` of a model into these.

    The forward of ``nn.ConvTranspose2d`` runs instead where the fused kernels do not apply: for dtypes other
    than float16, bfloat16, float32 and float64 (complex, integer and quantised tensors), for MKL-DNN and
    sparse tensors, under ``torch.fx``, for an ``output_size`` that is symbolic in a traced graph, and where
    ``F.conv_transpose2d`` or the methods of ``nn.ConvTranspose2d`` have been patched. Setting ``qconfig``
    changes the class to ``nn.ConvTranspose2d``, because eager-mode quantisation looks for exactly that class.
    """

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the transposed convolution; ``output_size`` as in ``nn.ConvTranspose2d``."""
        layer: Any = self  # the attributes' types are those of all convolutions
        if not (
            isinstance(input, Tensor)
            and input.dtype in DTYPES
            and input.layout is torch.strided
            and layer.padding_mode == "zeros"
            and nn.ConvTranspose2d.forward is _PYTORCH_FORWARD
            and type(layer)._output_padding is _PYTORCH_OUTPUT_PADDING
            and "_output_padding" not in layer.__dict__
            and F.conv_transpose2d is torch.conv_transpose2d
        ):
            return self._unfused(input, output_size)
        output_padding = layer.output_padding
        if output_size is not None:
            output_padding = tuple(
                layer._output_padding(
                    input, output_size, layer.stride, layer.padding, layer.kernel_size, 2, layer.dilation
                )
            )
            if not _are_numbers(*output_padding):
                return super().forward(input, output_size)
        if follows_weight(self.weight):
            if input.dim() != 4:
                return super().forward(input, output_size)
            input = in_channels_last(input)
        return conv_transpose2d(
            input,
            self.weight,
            self.bias,
            layer.stride,
            layer.padding,
            output_padding,
            layer.groups,
            layer.dilation,
        )

    def _unfused(self, input: Any, output_size: list[int] | None) -> Any:
        """The layer as PyTorch computes it; in a graph that torch.fx traces, one call of this module."""
        if not isinstance(input, Tensor) and (path := _path_in_graph(self, input)):
            options = {} if output_size is None else {"output_size": output_size}
            return input.tracer.create_proxy("call_module", path, (input,), options)
        return super().forward(input, output_size)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "qconfig" and value is not None and type(self) is ConvTranspose2d:
            self.__class__ = nn.ConvTranspose2d  # type: ignore[assignment]


def _are_numbers(height: Any, width: Any) -> bool:
    """Whether sizes are plain numbers. The operator takes its geometry as such.

    A graph would keep the numbers of the traced call in place of symbols.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return has_static_value(height) and has_static_value(width)  # in Dynamo symbols look like ints
    traced = (torch.SymInt, Tensor)  # Tensor: under torch.jit.trace
    return not (isinstance(height, traced) or isinstance(width, traced))


def _path_in_graph(module: nn.Module, input: Any) -> str:
    """What torch.fx calls a module that it traces; empty where it does not, or traces that module only.

    Only modules from torch.nn are calls in its graphs by themselves.
    """
    path_of_module = getattr(getattr(input, "tracer", None), "path_of_module", None)
    return "" if path_of_module is None else str(path_of_module(module))
