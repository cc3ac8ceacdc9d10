# SPDX-License-Identifier: BSD-3-Clause
"""A call whose arguments are checked and whose backend is chosen."""

from __future__ import annotations

import array
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..ops.geometry import Epilogue, Geometry, Problem
from .checks import Backend


class BackwardPlan(NamedTuple):
    """Which gradients our operators compute; PyTorch computes the others."""

    input_grad: bool
    weight_grad: bool


class Call(NamedTuple):
    """What follows from everything but the tensors' contents: the work that is done once and cached."""

    problem: Problem
    backend: Backend
    numbers: tuple[Any, ...]  # the operator's arguments after the tensors
    options: Tensor | None  # the same in one tensor, for eager calls of a compiled backend
    plan: BackwardPlan
    # Where the epilogue's gradient needs what comes before the epilogue: the same call without it.
    linear: Call | None = None
    activated: bool = False  # the gradients need the output
    one_backward: bool = False  # all gradients may come from one operator, which eager calls have


def make_call(
    problem: Problem, backend: Backend, plan: BackwardPlan, eager: bool, linear: Call | None = None
) -> Call:
    """The call of a problem; ``eager``: it is not traced by torch.compile."""
    options = eager_options(problem) if eager and backend != "reference" else None
    numbers = (tuple(problem.geometry), *problem.epilogue.numbers())
    one_backward = (
        all(plan)
        and options is not None
        and (problem.transposed is None or has_whole_phases(problem, backend))
    )
    activated = problem.epilogue.activation != 0
    return Call(problem, backend, numbers, options, plan, linear, activated, one_backward)


def has_whole_phases(problem: Problem, backend: str) -> bool:
    """Whether the operator for the gradients of eager calls takes a transposed convolution's own weight.

    The CPU library's does, of one group, without kernel padding; and all of the input must be used.
    """
    g, transposed = problem.geometry, problem.transposed
    return (
        backend == "cpu"
        and transposed is not None
        and not any(transposed.unused)
        and (g.groups, g.kernel_pad_h, g.kernel_pad_w) == (1, 0, 0)
    )


def eager_options(problem: Problem) -> Tensor:
    """All options of a call, as the operators for eager calls take them: see csrc/torch/call_options.h.

    A plain tensor even in modes that put other tensors in place of new ones, because torch.frombuffer calls
    no operator.
    """
    native = problem.transposed is not None and problem.geometry.groups == 1
    sizes = *problem.input_shape[2:], *problem.weight_shape[2:]
    return torch.frombuffer(
        array.array("d", (*problem.geometry, *problem.epilogue, native, *sizes)), dtype=torch.float64
    )


def read_eager_options(options: Tensor) -> tuple[Geometry, Epilogue, bool, list[int]]:
    """What :func:`eager_options` wrote; last the height and width of input and kernel."""
    values = options.tolist()
    geometry = Geometry(*(int(values.pop(0)) for _ in Geometry._fields))
    activation, slope, low, high, native, *sizes = values
    return geometry, Epilogue(int(activation), slope, low, high), bool(native), [int(n) for n in sizes]
