# SPDX-License-Identifier: BSD-3-Clause
"""Exported programs for inputs of any size, and what older versions of torch cannot export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram


def export(
    model: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any] | None = None, *, sizes: Any
) -> ExportedProgram:
    """torch.export.export with the symbolic ``sizes`` of ``dynamic_shapes``."""
    try:
        return torch.export.export(model, inputs, named, dynamic_shapes=sizes)
    except (torch._dynamo.exc.UserError, AssertionError) as error:
        # The guards of reshape and view, where a shuffle is written by these, and of 1-d convolutions.
        known = "satisfy the generated guard min(" in str(error) or " <= 2147483647/" in str(error)
        if torch.__version__ < (2, 13) and known:
            pytest.skip(f"torch {torch.__version__} cannot export this for any size")
        raise
