# SPDX-License-Identifier: BSD-3-Clause
"""A model of the CUDA forward kernels' speed that needs no GPU; docs/speed_model.md says what it can tell."""
