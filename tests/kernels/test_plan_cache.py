# SPDX-License-Identifier: BSD-3-Clause
"""Calls that find their plan in the cache compute the same bits as calls that make it."""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cases
import pytest
import torch
from cases import LAYOUTS, Case
from conftest import needs_cpu_library
from torch import Tensor

pytestmark = needs_cpu_library

# The same sizes with everything else that a plan depends on.
BASE = Case("cached", (2, 8, 9, 13), (12, 8, 3, 3), padding=cases.SAME3)
CASES = tuple(
    cases.variant(BASE, **changes)
    for changes in (
        {},
        {"activation": "tanh"},
        {"residual": "high"},
        {"residual": "low"},
        {"residual": "nearest"},
        {"order": "dcr"},
        {"padding": (1, 1, 1, 2)},
    )
)


def compute(case: Case, layout: str, isa: int, weight: str) -> Tensor:
    tensors = cases.randoms(case, torch.float32).to(torch.float32, LAYOUTS[layout])
    if weight == "channels_last":
        tensors = tensors._replace(weight=tensors.weight.contiguous(memory_format=torch.channels_last))
    if weight == "infinite":
        tensors.weight[0, 0, 0, 0] = torch.inf
    with cases.instruction_set(isa):
        return cases.run(case, tensors)


def gradients(layout: str, isa: int, activation: int) -> tuple[Tensor, Tensor, Tensor]:
    x, weight, *_ = cases.randoms(BASE, torch.float32).to(torch.float32, LAYOUTS[layout])
    grad = torch.linspace(-1, 1, math.prod(BASE.output)).view(BASE.output)
    grad = grad.contiguous(memory_format=LAYOUTS[layout])
    saved: tuple[Any, ...] = (grad.flip(3), activation, 0.0) if activation else ()
    with cases.instruction_set(isa):
        by_input = cases.operators.subpixel_conv2d_input_grad(
            grad, weight, *x.shape[2:], BASE.geometry, layout == "channels_last", *saved
        )
        return by_input, *cases.operators.subpixel_conv2d_weight_grad(
            grad, x, *weight.shape[2:], BASE.geometry, *saved
        )


def in_a_new_thread(function: Any, *arguments: Any) -> Any:
    """A thread that starts has planned nothing yet."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


@pytest.mark.parametrize("number", [1, 2])
def test_forward(number: int) -> None:
    weights = ("contiguous", "channels_last", "infinite")
    calls = list(itertools.product(CASES, LAYOUTS, cases.usable_isas(), weights))
    with cases.threads(number):
        for call in calls:  # more than the cache keeps
            compute(*call)
            torch.testing.assert_close(
                compute(*call), in_a_new_thread(compute, *call), rtol=0, atol=0, equal_nan=True
            )


def test_gradients() -> None:
    calls = list(itertools.product(LAYOUTS, cases.usable_isas(), (0, 1, 6)))
    for call in calls:
        gradients(*call)
    for call in calls:
        for found, expected in zip(gradients(*call), in_a_new_thread(gradients, *call), strict=True):
            assert found.equal(expected)
