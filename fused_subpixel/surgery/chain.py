# SPDX-License-Identifier: BSD-3-Clause
"""The chain that becomes one call: convolution, batch norm, activation, pixel shuffle, activation.

What may stand in it, why something may not, and how it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import (
    batch_norm,
    elu,
    gelu,
    hardsigmoid,
    hardswish,
    leaky_relu,
    mish,
    prelu,
    relu,
    relu6,
    silu,
    softplus,
    threshold,
)  # PyTorch's own, if F is patched
from torch.nn.modules.lazy import LazyModuleMixin

from ..dispatch.tensors import warn_of_dispatching, why_only_reference
from ..functional import subpixel_conv2d
from ..functional_1d import subpixel_conv1d
from ..ops.geometry import DTYPES
from ..ops.layout import follows_weight, in_channels_last
from ..torch_compat import has_any_global_hook, is_exporting

tanh, sigmoid = torch.tanh, torch.sigmoid  # as the functions above


class Activation(NamedTuple):
    """An elementwise activation by the name that :func:`fused_subpixel.subpixel_conv2d` gives it."""

    name: str
    negative_slope: float = 0.01
    weight: Tensor | None = None  # the slopes of "prelu"

    def apply(self, input: Tensor) -> Tensor:
        """The activation alone. It keeps its input for the gradient where it can, not its output."""
        if self.name == "relu":
            return threshold(input, 0, 0) if torch.is_grad_enabled() else relu(input)
        if self.name == "leaky_relu":
            return leaky_relu(input, self.negative_slope)
        if self.name == "prelu":
            assert self.weight is not None
            return prelu(input, self.weight)
        if self.name == "gelu_tanh":
            return gelu(input, approximate="tanh")
        return _WITHOUT_OPTIONS[self.name](input)

    def commutes(self) -> bool:
        """Whether to do it after the shuffle is as good as before."""
        if self.weight is not None:
            return self.weight.numel() == 1
        return self.name not in ("tanh", "sigmoid") or overwritable(self, before=True)


_WITHOUT_OPTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": silu, "gelu": gelu, "tanh": tanh, "sigmoid": sigmoid, "relu6": relu6, "hardswish": hardswish,
    "hardsigmoid": hardsigmoid, "elu": elu, "mish": mish, "softplus": softplus,
}  # fmt: skip


class Chain(NamedTuple):
    """Neighbours in an ``nn.Sequential`` that run as one call, ``nn.Identity`` between them included."""

    modules: tuple[nn.Module, ...]
    conv: nn.Conv2d
    norm: nn.BatchNorm2d | None
    before: Activation | None  # the shuffle
    shuffle: nn.PixelShuffle
    after: Activation | None


class UnshuffleConv(NamedTuple):
    """A pixel unshuffle and the convolution behind it, neighbours in an ``nn.Sequential``."""

    modules: tuple[nn.Module, ...]
    unshuffle: nn.PixelUnshuffle
    conv: nn.Conv2d


# ---- modules that are what PyTorch made them -------------------------------------------------------------


def why_altered(module: nn.Module, base: type[nn.Module]) -> str | None:
    """What, if anything, makes a call of ``module`` more than ``base.forward``."""
    if isinstance(module, LazyModuleMixin) and module.has_uninitialized_params():
        return f"{type(module).__name__} is not initialised yet; run the model once first"
    return why_own_forward(module, base) or (
        f"{type(module).__name__} has hooks" if has_hooks(module) else None
    )


def why_own_forward(module: nn.Module, base: type[nn.Module]) -> str | None:
    """Why the forward of ``module`` is not ``base.forward``, if it is not."""
    kind: Any = type(module)
    forward = module.__dict__.get("forward", kind.forward)
    original = getattr(kind, "original_class", kind)  # of a replaced module, see modules.py
    if getattr(forward, "stands_for", forward) is not base.forward or (
        original is not kind and original.forward is not base.forward
    ):
        return f"{original.__name__} has a forward of its own"
    if base in (nn.Conv1d, nn.Conv2d) and has_own_convolution(module):
        return f"{original.__name__} has a _conv_forward of its own"
    if (
        kind.__call__ is not nn.Module.__call__
        or kind._call_impl is not nn.Module._call_impl
        or "_call_impl" in module.__dict__
    ):
        return f"{original.__name__} has a __call__ of its own"
    return None


def has_own_convolution(conv: Any) -> bool:
    """Whether the forward of ``conv`` computes something else than PyTorch's convolution."""
    base = nn.Conv1d if isinstance(conv, nn.Conv1d) else nn.Conv2d
    return type(conv)._conv_forward is not base._conv_forward or "_conv_forward" in conv.__dict__


