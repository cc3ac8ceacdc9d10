# SPDX-License-Identifier: BSD-3-Clause
"""The kernel that prepares the gradient for PyTorch's convolution backward, run by the emulator.

Activation's gradient, unshuffle, padded channels_last and the bias's gradient in one pass.
"""

from __future__ import annotations

import dataclasses
import itertools

import cases
import emulated
import pytest
import torch
from cases import DTYPES, Case, variant
from emulated import LARGE, SMALL, Target
from gradients import RECOVERABLE, applied_once, before_activation, integer_gradient, quarters
from rotation import rotated_without_isa
from torch import Tensor

from fused_subpixel import reference

ONE = Target(90, 1)  # one multiprocessor: its blocks go from tile to tile


def case_of(
    channels: int, upscale: tuple[int, int], low: tuple[int, int], batch: int = 1, order: str = "crd",
    crop: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Case:  # fmt: skip
    """A pointwise convolution, because only its output counts here."""
    name = f"{batch}x{channels}, {upscale[0]}x{upscale[1]} {order}, {low[0]}x{low[1]}, crop {crop}"
    lr_channels = channels * upscale[0] * upscale[1]
    return Case(name, (batch, 1, *low), (lr_channels, 1, 1, 1), upscale, crop=crop, order=order)


# Ragged channels, unequal factors, one pixel, several blocks of vectors and of pixels.
SHAPES = (
    (1, (1, 1), (1, 1), 1),
    (1, (2, 2), (1, 1), 3),
    (3, (2, 2), (5, 7), 2),
    (5, (3, 2), (4, 9), 1),
    (3, (1, 4), (7, 3), 2),
    (5, (4, 1), (1, 11), 2),
    (1, (4, 4), (6, 5), 2),
    (8, (2, 2), (6, 7), 2),
    (16, (2, 1), (5, 5), 3),
    (24, (1, 1), (9, 4), 2),
    (33, (2, 3), (3, 5), 1),
    (3, (2, 2), (24, 25), 2),
    (40, (2, 2), (9, 8), 2),
    (1040, (1, 2), (2, 3), 1),
)
CROPS = ((0, 0, 0, 0), (1, 0, 0, 1), (0, 1, 2, 0), (3, 2, 1, 3))


def crops_of(upscale: tuple[int, int], low: tuple[int, int]) -> list[tuple[int, int, int, int]]:
    """Those that leave something of the output, and one that takes all of it."""
    height, width = (r * n for r, n in zip(upscale, low, strict=True))
    fitting = [c for c in CROPS if c[0] + c[2] < height and c[1] + c[3] < width]
    return [*fitting, (height - 1, 0, 1, 0)]


ALL = [
    case_of(channels, upscale, low, batch, order, crop)
    for channels, upscale, low, batch in SHAPES
    for order in ("crd", "dcr")
    for crop in crops_of(upscale, low)
]


def expected(case: Case, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Of the gradient before the activation, in its dtype."""
    low = reference.uncrop_and_unshuffle(grad, case.geometry)
    return low, low.double().sum((0, 2, 3)).to(grad.dtype)


def check(case: Case, grad: Tensor, output: Tensor | None, found: tuple[Tensor, Tensor]) -> None:
    """Exactly: values, zeros after the channels, sums."""
    applied = grad if output is None else applied_once(grad, output, case)
    low, bias = expected(case, applied)
    channels = case.weight[0]
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert found[0][:, :channels].equal(low)
    assert found[0].shape[1] % (16 // grad.element_size()) == 0
    assert not found[0][:, channels:].any()
    assert found[1].equal(bias)


def tensors_of(case: Case, dtype: torch.dtype, channels_last: bool) -> tuple[Tensor, Tensor | None]:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    grad = integer_gradient(case).to(dtype).contiguous(memory_format=layout)
    output = quarters(case).to(dtype).contiguous(memory_format=layout) if case.activation else None
    return grad, output


@rotated_without_isa(
    "case",
    ALL,
    ["dtype", "channels_last", "target"],
    list(itertools.product(DTYPES, (False, True), (ONE, LARGE, SMALL))),
)
def test_exact_on_integers(case: Case, dtype: torch.dtype, channels_last: bool, target: Target) -> None:
    grad, _ = tensors_of(case, dtype, channels_last)
    for guard_start in (False, True):
        found = emulated.unshuffle_reduce(case, grad, target, seed=1, guard_start=guard_start)
        check(case, grad, None, found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("order", ("crd", "dcr"))
def test_all_dtypes_layouts_and_orders(order: str, channels_last: bool, dtype: torch.dtype) -> None:
    for channels, upscale, low, crop in (
        (3, (2, 2), (5, 6), (0, 0, 0, 0)),
        (8, (3, 2), (5, 6), (1, 1, 2, 0)),
        (1040, (1, 2), (2, 3), (0, 1, 0, 0)),  # several blocks of vectors
    ):
        case = case_of(channels, upscale, low, 2, order, crop)
        grad, _ = tensors_of(case, dtype, channels_last)
        check(case, grad, None, emulated.unshuffle_reduce(case, grad, ONE, seed=2))


ACTIVATED = [
    variant(case_of(*shape, 2, order, crop), activation=activation)
    for shape in ((3, (2, 2), (5, 7)), (8, (2, 1), (6, 5)), (5, (2, 3), (3, 4)))
    for order in ("crd", "dcr")
    for crop in CROPS[:2]
    for activation in RECOVERABLE
]


@rotated_without_isa(
    "case", ACTIVATED, ["dtype", "channels_last"], list(itertools.product(DTYPES, (False, True)))
)
def test_with_the_gradient_of_an_activation(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    grad, output = tensors_of(case, dtype, channels_last)
    found = emulated.unshuffle_reduce(case, grad, ONE, output=output, seed=3, guard_start=channels_last)
    check(case, grad, output, found)
    exact = before_activation(case.activation, integer_gradient(case), quarters(case))
    assert found[0][:, : case.weight[0]].equal(reference.uncrop_and_unshuffle(exact.to(dtype), case.geometry))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", RECOVERABLE)
def test_rounds_once_as_pytorch(activation: str, dtype: torch.dtype) -> None:
    """The activation's gradient is rounded to the dtype, and sums are of what was rounded."""
    case = variant(case_of(3, (2, 2), (9, 8), 2), activation=activation)
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(case.output, generator=generator, dtype=torch.float64).to(dtype)
    output = torch.rand(case.output, generator=generator, dtype=torch.float64).to(dtype)
    low, bias = emulated.unshuffle_reduce(case, grad, ONE, output=output)
    # on GPUs, products and sums may be fused, so that a value just between two others may go either way
    applied = reference.uncrop_and_unshuffle(applied_once(grad, output, case), case.geometry)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(low[:, :12], applied, rtol=step, atol=step)
    truth = low[:, :12].double().sum((0, 2, 3))
    least = 1e-13 if dtype == torch.float64 else 1e-5
    assert ((bias.double() - truth).abs() <= step * truth.abs() + least).all()


@pytest.mark.parametrize("order", ("crd", "dcr"))
@pytest.mark.parametrize("view", cases.views(torch.zeros(2, 8, 6, 8)))
def test_views(view: str, order: str) -> None:
    """Gradient and output in any strides, each in its own, with NaN around them."""
    case = variant(case_of(8, (2, 2), (3, 4), 2, order), activation="tanh")
    plain_grad, plain_output = (t.half() for t in (integer_gradient(case), quarters(case)))
    grad, output = cases.views(plain_grad)[view], cases.views(plain_output)[view]
    for first, second in ((grad, output), (plain_grad, output), (grad, plain_output)):
        found = emulated.unshuffle_reduce(case, first, ONE, output=second)
        check(case, first, second, found)
    linear = dataclasses.replace(case, activation=None)
    check(linear, grad, None, emulated.unshuffle_reduce(linear, grad, ONE))


def test_misaligned_channels_are_read_one_by_one() -> None:
    case = case_of(8, (2, 2), (3, 4), 2, "dcr")
    grad = integer_gradient(case).half().contiguous(memory_format=torch.channels_last)
    shifted = torch.cat([grad.new_zeros(1), grad.permute(0, 2, 3, 1).flatten()])[1:]
    shifted = shifted.view(2, 6, 8, 8).permute(0, 3, 1, 2)
    assert shifted.data_ptr() % 16 != 0
    check(case, shifted, None, emulated.unshuffle_reduce(case, shifted, ONE))


def test_an_empty_batch_gives_zero_sums() -> None:
    case = case_of(3, (2, 2), (4, 4), 0)
    low, bias = emulated.unshuffle_reduce(case, torch.zeros(case.output), ONE)
    assert low.shape == (0, 12, 4, 4)
    assert bias.equal(torch.zeros(12))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", (False, True))
@pytest.mark.parametrize("target", (ONE, SMALL), ids=("one", "small"))
def test_bias_sums(dtype: torch.dtype, channels_last: bool, target: Target) -> None:
    """Of many pixels, against float64; the same bits in every order of the threads."""
    case = case_of(3, (2, 2), (40, 41), 2)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(4)
    grad = torch.randn(case.output, generator=generator, dtype=torch.float64).to(dtype)
    grad = grad.contiguous(memory_format=layout)
    low, bias = emulated.unshuffle_reduce(case, grad, target, seed=5)
    truth = reference.uncrop_and_unshuffle(grad, case.geometry).double().sum((0, 2, 3))
    rounding = torch.finfo(dtype).eps / 2 * truth.abs()
    assert ((bias.double() - truth).abs() <= rounding + (1e-12 if dtype == torch.float64 else 3e-5)).all()
    for seed in (6, 7):
        again = emulated.unshuffle_reduce(case, grad, target, seed=seed, guard_start=True)
        assert again[0].equal(low)
        assert again[1].equal(bias)


def test_sums_of_halves_do_not_overflow_or_stall() -> None:
    """Their sums are in float: 4096 ones would stay 2048 in float16."""
    case = case_of(1, (1, 1), (64, 64), 2)
    _, bias = emulated.unshuffle_reduce(case, torch.ones(case.output, dtype=torch.float16), ONE)
    assert bias.item() == 8192
