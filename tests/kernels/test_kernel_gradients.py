# SPDX-License-Identifier: BSD-3-Clause
"""The compiled CPU gradients, as raw operators, against float64 autograd of the reference."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from typing import Any

import cases
import numpy as np
import oracle
import pytest
import torch
from cases import CPU_BASES, GEOMETRIES, LARGE, LAYOUTS, NARROW, WIDE, Case, variant
from conftest import needs_cpu_library
from gradients import (
    ACTIVATED,
    RECOVERABLE,
    applied_once,
    before_activation,
    by_autograd,
    exact,
    input_grad,
    integer_gradient,
    quarters,
    saved,
    weight_grad,
)
from rotation import rotated, rotated_without_isa
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fused_subpixel as fs
from fused_subpixel.dispatch import choose
from fused_subpixel.dispatch.call import BackwardPlan
from fused_subpixel.ops import fallback
from fused_subpixel.ops.geometry import ACTIVATIONS

pytestmark = [needs_cpu_library, pytest.mark.usefixtures("one_thread", "poisoned_outputs")]

STRIDE_1 = tuple(case for case in GEOMETRIES if case.stride == (1, 1))
NAMES = ("input", "weight", "bias")
OURS, PYTORCHS = BackwardPlan(True, True), BackwardPlan(False, False)


# ---- activations -------------------------------------------------------------------------------------------


@rotated("base, activation", itertools.product(ACTIVATED, RECOVERABLE))
def test_activation_is_applied_on_load(
    base: Case, activation: str, isa: int, dtype: torch.dtype, layout: str
) -> None:
    """With the output in the gradient's layout, and in the other one."""
    case = variant(base, activation=activation)
    tensors, grad = cases.integers(case).to(dtype), integer_gradient(case).to(dtype)
    grad = grad.contiguous(memory_format=LAYOUTS[layout])
    expected = [gradient.to(dtype) for gradient in exact(case)]
    for memory_format in LAYOUTS.values():
        output = quarters(case).to(dtype).contiguous(memory_format=memory_format)
        found = weight_grad(case, grad, tensors.input, output)
        assert all(a.equal(b) for a, b in zip(found, expected[1:], strict=True))
        if case.stride == (1, 1):
            assert input_grad(case, grad, tensors.weight, output=output).equal(expected[0])


@pytest.mark.parametrize("base", CPU_BASES, ids=str)
def test_activation_from_any_output(base: Case) -> None:
    """The output as a view, the gradient as another; one block below the other."""
    tall = Case(f"tall {base.name}", (2, base.input[1], 40, 37), base.weight, padding=base.padding)
    for case in (variant(base, activation="tanh"), variant(tall, activation="relu")):
        tensors, grad = cases.integers(case).to(torch.bfloat16), integer_gradient(case).to(torch.bfloat16)
        linear = dataclasses.replace(case, activation=None)
        for view, output in cases.views(quarters(case).to(torch.bfloat16)).items():
            truth = before_activation(case.activation, grad.double(), output.double())
            expected = by_autograd(linear, truth, cases.integers(case))
            for one in (grad, grad.contiguous(memory_format=torch.channels_last)):
                found = (
                    input_grad(case, one, tensors.weight, output=output),
                    *weight_grad(case, one, tensors.input, output),
                )
                for gradient, true in zip(found, expected, strict=True):
                    assert gradient.equal(true.to(torch.bfloat16)), view


@rotated("base, activation", itertools.product(CPU_BASES, RECOVERABLE))
def test_activation_as_accurate_as_pytorch(
    base: Case, activation: str, isa: int, dtype: torch.dtype, layout: str
) -> None:
    """As a pass before the operators; bit for bit but for tanh, whose 1 - y * y is fused."""
    case = variant(base, activation=activation)
    tensors = cases.randoms(case, dtype)
    grad = torch.randn(case.output, dtype=torch.float64).to(dtype)
    output = cases.plain(case, tensors).to(dtype)
    truth = by_autograd(base, before_activation(activation, grad.double(), output.double()), tensors)
    tensors = tensors.to(dtype)
    grad, output = (t.contiguous(memory_format=LAYOUTS[layout]) for t in (grad, output))
    applied = applied_once(grad, output, case)
    for found, plain, true in zip(
        (
            input_grad(case, grad, tensors.weight, output=output),
            *weight_grad(case, grad, tensors.input, output),
        ),
        (input_grad(case, applied, tensors.weight), *weight_grad(case, applied, tensors.input)),
        truth,
        strict=True,
    ):
        rounding = torch.finfo(dtype).eps * float(true.abs().max())
        assert error(found, true.numpy()) <= 2 * error(plain, true.numpy()) + rounding
        assert activation == "tanh" or found.equal(plain)


