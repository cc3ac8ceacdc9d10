# SPDX-License-Identifier: BSD-3-Clause
"""What PyTorch's layers are made of, as it was when this package was imported.

People patch it: a function of ``torch.nn.functional``, the forward of a class, the call of every module. Where
that has happened, layers must run as they are.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_PARTS: tuple[tuple[Any, str], ...] = (
    *((F, name) for name in ("conv2d", "conv_transpose2d", "pad", "pixel_shuffle", "pixel_unshuffle")),
    *((F, name) for name in ("batch_norm", "relu", "leaky_relu", "prelu", "silu", "gelu")),
    (torch, "tanh"),
    (torch, "sigmoid"),
    *((kind, "forward") for kind in (nn.Conv2d, nn.ConvTranspose2d, nn.PixelShuffle, nn.PixelUnshuffle)),
    *((kind, "forward") for kind in (nn.BatchNorm2d, nn.modules.batchnorm._BatchNorm)),
    *((kind, "forward") for kind in (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid)),
    *((kind, "forward") for kind in (nn.Sequential, nn.Identity)),
    (nn.Conv2d, "_conv_forward"),
    (nn.modules.conv._ConvTransposeNd, "_output_padding"),
    (nn.Module, "_call_impl"),
)
# Looking into the dictionaries takes a third of the time of getattr.
_TABLES = tuple((vars(owner), name) for owner, name in _PARTS)
_ORIGINALS = [table.get(name) for table, name in _TABLES]
_ATTRIBUTES = tuple((owner, name, getattr(owner, name)) for owner, name in _PARTS)
_CALL = nn.Module.__call__


def intact() -> bool:
    """Whether all that PyTorch's layers are made of is PyTorch's own at this moment."""
    call: Any = nn.Module.__call__
    if call is not _CALL and not getattr(call, "__globals__", {}).get("__name__", "").startswith("torch."):
        return False  # nor one of PyTorch's own tracers
    if torch.compiler.is_dynamo_compiling():  # it knows this way, and compiles anew when an attribute changes
        for owner, name, original in _ATTRIBUTES:
            if getattr(owner, name) is not original:
                return False
        return True
    return [table.get(name) for table, name in _TABLES] == _ORIGINALS
