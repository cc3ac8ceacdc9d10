# SPDX-License-Identifier: BSD-3-Clause
"""The operators ``torch.ops.fused_subpixel.*``: schemas, libraries, shape functions, gradients, fallback."""
