# SPDX-License-Identifier: BSD-3-Clause
"""The compiled gradients as raw operators, data for them, and what they must give."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import cases
import torch
from cases import BASES, GEOMETRIES, Case
from torch import Tensor

from fused_subpixel.ops import gradients
from fused_subpixel.ops.geometry import ACTIVATIONS


def saved(case: Case, output: Tensor | None) -> list[Any]:
    """What the operators take of the forward pass, for the activation of the case."""
    return [] if output is None else [output, ACTIVATIONS[case.activation], cases.SLOPE]


def input_grad(
    case: Case, grad: Tensor, weight: Tensor, channels_last: bool = False, output: Tensor | None = None
) -> Tensor:
    return cases.operators.subpixel_conv2d_input_grad(
        grad, weight, *case.input[2:], case.geometry, channels_last, *saved(case, output)
    )


def weight_grad(
    case: Case, grad: Tensor, input: Tensor, output: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    return cases.operators.subpixel_conv2d_weight_grad(
        grad, input, *case.weight[2:], case.geometry, *saved(case, output)
    )


def by_autograd(case: Case, grad: Tensor, tensors: cases.Tensors) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of (input, weight, bias) by PyTorch, in the tensors' dtype."""
    leaves = [t.detach().requires_grad_() for t in tensors[:3]]
    return torch.autograd.grad(cases.plain(case, cases.Tensors(*leaves)), leaves, grad)


def integer_gradient(case: Case) -> Tensor:
    """Of the output, in float64."""
    return torch.randint(-3, 4, case.output, generator=torch.Generator().manual_seed(1)).double()


@functools.cache
def exact(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """What integers must give, in float64; with the activation of the case, after :func:`quarters`."""
    linear = dataclasses.replace(case, activation=None)
    grad = before_activation(case.activation, integer_gradient(case), quarters(case))
    return by_autograd(linear, grad, cases.integers(case))


# ---- activations -------------------------------------------------------------------------------------------

RECOVERABLE = ("relu", "leaky_relu", "tanh", "sigmoid", "relu6")
# Odd factors, crops, several blocks, images and groups.
ACTIVATED = (
    *BASES,
    *(
        case
        for case in GEOMETRIES
        if case.name
        in ("r=1", "r=3 colour dcr", "r=(2,3)", "crop", "uneven crop", "wide crop", "groups dcr", "dilation",
            "stride", "many images", "long rows", "one of everything")
    ),
)  # fmt: skip


def quarters(case: Case) -> Tensor:
    """An output that the activation of the case may have given, in float64: derivatives are exact."""
    generator = torch.Generator().manual_seed(2)
    if case.activation == "relu6":  # both ends are as frequent as all between
        return torch.randint(-12, 37, case.output, generator=generator).double().div(4).clamp(0, 6)
    least = 0 if case.activation == "sigmoid" else -4
    return torch.randint(least, 5, case.output, generator=generator).double() / 4


def before_activation(name: str | None, grad: Tensor, output: Tensor) -> Tensor:
    """The gradient times the derivative that belongs to an output."""
    derivatives = {
        None: lambda y: torch.ones_like(y),
        "relu": lambda y: (y > 0).to(y),
        "leaky_relu": lambda y: torch.where(y > 0, 1.0, cases.SLOPE),
        "tanh": lambda y: 1 - y**2,
        "sigmoid": lambda y: y - y**2,
        "relu6": lambda y: ((y > 0) & (y < 6)).to(y),
    }
    return grad * derivatives[name](output)


def applied_once(grad: Tensor, output: Tensor, case: Case) -> Tensor:
    """By PyTorch, half types computed in float32 and rounded once, as on GPUs."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    return gradients.activation_gradient(grad.to(wide), output.to(wide), case.epilogue).to(grad.dtype)
