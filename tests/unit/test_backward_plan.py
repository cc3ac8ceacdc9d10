# SPDX-License-Identifier: BSD-3-Clause
"""Who computes the gradients of a call on a CPU."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from conftest import needs_cpu_library

import fused_subpixel as fs
from fused_subpixel.dispatch import backward
from fused_subpixel.dispatch.backward import GradientCycles, cheapest, plan_backward
from fused_subpixel.dispatch.call import BackwardPlan
from fused_subpixel.ops.geometry import Geometry

OURS, PYTORCHS = BackwardPlan(True, True), BackwardPlan(False, False)
GEOMETRY = Geometry(*(0 if "pad" in name or "crop" in name else 1 for name in Geometry._fields))._replace(
    pad_top=1, pad_left=1, pad_bottom=1, pad_right=1, channel_order=0, tf32=0
)
INPUT, WEIGHT = (1, 64, 40, 40), (64, 64, 3, 3)


@pytest.mark.parametrize("ours", [*itertools.product((1.0, 5.0), repeat=2)])
@pytest.mark.parametrize("once", [0.0, 1.0, 100.0])
def test_the_cheapest_of_four_ways(ours: tuple[float, float], once: float) -> None:
    """What PyTorch needs once is paid as soon as it computes one gradient."""
    found = cheapest(GradientCycles(*ours), GradientCycles(2.0, 2.0, once))
    if once == 100:
        assert found == OURS
    elif once == 0:
        assert found == BackwardPlan(ours[0] < 2, ours[1] < 3)  # of weights only if clearly faster
    else:
        both = ours[0] + ours[1]
        assert found == (
            PYTORCHS if both > 6 else BackwardPlan(ours[0] < 2, ours[1] < 4) if both > 5 else OURS
        )


@needs_cpu_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_estimates_decide(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    def estimates(ours: float) -> Any:
        return lambda *_: (GradientCycles(ours, ours), GradientCycles(1, 1))

    for ours, plan in ((0.5, OURS), (5.0, PYTORCHS)):
        monkeypatch.setattr(backward, "estimate", estimates(ours))
        assert plan_backward("cpu", GEOMETRY, INPUT, WEIGHT, dtype) == plan
        assert plan_backward("reference", GEOMETRY, INPUT, WEIGHT, dtype) == PYTORCHS
        # kernels that are made for stride and groups
        for changed in ({"stride_h": 2}, {"groups": 2}):
            assert plan_backward("cpu", GEOMETRY._replace(**changed), INPUT, WEIGHT, dtype) == PYTORCHS
        # nothing to compare
        assert plan_backward("cpu", GEOMETRY, INPUT, WEIGHT, torch.float16) == OURS
        for shape in ((0, 64, 40, 40), (1, 64, 0, 40)):
            assert plan_backward("cpu", GEOMETRY, shape, WEIGHT, dtype) == OURS


@needs_cpu_library
def test_estimates_grow_with_the_layer_and_know_the_way() -> None:
    """Between few pixels, whose weights are streamed, and an image, packing the weights costs most."""
    for wide, better in (((1, 512, 1, 1), OURS), ((1, 512, 12, 12), PYTORCHS), ((1, 64, 128, 128), OURS)):
        weight = (wide[1], wide[1], 3, 3)
        ours, theirs = backward.estimate(GEOMETRY, wide, weight, torch.float32)
        assert all(cycles > 0 for cycles in (*ours[:2], *theirs))
        assert cheapest(ours, theirs).input_grad == better.input_grad
        twice = backward.estimate(GEOMETRY, (2, *wide[1:]), weight, torch.float32)
        assert twice[0].input_grad > ours.input_grad
        assert twice[1].weight_grad > theirs.weight_grad
    shuffled = GEOMETRY._replace(upscale_h=2, upscale_w=2)
    assert backward.estimate(shuffled, INPUT, WEIGHT, torch.float32)[1].once > (
        backward.estimate(shuffled, INPUT, WEIGHT, torch.float32, True)[1].once
    ), "a transposed convolution of PyTorch needs no unshuffled copy"


@needs_cpu_library
def test_explain_tells_the_estimates() -> None:
    x, weight = torch.randn(INPUT), torch.randn(WEIGHT)
    found = fs.explain(fs.subpixel_conv2d, x, weight, None, 1, padding=1, backend="cpu")
    for words in (found.input_gradient, found.weight_gradient):
        assert "(all told, ours " in words
        assert "cycles; PyTorch's convolution backward " in words
    strided = fs.explain(fs.subpixel_conv2d, x, weight, None, 1, stride=2, padding=1, backend="cpu")
    assert "all told" not in strided.input_gradient + strided.weight_gradient
