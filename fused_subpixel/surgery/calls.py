# SPDX-License-Identifier: BSD-3-Clause
"""Which calls of PyTorch's functions are steps of a chain, as ``__torch_function__`` sees them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chain import Activation


class Call(NamedTuple):
    """An activation or a batch norm, called on a tensor."""

    activation: Activation | None
    norm: tuple[Any, ...]  # of a batch norm in eval mode: mean, variance, weight, bias, epsilon
    in_place: bool

    def does(self, step: nn.BatchNorm2d | Activation) -> bool:
        """Whether the call is this step, on the very parameters of it."""
        if isinstance(step, Activation):
            mine = self.activation
            return (
                mine is not None
                and mine.name == step.name
                and mine.negative_slope == step.negative_slope
                and mine.weight is step.weight
            )
        theirs = (step.running_mean, step.running_var, step.weight, step.bias)
        return (
            bool(self.norm)
            and all(a is b for a, b in zip(self.norm[:4], theirs, strict=True))
            and self.norm[4] == step.eps
        )


# name of the activation, and whether the function works in place
ACTIVATIONS: dict[Any, tuple[str, bool]] = {
    F.relu: ("relu", False),
    torch.relu: ("relu", False),
    torch.relu_: ("relu", True),
    Tensor.relu: ("relu", False),
    Tensor.relu_: ("relu", True),
    F.leaky_relu: ("leaky_relu", False),
    F.leaky_relu_: ("leaky_relu", True),
    F.prelu: ("prelu", False),
    Tensor.prelu: ("prelu", False),
    F.silu: ("silu", False),
    F.gelu: ("gelu", False),
    F.relu6: ("relu6", False),
    F.hardtanh: ("relu6", False),
    F.hardtanh_: ("relu6", True),
    F.hardswish: ("hardswish", False),
    F.hardsigmoid: ("hardsigmoid", False),
    F.elu: ("elu", False),
    F.elu_: ("elu", True),
    F.mish: ("mish", False),
    F.softplus: ("softplus", False),
    torch.tanh: ("tanh", False),
    Tensor.tanh: ("tanh", False),
    torch.tanh_: ("tanh", True),
    Tensor.tanh_: ("tanh", True),
    torch.sigmoid: ("sigmoid", False),
    Tensor.sigmoid: ("sigmoid", False),
    torch.sigmoid_: ("sigmoid", True),
    Tensor.sigmoid_: ("sigmoid", True),
}
# (name, default, value) of the options that these functions must be called with, in the order of arguments
OPTIONS: dict[Any, tuple[tuple[str, float, float], ...]] = {
    F.hardtanh: (("min_val", -1, 0), ("max_val", 1, 6)),
    F.hardtanh_: (("min_val", -1, 0), ("max_val", 1, 6)),
    F.elu: (("alpha", 1, 1),),
    F.elu_: (("alpha", 1, 1), ("scale", 1, 1), ("input_scale", 1, 1)),
    F.softplus: (("beta", 1, 1), ("threshold", 20, 20)),
}
KEYWORDS = {"inplace", "negative_slope", "approximate", "weight"}.union(
    option for options in OPTIONS.values() for option, *_ in options
)
_getter: Any = Tensor  # the properties of a tensor as __torch_function__ sees them, which mypy does not

# Questions about a tensor that its values do not enter.
METADATA = frozenset(
    {
        _getter.shape.__get__,
        _getter.ndim.__get__,
        _getter.dtype.__get__,
        _getter.device.__get__,
        _getter.is_cuda.__get__,
        _getter.requires_grad.__get__,
        Tensor.size,
        Tensor.numel,
        Tensor.dim,
        Tensor.is_floating_point,
        torch.numel,
        torch.is_floating_point,
    }
)

# What asks or changes a tensor's place in autograd, not its values.
ABOUT_ITSELF = frozenset(
    {
        _getter.requires_grad.__set__,
        _getter.grad.__get__,
        _getter.grad.__set__,
        _getter.grad.__delete__,
        _getter.grad_fn.__get__,
        _getter.is_leaf.__get__,
        _getter.output_nr.__get__,
        _getter.retains_grad.__get__,
        _getter._version.__get__,
        _getter._backward_hooks.__get__,
        _getter._backward_hooks.__set__,
        Tensor.requires_grad_,
        Tensor.retain_grad,
        Tensor.register_hook,
        Tensor.register_post_accumulate_grad_hook,
        Tensor.detach_,
        Tensor.backward,
        torch.autograd.backward,
        torch.autograd.grad,
    }
)

# What gives a tensor other memory.
REPLACES_DATA = frozenset({
    _getter.data.__set__, Tensor.set_, Tensor.resize_, Tensor.resize_as_, torch.resize_as_,
})  # fmt: skip


def call_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
    """The step that ``func(*args, **kwargs)`` is, or None."""
    if func is F.batch_norm:
        return _batch_norm(*args, **kwargs)
    if func not in ACTIVATIONS or not set(kwargs) <= KEYWORDS:
        return None
    name, in_place = ACTIVATIONS[func]
    arguments = list(args[1:])
    slope, weight = 0.01, None
    if name == "leaky_relu":
        slope = arguments.pop(0) if arguments else kwargs.get("negative_slope", 0.01)
    elif name == "prelu":
        weight = arguments.pop(0) if arguments else kwargs["weight"]
    elif name == "gelu" and kwargs.get("approximate", "none") != "none":
        if kwargs["approximate"] != "tanh":
            return None
        name = "gelu_tanh"
    for option, default, value in OPTIONS.get(func, ()):
        if (arguments.pop(0) if arguments else kwargs.get(option, default)) != value:
            return None
    in_place = in_place or bool(arguments.pop(0) if arguments else kwargs.get("inplace", False))
    return Call(Activation(name, slope, weight), (), in_place)


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Call | None:  # fmt: skip
    return None if training else Call(None, (running_mean, running_var, weight, bias, eps), False)