def has_hooks(module: nn.Module) -> bool:
    """Whether something is registered to run along with ``module``."""
    return bool(module._forward_pre_hooks) or has_output_hooks(module)


def has_output_hooks(module: nn.Module) -> bool:
    """Whether something is registered to see what ``module`` returns, or its gradient."""
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)


def activation_of(module: nn.Module) -> Activation | None:
    """The activation that ``module`` is, or None if it is none that can be fused."""
    # by the exact class: a subclass may do anything
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", module.negative_slope)
    if type(module) is nn.PReLU:
        return Activation("prelu", weight=module.weight)
    if type(module) is nn.GELU and module.approximate != "none":
        return Activation("gelu_tanh") if module.approximate == "tanh" else None
    if any(getattr(module, name) != value for name, value in _OPTIONS.get(type(module), ())):
        return None
    name = _ACTIVATION_NAMES.get(type(module))
    return None if name is None else Activation(name)


_ACTIVATION_NAMES: dict[type, str] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.ReLU6: "relu6",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    nn.ELU: "elu",
    nn.Mish: "mish",
    nn.Softplus: "softplus",
}
# what the attributes of these must be
_OPTIONS: dict[type, tuple[tuple[str, float], ...]] = {
    nn.ReLU6: (("min_val", 0), ("max_val", 6)),
    nn.ELU: (("alpha", 1),),
    nn.Softplus: (("beta", 1), ("threshold", 20)),
}


# ---- matching neighbours ---------------------------------------------------------------------------------


def flatten(sequential: nn.Sequential) -> list[nn.Module]:
    """The modules that a Sequential runs one after another, those of plain Sequentials in it included."""
    modules: list[nn.Module] = []
    for module in sequential:
        if isinstance(module, nn.Sequential) and why_altered(module, nn.Sequential) is None:
            modules += flatten(module)
        else:
            modules.append(module)
    return modules


def match(
    modules: Sequence[nn.Module], start: int, fold: bool, unshuffle: bool
) -> Chain | UnshuffleConv | str | None:
    """What begins at ``start``, or the reason why what looks like a chain is none, or None.

    ``fold``: whether a batch norm in eval mode may belong to it. ``unshuffle``: whether to look for
    unshuffles too.
    """
    conv = modules[start]
    if unshuffle and isinstance(conv, nn.PixelUnshuffle):
        return _match_unshuffle_conv(modules, start, conv, fold)
    if not isinstance(conv, nn.Conv2d):
        return None
    position, module = behind(modules, start)
    norm, between = None, None
    if isinstance(module, nn.BatchNorm2d):
        norm = module
        position, module = behind(modules, position)
    if module is not None and not isinstance(module, nn.PixelShuffle):
        between = module
        position, module = behind(modules, position)
    if not isinstance(module, nn.PixelShuffle):
        return None
    shuffle = module

    before = None if between is None else activation_of(between)
    reason = why_altered(conv, nn.Conv2d) or why_altered(shuffle, nn.PixelShuffle)
    if reason is None and between is not None:
        kind = type(between)
        reason = f"{kind.__name__} stands in between" if before is None else why_altered(between, kind)
    if reason is None and norm is not None:
        reason = why_altered(norm, nn.BatchNorm2d) or why_not_folded(norm, fold)
    reason = reason or why_unfit(conv, shuffle.upscale_factor, before)
    if reason is not None:
        return reason

    last, module = behind(modules, position)
    after = None
    if before is None and module is not None and why_altered(module, type(module)) is None:
        after = activation_of(module)
    if after is not None and after.weight is not None:
        channels = conv.out_channels // shuffle.upscale_factor**2
        after = after if after.weight.numel() in (1, channels) else None
    end = position if after is None else last
    return Chain(tuple(modules[start : end + 1]), conv, norm, before, shuffle, after)


