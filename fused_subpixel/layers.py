# SPDX-License-Identifier: BSD-3-Clause
"""Layers for ``kernelize()`` of Hugging Face's ``kernels``, which may load this package from the Hub.

``kernelize()`` gives the ``forward`` of such a class to a layer of a model, which then is ``self``. So the
classes have neither state nor other methods.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from . import modules, modules_1d, modules_3d
from .surgery.fused_modules import run_chain, run_sequential


def _transposed(fused: type[modules.FusedConvTransposeNd]) -> type[nn.Module]:
    pytorchs = fused._pytorch_class

    class Layer(nn.Module):
        can_torch_compile = True

        def forward(self, input: Tensor, output_size: list[int] | None = None) -> Any:
            own = type(self).forward
            if own is not pytorchs.forward:  # a subclass of PyTorch's
                return own(self, input, output_size)
            return fused.forward_of(self, input, output_size)

    Layer.__name__ = Layer.__qualname__ = pytorchs.__name__
    Layer.__doc__ = f"Runs an ``nn.{pytorchs.__name__}`` as the class of that name in this package."
    return Layer


ConvTranspose1d = _transposed(modules_1d.ConvTranspose1d)
ConvTranspose2d = _transposed(modules.ConvTranspose2d)
ConvTranspose3d = _transposed(modules_3d.ConvTranspose3d)


class Sequential(nn.Module):
    """Runs convolution and pixel shuffle of an ``nn.Sequential``, where they are neighbours, as one call."""

    can_torch_compile = True

    def forward(self, input: Any) -> Any:
        """Apply all modules."""
        own: Any = type(self).forward
        if own is not nn.Sequential.forward:  # a subclass of PyTorch's
            return own(self, input)
        return run_sequential(self, input, fold_batch_norm=False, unshuffle=False, run=run_chain)