def test_activation_and_special_values(dtype: torch.dtype) -> None:
    """Where relu took an output away, nothing of the gradient is left, not even of an infinite one."""
    case = variant(NARROW, activation="relu")
    tensors, grad, output = cases.integers(case).to(dtype), integer_gradient(case).to(dtype), quarters(case)
    output[0, 1, 2, 3], output[1, 0, 0, 0] = 0, math.nan
    grad[0, 1, 2, 3] = math.inf
    applied = torch.where(output <= 0, 0.0, grad.double())
    found = input_grad(case, grad, tensors.weight, output=output.to(dtype))
    assert found.isfinite().all()
    assert found.equal(by_autograd(NARROW, applied, cases.integers(case))[0].to(dtype))


@pytest.mark.parametrize("activation", RECOVERABLE)
def test_activation_without_a_library(activation: str) -> None:
    """The kernels of last resort give the same."""
    case = variant(WIDE, activation=activation)
    tensors, grad, output = cases.integers(case), integer_gradient(case), quarters(case)
    rest = saved(case, output)
    found = (
        fallback._plain_input_grad(grad, tensors.weight, *case.input[2:], case.geometry, True, *rest),
        *fallback._plain_weight_grad(grad, tensors.input, *case.weight[2:], case.geometry, *rest),
    )
    assert all(a.equal(b) for a, b in zip(found, exact(case), strict=True))
    with pytest.raises(ValueError, match="differs in shape"):
        fallback._plain_input_grad(grad[:1], tensors.weight, *case.input[2:], case.geometry, True, *rest)
    with pytest.raises(ValueError, match="goes with an activation"):
        fallback._plain_weight_grad(grad, tensors.input, *case.weight[2:], case.geometry, output)


@pytest.mark.parametrize(
    ("activation", "slope", "cut", "message"),
    [
        ("silu", 0.1, None, "cannot be read from its output"),
        ("prelu", 0.1, None, "cannot be read from its output"),
        ("leaky_relu", -0.1, None, "negative_slope must be finite and at least 0, got -0.1"),
        ("leaky_relu", math.inf, None, "negative_slope must be finite and at least 0, got inf"),
        (None, 0.0, None, "output goes with activation"),
        ("relu", 0.0, (..., slice(1)), r"output \[2, 3, 8, 1\] differs in shape"),
    ],
)
def test_activations_that_are_refused(activation: str | None, slope: float, cut: Any, message: str) -> None:
    case = NARROW
    tensors, grad = cases.integers(case), integer_gradient(case)
    output = grad if cut is None else grad[cut]
    rest = (output, ACTIVATIONS[activation], slope)
    for call in (
        lambda: cases.operators.subpixel_conv2d_input_grad(
            grad, tensors.weight, *case.input[2:], case.geometry, False, *rest
        ),
        lambda: cases.operators.subpixel_conv2d_weight_grad(
            grad, tensors.input, *case.weight[2:], case.geometry, *rest
        ),
    ):
        with pytest.raises(RuntimeError, match=message):
            call()


@pytest.mark.parametrize("channels_last", [False, True])
def test_opcheck_with_an_output(channels_last: bool) -> None:
    case = variant(NARROW, activation="sigmoid", crop=(1, 0, 2, 1))
    tensors, grad = cases.integers(case).to(torch.float32), integer_gradient(case).float()
    output = quarters(case).float().contiguous(memory_format=torch.channels_last)
    geometry, rest = tuple(case.geometry), saved(case, output)
    torch.library.opcheck(
        cases.operators.subpixel_conv2d_input_grad,
        (grad, tensors.weight, *case.input[2:], geometry, channels_last, *rest),
    )
    torch.library.opcheck(
        cases.operators.subpixel_conv2d_weight_grad, (grad, tensors.input, *case.weight[2:], geometry, *rest)
    )


