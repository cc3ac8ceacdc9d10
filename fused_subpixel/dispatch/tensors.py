# SPDX-License-Identifier: BSD-3-Clause
"""Tensors that are not plain ones, and modes in which only the reference can run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import torch_compat
from ..ops import library
from .checks import check_tensor

PLAIN_TENSORS = frozenset((Tensor, torch.nn.Parameter))
PLAIN_TENSORS_OR_NONE = PLAIN_TENSORS | {type(None)}


def plain_tensor(name: str, tensor: Any) -> Any:
    """A tensor of a subclass as a plain one, if that is possible, with its gradient.

    Whoever gets one here has asked its ``__torch_function__`` before, which sees to the result's class.
    """
    if type(tensor) in PLAIN_TENSORS:
        return tensor
    check_tensor(name, tensor)
    return tensor if _dispatches(tensor) else tensor.as_subclass(Tensor)


def plain_tensors(
    input: Any, weight: Any, bias: Any, activation_weight: Any, residual: Any
) -> tuple[Any, ...]:
    """:func:`plain_tensor` of a call's tensors; what is none is refused."""
    return (
        plain_tensor("input", input),
        plain_tensor("weight", weight),
        None if bias is None else plain_tensor("bias", bias),
        None if activation_weight is None else plain_tensor("activation_weight", activation_weight),
        None if residual is None else plain_tensor("residual", residual),
    )


def _dispatches(tensor: Any) -> bool:
    """Whether a tensor's class defines ``__torch_dispatch__``: its values may be anywhere."""
    return type(tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__


def is_plainly_eager(*tensors: Tensor | None) -> bool:
    """Whether nothing watches, transforms or records the operators that are called with these tensors."""
    return (
        not torch.compiler.is_compiling()  # first: Dynamo traces none of the others
        and torch_compat.dispatch_mode_depth() == 0
        and not torch_compat.in_pre_dispatch()
        and not torch_compat.has_transforms()
        and torch_compat.jit_tracing_state() is None
        and PLAIN_TENSORS_OR_NONE.issuperset(map(type, tensors))
    )


def why_only_reference(tracing: bool, *tensors: Tensor | None) -> str | None:
    """What about a call of these tensors, if anything, only plain PyTorch can handle."""
    if torch_compat.has_transforms():
        return "under torch.func transforms only the reference runs"
    if tracing:
        return "in ONNX export only the reference runs" if torch.onnx.is_in_onnx_export() else None
    if torch_compat.in_forward_mode():
        return "in forward-mode differentiation only the reference runs"
    if torch_compat.jit_tracing_state() is not None:
        return "under torch.jit.trace only the reference runs"
    for tensor in tensors:
        if tensor is not None and _dispatches(tensor):
            return f"{type(tensor).__name__} has a __torch_dispatch__, for which only the reference runs"
    return None


def warn_of_dispatching(*tensors: Tensor | None) -> None:
    """Say, once per class, that no kernel reaches the values of these tensors."""
    for tensor in tensors:
        if tensor is not None and _dispatches(tensor):
            library.warn_of_class(type(tensor))
