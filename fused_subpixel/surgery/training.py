# SPDX-License-Identifier: BSD-3-Clause
"""Training steps to measure: a run and its backward pass, which leave no gradient behind."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from . import trace
from .timing import Run


def is_trained(model: nn.Module) -> bool:
    """Whether a run of ``model`` is part of a training step, and its backward pass calls nobody's hooks."""
    hooked = any(module._backward_hooks or module._backward_pre_hooks for module in model.modules())
    return model.training and torch.is_grad_enabled() and not hooked and bool(trained_parameters(model))


def trained_parameters(module: nn.Module) -> list[Tensor]:
    """The parameters that need gradients. Those with hooks are left out, which would be called."""
    return [p for p in module.parameters() if p.requires_grad and not p._backward_hooks]


def differentiated_inputs(
    model: nn.Module, modules: Iterable[nn.Module], inputs: Any
) -> set[nn.Module] | None:
    """Those of ``modules`` whose input needs a gradient in a training step, for the sake of earlier layers.

    None where the model cannot be trained as it is: where it overwrites what its backward pass needs.
    """
    found: set[nn.Module] = set()

    def look(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if any(tensor.requires_grad for tensor in trace.tensors_in(arguments)):
            found.add(module)

    with trace.unchanged(model):
        handles = [module.register_forward_pre_hook(look) for module in modules]
        try:
            run = functools.partial(trace.call, model, trace.copied(inputs), gradients=True)
            step(run, trained_parameters(model))()
        except RuntimeError:
            return None
        finally:
            for handle in handles:
                handle.remove()
    return found


def step(run: Run, wanted: list[Tensor]) -> Run:
    """``run``, and the gradients of its results with respect to ``wanted``."""

    def forward_and_backward() -> None:
        with torch.enable_grad():
            results = [tensor for tensor in trace.tensors_in(run()) if tensor.requires_grad]
        if results and wanted:
            ones = [torch.ones_like(result) for result in results]
            with _without_autocast(results[0].device.type):  # as PyTorch recommends
                torch.autograd.grad(results, wanted, ones, allow_unused=True)

    return forward_and_backward


def _without_autocast(kind: str) -> contextlib.AbstractContextManager[Any]:
    if not torch.amp.is_autocast_available(kind):
        return contextlib.nullcontext()
    return torch.autocast(kind, enabled=False)
