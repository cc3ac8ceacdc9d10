# SPDX-License-Identifier: BSD-3-Clause
"""float32 that need not be exact on CPUs: Winograd's F(4x4, 3x3), and the settings that allow it."""

from __future__ import annotations

from collections.abc import Iterator

import cases
import pytest
import torch
from cases import INEXACT, LAYOUTS, WINOGRAD4, Case, Tensors
from torch import Tensor

import fused_subpixel as fs
from fused_subpixel import reference
from fused_subpixel.ops import library

pytestmark = pytest.mark.skipif(not library.libraries["cpu"].loaded, reason="no CPU library")

# The error, in parts of the largest sum of absolute products of an image. 2^-18 was seen; tf32 has 2^-10.
BOUND = 2**-16


@pytest.fixture
def settings() -> Iterator[None]:
    """PyTorch's settings as they are at the start."""
    places = torch.backends.mkldnn.conv, torch.backends.mkldnn, torch.backends
    before = [place.fp32_precision for place in places]
    yield
    for place, precision in zip(places, before, strict=True):
        place.fp32_precision = precision


def absolute_products(case: Case, tensors: Tensors) -> Tensor:
    """The largest sum of absolute products that an output of an image has."""
    plain = cases.variant(case, activation=None, residual=None, clamp=None, inexact=False)
    positive = Tensors(tensors.input.abs(), tensors.weight.abs(), None)
    return reference.run(*positive, plain.geometry, plain.epilogue).amax((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("case", INEXACT, ids=str)
def test_forward(case: Case, isa: int, layout: str) -> None:
    assert cases.plan_of(case, torch.float32, layout).kernel == WINOGRAD4
    tensors = cases.randoms(case, torch.float32)
    found = cases.run(case, tensors.to(torch.float32, LAYOUTS[layout]))
    error = (found.double() - cases.plain(case, tensors)).abs()
    assert (error <= BOUND * absolute_products(case, tensors)).all()


@pytest.mark.parametrize("height", [1, 2, 3, 4, 5, 6, 7, 9])
def test_every_ragged_size(height: int, isa: int, layout: str) -> None:
    """Where the plan would rather take another kernel, too: around what is stored lies what was there."""
    for width in (*range(1, 9), 31, 32, 33, 63, 64, 65, 66, 67, 127, 129):
        case = Case(f"{height} x {width}", (1, 40, height, width), (32, 40, 3, 3), padding=SAME, inexact=True)
        tensors = cases.randoms(case, torch.float32)
        found = cases.run(case, tensors.to(torch.float32, LAYOUTS[layout]))
        error = (found.double() - cases.plain(case, tensors)).abs()
        assert (error <= BOUND * absolute_products(case, tensors)).all(), case


SAME = (1, 1, 1, 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_stay_as_they_are(dtype: torch.dtype, isa: int, layout: str) -> None:
    assert cases.plan_of(INEXACT[0], dtype, layout).kernel != WINOGRAD4


def test_input_gradient(isa: int, layout: str) -> None:
    case = INEXACT[0]
    tensors = cases.randoms(case, torch.float32)
    assert cases.plan_of(case, torch.float32, layout, cases.INPUT_GRAD).kernel == WINOGRAD4
    grad = torch.randn(case.output, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = cases.operators.subpixel_conv2d_input_grad(
        grad.float().contiguous(memory_format=LAYOUTS[layout]), tensors.weight.float(), *case.input[2:],
        case.geometry, layout == "channels_last",
    )  # fmt: skip
    input = tensors.input.double().requires_grad_()
    linear = tensors._replace(input=input, weight=tensors.weight.double(), bias=None)
    (expected,) = torch.autograd.grad(cases.plain(case, linear), input, grad.float().double())
    products = torch.nn.functional.conv_transpose2d(grad.abs(), linear.weight.abs(), padding=1).max()
    assert ((found.double() - expected).abs() <= BOUND * products).all()


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_weights_that_are_not_finite(value: float, isa: int, layout: str) -> None:
    """Another kernel computes them, so that nothing else becomes NaN."""
    case = INEXACT[0]
    tensors = cases.randoms(case, torch.float32)
    tensors.weight[3, 5, 1, 1] = value
    found = cases.run(case, tensors.to(torch.float32, LAYOUTS[layout]))
    expected = cases.plain(case, tensors.to(torch.float32))
    torch.testing.assert_close(found, expected, equal_nan=True, rtol=1e-4, atol=1e-4)


def test_a_nan_reaches_no_other_tile(isa: int, layout: str) -> None:
    case = INEXACT[0]
    tensors = cases.randoms(case, torch.float32)
    tensors.input[0, 7, 13, 22] = torch.nan
    found = cases.run(case, tensors.to(torch.float32, LAYOUTS[layout])).isnan()
    window, tile = torch.zeros_like(found), torch.zeros_like(found)
    window[..., 12:15, 21:24] = True
    tile[..., 12:16, 20:24] = True  # one of its tiles holds all of the window
    assert found[window].all()
    assert not found[~tile].any()


# ---- PyTorch's settings ------------------------------------------------------------------------------------


def described(dtype: torch.dtype = torch.float32) -> str:
    x, weight = torch.randn(1, 48, 64, 64, dtype=dtype), torch.randn(48, 48, 3, 3, dtype=dtype)
    return str(fs.explain(fs.subpixel_conv2d, x, weight, upscale_factor=1, padding=1))


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
@pytest.mark.parametrize("place", ["mkldnn.conv", "mkldnn", "all"])
def test_the_settings_that_allow_it(place: str, precision: str, settings: None) -> None:
    torch.backends.mkldnn.conv.fp32_precision = "none"
    mkldnn = torch.backends.mkldnn
    where = {"mkldnn.conv": mkldnn.conv, "mkldnn": mkldnn, "all": torch.backends}
    assert "Winograd F(4x4, 3x3)" not in described()
    where[place].fp32_precision = precision
    assert "forward: cpu library, Winograd F(4x4, 3x3), tile of" in described()
    assert "Winograd F(4x4, 3x3)" not in described(torch.bfloat16)
    where[place].fp32_precision = "ieee"
    assert "Winograd F(4x4, 3x3)" not in described()


def test_every_call_asks_anew(settings: None) -> None:
    x, weight = torch.randn(1, 48, 64, 64), torch.randn(48, 48, 3, 3)

    def run(precision: str) -> Tensor:
        torch.backends.mkldnn.conv.fp32_precision = precision
        return fs.subpixel_conv2d(x, weight, upscale_factor=1, padding=1)

    exact, inexact = run("ieee"), run("tf32")
    assert run("ieee").equal(exact)
    assert run("tf32").equal(inexact)
    assert not inexact.equal(exact)
    torch.testing.assert_close(inexact, exact, rtol=1e-3, atol=1e-3)


def test_graphs_keep_the_setting_of_their_making(settings: None) -> None:
    conv = torch.nn.Conv2d(48, 48, 3, padding=1).eval()
    x = torch.randn(1, 48, 64, 64)
    program = torch.export.export(torch.nn.Sequential(conv, torch.nn.ReLU()), (x,))
    torch.backends.mkldnn.conv.fp32_precision = "tf32"
    inexact = fs.fuse(program, plain=True).module()(x)
    torch.backends.mkldnn.conv.fp32_precision = "ieee"
    exact = fs.fuse(program, plain=True).module()(x)
    assert not inexact.equal(exact)
    torch.testing.assert_close(inexact, exact, rtol=1e-3, atol=1e-3)
