# SPDX-License-Identifier: BSD-3-Clause
"""A call whose arguments are checked and whose backend is chosen."""

from __future__ import annotations

from typing import Any, NamedTuple

from ..ops.geometry import Problem


class BackwardPlan(NamedTuple):
    """Which gradients our operators compute; PyTorch computes the others."""

    input_grad: bool
    weight_grad: bool


class Call(NamedTuple):
    """What follows from everything but the tensors' contents: the work that is done once and cached."""

    problem: Problem
    backend: str
    numbers: tuple[Any, ...]  # the operator's arguments after the tensors
    plan: BackwardPlan
    # Where the epilogue's gradient needs what comes before the epilogue: the same call without it.
    linear: Call | None = None
