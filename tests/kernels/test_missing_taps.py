# SPDX-License-Identifier: BSD-3-Clause
"""Transposed convolutions whose kernel is no multiple of the stride, so that some phases have fewer taps.

Tiles of several phases multiply zeros in their place, and an infinity times zero is NaN: no output that does
not read a pixel may change with it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import cases
import pytest
import torch
import torch.nn.functional as F
from conftest import needs_cpu_library
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fused_subpixel as fs

pytestmark = needs_cpu_library


class Layer(NamedTuple):
    """Mixed and single phases, direct kernels, Winograd's, matrix tiles; see ``test_kernels``."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (0, 0)
    output_padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def options(self) -> tuple[Any, ...]:
        return self[2:]

    def tensors(self) -> list[Tensor]:
        """Small integers, so that every order of summation gives the same."""
        generator = torch.Generator().manual_seed(0)
        shapes = (self.input, self.weight, (self.weight[1] * self.groups,))
        return [torch.randint(-2, 3, shape, generator=generator).double() for shape in shapes]


LAYERS = {
    "3x3": Layer((2, 5, 7, 9), (5, 3, 3, 3), padding=(1, 1), output_padding=(1, 1)),
    "3x3 wide": Layer((1, 32, 5, 17), (32, 48, 3, 3), padding=(1, 1), output_padding=(1, 0)),
    "3x1": Layer((2, 17, 6, 9), (17, 8, 3, 1), padding=(1, 0)),
    "1x1, most phases empty": Layer((1, 16, 7, 20), (16, 12, 1, 1), output_padding=(1, 1)),
    "5x5": Layer((1, 24, 9, 17), (24, 16, 5, 5), padding=(2, 2), output_padding=(1, 1)),
    "5x5 narrow": Layer((1, 32, 5, 20), (32, 3, 5, 5), padding=(3, 3), output_padding=(0, 1)),
    "3x5 by 1x2": Layer((1, 10, 7, 20), (10, 16, 3, 5), (1, 2), (2, 4)),
    "5x3 by 3x4": Layer((2, 8, 4, 9), (8, 12, 5, 3), (3, 4), (0, 1), (2, 3)),
    "1x5 by 1x2": Layer((1, 48, 1, 130), (48, 24, 1, 5), (1, 2), (0, 2), (0, 1)),
    "5x2 by 1x3, narrow": Layer((1, 3, 2, 33), (3, 2, 5, 2), (1, 3), (2, 1), (0, 2)),
    "5x2 by 1x4": Layer((1, 48, 7, 20), (48, 12, 5, 2), (1, 4), (2, 1), (0, 3)),
    "rows, groups": Layer((1, 64, 1, 130), (64, 24, 5, 7), (1, 3), (2, 3), (0, 2), groups=2),
    "groups": Layer((1, 34, 8, 16), (34, 33, 3, 5), (1, 2), (1, 4), groups=2),
}


def check_a_pixel(layer: Layer, value: float, layout: str, dtype: torch.dtype) -> None:
    x, weight, bias = layer.tensors()
    for n, c, y, q in ((0, 0, 0, 0), (-1, -1, -1, -1), (0, 1, x.shape[2] // 2, x.shape[3] // 2)):
        x[n, c, y, q] = value
    expected = F.conv_transpose2d(x, weight, bias, *layer.options)
    operands = (t.to(dtype) for t in (x.contiguous(memory_format=cases.LAYOUTS[layout]), weight, bias))
    found = fs.conv_transpose2d(*operands, *layer.options, backend="cpu").double()
    finite = expected.isfinite()
    assert not finite.all()
    assert found[finite].equal(expected[finite])
    assert found[expected.isnan()].isnan().all()
    infinite = expected.isinf()  # which Winograd's algorithms make NaN
    assert (found[infinite].isnan() | (found[infinite] == expected[infinite])).all()


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_pixel_reaches_its_own_outputs_alone(
    layer: Layer, value: float, layout: str, dtype: torch.dtype, isa: int
) -> None:
    check_a_pixel(layer, value, layout, dtype)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("isa", cases.usable_matrix_isas())
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_the_same_in_matrix_tiles(layer: Layer, isa: int, layout: str) -> None:
    with cases.instruction_set(isa):
        check_a_pixel(layer, math.inf, layout, torch.bfloat16)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_a_weight_and_a_pixel_that_are_infinite(
    layer: Layer, layout: str, dtype: torch.dtype, isa: int
) -> None:
    x, weight, bias = layer.tensors()
    x[0, 0, x.shape[2] // 2, x.shape[3] // 2] = math.inf
    weight[1, 0, -1, 0] = math.inf
    x[:, 1] = x[:, 1].abs() + 1  # no 0 * inf
    expected = F.conv_transpose2d(x, weight, bias, *layer.options)
    operands = (t.to(dtype) for t in (x.contiguous(memory_format=cases.LAYOUTS[layout]), weight, bias))
    found = fs.conv_transpose2d(*operands, *layer.options, backend="cpu").double()
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_an_infinite_gradient_reaches_its_own_pixels_alone(layer: Layer, layout: str) -> None:
    x, weight, _ = (t.float() for t in layer.tensors())
    x = x.contiguous(memory_format=cases.LAYOUTS[layout]).requires_grad_()
    plain = F.conv_transpose2d(x, weight, None, *layer.options)
    grad = torch.ones_like(plain)
    grad[0, 0, grad.shape[2] // 2, grad.shape[3] // 2] = math.inf
    (expected,) = torch.autograd.grad(plain, x, grad)
    (found,) = torch.autograd.grad(fs.conv_transpose2d(x, weight, None, *layer.options), x, grad)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", cases.LAYOUTS)
def test_pytorch_computes_the_input_gradient_in_its_layout(layout: str) -> None:
    """The input, which the gradient of a frozen weight does not need, tells PyTorch the layout."""
    seen: list[Tensor] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten.convolution_backward.default:
                seen.append(args[1])
            return func(*args, **(kwargs or {}))

    layer = LAYERS["3x3 wide"]
    x, weight, bias = (t.float() for t in layer.tensors())
    x = x.contiguous(memory_format=cases.LAYOUTS[layout]).requires_grad_()
    output = fs.conv_transpose2d(x, weight, bias, *layer.options, backend="cpu")
    with Record():
        output.sum().backward()
    (stand_in,) = seen
    assert stand_in.shape == x.shape
    assert stand_in.is_contiguous(memory_format=torch.channels_last) == (layout == "channels_last")
