# SPDX-License-Identifier: BSD-3-Clause
"""Replacing layers of existing models by fused ones, and telling what was done."""

from .accelerate import accelerate
from .conv_transpose import replace_conv_transpose
from .pixel_shuffle import replace_pixel_shuffle
from .report import Report, Site
from .restore import restore, restore_pixel_shuffle

__all__ = [
    "Report",
    "Site",
    "accelerate",
    "replace_conv_transpose",
    "replace_pixel_shuffle",
    "restore",
    "restore_pixel_shuffle",
]
