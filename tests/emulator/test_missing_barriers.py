# SPDX-License-Identifier: BSD-3-Clause
"""CUDA kernels that lack a barrier, wait or fence: the emulator catches all of them."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import cases
import emulated
import pytest
import torch
from cases import SAME3, Case, variant
from emulated import HOPPER, OLD, TARGETS, WIDE, Target, error
from gradients import exact as exact_gradients
from gradients import integer_gradient, quarters

from fused_subpixel import reference

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "csrc" / "cuda"
FAMILIES = {  # where barriers and waits stand, and what runs through them
    "sm90_conv.cuh": lambda seed, _: run_hopper(seed),
    "sm80_conv.cuh": lambda seed, target: run_forward(seed, target),
    "store_elements.cuh": lambda seed, target: run_forward(seed, target),
    "store_vectors.cuh": lambda seed, target: run_forward(seed, target),
    "sm80_weight_grad.cuh": lambda seed, target: run_weight_grad(seed, target),
    "pixel_shuffle.cuh": lambda *_: run_shuffle(),
    "unshuffle_reduce.cuh": lambda seed, _: run_unshuffle_reduce(seed),
    "generic.cuh": lambda seed, target: run_weight_grad(seed, OLD._replace(multiprocessors=1)),
}
LACKING = Case("several chunks, steps and tiles", (1, 128, 9, 33), (96, 128, 3, 3), padding=SAME3)
LACKING_LITTLE = Case("several tiles", (2, 40, 9, 33), (16, 40, 3, 3), padding=SAME3)
LACKING_POINTS = Case("one step for each of many chunks", (1, 300, 5, 33), (48, 300, 1, 1))
LACKING_CURVE = variant(LACKING_LITTLE, activation="sigmoid")
LACKING_ACTIVATED = variant(LACKING_LITTLE, activation="tanh")
LACKING_SHUFFLED = Case("several tiles for a block", (2, 1, 24, 25), (12, 1, 1, 1))
LACKING_GENERIC = Case("more results than blocks", (1, 2, 9, 33), (36, 2, 1, 1))


def run_forward(seed: int, target: Target) -> bool:
    """Whether output and input gradient are right; an error of the emulator is none of its business."""
    for case in (LACKING, LACKING_LITTLE, LACKING_POINTS):
        tensors = cases.integers(case).to(torch.float16, torch.channels_last)
        if not emulated.forward(case, tensors, True, target, seed=seed).equal(cases.exact(case).half()):
            return False
    grad, x, output = gradients_tensors(LACKING_ACTIVATED)
    found = emulated.input_grad(LACKING_ACTIVATED, grad, x.weight, True, target, output=output, seed=seed)
    if not found.equal(exact_gradients(LACKING_ACTIVATED)[0].half()):
        return False
    found = emulated.forward(LACKING_CURVE, curve_tensors(), True, target, seed=seed)
    return error(found, cases.plain(LACKING_CURVE, curve_tensors().double())) < 0.01


def curve_tensors() -> cases.Tensors:
    return cases.randoms(LACKING_CURVE, torch.float16).to(torch.float16, torch.channels_last)


def run_hopper(seed: int) -> bool:
    for case in (WIDE[1], WIDE[2], WIDE[6]):  # three stages and four, one tap and several
        tensors = cases.integers(case).to(torch.float16, torch.channels_last)
        if not emulated.forward(case, tensors, True, HOPPER, seed=seed).equal(cases.exact(case).half()):
            return False
    return True


def run_shuffle() -> bool:
    x = torch.arange(2 * 54 * 5 * 7).view(2, 54, 5, 7)
    high = emulated.shuffle(x, (3, 2), 0, False, guard_start=False)
    return high.equal(reference.shuffle(x, 3, 2, 0)) and emulated.shuffle(high, (3, 2), 0, True, True).equal(
        x
    )


def run_unshuffle_reduce(seed: int) -> bool:
    grad = integer_gradient(LACKING_SHUFFLED).half()
    low = reference.uncrop_and_unshuffle(grad, LACKING_SHUFFLED.geometry)
    bias = low.double().sum((0, 2, 3)).half()
    for layout in (torch.contiguous_format, torch.channels_last):
        found, sums = emulated.unshuffle_reduce(
            LACKING_SHUFFLED, grad.contiguous(memory_format=layout), HOPPER, seed=seed
        )
        if not (found[:, :12].equal(low) and sums.equal(bias)):
            return False
    return True


def gradients_tensors(
    case: Case, of_type: torch.dtype = torch.float16
) -> tuple[torch.Tensor, cases.Tensors, torch.Tensor | None]:
    """The gradient, the tensors of the forward pass, and its output where there was an activation."""
    last = {"memory_format": torch.channels_last}
    output = quarters(case).to(of_type).contiguous(**last) if case.activation else None
    tensors = cases.integers(case).to(of_type, torch.channels_last)
    return integer_gradient(case).to(of_type).contiguous(**last), tensors, output


def run_weight_grad(seed: int, target: Target) -> bool:
    base = LACKING_GENERIC if target.sm == OLD.sm else LACKING_LITTLE
    for case, of_type in (
        (base, torch.float16),
        (base, torch.float32),
        (variant(base, activation="tanh"), torch.float16),
    ):
        grad, tensors, output = gradients_tensors(case, of_type)
        found = emulated.weight_grad(case, grad, tensors.input, target, output=output, tf32=True, seed=seed)
        if not all(a.equal(b.to(of_type)) for a, b in zip(found, exact_gradients(case)[1:], strict=True)):
            return False
    return True


def sites() -> list[tuple[str, int]]:
    """File and line of every barrier, wait and fence."""
    return [
        (name, number)
        for name in FAMILIES
        for number, line in enumerate((CUDA / "kernels" / name).read_text().splitlines(), 1)
        if re.search(
            r"\b(sync_threads|cp_async_wait|mbarrier_wait|fence_async_proxy|wgmma_(fence|wait\w*))[<(]", line
        )
    ]


@pytest.mark.full
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)
def test_nothing_lacks(family: str, target: Target) -> None:
    assert FAMILIES[family](0, target)


@pytest.mark.full
@pytest.mark.parametrize(("file", "line"), sites(), ids=str)
def test_a_missing_barrier_or_wait_is_caught(file: str, line: int) -> None:
    emulated.simt.skip(file, line)
    try:
        for target, seed in itertools.product(TARGETS.values(), range(4)):
            try:
                if not FAMILIES[file](seed, target):
                    return
            except RuntimeError:
                return
    finally:
        emulated.simt.skip("", 0)
    pytest.fail("nobody noticed")
