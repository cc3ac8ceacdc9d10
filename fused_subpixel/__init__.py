# SPDX-License-Identifier: BSD-3-Clause
"""Sub-pixel convolution for PyTorch: convolution whose output write is the pixel shuffle."""

from . import layers as layers  # where kernelize() of Hugging Face's kernels looks for them
from .dispatch.backends import use_backend
from .dispatch.checks import Backend
from .explanation import Explanation, explain
from .functional import conv_transpose2d, pixel_shuffle, pixel_unshuffle, subpixel_conv2d
from .functional_1d import conv_transpose1d, pixel_shuffle1d, pixel_unshuffle1d, subpixel_conv1d
from .functional_3d import conv_transpose3d
from .fx import fuse, fusing_backend, unfuse
from .init import icnr_
from .modules import ConvTranspose2d, PaddingMode, SubpixelConv2d
from .modules_1d import ConvTranspose1d, SubpixelConv1d
from .modules_3d import ConvTranspose3d
from .ops.geometry import Activation, ChannelOrder
from .surgery import (
    Report,
    Site,
    accelerate,
    replace_conv_transpose,
    replace_pixel_shuffle,
    restore,
    restore_pixel_shuffle,
)
from .weights import (
    conv_transpose_bias_to_subpixel,
    conv_transpose_weight_to_subpixel,
    subpixel_bias_to_conv_transpose,
    subpixel_weight_to_conv_transpose,
)

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Backend",
    "ChannelOrder",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "Explanation",
    "PaddingMode",
    "Report",
    "Site",
    "SubpixelConv1d",
    "SubpixelConv2d",
    "accelerate",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "conv_transpose_bias_to_subpixel",
    "conv_transpose_weight_to_subpixel",
    "explain",
    "fuse",
    "fusing_backend",
    "icnr_",
    "pixel_shuffle",
    "pixel_shuffle1d",
    "pixel_unshuffle",
    "pixel_unshuffle1d",
    "replace_conv_transpose",
    "replace_pixel_shuffle",
    "restore",
    "restore_pixel_shuffle",
    "subpixel_bias_to_conv_transpose",
    "subpixel_conv1d",
    "subpixel_conv2d",
    "subpixel_weight_to_conv_transpose",
    "unfuse",
    "use_backend",
]
