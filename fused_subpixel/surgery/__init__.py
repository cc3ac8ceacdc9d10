# SPDX-License-Identifier: BSD-3-Clause
"""Replacing layers of existing models by fused ones, and telling what was done."""

from .report import Report, Site

__all__ = ["Report", "Site"]
