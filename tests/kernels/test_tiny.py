# SPDX-License-Identifier: BSD-3-Clause
"""Every small problem: kernels of 1 to 5, factors and strides of 1 to 4, images of 1 to 3 pixels a side.

There an output may have fewer pixels than a sub-pixel block, a phase no tap, a tensor strides that say
nothing. All problems of one side are made, and each meets several of the other side; channel counts, batch,
dtype, layout and instruction set rotate. Data are small integers, so results must be exact, and outputs
start as NaN.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LAYOUTS, Case, Tensors
from conftest import needs_cpu_library
from tiers import tiered
from torch import Tensor

import fused_subpixel as fs
from fused_subpixel.dispatch.resolve import transposed_side

pytestmark = pytest.mark.usefixtures("one_thread", "poisoned_outputs")

CHANNELS = ((3, 2), (1, 1), (5, 17), (9, 33))  # in and out: below, at and above a vector


class Side(NamedTuple):
    """One direction of a transposed convolution."""

    size: int
    kernel: int
    stride: int
    padding: int
    output_padding: int


class ConvSide(NamedTuple):
    """One direction of a sub-pixel convolution."""

    size: int
    kernel: int
    upscale: int
    stride: int
    dilation: int
    before: int  # padding
    after: int
    crop_before: int
    crop_after: int


def sides() -> Iterator[Side]:
    for size, kernel, stride in itertools.product(range(1, 4), range(1, 6), range(1, 5)):
        for padding, extra in itertools.product(range(kernel + 1), range(stride)):
            if (size - 1) * stride - 2 * padding + kernel + extra > 0:
                yield Side(size, kernel, stride, padding, extra)


def conv_sides() -> Iterator[ConvSide]:
    paddings, crops = ((0, 0), (1, 2), (3, 0)), ((0, 0), (1, 0), (2, 1))
    numbers = itertools.product(range(1, 4), range(1, 6), range(1, 5), range(1, 5), paddings, crops)
    for index, (size, kernel, upscale, stride, padding, crop) in enumerate(numbers):
        dilation = 1 + (index % 4 == 3)
        reach = size + sum(padding) - dilation * (kernel - 1) - 1
        if reach >= 0 and (reach // stride + 1) * upscale > sum(crop):
            yield ConvSide(size, kernel, upscale, stride, dilation, *padding, *crop)


def pairs(all_sides: list[Any], partners: int) -> Iterator[tuple[int, Any, Any]]:
    """(number, vertical, horizontal): every side in each direction, with ``partners`` others."""
    count = len(all_sides)
    for partner in range(partners):
        for i, side in enumerate(all_sides):
            yield partner * count + i, side, all_sides[(i * (2 * partner + 1) + 97 * partner + 1) % count]


def transposed_case(number: int, vertical: Side, horizontal: Side) -> tuple[Case, Tensors]:
    """The sub-pixel convolution that a transposed one is, and its tensors with the weight as it is given."""
    channels_in, channels = CHANNELS[number % len(CHANNELS)]
    size, kernel, stride, *_ = zip(vertical, horizontal, strict=True)
    generator = torch.Generator().manual_seed(number)
    x, weight, bias = (
        torch.randint(-3, 4, shape, generator=generator).double()
        for shape in ((1 + number % 2, channels_in, *size), (channels_in, channels, *kernel), (channels,))
    )
    # Not by resolve_conv_transpose2d, which never asks the operators for a stride past an image of one pixel.
    rows, columns = (transposed_side(*side, 1) for side in (vertical, horizontal))
    x = F.pad(x, (*columns.unused, *rows.unused))
    phases = stride[0] * stride[1]
    case = Case(
        f"{number}: {vertical} x {horizontal}", tuple(x.shape),
        (channels * phases, channels_in, rows.taps, columns.taps), stride,
        padding=(rows.before, columns.before, rows.after, columns.after),
        crop=(rows.crop_before, columns.crop_before, rows.crop_after, columns.crop_after),
        extension=(rows.kernel_pad, columns.kernel_pad),
    )  # fmt: skip
    return case, Tensors(x, weight.unsqueeze(0), bias)


def conv_case(number: int, vertical: ConvSide, horizontal: ConvSide) -> tuple[Case, Tensors]:
    channels_in, channels = CHANNELS[number % len(CHANNELS)]
    size, kernel, upscale, stride, dilation, before, after, *crop = zip(vertical, horizontal, strict=True)
    case = Case(
        f"{number}: {vertical} x {horizontal}", (1 + number % 2, channels_in, *size),
        (channels * upscale[0] * upscale[1], channels_in, *kernel), upscale, stride,
        padding=(*before, *after), dilation=dilation, crop=(*crop[0], *crop[1]),
        order=("crd", "dcr")[number // 2 % 2], activation=(None, "relu", "leaky_relu")[number % 3],
    )  # fmt: skip
    return case, cases.integers(case)


def with_rows(case: Case, tensors: Tensors) -> Tensors:
    """With the weight and bias of the sub-pixel convolution, zeros where its kernel is extended."""
    if tensors.weight.dim() == 4:
        return tensors
    weight = fs.conv_transpose_weight_to_subpixel(tensors.weight[0], case.upscale)
    return tensors._replace(
        weight=weight, bias=fs.conv_transpose_bias_to_subpixel(tensors.bias, case.upscale)
    )


class Run(NamedTuple):
    """One problem and how to run it."""

    case: Case
    tensors: Tensors  # as the forward operator takes them
    rows: Tensors  # as the gradients' take them
    number: int
    dtype: torch.dtype
    layout: str

    def typed(self, tensor: Tensor, other_layout: bool = False) -> Tensor:
        image = tensor.to(self.dtype)
        last = (self.layout == "channels_last") != other_layout
        return image.contiguous(memory_format=torch.channels_last) if last else image.contiguous()

    @property
    def operands(self) -> Tensors:
        x, weight, bias, *_ = self.tensors
        return Tensors(self.typed(x), weight.to(self.dtype), bias.to(self.dtype))

    @property
    def other(self) -> bool:
        """Whether the gradient comes in another layout than the input."""
        return self.number // 5 % 2 == 1


def runs(transposed: bool, partners: int) -> Iterator[Run]:
    every = list(sides() if transposed else conv_sides())
    make: Any = transposed_case if transposed else conv_case
    for number, vertical, horizontal in pairs(every, partners):
        case, tensors = make(number, vertical, horizontal)
        # 4 x 2 combinations, in another order for every channel count
        dtype = DTYPES[(number + number // 4) % 4]
        layout = tuple(LAYOUTS)[(number // 2 + number // 16) % 2]
        yield Run(case, tensors, with_rows(case, tensors), number, dtype, layout)


def truths(run: Run) -> tuple[Tensor, Tensor, list[Tensor]]:
    """(output, gradient of it, gradients of input, weight and bias), in float64."""
    leaves = [t.detach().requires_grad_() for t in run.rows[:3]]
    output = cases.plain(run.case, Tensors(*leaves))
    generator = torch.Generator().manual_seed(run.number)
    grad = torch.randint(-2, 3, output.shape, generator=generator).double()
    return output.detach(), grad, list(torch.autograd.grad(output, leaves, grad))


def check(run: Run, name: str, found: Tensor, expected: Tensor) -> None:
    assert found.equal(expected.to(run.dtype)), (name, run.case, run.dtype, run.layout)


def saved_of(run: Run, output: Tensor) -> Tensor | None:
    """The output in a layout of its own, where the gradients apply an activation's."""
    return run.typed(output, run.number // 3 % 2 == 1) if run.case.activation else None


@needs_cpu_library
@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "sub-pixel"])
def test_cpu(transposed: bool) -> None:
    operators, isas = cases.operators, cases.usable_isas()
    for run in runs(transposed, 4 if transposed else 1):
        case = run.case
        output, grad, gradients = truths(run)
        with cases.instruction_set(isas[run.number // 3 % len(isas)]):
            operands = run.operands
            if transposed:
                operands = operands._replace(weight=operands.weight[0])
            found = operators.subpixel_conv2d(*operands, case.geometry, *case.epilogue, transposed)
            check(run, "output", found, output)
            x, weight, grad = run.operands.input, run.rows.weight.to(run.dtype), run.typed(grad, run.other)
            saved = saved_of(run, output)
            rest = [] if saved is None else [saved, case.epilogue.activation, cases.SLOPE]
            if case.stride == (1, 1):
                found = operators.subpixel_conv2d_input_grad(
                    grad, weight, *case.input[2:], case.geometry, run.layout == "channels_last", *rest
                )
                check(run, "input gradient", found, gradients[0])
            found = operators.subpixel_conv2d_weight_grad(grad, x, *case.weight[2:], case.geometry, *rest)
            check(run, "weight gradient", found[0], gradients[1])
            check(run, "bias gradient", found[1], gradients[2])


@pytest.mark.parametrize("transposed", [True, False], ids=["transposed", "sub-pixel"])
@tiered("start", range(3), fast=[0])
def test_emulated_gpu(transposed: bool, start: int) -> None:
    """In memory between guards. Of the gradients, some: they take long here."""
    pytest.importorskip("fused_subpixel_simt", reason="build it: python setup.py build_host_tests")
    import emulated

    targets = (emulated.HOPPER, emulated.LARGE, emulated.SMALL, emulated.OLD)
    step = 1 if transposed else 17
    for run in itertools.islice(runs(transposed, 1), start * step, None, 3 * step):
        case, channels_last = run.case, run.layout == "channels_last"
        target = targets[run.number // 2 % len(targets)]
        options: dict[str, Any] = {
            "tf32": run.number % 5 > 0, "seed": run.number, "guard_start": run.number % 3 == 0,
        }  # fmt: skip
        output, grad, gradients = truths(run)
        found = emulated.forward(case, run.operands, channels_last, target, **options)
        check(run, "output", found, output)
        x, weight, grad = run.operands.input, run.rows.weight.to(run.dtype), run.typed(grad, run.other)
        options["output"] = saved_of(run, output)
        if case.stride == (1, 1) and run.number % 2 == 0:
            found = emulated.input_grad(case, grad, weight, channels_last, target, **options)
            check(run, "input gradient", found, gradients[0])
        if run.number % (31 if run.dtype == torch.float64 or target == emulated.OLD else 7) == 0:
            found = emulated.weight_grad(case, grad, x, target, **options)
            check(run, "weight gradient", found[0], gradients[1])
            check(run, "bias gradient", found[1], gradients[2])
