# SPDX-License-Identifier: BSD-3-Clause
"""Exported programs for images of any size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


def export(model: nn.Module, x: Tensor, sizes: dict[int, Any] | None) -> ExportedProgram:
    """torch.export.export with these dimensions of ``x`` symbolic."""
    try:
        return torch.export.export(model, (x,), dynamic_shapes=None if sizes is None else ({**sizes},))
    except torch._dynamo.exc.UserError as error:
        if torch.__version__.startswith("2.10.") and ") == (2*" in str(error):
            pytest.skip("torch 2.10 fixes a size where the shuffle in DCR order is written by views")
        raise
