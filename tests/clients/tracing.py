# SPDX-License-Identifier: BSD-3-Clause
"""Which convolution feeds which pixel shuffle when a model runs, as torch's functions see it; no surgery."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LONGEST = 3  # functions between the two; what goes through more was not made by the convolution any more


class Pair(NamedTuple):
    """A pixel shuffle whose input began as a convolution's output."""

    convolution: str  # path of the module that owns the weight
    between: tuple[str, ...]  # functions that the tensor went through
    factor: int


class Trace(TorchFunctionMode):
    """While active: notes ``pairs``, and the paths of all ``convolutions`` and ``transposed`` ones called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.pairs: list[Pair] = []
        self.convolutions: list[str] = []
        self.transposed: list[str] = []

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        first = args[0] if args else kwargs.get("input")
        # what the tensor is made of, before an operation in place changes it
        history = getattr(first, "_history", None) if isinstance(first, Tensor) else None
        output = function(*args, **kwargs)
        if name in ("conv2d", "conv_transpose2d"):
            path = self._owner(kwargs["weight"] if "weight" in kwargs else args[1])
            (self.convolutions if name == "conv2d" else self.transposed).append(path)
            output._history = (path,) if name == "conv2d" else None
        elif name == "pixel_shuffle":
            if history:
                factor = kwargs["upscale_factor"] if "upscale_factor" in kwargs else args[1]
                self.pairs.append(Pair(history[0], history[1:], factor))
        elif isinstance(output, Tensor) and history and name != "__get__":
            output._history = (*history, name) if len(history) <= LONGEST else None
        return output

    def _owner(self, weight: Tensor) -> str:
        """By identity, now: hooks of weight_norm set a new weight before each call."""
        for path, module in self.model.named_modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.weight is weight:
                return path
        return "?"


def trace(model: nn.Module, *inputs: Tensor) -> Trace:
    """Run ``model`` once, without gradients."""
    with torch.no_grad(), Trace(model) as found:
        model(*inputs)
    return found
