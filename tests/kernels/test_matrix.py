# SPDX-License-Identifier: BSD-3-Clause
"""Matrix tiles, of AMX and AVX512-BF16 and of their stand-ins: what the tests of all kernels leave open."""

from __future__ import annotations

import cases
import pytest
import torch
from cases import AMX, AMX_STAND_IN, AVX512_BF16, AVX512_BF16_STAND_IN, Case
from torch import Tensor

ISAS = cases.usable_matrix_isas()
pytestmark = pytest.mark.skipif(not ISAS, reason="no CPU library")

# Several chunks, K blocks, panels and blocks of channels; strips within rows and across; read in place.
LAYERS = (
    Case("flat", (1, 64, 9, 30), (96, 64, 3, 3), padding=cases.SAME3),
    Case("rows", (2, 80, 14, 31), (64, 80, 3, 3), stride=(2, 2), padding=cases.SAME3),
    Case("in_place", (2, 96, 11, 9), (200, 96, 1, 1)),
    Case("wide", (1, 600, 12, 17), (80, 600, 1, 1)),
    Case("joined", (2, 3, 37, 41), (64, 3, 3, 3), padding=cases.SAME3),
)
FLAT, JOINED = LAYERS[0], LAYERS[-1]  # the latter's gradients have too few channels for tiles


def subnormal(tensors: cases.Tensors) -> cases.Tensors:
    """Some of the input and of the weight so small that products vanish, or that they are subnormal."""
    input, weight = tensors.input.clone(), tensors.weight.clone()
    input.view(-1)[::3] *= 2.0**-120
    weight.view(-1)[::5] *= 2.0**-130
    return tensors._replace(input=input, weight=weight)


def assert_tiles_are_used(case: Case, layout: str) -> None:
    passes = (cases.FORWARD, cases.INPUT_GRAD, cases.WEIGHT_GRAD)
    if case is JOINED:
        passes = passes[: layout == "channels_last"]
    for which in passes:
        if which != cases.INPUT_GRAD or case.stride == (1, 1):
            assert cases.plan_in_words(case, torch.bfloat16, layout, which).startswith("matrix tiles, ")


def all_results(case: Case, tensors: cases.Tensors, layout: str) -> list[Tensor]:
    output = cases.run(case, tensors)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    grad = grad.contiguous(memory_format=cases.LAYOUTS[layout])
    results = [output]
    results += cases.operators.subpixel_conv2d_weight_grad(
        grad, tensors.input, *case.weight[2:], case.geometry
    )
    if case.stride == (1, 1):
        results.append(
            cases.operators.subpixel_conv2d_input_grad(
                grad, tensors.weight, *case.input[2:], case.geometry, layout == "channels_last"
            )
        )
    return results


@pytest.mark.parametrize("isa, stand_in", [(AMX, AMX_STAND_IN), (AVX512_BF16, AVX512_BF16_STAND_IN)])
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_the_stand_in_has_the_processors_bits(case: Case, layout: str, isa: int, stand_in: int) -> None:
    if isa not in ISAS:
        pytest.skip("this processor lacks the instructions")
    tensors = subnormal(cases.randoms(case, torch.bfloat16)).to(torch.bfloat16, cases.LAYOUTS[layout])
    results = []
    for one in (isa, stand_in):
        with cases.instruction_set(one):
            assert_tiles_are_used(case, layout)
            results.append(all_results(case, tensors, layout))
    for ours, software in list(zip(*results, strict=True))[: 1 if case is JOINED else 4]:
        # a store may round a subnormal value, or take it for zero
        tiny = torch.finfo(torch.float32).tiny
        assert torch.equal(
            torch.where(ours.abs() < tiny, 0, ours), torch.where(software.abs() < tiny, 0, software)
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_exact_on_integers(case: Case, layout: str, isa: int, poisoned_outputs: None) -> None:
    """Sums of more than 256 are rounded once."""
    tensors = cases.integers(case).to(torch.bfloat16, cases.LAYOUTS[layout])
    with cases.instruction_set(isa):
        assert_tiles_are_used(case, layout)
        output = cases.run(case, tensors)
    assert torch.equal(output, cases.exact(case).to(torch.bfloat16))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("changed", ["input", "weight"])
@pytest.mark.parametrize("case", [FLAT, JOINED], ids=str)
def test_what_is_not_finite_reaches_no_more_than_it_should(
    case: Case, changed: str, value: float, isa: int
) -> None:
    """Zeros of padding, between rows and beside channels, are multiplied by nothing that is not finite."""
    tensors = cases.integers(case).to(torch.bfloat16, torch.channels_last)
    spoiled = getattr(tensors, changed).clone()
    spoiled[0, 1, 0, 2] = value
    tensors = tensors._replace(**{changed: spoiled})
    with cases.instruction_set(isa):
        output, *gradients = all_results(case, tensors, "channels_last")
    exact = torch.from_numpy(cases.by_oracle(case, tensors))
    with cases.instruction_set(0):
        expected = [exact, *all_results(case, tensors, "channels_last")[1:]]
    for ours, theirs in zip([output, *gradients], expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())


@pytest.mark.parametrize("isa", ISAS)
def test_the_same_bits_in_every_call(isa: int) -> None:
    case = LAYERS[1]
    tensors = cases.randoms(case, torch.bfloat16).to(torch.bfloat16, torch.contiguous_format)
    with cases.instruction_set(isa):
        first = all_results(case, tensors, "contiguous")
        for _ in range(3):
            for again, once in zip(all_results(case, tensors, "contiguous"), first, strict=True):
                assert torch.equal(again, once)