def _match_unshuffle_conv(
    modules: Sequence[nn.Module], start: int, unshuffle: nn.PixelUnshuffle, fold: bool
) -> UnshuffleConv | str | None:
    """As :func:`match`, for a pixel unshuffle followed by a convolution."""
    position, conv = behind(modules, start)
    if not isinstance(conv, nn.Conv2d):
        return None
    factor = unshuffle.downscale_factor
    reason = why_altered(unshuffle, nn.PixelUnshuffle) or why_altered(conv, nn.Conv2d)
    if reason is not None:
        return reason
    if not isinstance(factor, int) or factor < 2:
        return f"an unshuffle by {factor} rearranges nothing"
    if isinstance(match(modules, position, fold, False), Chain):
        return "the convolution runs as one call with the shuffle behind it"
    if conv.padding_mode != "zeros" and conv.padding not in ("valid", (0, 0)):
        return f"padding mode {conv.padding_mode!r} takes other pixels before the unshuffle"
    if conv.dilation != (1, 1):
        return "a dilated kernel has gaps"
    if conv.padding == "same" and not (conv.kernel_size[0] % 2 and conv.kernel_size[1] % 2):
        return "padding 'same' is not the same on all sides"
    if conv.in_channels // conv.groups % factor**2:
        return "a group of the convolution sees less than all phases of a channel"
    return UnshuffleConv(tuple(modules[start : position + 1]), unshuffle, conv)


def behind(modules: Sequence[nn.Module], position: int) -> tuple[int, nn.Module | None]:
    """The module behind ``position`` and where it stands, plain nn.Identity passed over; None at the end."""
    for following in range(position + 1, len(modules)):
        module = modules[following]
        if type(module) is not nn.Identity or why_altered(module, nn.Identity) is not None:
            return following, module
    return len(modules), None


def why_not_folded(norm: nn.BatchNorm2d, fold: bool) -> str | None:
    """Why a batch norm cannot be folded into the convolution before it."""
    if not fold:
        return "a batch norm stands in between; fold_batch_norm=True folds it, in eval mode"
    if norm.running_mean is None or norm.running_var is None:
        return "the batch norm has no running statistics"
    return "the batch norm is in training mode" if norm.training else None


def why_unfit(conv: nn.Conv2d, factor: int, before: Activation | None) -> str | None:
    """Why a convolution does not fit a shuffle and the activation between them."""
    if not isinstance(factor, int) or factor < 2:
        return f"a shuffle by {factor} rearranges nothing"
    if conv.out_channels % factor**2:
        return f"{conv.out_channels} channels cannot be shuffled by {factor}"
    if (
        before is not None
        and before.weight is not None
        and before.weight.numel() not in (1, conv.out_channels)
    ):
        return f"a PReLU of {before.weight.numel()} slopes does not fit {conv.out_channels} channels"
    return None


# ---- running ---------------------------------------------------------------------------------------------


def runs_fused(input: Any) -> bool:
    """Whether a chain runs as one call on ``input``; where not, its modules run one by one.

    Not in ONNX export, torch.jit.trace and torch.func transforms, nor for tensors with a __torch_dispatch__:
    what these know is PyTorch's own modules. Nor where hooks wait for every module's call.
    """
    if not isinstance(input, Tensor) or input.dtype not in DTYPES:
        return False
    if why_only_reference(torch.compiler.is_compiling(), input) is not None:
        warn_of_dispatching(input)
        return False
    return not has_any_global_hook()


# Activations whose gradient the fused call reads from its output, which then must not be overwritten.
_READ_FROM_OUTPUT = ("relu", "leaky_relu", "relu6", "tanh", "sigmoid")


