# SPDX-License-Identifier: BSD-3-Clause
"""Few pixels: weights that are read where they lie, rows of an output or of an input channel."""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import cases
import pytest
import torch
import torch.nn.functional as F
from conftest import needs_cpu_library
from torch import Tensor

import fused_subpixel as fs

pytestmark = needs_cpu_library

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


class Layer(NamedTuple):
    input: tuple[int, ...]
    weight: tuple[int, ...]
    options: dict[str, Any]
    transposed: bool = False

    def tensors(self, dtype: torch.dtype, layout: str = "contiguous") -> list[Tensor]:
        """Small integers, so that every order of summation gives the same."""
        generator = torch.Generator().manual_seed(0)
        channels = self.weight[1 if self.transposed else 0]
        return [
            torch.randint(-4, 5, shape, generator=generator)
            .to(dtype)
            .contiguous(memory_format=LAYOUTS[layout] if len(shape) == 4 else torch.contiguous_format)
            for shape in (self.input, self.weight, (channels,))
        ]

    def run(self, x: Tensor, weight: Tensor, bias: Tensor, **epilogue: Any) -> Tensor:
        if self.transposed:
            return fs.conv_transpose2d(x, weight, bias, **self.options, **epilogue, backend="cpu")
        return fs.subpixel_conv2d(x, weight, bias, 1, **self.options, **epilogue, backend="cpu")

    def plain(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (F.conv_transpose2d if self.transposed else F.conv2d)(x, weight, bias, **self.options)

    def words(self, *tensors: Tensor) -> str:
        function = fs.conv_transpose2d if self.transposed else fs.subpixel_conv2d
        upscale = () if self.transposed else (1,)
        told = fs.explain(function, *tensors, *upscale, **self.options, backend="cpu")
        return told.forward


def up(shape: tuple[int, ...], weight: tuple[int, ...], **options: Any) -> Layer:
    return Layer(shape, weight, options, transposed=True)


UPS = (
    up((1, 200, 1, 1), (200, 64, 4, 4), stride=2, padding=1),
    up((16, 100, 1, 1), (100, 70, 4, 4)),  # a row of one pixel, in several images
    up((1, 130, 2, 3), (130, 40, 4, 4), stride=2, padding=1),
    up((2, 130, 3, 1), (130, 33, 3, 3), stride=2, padding=1, output_padding=1),  # phases that lack taps
    up((1, 190, 2, 2), (190, 17, 5, 2), stride=(3, 2), padding=(2, 0), output_padding=(1, 0)),
    up((1, 150, 2, 4), (150, 48, 2, 2), stride=(2, 3)),  # phases without a tap
    up((1, 300, 3, 3), (300, 100, 1, 1)),
    up((3, 140, 1, 2), (140, 1, 7, 7), stride=1, padding=3),  # one channel
)
CONVS = (
    Layer((1, 300, 8, 8), (70, 300, 3, 3), {"padding": 1}),  # rows in several chunks
    Layer((1, 700, 1, 1), (130, 700, 1, 1), {}),
    Layer((2, 260, 2, 2), (96, 130, 3, 3), {"padding": 1, "groups": 2}),
)
BOTH = (*UPS, *CONVS)


@pytest.mark.parametrize("layer", BOTH, ids=str)
@pytest.mark.parametrize("weight_layout", LAYOUTS)
def test_exact(isa: int, layer: Layer, layout: str, weight_layout: str) -> None:
    for dtype, threads in itertools.product((torch.float32, torch.float64), (1, 2)):
        x, _, bias = layer.tensors(dtype, layout)
        weight = layer.tensors(dtype, weight_layout)[1]
        with cases.threads(threads), cases.outputs_start_as_nan():
            if dtype == torch.float32:
                assert "streamed weights" in layer.words(x, weight, bias)
            found = layer.run(x, weight, bias, activation="relu")
        assert found.double().equal(layer.plain(*(t.double() for t in (x, weight, bias))).relu())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layer", BOTH, ids=str)
def test_half_types(isa: int, layer: Layer, layout: str, dtype: torch.dtype) -> None:
    tensors = layer.tensors(dtype, layout)
    exact = layer.plain(*(t.double() for t in tensors)).to(dtype)
    assert layer.run(*tensors).equal(exact)


@pytest.mark.parametrize("layer", [UPS[2], UPS[3], CONVS[0]], ids=str)
def test_epilogue(isa: int, layer: Layer, layout: str) -> None:
    tensors = layer.tensors(torch.float32, layout)
    plain = layer.plain(*(t.double() for t in tensors))
    residual = torch.randint(-9, 10, plain.shape).float().contiguous(memory_format=LAYOUTS[layout])
    slopes = torch.randint(1, 4, (plain.shape[1],)).float()
    found = layer.run(
        *tensors, activation="prelu", activation_weight=slopes, residual=residual, clamp=(-50, 40)
    )
    expected = (F.prelu(plain, slopes.double()) + residual.double()).clamp(-50, 40)
    assert found.double().equal(expected)


@pytest.mark.parametrize("layer", [UPS[0], UPS[2], UPS[3], UPS[6], CONVS[1]], ids=str)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_what_is_not_finite_stays_where_it_belongs(layer: Layer, layout: str, value: float) -> None:
    """Nothing of it reaches an output that does not depend on it."""
    for place in (0, 1):
        tensors = layer.tensors(torch.float32, layout)
        tensors[place][0, -1, -1, -1] = value
        found, expected = layer.run(*tensors), layer.plain(*(t.double() for t in tensors))
        torch.testing.assert_close(found.double(), expected, equal_nan=True)


def test_a_weight_that_meets_only_padding_is_not_multiplied() -> None:
    layer = Layer((1, 200, 1, 1), (64, 200, 3, 3), {"padding": 1})
    x, weight, bias = layer.tensors(torch.float32)
    expected = layer.plain(x, weight, bias)
    weight[:, :, 0] = float("nan")
    for of_layout in LAYOUTS.values():
        found = layer.run(x, weight.contiguous(memory_format=of_layout), bias)
        assert found.equal(expected)


@pytest.mark.parametrize("layer", [UPS[2], CONVS[0]], ids=str)
def test_other_memory(layer: Layer) -> None:
    """Rows with gaps are packed; a view of an input is read as it lies."""
    x, weight, bias = layer.tensors(torch.float32)
    expected = layer.run(x, weight, bias)
    for name, view in cases.views(weight).items():
        if "one " not in name:
            assert layer.run(x, view, bias).equal(expected), name
    for name, view in cases.views(x).items():
        if "one " not in name:
            assert layer.run(view, weight, bias).equal(expected), name
    gaps = torch.stack([weight, weight.new_full(weight.shape, float("nan"))], 1).flatten(0, 1)[::2]
    spread = torch.stack([weight, weight.new_full(weight.shape, float("nan"))], -1)[..., 0]
    for view in (gaps, spread):
        assert layer.run(x, view, bias).equal(expected)


def test_gradients_of_few_pixels() -> None:
    """The input's gradient reads rows as well; a Conv2d's are those of an input channel there."""
    for layer in (Layer((1, 96, 3, 3), (160, 96, 3, 3), {"padding": 1}), UPS[2], UPS[6]):
        leaves = [t.requires_grad_() for t in layer.tensors(torch.float32)]
        truths = [t.requires_grad_() for t in layer.tensors(torch.float64)]
        found, expected = layer.run(*leaves), layer.plain(*truths)
        grad = torch.randint(-4, 5, expected.shape).double()
        found.backward(grad.float())
        expected.backward(grad)
        assert found.double().equal(expected)
        for leaf, truth in zip(leaves, truths, strict=True):
            assert leaf.grad is not None
            assert truth.grad is not None
            assert leaf.grad.double().equal(truth.grad)
