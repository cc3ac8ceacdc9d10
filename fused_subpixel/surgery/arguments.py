# SPDX-License-Identifier: BSD-3-Clause
"""What the functions that change models are given: checks, in words, and the copy that is changed."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def check_model(model: Any) -> None:
    """Raise TypeError or ValueError where ``model`` is no module whose classes can be changed."""
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError("model: is scripted; replace the modules before torch.jit sees them")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {_found(model)}")


def _found(model: Any) -> str:
    """What was given for a model. Loaders often return one in a dict or in an object of their own."""
    kind = type(model).__name__
    if isinstance(model, dict):
        inside = next((key for key, value in model.items() if isinstance(value, nn.Module)), None)
        if inside is not None:
            return f"{kind}; its entry {inside!r} is one"
        if any(isinstance(value, Tensor) for value in model.values()):
            return f"{kind} of tensors; load it into a model with load_state_dict first"
    elif isinstance(getattr(model, "model", None), nn.Module):
        return f"{kind}; its attribute .model is one"
    return kind


def as_arguments(example_inputs: Any) -> tuple[Any, ...] | dict[str, Any] | None:
    """``example_inputs`` as positional or keyword arguments."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if _is_shape(example_inputs):
        sizes = ", ".join(map(str, example_inputs))
        raise TypeError(
            f"example_inputs: expected tensors, got the shape ({sizes}); torch.randn({sizes}) has it"
        )
    if example_inputs is None or isinstance(example_inputs, (tuple, dict)):
        return example_inputs
    hint = "; torch.from_numpy makes a tensor of it" if hasattr(example_inputs, "__array__") else ""
    raise TypeError(
        "example_inputs: expected a tensor, a tuple of positional arguments or a dict of keyword arguments, "
        f"got {type(example_inputs).__name__}{hint}"
    )


def _is_shape(value: Any) -> bool:
    """Whether ``value`` is the shape of an image, where a tensor is expected."""
    return (
        isinstance(value, (tuple, list)) and len(value) in (3, 4) and all(type(size) is int for size in value)
    )


def copied(model: Model) -> Model:
    """A deep copy."""
    try:
        with torch.inference_mode(False):  # whose tensors could not be trained
            return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        holders = [name or "the model" for name, module in model.named_modules() if _holds_results(module)]
        if holders:
            raise ValueError(
                "model: cannot be copied, inplace=True may help. Tensors with a gradient history are in "
                f"{', '.join(holders)}; the old weight_norm, spectral_norm and pruning leave them there. "
                "After a run of the model under torch.no_grad() it can be copied"
            ) from error
        raise ValueError(f"model: cannot be copied, inplace=True may help ({error})") from error


def _holds_results(module: nn.Module) -> bool:
    return any(isinstance(value, Tensor) and not value.is_leaf for value in vars(module).values())