def overwritable(activation: Activation | None, *, before: bool) -> bool:
    """Whether a fused output with this activation may be overwritten wherever the original's could be.

    PyTorch's activations after a shuffle keep their output too, but for leaky_relu and relu6; those before it
    keep a tensor that nobody else sees. Exported graphs are for inference mostly: they keep the activation
    inside.
    """
    if activation is None or activation.name not in _READ_FROM_OUTPUT:
        return True
    if not torch.is_grad_enabled() or is_exporting():
        return True
    return not before and activation.name not in ("leaky_relu", "relu6")


def run(
    input: Tensor,
    conv: nn.Conv1d | nn.Conv2d,
    factor: int,
    norm: nn.BatchNorm2d | None = None,
    before: Activation | None = None,
    after: Activation | None = None,
    parameters: tuple[Tensor, Tensor | None] | None = None,
) -> Tensor | None:
    """The chain as one call, or None where its modules have to run one by one.

    ``parameters``: weight and bias, where they have been read: to read a parametrized one may change it.
    """
    activation = before or after
    by_channel = activation is not None and activation.weight is not None and activation.weight.numel() > 1
    signal = isinstance(conv, nn.Conv1d)
    if input.dim() != (3 if signal else 4) and (norm is not None or by_channel):
        return None  # without a batch dimension they would take rows for channels, or refuse
    alone = None
    if not overwritable(activation, before=before is not None):
        assert activation is not None
        if activation.name in ("tanh", "sigmoid"):
            return None
        activation, alone = None, activation

    weight, bias = (conv.weight, conv.bias) if parameters is None else parameters
    padding: Any = conv.padding
    to_channels_last = not signal and follows_weight(weight)
    if to_channels_last and input.dim() != 4:
        return None
    if signal and not weight.is_contiguous():  # whose strides PyTorch's output has
        return None
    if norm is not None:
        weight, bias = folded(weight, bias, norm)
    if conv.padding_mode != "zeros":
        input = F.pad(input, conv._reversed_padding_repeated_twice, mode=conv.padding_mode)
        padding = 0 if signal else (0, 0)
    if to_channels_last:
        input = in_channels_last(input)
    elif signal:
        input = input.contiguous()
    convolve: Any = subpixel_conv1d if signal else subpixel_conv2d
    output: Tensor = convolve(
        input,
        weight,
        bias,
        factor,
        stride=conv.stride,
        padding=padding,
        dilation=conv.dilation,
        groups=conv.groups,
        activation=None if activation is None else activation.name,
        negative_slope=0.01 if activation is None else activation.negative_slope,
        activation_weight=None if activation is None else activation.weight,
    )
    return output if alone is None else alone.apply(output)


def normalised(input: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """A batch norm in eval mode alone."""
    mean, variance = norm.running_mean, norm.running_var
    return batch_norm(input, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)


def folded(weight: Tensor, bias: Tensor | None, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what a convolution and a batch norm in eval mode do.

    Computed in every call: it is little work, differentiable, and cannot go stale.
    """
    assert norm.running_mean is not None and norm.running_var is not None
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    if bias is not None:
        shift = shift + bias * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return weight * scale.to(weight.dtype).view(-1, 1, 1, 1), shift.to(weight.dtype)


def run_unshuffle_conv(input: Tensor, unshuffle: nn.PixelUnshuffle, conv: nn.Conv2d) -> Tensor:
    """conv(unshuffle(input)) as a strided convolution, whose kernel is the weight shuffled."""
    factor = unshuffle.downscale_factor
    if isinstance(conv.padding, str):
        rows, columns = (0, 0) if conv.padding == "valid" else (size // 2 for size in conv.kernel_size)
    else:
        rows, columns = conv.padding
    height, width = input.shape[-2:]
    if height % factor or width % factor:
        return conv(unshuffle(input))  # which says what is wrong
    return F.conv2d(
        input,
        F.pixel_shuffle(conv.weight, factor),
        conv.bias,
        (conv.stride[0] * factor, conv.stride[1] * factor),
        (rows * factor, columns * factor),
        groups=conv.groups,
    )
