# SPDX-License-Identifier: BSD-3-Clause
"""The operations as modules. A module owns parameters and options; all else is in functional.py.

The base classes serve modules_1d.py too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .dispatch import checks
from .dispatch.words import IMAGES, Words
from .functional import conv_transpose2d, subpixel_conv2d
from .init import icnr_
from .ops.geometry import ACTIVATIONS, CHANNEL_ORDERS, DTYPES, Activation, ChannelOrder
from .ops.layout import follows_weight, in_channels_last

_DEFAULTS = {
    "groups": 1, "padding_mode": "zeros", "activation": None, "negative_slope": 0.01, "clamp": None,
    "channel_order": "crd",
}  # fmt: skip
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
_PADDING_MODES = {name: number for number, name in enumerate(get_args(PaddingMode))}


_Module = TypeVar("_Module", bound="SubpixelConvNd")


class SubpixelConvNd(nn.Module):
    """What sub-pixel convolutions of one and two dimensions share: all but shapes and the function."""

    # Of each class: the words of messages, the convolution in PyTorch, and the function that forward calls.
    _words: ClassVar[Words]
    _convolution: ClassVar[type[nn.Conv1d | nn.Conv2d]]
    _function: ClassVar[Callable[..., Tensor]]
    kernel_size: tuple[int, ...]
    upscale_factor: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    padding: tuple[int, ...]  # (top, left, bottom, right) or (left, right), "same" resolved
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
        padding_mode: PaddingMode = "zeros",
        *,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        prelu_parameters: int = 1,
        clamp: Sequence[float | None] | None = None,
        channel_order: ChannelOrder = "crd",
        icnr: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = checks.integer("in_channels", in_channels, 1)
        self.out_channels = checks.integer("out_channels", out_channels, 1)
        self.kernel_size = self._sizes("kernel_size", kernel_size)
        self.upscale_factor = self._sizes("upscale_factor", upscale_factor)
        self.stride = self._sizes("stride", stride)
        self.dilation = self._sizes("dilation", dilation)
        self.groups = checks.integer("groups", groups, 1)
        self.padding = self._sides(padding)
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

        lr_channels = self.out_channels * math.prod(self.upscale_factor)
        if self.in_channels % self.groups or lr_channels % self.groups:
            raise ValueError(
                f"groups: expected a divisor of in_channels={self.in_channels} and of "
                f"out_channels*{self._words.factor}={lr_channels}, got {self.groups}"
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

    @staticmethod
    def _sizes(name: str, value: Any) -> tuple[int, ...]:
        """An option as one int of at least 1 for each direction."""
        raise NotImplementedError

    def _sides(self, padding: Any) -> tuple[int, ...]:
        """The zeros before each direction, then those after each."""
        raise NotImplementedError

    def _register(
        self, name: str, size: int, device: torch.device | str | None, dtype: torch.dtype | None
    ) -> None:
        """A parameter of ``size`` values, or None where there are none."""
        self.register_parameter(
            name, nn.Parameter(torch.empty(size, device=device, dtype=dtype)) if size else None
        )

    def reset_parameters(self) -> None:
        """Draw the parameters as PyTorch's convolution draws them, in the same order."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)
        if self.activation_weight is not None:
            nn.init.constant_(self.activation_weight, 0.25)
        if self.icnr:
            icnr_(self.weight, (1, *self.upscale_factor)[-2:], channel_order=self.channel_order)

    @classmethod
    def _from_conv(
        cls: type[_Module],
        conv: Any,
        upscale_factor: int | Sequence[int],
        activation_weight: nn.Parameter | None,
        activation: Activation | None,
        **options: Any,
    ) -> _Module:
        """The module that does what ``conv`` and a shuffle do, on the same parameters."""
        if not isinstance(conv, cls._convolution) or not isinstance(conv.weight, nn.Parameter):
            kind = cls._convolution.__name__
            raise TypeError(f"conv: expected an nn.{kind} whose weight is a Parameter, got {conv}")
        factors = cls._sizes("upscale_factor", upscale_factor)
        if conv.out_channels % math.prod(factors):
            product = "*".join(map(str, factors))
            raise ValueError(f"conv: expected out_channels divisible by {product}, got {conv.out_channels}")
        module = cls(
            conv.in_channels,
            conv.out_channels // math.prod(factors),
            conv.kernel_size,
            factors,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            False,
            conv.padding_mode,
            activation=activation,
            prelu_parameters=1 if activation_weight is None else activation_weight.numel(),
            device="meta",  # nothing is allocated and no random number drawn
            **options,
        )
        module.weight, module.bias = conv.weight, conv.bias
        if (activation == "prelu") != (activation_weight is not None):
            raise ValueError("activation_weight: expected a Parameter where activation is 'prelu', else None")
        module.activation_weight = activation_weight
        return module.train(conv.training)

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the convolution to ``input``; ``residual`` as in the function."""
        padding = self.padding
        if self.padding_mode != "zeros":
            axes = len(self.kernel_size)
            before_and_after = zip(padding[:axes], padding[axes:], strict=True)
            sides = [side for both in reversed(list(before_and_after)) for side in both]  # last axis first
            input = F.pad(input, sides, mode=self.padding_mode)
            padding = (0,) * len(padding)
        return self._function(
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
        axes = len(self.kernel_size)
        geometry = {"stride": (1,) * axes, "padding": (0,) * (2 * axes), "dilation": (1,) * axes}
        for name, default in {**geometry, **_DEFAULTS}.items():
            if getattr(self, name) != default:
                shown[name] = getattr(self, name)
        if self.bias is None:
            shown["bias"] = False
        options = (f"{name}={value!r}" for name, value in shown.items())
        return ", ".join((f"{self.in_channels}, {self.out_channels}", *options))


class SubpixelConv2d(SubpixelConvNd):
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

    _words = IMAGES
    _convolution = nn.Conv2d
    _function = staticmethod(subpixel_conv2d)

    @staticmethod
    def _sizes(name: str, value: Any) -> tuple[int, ...]:
        return checks.pair(name, value, 1)

    def _sides(self, padding: Any) -> tuple[int, ...]:
        (stride_h, stride_w), (dilation_h, dilation_w) = self.stride, self.dilation
        return checks.four_paddings(padding, (stride_h, stride_w), (dilation_h, dilation_w), self.kernel_size)

    @classmethod
    def from_conv2d(
        cls,
        conv: nn.Conv2d,
        upscale_factor: int | Sequence[int] = 2,
        *,
        activation: Activation | None = None,
        negative_slope: float = 0.01,
        activation_weight: nn.Parameter | None = None,
        clamp: Sequence[float | None] | None = None,
        channel_order: ChannelOrder = "crd",
    ) -> SubpixelConv2d:
        """Build the module that does what ``conv`` and a pixel shuffle do, on the same parameters.

        ``activation_weight`` is the parameter of the ``nn.PReLU`` between or after them.

        Raises TypeError if ``conv`` is not an ``nn.Conv2d`` with plain parameters, ValueError if its channels
        are not divisible by r_h*r_w.
        """
        return cls._from_conv(
            conv, upscale_factor, activation_weight, activation,
            negative_slope=negative_slope, clamp=clamp, channel_order=channel_order,
        )  # fmt: skip


_PYTORCH_OUTPUT_PADDING: Any = nn.ConvTranspose2d._output_padding


class FusedConvTransposeNd(nn.Module):
    """What the subclasses of PyTorch's transposed convolutions share: when to run the fused kernels."""

    # Of each class: that of PyTorch which it stands for. A subclass has none of its own.
    _pytorch_class: ClassVar[type[nn.Module]]
    # The function, with the arguments of PyTorch's.
    _fused: ClassVar[Callable[..., Tensor]]

    @staticmethod
    def _is_intact() -> bool:
        """Whether PyTorch's module and function are PyTorch's own at this moment."""
        raise NotImplementedError

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Apply the transposed convolution; ``output_size`` as in PyTorch's module."""
        return self.forward_of(self, input, output_size)

    @classmethod
    def forward_of(cls, layer: Any, input: Tensor, output_size: list[int] | None) -> Tensor:
        """The forward of ``layer``, which may also be of PyTorch's class."""
        if not (
            isinstance(input, Tensor)
            and input.dtype in DTYPES
            and input.layout is torch.strided
            and layer.padding_mode == "zeros"
            and type(layer)._output_padding is _PYTORCH_OUTPUT_PADDING
            and "_output_padding" not in layer.__dict__
            and cls._is_intact()
        ):
            return cls._unfused(layer, input, output_size)
        output_padding = layer.output_padding
        if output_size is not None:
            axes = len(layer.kernel_size)
            output_padding = tuple(
                layer._output_padding(
                    input, output_size, layer.stride, layer.padding, layer.kernel_size, axes, layer.dilation
                )
            )
            if not _are_numbers(output_padding):
                return cls._pytorch_class.forward(layer, input, output_size)
        if follows_weight(layer.weight):
            if input.dim() != 4:
                return cls._pytorch_class.forward(layer, input, output_size)
            input = in_channels_last(input)
        return cls._fused(
            input,
            layer.weight,
            layer.bias,
            layer.stride,
            layer.padding,
            output_padding,
            layer.groups,
            layer.dilation,
        )

    @classmethod
    def _unfused(cls, layer: Any, input: Any, output_size: list[int] | None) -> Any:
        """The layer as PyTorch computes it; in a graph that torch.fx traces, one call of this module."""
        if not isinstance(input, Tensor) and (path := _path_in_graph(layer, input)):
            options = {} if output_size is None else {"output_size": output_size}
            return input.tracer.create_proxy("call_module", path, (input,), options)
        return cls._pytorch_class.forward(layer, input, output_size)

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "qconfig" and value is not None and "_pytorch_class" in vars(type(self)):
            self.__class__ = self._pytorch_class  # type: ignore[assignment]


