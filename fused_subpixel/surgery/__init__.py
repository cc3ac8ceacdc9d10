# SPDX-License-Identifier: BSD-3-Clause
"""Replacing layers of existing models by fused ones, and telling what was done."""

from .pixel_shuffle import replace_pixel_shuffle, restore_pixel_shuffle
from .report import Report, Site

__all__ = ["Report", "Site", "replace_pixel_shuffle", "restore_pixel_shuffle"]
