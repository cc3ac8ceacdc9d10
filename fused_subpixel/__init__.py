# SPDX-License-Identifier: BSD-3-Clause
"""Sub-pixel convolution for PyTorch: convolution whose output write is the pixel shuffle."""

from .backends import use_backend
from .explanation import Explanation, explain
from .functional import pixel_shuffle, pixel_unshuffle, subpixel_conv2d
from .init import icnr_
from .modules import SubpixelConv2d
from .surgery import Report, Site, replace_pixel_shuffle, restore_pixel_shuffle

__version__ = "0.1.0"

__all__ = [
    "Explanation",
    "Report",
    "Site",
    "SubpixelConv2d",
    "explain",
    "icnr_",
    "pixel_shuffle",
    "pixel_unshuffle",
    "replace_pixel_shuffle",
    "restore_pixel_shuffle",
    "subpixel_conv2d",
    "use_backend",
]