_PYTORCH_FORWARD: Any = nn.ConvTranspose2d.forward


class ConvTranspose2d(FusedConvTransposeNd, nn.ConvTranspose2d):
    """``nn.ConvTranspose2d`` on the fused kernels: the same arguments, parameters, state_dict and numbers.

    See :func:`fused_subpixel.conv_transpose2d` for how. :func:`fused_subpixel.replace_conv_transpose` turns
    the ``nn.ConvTranspose2d`` of a model into these.

    The forward of ``nn.ConvTranspose2d`` runs instead where the fused kernels do not apply: for dtypes other
    than float16, bfloat16, float32 and float64 (complex, integer and quantised tensors), for MKL-DNN and
    sparse tensors, under ``torch.fx``, for an ``output_size`` that is symbolic in a traced graph, and where
    ``F.conv_transpose2d`` or the methods of ``nn.ConvTranspose2d`` have been patched. Setting ``qconfig``
    changes the class to ``nn.ConvTranspose2d``, because eager-mode quantisation looks for exactly that class.
    """

    _pytorch_class = nn.ConvTranspose2d
    _fused = staticmethod(conv_transpose2d)

    @staticmethod
    def _is_intact() -> bool:
        return nn.ConvTranspose2d.forward is _PYTORCH_FORWARD and F.conv_transpose2d is torch.conv_transpose2d


def _are_numbers(sizes: Sequence[Any]) -> bool:
    """Whether sizes are plain numbers. The operator takes its geometry as such.

    A graph would keep the numbers of the traced call in place of symbols.
    """
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import has_static_value

        return all(has_static_value(size) for size in sizes)  # in Dynamo symbols look like ints
    traced = (torch.SymInt, Tensor)  # Tensor: under torch.jit.trace
    return not any(isinstance(size, traced) for size in sizes)


def _path_in_graph(module: nn.Module, input: Any) -> str:
    """What torch.fx calls a module that it traces; empty where it does not, or traces that module only.

    Only modules from torch.nn are calls in its graphs by themselves.
    """
    path_of_module = getattr(getattr(input, "tracer", None), "path_of_module", None)
    return "" if path_of_module is None else str(path_of_module(module))
