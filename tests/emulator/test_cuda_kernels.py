# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels, without a GPU: csrc/cuda's sources run by the emulator of tests/simt.

Every launch runs in an order of threads of its own (the seed), copies come as late as they may, and all
arrays lie between guards. What is checked is what test_kernels.py checks of the CPU kernels.
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib
from collections.abc import Iterable
from typing import Any

import cases
import emulated
import pytest
import rotation
import torch
from cases import BASES, DTYPES, EPILOGUES, GEOMETRIES, SAME3, Case, variant
from emulated import GENERIC, HOPPER, LARGE, MMA, OLD, SMALL, TARGETS, WGMMA, WIDE, Target, error
from gradients import (
    ACTIVATED,
    RECOVERABLE,
    applied_once,
    before_activation,
    by_autograd,
    integer_gradient,
    quarters,
)
from gradients import exact as exact_gradients
from rotation import rotated_without_isa
from tiers import tiered
from torch import Tensor

from fused_subpixel import reference
from fused_subpixel.dispatch import backends, choose
from fused_subpixel.dispatch.backward import plan_backward
from fused_subpixel.dispatch.call import BackwardPlan
from fused_subpixel.dispatch.resolve import resolve_subpixel_conv2d
from fused_subpixel.ops import library
from fused_subpixel.ops.geometry import CHANNEL_ORDERS, Problem
from fused_subpixel.weights import conv_transpose_weight_to_subpixel, subpixel_weight_to_conv_transpose

HALVES = (torch.float16, torch.bfloat16)
TENSOR_CORE_TYPES = (*HALVES, torch.float32)  # as tf32