class Calls(TorchDispatchMode):
    """Names of the operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket._qualified_op_name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("plan", "needed", "passes"),
    [(OURS, "input weight bias", 0), (OURS, "weight bias", 0), (OURS, "input", 0), (OURS, "bias", 1),
     (PYTORCHS, "input weight bias", 1), (PYTORCHS, "input", 1)],
)  # fmt: skip
def test_pytorch_applies_an_activation_only_for_itself(
    plan: BackwardPlan, needed: str, passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our kernels apply it as they load the gradient; a bias alone is a sum, by PyTorch."""
    choose.prepare_cached.cache_clear()
    monkeypatch.setattr(choose, "plan_backward", lambda *_: plan)
    case = Case("relu", (2, 8, 33, 34), (12, 8, 3, 3), padding=cases.SAME3)
    tensors = cases.integers(case).to(torch.float32)
    leaves = [t.requires_grad_(name in needed.split()) for t, name in zip(tensors[:3], NAMES, strict=True)]
    output = fs.subpixel_conv2d(*leaves, 2, padding=1, activation="relu", backend="cpu")
    with Calls() as calls:
        found = torch.autograd.grad(output, [t for t in leaves if t.requires_grad], torch.ones_like(output))
    assert calls.names.count("aten::threshold_backward") == passes, calls.names
    plain = cases.plain(variant(case, activation="relu"), cases.Tensors(*leaves))
    expected = torch.autograd.grad(plain, [t for t in leaves if t.requires_grad], torch.ones_like(output))
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))
    text = str(fs.explain(fs.subpixel_conv2d, *leaves, 2, padding=1, activation="relu", backend="cpu"))
    assert ("as they load that of the output" in text) == (plan == OURS)
    choose.prepare_cached.cache_clear()


# ---- right -------------------------------------------------------------------------------------------------


@rotated("case", STRIDE_1)
def test_input_gradient_is_exact_on_integers(case: Case, isa: int, dtype: torch.dtype, layout: str) -> None:
    grad = integer_gradient(case).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    weight = cases.integers(case).weight.to(dtype)
    for channels_last in (False, True):
        found = input_grad(case, grad, weight, channels_last)
        assert found.equal(exact(case)[0].to(dtype))
        assert found.is_contiguous(memory_format=LAYOUTS["channels_last" if channels_last else "contiguous"])


@rotated("case", GEOMETRIES)
def test_weight_gradient_is_exact_on_integers(case: Case, isa: int, dtype: torch.dtype, layout: str) -> None:
    """With the input in the gradient's layout, and in the other one."""
    grad = integer_gradient(case).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    for memory_format in LAYOUTS.values():
        x = cases.integers(case).input.to(dtype).contiguous(memory_format=memory_format)
        found = weight_grad(case, grad, x)
        for gradient, expected in zip(found, exact(case)[1:], strict=True):
            assert gradient.dtype == dtype
            assert gradient.is_contiguous()
            assert gradient.equal(expected.to(dtype))


def error(found: Tensor, truth: np.ndarray) -> float:
    return float(np.abs(found.double().numpy() - truth).max())


