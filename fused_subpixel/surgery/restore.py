# SPDX-License-Identifier: BSD-3-Clause
"""The way back: :func:`restore` gives the modules of a model their own classes again."""

from __future__ import annotations

from .arguments import Model, check_model, copied
from .conv_transpose import FUSED
from .fused_modules import FusedConv, FusedSequential, restore_class


def restore(model: Model, *, inplace: bool = False) -> Model:
    """Undo :func:`accelerate`, :func:`replace_pixel_shuffle` and :func:`replace_conv_transpose`.

    Modules get their own classes back, batch norms are no longer folded, and each
    :class:`fused_subpixel.ConvTranspose1d`, ``ConvTranspose2d`` or ``ConvTranspose3d`` becomes PyTorch's. A
    :class:`fused_subpixel.SubpixelConv1d` or :class:`fused_subpixel.SubpixelConv2d` stays, because it
    replaced no module. ``restore_pixel_shuffle`` is another name of this function.

    Args:
        model: a model, replaced or not, or a part of one.
        inplace: whether to change ``model`` itself; by default a deep copy is changed.

    Raises:
        TypeError, ValueError: as :func:`replace_pixel_shuffle`.
    """
    check_model(model)
    model = model if inplace else copied(model)
    originals = {fused: original for original, fused in FUSED.items()}
    for module in model.modules():
        if isinstance(module, (FusedSequential, FusedConv)):
            restore_class(module)
            for name in ("subpixel", "fold_batch_norm", "unshuffle"):
                module.__dict__.pop(name, None)
        elif type(module) in originals:
            module.__class__ = originals[type(module)]
    return model


restore_pixel_shuffle = restore
