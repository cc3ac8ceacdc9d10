# SPDX-License-Identifier: BSD-3-Clause
"""Whether PyTorch's layers are made of PyTorch's own code.

Programs patch it: a function of ``torch.nn.functional``, the forward of a class, the call of every module.
While a patch is in place, layers must run as they are.
"""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_PARTS: tuple[tuple[Any, str], ...] = (
    *((F, name) for name in ("conv1d", "conv2d", "conv_transpose2d")),
    *((F, name) for name in ("pad", "pixel_shuffle", "pixel_unshuffle")),
    *((F, name) for name in ("batch_norm", "relu", "leaky_relu", "prelu", "silu", "gelu")),
    *((F, name) for name in ("relu6", "hardtanh", "hardswish", "hardsigmoid", "elu", "mish", "softplus")),
    (torch, "tanh"),
    (torch, "sigmoid"),
    *((kind, "forward") for kind in (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)),
    *((kind, "forward") for kind in (nn.PixelShuffle, nn.PixelUnshuffle)),
    *((kind, "forward") for kind in (nn.BatchNorm2d, nn.modules.batchnorm._BatchNorm)),
    *((kind, "forward") for kind in (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid)),
    *((kind, "forward") for kind in (nn.Hardtanh, nn.ReLU6, nn.Hardswish, nn.Hardsigmoid)),
    *((kind, "forward") for kind in (nn.ELU, nn.Mish, nn.Softplus)),
    *((kind, "forward") for kind in (nn.Sequential, nn.Identity)),
    (nn.Conv1d, "_conv_forward"),
    (nn.Conv2d, "_conv_forward"),
    (nn.modules.conv._ConvTransposeNd, "_output_padding"),
    (nn.Module, "_call_impl"),
)


def _is_pytorchs(function: Any) -> bool:
    """Whether ``function`` is defined in PyTorch, in C++ or Python."""
    if function is None or isinstance(function, types.BuiltinFunctionType):
        return True
    name = getattr(function, "__globals__", {}).get("__name__", "")  # a decorated one may have any __module__
    return name == "torch" or name.startswith("torch.")


# As it was when this package was imported; a patch of that time equals nothing. Looking into the dictionaries
# takes a third of the time of getattr.
_TABLES = tuple((vars(owner), name) for owner, name in _PARTS)
_ORIGINALS = [part if _is_pytorchs(part := table.get(name)) else object() for table, name in _TABLES]
_ATTRIBUTES = tuple(
    (owner, name, getattr(owner, name) if original is None else original)
    for (owner, name), original in zip(_PARTS, _ORIGINALS, strict=True)
)
_CALL = nn.Module.__call__ if _is_pytorchs(nn.Module.__call__) else None


def intact() -> bool:
    """Whether all that PyTorch's layers are made of is PyTorch's own at this moment."""
    if nn.Module.__call__ is not _CALL and not _is_pytorchs(nn.Module.__call__):
        return False  # PyTorch's own tracers replace it, too, while they trace
    if torch.compiler.is_dynamo_compiling():  # guards the attributes, and recompiles when one has changed
        return all(getattr(owner, name) is original for owner, name, original in _ATTRIBUTES)
    return [table.get(name) for table, name in _TABLES] == _ORIGINALS