def random_gradient(case: Case) -> Tensor:
    return torch.randn(case.output, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@functools.cache
def precise(case: Case) -> tuple[np.ndarray, ...]:
    """The gradients of :func:`cases.randoms` in float64, computed with more digits."""
    given = random_gradient(case), *cases.randoms(case, torch.float64)[:2]
    grad, *tensors = (tensor.numpy().astype(np.longdouble) for tensor in given)
    options = case.options()
    names = ("stride", "padding", "dilation", "groups", "channel_order")
    return oracle.gradients(grad, *tensors, case.upscale, crop=case.crop, **{n: options[n] for n in names})


# What took long would show nothing that the others do not.
RANDOM_CASES = [case for case in GEOMETRIES if cases.multiply_adds(case) < 5e6]


@functools.lru_cache(maxsize=4)  # of the instruction sets of one case
def truths_and_pytorchs(
    case: Case, dtype: torch.dtype, layout: str
) -> tuple[tuple[np.ndarray, ...], tuple[Tensor, ...]]:
    """The gradients in float64 or longer, and PyTorch's in ``dtype``."""
    tensors, grad = cases.randoms(case, dtype), random_gradient(case).to(dtype)
    if dtype == torch.float64:  # whose own truth needs more digits
        truths = precise(case)
    else:
        truths = tuple(t.numpy() for t in by_autograd(case, grad.double(), tensors))
    grad = grad.contiguous(memory_format=LAYOUTS[layout])
    return truths, by_autograd(case, grad, tensors.to(dtype, LAYOUTS[layout]))


@rotated("case", [*RANDOM_CASES, LARGE], together=True)
def test_as_accurate_as_pytorch(case: Case, isa: int, dtype: torch.dtype, layout: str) -> None:
    """At most twice the error of PyTorch's autograd in the same dtype, against float64.

    Plus a rounding for every doubling of the number of products, of the size of the largest gradient: as many
    as the best order of summation can take, and PyTorch happens to do better than that on small problems.
    """
    truths, pytorchs = truths_and_pytorchs(case, dtype, layout)
    tensors = cases.randoms(case, dtype).to(dtype, LAYOUTS[layout])
    grad = random_gradient(case).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    found = dict(zip(NAMES[1:], weight_grad(case, grad, tensors.input), strict=True))
    if case.stride == (1, 1):
        found["input"] = input_grad(case, grad, tensors.weight)
    eps = torch.finfo(torch.promote_types(dtype, torch.float32)).eps
    pixels = case.input[0] * math.prod(case.low)
    products = {"input": math.prod(case.weight) // case.weight[1], "weight": pixels, "bias": pixels}
    for name, truth, plain in zip(NAMES, truths, pytorchs, strict=True):
        if name in found:
            rounding = eps * (2 + math.log2(products[name])) * float(np.abs(truth).max())
            assert error(found[name], truth) <= 2 * error(plain, truth) + rounding, name


# ---- every tile --------------------------------------------------------------------------------------------


GRID = tuple(
    Case(
        f"{rows} rows",
        (1, channels, 2, width),
        (rows, channels, k, k),
        (1, 1),
        padding=(k // 2, k // 2, (k - 1) // 2, (k - 1) // 2),
    )
    for rows in (*range(1, 21), 32, 48, 64, 100)
    for channels in (1, 2, 3, 5, 8, 12, 17, 32, 100)
    for width in (1, 3, 8, 20, 37)
    for k in (1, 2, 3)
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tile_of_the_input_gradient(isa: int, dtype: torch.dtype, layout: str) -> None:
    """One problem for each (kernel, tile rows, tile pixels) that the plan takes somewhere on a grid."""
    seen, heights = set(), set()
    for case in GRID:
        plan = cases.plan_of(case, dtype, layout, cases.INPUT_GRAD)
        if plan[:3] in seen:
            continue
        seen.add(plan[:3])
        heights.add(plan.tile_oc)
        tensors, grad = cases.integers(case), integer_gradient(case)
        expected = by_autograd(case, grad, tensors)[0]
        tensors = tensors.to(dtype, LAYOUTS[layout])
        grad = grad.to(dtype).contiguous(memory_format=LAYOUTS[layout])
        found = input_grad(case, grad, tensors.weight, layout == "channels_last")
        assert found.equal(expected.to(dtype)), case
    assert len(heights) >= 5, "few heights of tiles: widen the grid"


def even_parts(count: int, most: int) -> list[int]:
    """``count`` in as few parts of at most ``most`` as possible, of nearly the same size."""
    parts = -(-count // most)
    return [count * (part + 1) // parts - count * part // parts for part in range(parts)]


def register_tiles(
    case: Case, plan: cases.WeightGradPlan, lanes: int, registers: int
) -> set[tuple[int, int]]:
    """The (columns, vectors of lanes) of the microkernels that a weight gradient calls."""
    merged = not plan.winograd and case.weight[1] <= 4 * lanes
    sides = (plan.block_ic * (case.weight[3] if merged else 1), plan.block_oc)
    in_lanes, columns = sides if plan.input_in_lanes else sides[::-1]
    return {
        (count, vectors)
        for vectors in even_parts(-(-in_lanes // lanes), plan.tile_vectors)
        for count in even_parts(columns, min((registers - vectors - 1) // vectors, 14))
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tile_of_the_weight_gradient(isa: int, dtype: torch.dtype, layout: str) -> None:
    """One problem for each microkernel, with and without Winograd, with each of the factors in the lanes."""
    lanes, registers = ((4, 16), (8, 16), (16, 32))[isa]
    lanes //= dtype.itemsize // 4
    seen: set[tuple[int, ...]] = set()
    for case in GRID:
        plan = cases.weight_grad_plan_of(case, dtype, layout)
        tiles = {(*plan[:2], *tile, case.weight[2]) for tile in register_tiles(case, plan, lanes, registers)}
        if tiles <= seen:
            continue
        seen |= tiles
        tensors, grad = cases.integers(case), integer_gradient(case)
        expected = by_autograd(case, grad, tensors)[1:]
        tensors = tensors.to(dtype, LAYOUTS[layout])
        grad = grad.to(dtype).contiguous(memory_format=LAYOUTS[layout])
        found = weight_grad(case, grad, tensors.input)
        assert all(a.equal(b.to(dtype)) for a, b in zip(found, expected, strict=True)), case
    assert {in_lanes for _, in_lanes, *_ in seen} == {0, 1}
    of_winograd = {case.weight[2] for case in GRID if cases.weight_grad_plan_of(case, dtype, layout).winograd}
    assert of_winograd == ({2, 3} if dtype == torch.float32 else set())
    most = min((registers - 2), 14)
    assert {columns for *_, columns, _, _ in seen} >= set(range(1, min(most, (registers - 3) // 2) + 1))
    assert len({vectors for *_, vectors, _ in seen}) >= 2, "few widths of tiles: widen the grid"


# ---- any memory --------------------------------------------------------------------------------------------

VIEWS = tuple(cases.views(torch.zeros(1, 1, 1, 1)))
VIEWED = tuple(
    case
    for base in CPU_BASES
    for case in (base, variant(base, crop=(1, 2, 0, 1)), variant(base, order="dcr"))
)


@rotated_without_isa(
    "case, view", itertools.product(VIEWED, VIEWS), ["dtype"], [(torch.float32,), (torch.bfloat16,)]
)
def test_views(case: Case, view: str, dtype: torch.dtype) -> None:
    """Every tensor in turn as a view; "one value" is what `.sum().backward()` sends."""
    tensors = cases.integers(case).to(dtype)
    grad = integer_gradient(case).to(dtype)
    for name in ("grad", "input", "weight"):
        g = cases.views(grad)[view] if name == "grad" else grad
        x = cases.views(tensors.input)[view] if name == "input" else tensors.input
        w = cases.views(tensors.weight)[view] if name == "weight" else tensors.weight
        expected = by_autograd(case, g.double(), cases.Tensors(x.double(), w.double(), tensors.bias.double()))
        before = [t.clone() for t in (g, x, w)]
        for isa in cases.usable_isas():
            with cases.instruction_set(isa):
                found = (input_grad(case, g, w), *weight_grad(case, g, x))
            for gradient, truth in zip(found, expected, strict=True):
                assert gradient.equal(truth.to(dtype)), name
        assert all(t.equal(b) for t, b in zip((g, x, w), before, strict=True)), "an input was written to"


@pytest.mark.parametrize("dim", range(4))
def test_offsets_past_32_bits(isa: int, dim: int) -> None:
    """Images, channels, rows or columns that lie 2**31 elements apart, in memory that is hardly touched."""
    case = Case("far", (2, 3, 4, 37), (12, 3, 3, 3), padding=cases.SAME3)
    tensors, grad = cases.integers(case).to(torch.bfloat16), integer_gradient(case).to(torch.bfloat16)
    room = cases.untouched(2**31 + 2**26, torch.bfloat16)

    def far(tensor: Tensor) -> Tensor:
        strides = [1, 1 << 7, 1 << 14]
        strides.insert(dim, 2**31 // (tensor.shape[dim] - 1) + 1)
        return room.as_strided(tensor.shape, strides).copy_(tensor)

    expected = [t.to(torch.bfloat16) for t in exact(case)]
    assert input_grad(case, far(grad), tensors.weight).equal(expected[0])
    assert weight_grad(case, far(grad), tensors.input)[0].equal(expected[1])
    assert weight_grad(case, grad, far(tensors.input))[0].equal(expected[1])


# ---- edges -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", [c for c in GEOMETRIES if c.stride != (1, 1)], ids=str)
def test_input_gradient_refuses_strides(case: Case) -> None:
    with pytest.raises(RuntimeError, match="needs stride 1"):
        input_grad(case, integer_gradient(case), cases.integers(case).weight)


def test_a_gradient_of_another_size_is_refused() -> None:
    case = CPU_BASES[0]
    grad, tensors = integer_gradient(case)[..., 1:], cases.integers(case)
    for call in (
        lambda: input_grad(case, grad, tensors.weight),
        lambda: weight_grad(case, grad, tensors.input),
    ):
        with pytest.raises(RuntimeError, match=r"grad_output \[2, 3, 8, 73\] does not fit"):
            call()


def test_no_images(isa: int) -> None:
    case = Case("no images", (0, 3, 4, 5), (12, 3, 3, 3))
    grad, tensors = integer_gradient(case).float(), cases.integers(case).to(torch.float32)
    assert input_grad(case, grad, tensors.weight).shape == case.input
    for gradient in weight_grad(case, grad, tensors.input):
        assert gradient.abs().sum() == 0


def test_nothing_left_of_the_output(isa: int) -> None:
    """A gradient without pixels: all gradients are zero."""
    case = Case("all cropped", (2, 3, 4, 5), (12, 3, 3, 3), crop=(4, 1, 0, 0))
    grad, tensors = integer_gradient(case).float(), cases.integers(case).to(torch.float32)
    assert grad.numel() == 0
    for gradient in (input_grad(case, grad, tensors.weight), *weight_grad(case, grad, tensors.input)):
        assert gradient.numel()
        assert gradient.abs().sum() == 0


@rotated("base", [NARROW, WIDE])
def test_nan_in_the_gradient_stays_where_it_belongs(
    isa: int, dtype: torch.dtype, layout: str, base: Case
) -> None:
    """In the pixels its window covers; in the rows of the weight that made it."""
    tensors, grad = cases.integers(base), integer_gradient(base)
    tensors = tensors._replace(weight=tensors.weight.abs() + 1)
    grad[1, 0, 3, -2] = math.nan
    expected = by_autograd(base, grad, tensors)
    tensors, grad = tensors.to(dtype), grad.to(dtype).contiguous(memory_format=LAYOUTS[layout])
    found = input_grad(base, grad, tensors.weight)
    torch.testing.assert_close(found, expected[0].to(dtype), rtol=0, atol=0, equal_nan=True)
    found, bias = weight_grad(base, grad, tensors.input)
    torch.testing.assert_close(bias, expected[2].to(dtype), rtol=0, atol=0, equal_nan=True)
    clean = bias.isfinite()
    assert clean.sum() == len(bias) - 1
    assert found[clean].equal(expected[1][clean].to(dtype))


@pytest.mark.parametrize("special", [math.nan, math.inf])
@pytest.mark.parametrize("base", CPU_BASES, ids=str)
def test_nan_in_the_input_stays_in_its_weights(isa: int, layout: str, base: Case, special: float) -> None:
    """Only taps that read the pixel get it; with Winograd's kernel too, which adds taps of a tile."""
    tensors, grad = cases.integers(base), integer_gradient(base)
    tensors.input[0, 1, 1, -1] = special
    expected = by_autograd(base, grad, tensors)
    found, bias = weight_grad(
        base, grad.float(), tensors.input.float().contiguous(memory_format=LAYOUTS[layout])
    )
    assert found.isfinite().any()
    assert not found.isfinite().all()
    torch.testing.assert_close(found, expected[1].float(), rtol=0, atol=0, equal_nan=True)
    assert bias.equal(exact(base)[2].float())


# ---- always the same ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", CPU_BASES, ids=str)
def test_repetition_changes_nothing(dtype: torch.dtype, layout: str, base: Case) -> None:
    """For any number of threads; the input gradient does not depend on that number either."""
    case = Case(base.name, (3, 16, 33, 70), (base.weight[0], 16, 3, 3), padding=cases.SAME3)
    tensors = cases.randoms(case, dtype).to(dtype, LAYOUTS[layout])
    grad = torch.randn(case.output).to(dtype).contiguous(memory_format=LAYOUTS[layout])
    first, alone = input_grad(case, grad, tensors.weight), None
    for number in (1, 2, 3):
        with cases.threads(number):
            plan = cases.weight_grad_plan_of(case, dtype, layout)
            assert plan.parallel == (number > 1), "not a problem for several threads"
            assert input_grad(case, grad, tensors.weight).equal(first)
            once = weight_grad(case, grad, tensors.input)
            alone = once if number == 1 else alone
            for together, single in zip(once, alone, strict=True):  # the threads' shares are all there
                rounding = 8 * torch.finfo(dtype).eps * float(single.abs().max())
                assert error(together, single.double().numpy()) <= rounding
            for _ in range(5):
                again = weight_grad(case, grad, tensors.input)
                assert all(a.equal(b) for a, b in zip(again, once, strict=True))