# Channel counts, factors and kernels that models have, on images that do not fill the last tile.
HEADS = tuple(
    Case(f"{rows} rows, {k}x{k}", (1, channels, 5, 19), (rows, channels, k, k), (r, r), padding=(k // 2,) * 4)
    for rows, r, k, channels in (
        (9, 3, 3, 32), (12, 2, 1, 60), (16, 4, 2, 7), (27, 3, 5, 4), (36, 3, 3, 20), (48, 4, 3, 32),
        (64, 8, 1, 60), (64, 1, 2, 7), (128, 2, 5, 4), (144, 2, 3, 20), (256, 2, 3, 32), (576, 3, 1, 24),
    )
)  # fmt: skip
# Cropped as transposed convolutions are, with tiles of one phase each in channels_last.
LATE = (
    Case("4x4 stride 2", (2, 40, 8, 9), (4 * 64, 40, 2, 2), (2, 2), padding=(1, 1, 1, 1), crop=(1, 1, 1, 1)),
    Case("9x6, 3 x 2", (1, 24, 5, 7), (6 * 16, 24, 3, 3), (3, 2), padding=(2, 2, 2, 2), crop=(2, 1, 0, 1)),
    Case(
        "stride of its own",
        (1, 16, 9, 9),
        (4 * 32, 16, 3, 3),
        (2, 2),
        (2, 2),
        padding=SAME3,
        crop=(1, 0, 0, 1),
    ),
)
WIDE_LATE = Case(
    "128 channels, 4x4 stride 2", (1, 64, 8, 8), (512, 64, 2, 2), (2, 2), padding=(1,) * 4, crop=(1,) * 4
)
ALL = (*GEOMETRIES, *HEADS, *LATE)
LITTLE = 3_000_000  # multiply-adds: more takes long and shows no more


def seed_of(*parts: object) -> int:
    return zlib.crc32(repr(parts).encode())


def layouts(channels_last: bool) -> torch.memory_format:
    return torch.channels_last if channels_last else torch.contiguous_format


def small(case: Case, most: int = LITTLE) -> bool:
    return cases.multiply_adds(case) <= most


@pytest.fixture(params=(False, True), ids=("contiguous", "channels_last"))
def channels_last(request: pytest.FixtureRequest) -> bool:
    return request.param


DTYPES_AND_LAYOUTS = (["dtype", "channels_last"], list(itertools.product(DTYPES, (False, True))))
TENSOR_CORE_TYPES_AND_LAYOUTS = (
    ["of_type", "channels_last"], list(itertools.product(TENSOR_CORE_TYPES, (False, True)))
)  # fmt: skip
COMBINATIONS = list(itertools.product(DTYPES, (False, True), TARGETS))


@functools.cache
def signature(
    case: Case, which: int, dtype: torch.dtype, channels_last: bool, target: str
) -> tuple[Any, ...]:
    """What of a plan chooses the code that runs: kernel, tile, and how many bytes are loaded at a time."""
    plan = emulated.plan(case, dtype, channels_last, TARGETS[target], which=which, tf32=True)
    kernel, _, _, columns, _, staging, *_ = plan
    if kernel == GENERIC:
        return kernel, dtype, channels_last, case.groups > 1
    vector = math.gcd(16, (case.input[1] if channels_last else case.input[3]) * dtype.itemsize)
    return kernel, dtype, channels_last, target, columns, vector, staging


def long(case: Case, which: int, *combination: Any) -> bool:
    """Whether the emulator takes long for what others show too: gradients by the generic kernel."""
    most = {cases.FORWARD: LITTLE, cases.INPUT_GRAD: 300_000, cases.WEIGHT_GRAD: 30_000}[which]
    return signature(case, which, *combination)[0] == GENERIC and not small(case, most)


def by_plan(some: Iterable[Case], which: int) -> pytest.MarkDecorator:
    """Parametrize ``case``, ``dtype``, ``channels_last`` and ``target``.

    Each case meets one combination, which rotates; to these come the pairs of a case and a combination whose
    plan has a signature that no other has.
    """
    some = list(some)
    chosen: dict[tuple[Case, Any], int] = {}  # the turn; the first is the fast tier
    for turn in range(min(rotation.turns, len(COMBINATIONS))):
        for index, _, combination in rotation.rotation(len(some), [0], COMBINATIONS, 7 * turn):
            if not long(some[index], which, *combination):
                chosen.setdefault((some[index], combination), turn)
    seen = {signature(case, which, *choice) for (case, choice), turn in chosen.items() if turn == 0}
    for case, choice in itertools.product(some, COMBINATIONS):
        found = signature(case, which, *choice)
        if found not in seen and not long(case, which, *choice):
            seen.add(found)
            chosen[case, choice] = 0
    names = ("case", "dtype", "channels_last", "target")
    layout_names = ("contiguous", "channels_last")
    parameters = [
        pytest.param(
            case, dtype, last, TARGETS[target], marks=[pytest.mark.full] if turn else [],
            id="-".join((case.name, rotation.label(dtype), layout_names[last], target)),
        )
        for (case, (dtype, last, target)), turn in chosen.items()
    ]  # fmt: skip
    return pytest.mark.parametrize(names, parameters)


# ---- exact on integers ------------------------------------------------------------------------------------


@by_plan([case for case in (*ALL, *EPILOGUES) if small(case)], cases.FORWARD)
def test_forward(case: Case, dtype: torch.dtype, channels_last: bool, target: Target) -> None:
    seed = seed_of(case.name, dtype, channels_last, target)
    tensors = cases.integers(case).to(dtype, layouts(channels_last))
    found = emulated.forward(
        case, tensors, channels_last, target, tf32=True, seed=seed, guard_start=bool(seed % 2)
    )
    assert found.equal(cases.exact(case).to(dtype))


@rotated_without_isa("case", (*WIDE, WIDE_LATE), *TENSOR_CORE_TYPES_AND_LAYOUTS)
def test_hopper(case: Case, of_type: torch.dtype, channels_last: bool) -> None:
    """Forward with and without an epilogue, and the input gradient, in both layouts of what is written."""
    last = torch.channels_last
    assert emulated.plan(case, of_type, True, HOPPER, tf32=True)[0] == WGMMA
    epilogue = {"activation": "relu", "residual": "high", "clamp": (-9.0, 30.0)}
    for seed, changes in enumerate(({}, epilogue, {})):
        changed = variant(case, **changes)
        tensors, expected = cases.integers(changed).to(of_type, last), cases.exact(changed).to(of_type)
        found = emulated.forward(
            changed, tensors, channels_last, HOPPER, tf32=True, seed=seed, guard_start=bool(seed % 2)
        )
        assert found.equal(expected)
    grad = integer_gradient(case).to(of_type).contiguous(memory_format=last)
    weight = cases.integers(case).weight.to(of_type)
    found = emulated.input_grad(case, grad, weight, channels_last, HOPPER, tf32=True)
    assert found.equal(exact_gradients(case)[0].to(of_type))


def test_no_tile_for_what_is_cropped() -> None:
    """Phases that the crop takes off the first row or column begin a pixel later: 8 x 8 pixels, not 9 x 9."""
    case = WIDE_LATE
    kernel, _, pixels, columns, blocks, *_ = emulated.plan(case, torch.float16, True, HOPPER)
    assert (kernel, columns) == (WGMMA, 128)
    assert blocks * pixels * columns == 128 * case.weight[0]  # one tile of 8 x 16 for each block of rows


def test_hopper_takes_input_gradients() -> None:
    planned = {emulated.plan(case, torch.float16, True, HOPPER, which=1)[0] for case in WIDE}
    assert WGMMA in planned


TRANSPOSED = (
    variant(WIDE[0], weight=(512, 64, 2, 2), padding=(1, 1, 1, 1)),
    Case("transposed, 3 x 2", (2, 24, 9, 11), (6 * 4, 24, 2, 3), (3, 2)),
)


@rotated_without_isa(
    "case, target", itertools.product(TRANSPOSED, (HOPPER, LARGE, OLD)), ["dtype"], [(t,) for t in DTYPES]
)
def test_forward_reads_a_transposed_weight(case: Case, dtype: torch.dtype, target: Target) -> None:
    """As it is: without a copy that splits its phases or turns its taps, and with a bias per channel."""
    tensors = cases.integers(case).to(dtype, torch.channels_last)
    factor = case.geometry[:2]
    transposed = subpixel_weight_to_conv_transpose(tensors.weight, factor)

    phases = factor[0] * factor[1]
    bias = tensors.bias[::phases].contiguous()
    uniform = tensors._replace(bias=bias.repeat_interleave(phases))
    turned = tensors._replace(weight=transposed.unsqueeze(0), bias=bias)
    found = emulated.forward(case, turned, True, target, tf32=True)
    assert found.equal(emulated.forward(case, uniform, True, target, tf32=True))
    assert not found.equal(emulated.forward(case, tensors, True, target, tf32=True))


# Kernels that are no multiple of their stride. Blocks of one phase, Hopper's among them; blocks of several;
# and some that would have no tap at all.
EXTENDED = (
    Case("3x3 stride 2", (1, 64, 8, 9), (512, 64, 2, 2), padding=SAME3, crop=SAME3, extension=(1, 1)),
    Case("5x3 stride 3 x 2", (2, 72, 5, 7), (96, 72, 2, 2), (3, 2), padding=SAME3, extension=(1, 1)),
    Case(
        "4x5 stride 2 x 3", (1, 24, 9, 4), (6 * 32, 24, 2, 2), (2, 3), padding=(1, 0, 0, 1), extension=(0, 1)
    ),
    Case("17x5 stride 2", (1, 8, 5, 9), (4 * 16, 8, 9, 3), padding=(8, 2, 8, 2), extension=(1, 1)),
    Case(
        "3x3 stride 2, few rows", (1, 20, 6, 9), (12, 20, 2, 2), padding=SAME3, crop=SAME3, extension=(1, 1)
    ),
    Case(
        "5x2 stride 2 x 3", (1, 20, 4, 9), (6 * 16, 20, 3, 1), (2, 3), padding=(2, 0, 2, 0), extension=(1, 1)
    ),
)


@rotated_without_isa(
    "case, target", itertools.product(EXTENDED, (HOPPER, LARGE, SMALL, OLD)), *DTYPES_AND_LAYOUTS
)
def test_forward_of_an_extended_kernel(
    case: Case, dtype: torch.dtype, channels_last: bool, target: Target
) -> None:
    """Its weight is read as it lies, without the extension."""
    taps, factor, extension = case.weight[2:], case.upscale, case.extension
    height, width = (k * r - e for k, r, e in zip(taps, factor, extension, strict=True))
    seed = seed_of(case.name, dtype, channels_last, target)
    tensors = cases.integers(case).to(dtype, layouts(channels_last))
    weight = subpixel_weight_to_conv_transpose(tensors.weight, factor, kernel_size=(height, width))
    rows, there = (conv_transpose_weight_to_subpixel(w, factor) for w in (weight, torch.ones_like(weight)))
    phases = factor[0] * factor[1]
    bias = tensors.bias[::phases].contiguous()

    def forward(input: Tensor) -> Tensor:
        operands = tensors._replace(input=input, weight=weight.unsqueeze(0), bias=bias)
        return emulated.forward(
            case, operands, channels_last, target, tf32=True, seed=seed, guard_start=bool(seed % 2)
        )

    uniform = tensors._replace(weight=rows, bias=bias.repeat_interleave(phases)).double()
    assert forward(tensors.input).equal(cases.plain(case, uniform).to(dtype))

    columns = emulated.plan(case, dtype, channels_last, target, tf32=True)[3]
    mixed = columns > 0 and (not channels_last or case.channels % columns != 0 or 1 in taps)
    poisoned = tensors.input.clone()
    poisoned[0, 2, 2, 3] = math.inf
    reached = uniform._replace(input=poisoned.isinf().double(), weight=there.double(), bias=None)
    infinite = cases.plain(case, reached) > 0
    found = forward(poisoned)
    assert found[infinite].isfinite().sum() == 0
    assert mixed or found[~infinite].isfinite().all(), "what is not there was multiplied"


@rotated_without_isa(
    "case", [case for case in (*ALL, *EPILOGUES) if small(case, 300_000)], *DTYPES_AND_LAYOUTS
)
def test_generic_forward(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    """What runs on older GPUs, and float32 where tf32 is not allowed."""
    tensors = cases.integers(case).to(dtype, layouts(channels_last))
    found = emulated.forward(case, tensors, channels_last, OLD)
    assert found.equal(cases.exact(case).to(dtype))


@by_plan([case for case in ALL if small(case)], cases.INPUT_GRAD)
def test_input_gradient(case: Case, dtype: torch.dtype, channels_last: bool, target: Target) -> None:
    """The gradient in both layouts, read and written."""
    weight = cases.integers(case).weight.to(dtype)
    for grad_channels_last in (False, True):
        grad = integer_gradient(case).to(dtype).contiguous(memory_format=layouts(grad_channels_last))
        seed = seed_of(case.name, dtype, channels_last, grad_channels_last, target)
        found = emulated.input_grad(
            case, grad, weight, channels_last, target, tf32=True, seed=seed, guard_start=bool(seed % 2)
        )
        assert found.equal(exact_gradients(case)[0].to(dtype))


@by_plan([case for case in ALL if small(case)], cases.WEIGHT_GRAD)
def test_weight_gradient(case: Case, dtype: torch.dtype, channels_last: bool, target: Target) -> None:
    """With the input in the gradient's layout, and in the other one."""
    grad = integer_gradient(case).to(dtype).contiguous(memory_format=layouts(channels_last))
    for input_channels_last in (False, True):
        seed = seed_of(case.name, dtype, channels_last, input_channels_last, target)
        x = cases.integers(case).input.to(dtype).contiguous(memory_format=layouts(input_channels_last))
        found = emulated.weight_grad(case, grad, x, target, tf32=True, seed=seed, guard_start=bool(seed % 2))
        for gradient, expected in zip(found, exact_gradients(case)[1:], strict=True):
            assert gradient.equal(expected.to(dtype))


# Pieces of 16 bytes, of 4, of an element; several chunks, tiles and images.
LOADED = (
    Case("16 bytes", (1, 40, 9, 33), (32, 40, 3, 3), padding=SAME3),
    Case("4 bytes", (2, 20, 5, 19), (24, 20, 2, 3), (2, 2), padding=(1, 0, 1, 1)),
    Case("elements", (3, 5, 4, 7), (27, 5, 3, 3), (3, 3), padding=SAME3, order="dcr"),
    Case("many rows", (1, 130, 3, 9), (132, 130, 1, 1), crop=(1, 0, 0, 1)),
)


def check_activation(
    case: Case, dtype: torch.dtype, grad_last: bool, output_last: bool, target: Target, tf32: bool = True
) -> None:
    """Both gradients with the activation's applied, in one call or two; the output in a layout of its own."""
    seed = seed_of(case.name, dtype, grad_last, output_last, target)
    options = {"tf32": tf32, "seed": seed, "guard_start": bool(seed % 2)}
    tensors = cases.integers(case).to(dtype, layouts(output_last))
    grad = integer_gradient(case).to(dtype).contiguous(memory_format=layouts(grad_last))
    output = quarters(case).to(dtype).contiguous(memory_format=layouts(output_last))
    if output_last:
        found, kernels = emulated.gradients(case, grad, tensors, True, target, output=output, **options)
        assert kernels.lowered == (kernels.input > GENERIC or kernels.weight > GENERIC)
    else:
        found = (
            emulated.input_grad(case, grad, tensors.weight, False, target, output=output, **options),
            *emulated.weight_grad(case, grad, tensors.input, target, output=output, **options),
        )
    for gradient, expected in zip(found, exact_gradients(case), strict=True):
        assert gradient.equal(expected.to(dtype))


@rotated_without_isa(
    "base, activation",
    itertools.product([case for case in (*ACTIVATED, *LOADED) if small(case)], RECOVERABLE),
    *DTYPES_AND_LAYOUTS,
)
def test_gradient_of_an_activation(
    base: Case, activation: str, dtype: torch.dtype, channels_last: bool
) -> None:
    case = variant(base, activation=activation)
    tensor_cores = emulated.plan(case, dtype, channels_last, which=2, tf32=True)[0] == MMA
    if not tensor_cores and not small(case, 30_000):
        pytest.skip("long, and like the others")
    for output_last in (False, True):
        check_activation(case, dtype, channels_last, output_last, LARGE)
    check_activation(case, dtype, channels_last, channels_last, SMALL)


@rotated_without_isa(
    "case, activation",
    itertools.product([case for case in ACTIVATED if small(case, 30_000)], RECOVERABLE),
    *DTYPES_AND_LAYOUTS,
)
def test_generic_activation(case: Case, activation: str, dtype: torch.dtype, channels_last: bool) -> None:
    for output_last in (False, True):
        check_activation(variant(case, activation=activation), dtype, channels_last, output_last, OLD, False)


@rotated_without_isa("case", WIDE, ["of_type"], [(of_type,) for of_type in TENSOR_CORE_TYPES])
def test_hopper_activation(case: Case, of_type: torch.dtype) -> None:
    changed = variant(case, activation="tanh" if of_type == torch.float16 else "relu")
    weight = cases.integers(changed).weight.to(of_type)
    for output_last in (True, False):
        grad = integer_gradient(case).to(of_type).contiguous(memory_format=torch.channels_last)
        output = quarters(changed).to(of_type).contiguous(memory_format=layouts(output_last))
        for seed in range(2):
            found = emulated.input_grad(
                changed, grad, weight, True, HOPPER, output=output, tf32=True, seed=seed
            )
            assert found.equal(exact_gradients(changed)[0].to(of_type))
    planned = {
        emulated.plan(case, of_type, True, HOPPER, which=1, tf32=True, activated=True)[0] for case in WIDE
    }
    assert WGMMA in planned


@tiered("base", BASES, fast=BASES[:2])
def test_activation_from_any_output(base: Case) -> None:
    case = variant(base, activation="tanh")
    tensors = cases.integers(case).to(torch.float16)
    for number, (view, output) in enumerate(cases.views(quarters(case).half()).items()):
        last = number % 2 == 1
        grad = integer_gradient(case).half().contiguous(memory_format=layouts(last))
        applied = before_activation(case.activation, grad.double(), output.double())
        expected = by_autograd(base, applied, cases.integers(case))
        found = (
            emulated.input_grad(case, grad, tensors.weight, last, output=output),
            *emulated.weight_grad(case, grad, tensors.input, output=output),
        )
        for gradient, true in zip(found, expected, strict=True):
            assert gradient.equal(true.half()), view


@pytest.mark.parametrize("activation", RECOVERABLE)
@pytest.mark.parametrize(
    ("base", "dtype"),
    [
        *((base, dtype) for base in BASES[:2] for dtype in HALVES),
        *((cases.NARROW, dtype) for dtype in (torch.float32, torch.float64)),
        *(
            pytest.param(cases.WIDE, dtype, marks=pytest.mark.full)
            for dtype in (torch.float32, torch.float64)
        ),
    ],
    ids=str,
)
def test_activation_rounds_as_pytorchs_pass(base: Case, activation: str, dtype: torch.dtype) -> None:
    """Once, to the element type, from float32; bit for bit, but for tanh, where 1 - y * y is fused here."""
    case = variant(base, activation=activation)
    tensors = cases.randoms(case, dtype)
    grad = torch.randn(case.output, dtype=torch.float64).to(dtype)
    output = cases.plain(case, tensors).to(dtype)
    tensors = tensors.to(dtype)
    applied = applied_once(grad, output, case)
    for found, plain in zip(
        (
            emulated.input_grad(case, grad, tensors.weight, True, output=output),
            *emulated.weight_grad(case, grad, tensors.input, output=output),
        ),
        (
            emulated.input_grad(case, applied, tensors.weight, True),
            *emulated.weight_grad(case, applied, tensors.input),
        ),
        strict=True,
    ):
        if activation != "tanh":
            assert found.equal(plain)
        else:
            largest = float(plain.abs().max())
            assert error(found, plain.double()) <= 4 * torch.finfo(dtype).eps * largest


def test_activation_and_special_values(channels_last: bool) -> None:
    """relu lets nothing through where it took the output away, not even an infinite gradient."""
    case = variant(cases.NARROW, activation="relu")
    weight, output = cases.integers(case).weight.half(), quarters(case).half()
    grad = integer_gradient(case).half().contiguous(memory_format=layouts(channels_last))
    output[0, 1, 2, 3], grad[0, 1, 2, 3] = 0, math.inf
    applied = torch.where(output <= 0, 0.0, grad.double())
    expected = by_autograd(cases.NARROW, applied, cases.integers(case))[0].half()
    assert expected.isfinite().all()
    for target in (LARGE, OLD):
        assert emulated.input_grad(case, grad, weight, True, target, output=output).equal(expected)


@rotated_without_isa("view", cases.views(torch.zeros(1, 2, 3, 4)), ["base"], [(base,) for base in BASES])
def test_views(base: Case, view: str) -> None:
    """Inputs, residuals and gradients of any strides and alignment."""
    case = variant(base, residual="high", activation="relu")
    tensors = cases.integers(case).to(torch.float16)
    x, residual = cases.views(tensors.input)[view], cases.views(tensors.residual)[view]
    tensors = tensors._replace(input=x, residual=residual)
    expected = cases.plain(case, tensors.double()).half()
    for channels_last in (False, True):
        assert emulated.forward(case, tensors, channels_last).equal(expected)
    grad = cases.views(integer_gradient(base).half())[view]
    plain = x.double().contiguous().requires_grad_(), tensors.weight.double().requires_grad_()
    output = cases.plain(base, cases.Tensors(*plain, None))
    truth = torch.autograd.grad(output, plain, grad.double())
    assert emulated.input_grad(base, grad, tensors.weight, False).equal(truth[0].half())
    assert emulated.weight_grad(base, grad, x)[0].equal(truth[1].half())


def test_weights_of_any_strides() -> None:
    case = BASES[1]
    tensors = cases.integers(case).to(torch.bfloat16)
    for view, weight in cases.views(tensors.weight).items():
        expected = cases.plain(case, tensors._replace(weight=weight).double()).bfloat16()
        assert emulated.forward(case, tensors._replace(weight=weight), True).equal(expected), view


SHUFFLES = (
    ((2, 12, 3, 35), (2, 2)),
    ((1, 54, 5, 7), (3, 3)),
    ((3, 6, 4, 9), (3, 2)),
    ((2, 64, 2, 3), (8, 8)),
    ((1, 4, 6, 1), (1, 1)),
)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.int32, torch.float64], ids=str)
@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize(("shape", "factors"), SHUFFLES, ids=str)
def test_shuffle_alone(
    shape: tuple[int, ...], factors: tuple[int, int], order: str, dtype: torch.dtype
) -> None:
    x = torch.arange(math.prod(shape)).remainder(251).view(shape).to(dtype)
    number = CHANNEL_ORDERS[order]
    for name, view in cases.views(x.double()).items():
        low = view if dtype == torch.float64 else cases.views(x)[name] if dtype == torch.float16 else x
        high = emulated.shuffle(low, factors, number, False, guard_start=len(name) % 2 == 0)
        assert high.equal(reference.pixel_shuffle(low, factors, order)), name
        back = emulated.shuffle(high, factors, number, True, guard_start=len(name) % 2 == 1)
        assert back.equal(low), name
        assert high.stride() == reference.pixel_shuffle(low, factors, order).stride()


# ---- as accurate as PyTorch -------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [None, *cases.CURVED])
@pytest.mark.parametrize("base", BASES, ids=str)
def test_rounding(base: Case, activation: str | None, dtype: torch.dtype) -> None:
    """At most twice PyTorch's error; tf32 against its own rounding of the factors."""
    case = variant(base, activation=activation)
    tensors = cases.randoms(case, dtype)
    truth = torch.from_numpy(cases.by_oracle(case, tensors))
    for tf32 in (False, True) if dtype == torch.float32 else (False,):
        found = emulated.forward(case, tensors.to(dtype), False, tf32=tf32)
        plain = cases.plain(case, tensors.to(dtype))
        if tf32:  # 10 bits of each factor are kept
            plain = cases.plain(case, tensors.to(torch.float16).double())
        rounding = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
        slack = (rounding * cases.products(case) ** 0.5 + torch.finfo(dtype).eps) * float(truth.abs().max())
        assert error(found, truth) <= 2 * error(plain, truth) + slack


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_round_once(dtype: torch.dtype) -> None:
    case = cases.LARGE
    tensors = cases.randoms(case, dtype)
    grad = torch.randn(case.output, dtype=torch.float64).to(dtype)
    leaves = [t.clone().requires_grad_() for t in tensors[:3]]
    truth = torch.autograd.grad(cases.plain(case, cases.Tensors(*leaves)), leaves, grad.double())
    found = (
        emulated.input_grad(case, grad, tensors.weight.to(dtype), True),
        *emulated.weight_grad(case, grad, tensors.input.to(dtype)),
    )
    for gradient, expected in zip(found, truth, strict=True):
        assert error(gradient, expected) <= 1.1 * torch.finfo(dtype).eps * float(expected.abs().max())


def to_tf32(x: Tensor) -> Tensor:
    """To the nearest with 10 bits, ties away from zero."""
    return ((x.view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.mark.parametrize("base", BASES, ids=str)
def test_tf32_rounds_the_factors(base: Case, channels_last: bool) -> None:
    """Of all passes, and nothing else."""
    tensors = cases.randoms(base, torch.float32).to(torch.float32, layouts(channels_last))
    grad = torch.randn(base.output)
    results = []
    for x, weight, g in (
        (tensors.input, tensors.weight, grad),
        (to_tf32(tensors.input), to_tf32(tensors.weight), to_tf32(grad)),
    ):
        plain = tensors._replace(input=x, weight=weight)
        results.append(
            (
                emulated.forward(base, plain, channels_last, tf32=True),
                emulated.input_grad(base, g, weight, channels_last, tf32=True),
                *emulated.weight_grad(base, g, x, tf32=True),
            )
        )
    assert all(a.equal(b) for a, b in zip(*results, strict=True))
    assert not to_tf32(grad).equal(grad)
    exact = torch.einsum("nchw->c", to_tf32(grad).double())
    bias = results[0][-1].double().view(base.channels, -1).sum(1)
    torch.testing.assert_close(bias, exact, rtol=1e-5, atol=1e-4)


def test_the_order_of_threads_changes_nothing() -> None:
    for base in BASES:
        case = variant(base, activation="silu")
        tensors = cases.randoms(case, torch.float16).to(torch.float16)
        grad = torch.randn(case.output).half()
        first = None
        for seed in range(5):
            found = (
                emulated.forward(case, tensors, True, seed=seed),
                emulated.input_grad(case, grad, tensors.weight, True, seed=seed),
                *emulated.weight_grad(case, grad, tensors.input, seed=seed),
            )
            first = first or found
            assert all(a.equal(b) for a, b in zip(first, found, strict=True))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_special_values_stay_in_their_windows(value: float, channels_last: bool) -> None:
    case = variant(cases.NARROW, activation="relu")
    tensors = cases.integers(case).to(torch.float16, layouts(channels_last))
    tensors.input[1, 2, 3, 36] = value
    expected = cases.plain(case, tensors.double()).half()
    assert not expected.isfinite().all()
    for target in (LARGE, OLD):
        found = emulated.forward(case, tensors, channels_last, target)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


# ---- the plan ---------------------------------------------------------------------------------------------


def test_the_cases_take_every_tile() -> None:
    plans = [
        emulated.plan(case, dtype, last, which=which, tf32=True)
        for case in ALL for dtype in DTYPES for last in (False, True) for which in (0, 1, 2)
    ]  # fmt: skip
    assert {plan[0] for plan in plans} - {WGMMA} == {GENERIC, MMA}
    assert {plan[3] for plan in plans if plan[0] == MMA} == {16, 32, 48, 64, 128}


LARGE_GRADIENT = 8  # of Refusal
H100, A100 = Target(90, 132, 227 << 10), Target(80, 108, 163 << 10)


@pytest.mark.parametrize(
    ("rows", "columns"), [(9, 16), (12, 16), (16, 16), (27, 32), (36, 48), (48, 48), (64, 64), (256, 128)]
)
def test_channel_counts_of_heads_waste_little(rows: int, columns: int) -> None:
    case = Case("head", (1, 64, 360, 640), (rows, 64, 3, 3), (1, 1), padding=SAME3)
    kernel, refusal, pixels, found, blocks, *_ = emulated.plan(case, torch.float16, True, H100)
    assert (kernel, refusal, found) == (WGMMA if rows >= 128 else MMA, 0, columns)
    assert pixels >= 120
    assert blocks >= 132


def test_an_activation_leaves_gradients_the_same_kernel() -> None:
    """unshuffle_reduce applies it first."""
    case = Case("wide", (8, 128, 96, 96), (512, 128, 3, 3), padding=SAME3)
    for target, which in itertools.product((A100, H100), (1, 2)):
        plain, activated = (
            emulated.plan(case, torch.float16, True, target, which=which, activated=activated)
            for activated in (False, True)
        )
        assert plain[0] != GENERIC
        assert plain.lowered == 0
        assert activated == plain._replace(lowered=1)
    for which in (1, 2):
        assert emulated.plan(case, torch.float16, True, OLD, which=which, activated=True)[0] == GENERIC


def test_generic_kernels_take_what_is_not_counted() -> None:
    """unshuffle_reduce counts in 32 bits within a sub-pixel block."""
    case = Case("wide", (1, 16, 9, 9), (64, 16, 3, 3), padding=SAME3, activation="relu")
    near = torch.empty(case.output, dtype=torch.float16, device="meta")
    far = torch.empty_strided(near.shape, (1 << 36, 1 << 28, 18, 1), dtype=torch.float16, device="meta")
    refusals = set()
    for grad, output in ((near, near), (far, near), (near, far)):
        plan = emulated.simt.gradient_plan(emulated.gradient(case, grad, output), list(LARGE))
        refusals.add((grad is far or output is far, *plan))
    assert refusals == {(False, MMA, 0, 1), (True, GENERIC, LARGE_GRADIENT, 0)}


@pytest.mark.parametrize(
    "shape", [(1, 192, 32, 48), (4, 512, 14, 14), (256, 32, 7, 7), (1, 512, 8, 8)], ids=str
)
@pytest.mark.parametrize("target", [H100, A100], ids=str)
def test_small_images_fill_the_gpu(shape: tuple[int, int, int, int], target: Target) -> None:
    """On Hopper too, unless its wide tiles are done sooner on half of the multiprocessors."""
    case = Case("wide", shape, (4 * shape[1], shape[1], 1, 1))
    kernel, _, _, _, blocks, *_ = emulated.plan(case, torch.float16, True, target)
    assert kernel == MMA or target is H100
    fewest = 60 if kernel == WGMMA else 100
    assert blocks >= min(fewest, shape[0] * shape[2] * shape[3] // 128 * 4 * shape[1] // 16)


@pytest.mark.parametrize(
    ("changes", "dtype", "tf32", "refusal"),
    [
        ({}, torch.float64, True, 2),
        ({}, torch.float32, False, 3),
        ({"groups": 3, "weight": (12, 1, 3, 3)}, torch.float16, False, 4),
        ({"dilation": (1, 9000), "input": (1, 3, 9, 20000)}, torch.float16, False, 6),
    ],
)
def test_refusals(changes: dict[str, object], dtype: torch.dtype, tf32: bool, refusal: int) -> None:
    case = variant(cases.NARROW, **changes)
    assert emulated.plan(case, dtype, True, tf32=tf32)[:2] == (GENERIC, refusal)
    assert emulated.plan(cases.NARROW, torch.float16, True, OLD)[:2] == (GENERIC, 1)


def conv_problem(input: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype, tf32: bool) -> Problem:
    def info(shape: tuple[int, ...]) -> tuple[torch.Size, torch.dtype, torch.device]:
        return torch.Size(shape), dtype, torch.device("cuda", 0)

    options = (2, 1, "same", 1, 1, None, 0.01, None, "crd")
    problem = resolve_subpixel_conv2d(info(input), info(weight), None, None, None, *options)
    return problem._replace(geometry=problem.geometry._replace(tf32=int(tf32)))


@pytest.mark.parametrize(
    ("input", "weight", "dtype", "tf32", "reason"),
    [
        ((1, 64, 270, 480), (48, 64, 3, 3), torch.float16, False, None),
        ((1, 64, 8, 8), (48, 64, 3, 3), torch.float16, False, None),  # narrow
        ((1, 128, 128, 128), (256, 128, 1, 1), torch.float16, False, None),  # many pixels
        ((256, 32, 7, 7), (128, 32, 2, 2), torch.float32, True, None),  # a short sum
        (
            (1, 192, 32, 48),
            (768, 192, 3, 3),
            torch.float16,
            False,
            "1536 pixels before",
        ),
        (
            (4, 512, 14, 14),
            (1024, 512, 1, 1),
            torch.float32,
            True,
            "784 pixels before",
        ),
        ((1, 64, 270, 480), (48, 64, 3, 3), torch.float32, False, "exact float32"),
    ],
)
def test_what_auto_leaves_to_pytorch(
    input: tuple[int, ...], weight: tuple[int, ...], dtype: torch.dtype, tf32: bool, reason: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(backends, "has_tensor_cores", lambda device: True)
    monkeypatch.setattr(backends, "multiprocessors", lambda device: 132)
    problem = conv_problem(input, weight, dtype, tf32)
    found = choose.why_pytorch_is_faster(problem)
    assert found is None if reason is None else reason in str(found)
    # sizes must not tie a traced graph to them
    assert choose.why_pytorch_is_faster(problem, tracing=True) == choose.why_no_tensor_cores(
        problem.geometry, problem.dtype, problem.device
    )


def test_gradients_of_narrow_heads_are_ours() -> None:
    def plan(input: tuple[int, ...], weight: tuple[int, ...], **changes: int) -> BackwardPlan:
        geometry = conv_problem(input, weight, torch.float16, False).geometry._replace(**changes)
        return plan_backward("cuda", geometry, input, weight, torch.float16)

    assert plan((1, 60, 256, 256), (12, 60, 3, 3)) == (True, True)
    assert plan((1, 60, 256, 256), (12, 60, 3, 3), stride_h=2) == (False, True)
    assert plan((1, 64, 540, 960), (12, 64, 3, 3)) == (False, False)
    assert plan((1, 64, 192, 192), (256, 64, 3, 3)) == (False, False)


def test_tf32_follows_torchs_settings() -> None:
    conv = torch.backends.cudnn.conv
    before = conv.fp32_precision
    try:
        conv.fp32_precision = "ieee"
        assert not backends.allows_tf32()
        conv.fp32_precision = "tf32"
        assert backends.allows_tf32()
    finally:
        conv.fp32_precision = before


@pytest.mark.parametrize(
    ("capability", "message"),
    [
        ([13000, 13000], "the driver shows no GPU 0"),
        ([12080, 13000], "the driver is for CUDA 12.8, the library was built with 13.0"),
        ([13000, 13000, 70, 80, 98304, 209], "holds no kernels for compute capability 7.0"),
        ([13000, 13000, 90, 132, 232448, 0], None),
    ],
)
def test_a_gpu_that_cannot_is_refused_in_words(
    capability: list[int], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    registration = torch.library.Library("fused_subpixel", "IMPL")
    registration.impl("_cuda_capability", lambda device: capability, "CompositeExplicitAutograd")
    monkeypatch.setitem(library.libraries, "cuda", library.LoadedLibrary())
    backends._capability.cache_clear()
    torch.compiler.reset()
    try:
        reason = backends.refusal("cuda", torch.device("cuda", 0))
        answer = torch.compile(lambda x: (x, ask()), backend="eager", fullgraph=True)(torch.ones(1))[1]
    finally:
        backends._capability.cache_clear()
        registration._destroy()
    assert reason is None if message is None else message in str(reason)
    assert answer == (reason, True)


def ask() -> tuple[str | None, bool]:
    """What a call on a GPU asks for, traced by torch.compile too."""
    device = torch.device("cuda", 0)
    return backends.refusal("cuda", device), backends.allows_tf32()
