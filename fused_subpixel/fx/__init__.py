# SPDX-License-Identifier: BSD-3-Clause
"""Replacing convolutions and pixel shuffles in graphs: exported programs and torch.compile."""

from .rewrite import fuse, fusing_backend, unfuse

__all__ = ["fuse", "fusing_backend", "unfuse"]
