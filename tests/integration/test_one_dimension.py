# SPDX-License-Identifier: BSD-3-Clause
"""subpixel_conv1d, conv_transpose1d, the shuffles and modules of one dimension against PyTorch's."""

from __future__ import annotations

import copy
import functools
import io
import pickle
import random
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES
from torch import Tensor, nn

import fused_subpixel as fs


def shuffled(low: Tensor, r: int, order: str = "crd") -> Tensor:
    """[N, C*r, Q] -> [N, C, Q*r], by the definition of both orders."""
    n, rows, q = low.shape
    blocks = low.view(n, r, rows // r, q).transpose(1, 2) if order == "dcr" else low.view(n, rows // r, r, q)
    return blocks.transpose(2, 3).reshape(n, rows // r, q * r)


def plain_subpixel(x: Tensor, weight: Tensor, bias: Tensor | None, r: int, **options: Any) -> Tensor:
    """subpixel_conv1d in PyTorch's operations, without epilogue."""
    order = options.pop("channel_order", "crd")
    padding = options.pop("padding", 0)
    if isinstance(padding, tuple):
        x, padding = F.pad(x, padding), 0
    return shuffled(F.conv1d(x, weight, bias, padding=padding, **options), r, order)


def integers(*shape: int) -> Tensor:
    return torch.randint(-3, 4, shape).double()


def random_transposed(draw: random.Random) -> tuple[list[Tensor], tuple[int, int, int, int, int]]:
    """Input, weight and bias of small integers, and (stride, padding, output_padding, groups, dilation)."""
    while True:
        kernel, stride, groups = draw.randint(1, 11), draw.randint(1, 8), draw.choice((1, 1, 2, 3))
        dilation = draw.choice((1, 1, 1, 2, 3))
        length, padding = draw.randint(1, 30), draw.randint(0, kernel)
        extra = draw.randint(0, max(stride, dilation) - 1)
        ci, c = groups * draw.choice((1, 2, 19)), groups * draw.choice((1, 3, 16))
        if (length - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 > 0:
            n = draw.choice((1, 2))
            tensors = [integers(n, ci, length), integers(ci, c // groups, kernel), integers(c)]
            return tensors, (stride, padding, extra, groups, dilation)


def random_subpixel(draw: random.Random) -> tuple[list[Tensor], int, dict[str, Any]]:
    while True:
        kernel, stride, groups, r = (
            draw.randint(1, 7),
            draw.randint(1, 3),
            draw.choice((1, 2)),
            draw.randint(1, 5),
        )
        dilation, length = draw.randint(1, 3), draw.randint(1, 30)
        padding: Any = draw.choice((0, draw.randint(0, 4), (draw.randint(0, 3), draw.randint(0, 3)), "valid"))
        if stride == 1 and draw.random() < 0.3:
            padding = "same"
        pad = (
            {"valid": 0, "same": kernel * dilation}.get(padding, padding)
            if isinstance(padding, str)
            else padding
        )
        total = sum(pad) if isinstance(pad, tuple) else 2 * pad
        if length + total <= dilation * (kernel - 1):
            continue
        ci, rows = groups * draw.choice((1, 2, 17)), groups * r * draw.choice((1, 3, 16))
        tensors = [
            integers(draw.choice((1, 2)), ci, length),
            integers(rows, ci // groups, kernel),
            integers(rows),
        ]
        order = draw.choice(("crd", "dcr"))
        names = ("stride", "padding", "dilation", "groups", "channel_order")
        return tensors, r, dict(zip(names, (stride, padding, dilation, groups, order), strict=True))


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values in other places of memory."""
    if layout == "transposed":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "strided":
        wide = x.new_full((x.shape[0], x.shape[1] + 1, 2 * x.shape[2]), torch.nan)
        view = wide[:, 1:, ::2]
        view.copy_(x)
        return view
    return x


LAYOUTS = ("contiguous", "transposed", "strided")


def output_and_gradients(run: Callable[..., Tensor], tensors: list[Tensor], layout: str) -> list[Tensor]:
    leaves = [laid_out(tensors[0], layout).detach().requires_grad_()]
    leaves += [t.detach().clone().requires_grad_() for t in tensors[1:]]
    output = run(*leaves)
    grad = torch.arange(output.numel()).remainder(5).sub(2).to(output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


@pytest.mark.usefixtures("poisoned_outputs", "one_thread")
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_exact_on_integers(backend: str) -> None:
    """Outputs and all gradients, which float32 holds exactly."""
    draw = random.Random(3)
    for number in range(120):
        layout, dtype = LAYOUTS[number % 3], (torch.float32, torch.float64)[number % 2]
        tensors, options = random_transposed(draw)
        if backend == "reference" or options[-1] == 1:  # with dilation only that runs
            ours = functools.partial(with_options, fs.conv_transpose1d, options, {})
            theirs = functools.partial(with_options, F.conv_transpose1d, options, {})
            compare_exactly(ours, theirs, tensors, layout, dtype)
        tensors, r, named = random_subpixel(draw)
        ours = functools.partial(with_options, fs.subpixel_conv1d, (r,), named)
        theirs = functools.partial(with_options, plain_subpixel, (r,), named)
        compare_exactly(ours, theirs, tensors, layout, dtype)


def with_options(function: Any, options: Any, named: dict[str, Any], *tensors: Tensor) -> Tensor:
    output: Tensor = function(*tensors, *options, **named)
    return output


def compare_exactly(
    ours: functools.partial[Tensor],
    theirs: functools.partial[Tensor],
    tensors: list[Tensor],
    layout: str,
    dtype: torch.dtype,
) -> None:
    results = output_and_gradients(ours, [t.to(dtype) for t in tensors], layout)
    truth = output_and_gradients(theirs, tensors, "contiguous")
    for found, expected in zip(results, truth, strict=True):
        assert found.dtype == dtype
        assert found.double().equal(expected), (layout, ours, [t.shape for t in tensors])


HIFIGAN = (8, 4)  # stride and padding of its first upsampler, whose kernel is 16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_dtype(dtype: torch.dtype, layout: str, backend: str) -> None:
    x, weight, bias = torch.randn(2, 32, 19), torch.randn(32, 16, 16) / 8, torch.randn(16)
    tensors = [t.to(dtype) for t in (x, weight, bias)]
    truth = F.conv_transpose1d(*(t.double() for t in tensors), *HIFIGAN)
    found = fs.conv_transpose1d(laid_out(tensors[0], layout), *tensors[1:], *HIFIGAN)
    assert found.dtype == dtype
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), truth, rtol=tolerance, atol=4 * tolerance)
    rows = [tensors[0], torch.randn(24, 32, 5).div(12).to(dtype), torch.randn(24).to(dtype)]
    truth = plain_subpixel(*(t.double() for t in rows), 3, padding=2).relu()
    found = fs.subpixel_conv1d(laid_out(rows[0], layout), *rows[1:], 3, padding=2, activation="relu")
    torch.testing.assert_close(found.double(), truth, rtol=tolerance, atol=4 * tolerance)


@pytest.mark.parametrize(
    "shape", [(2, 6, 5), (1, 6, 5), (2, 1, 5), (2, 6, 1), (1, 1, 5), (2, 1, 1), (0, 6, 5), (6, 5)]
)
def test_strides(shape: tuple[int, ...], backend: str) -> None:
    """Contiguous for all that PyTorch calls contiguous, whatever the strides of its sizes of one are."""
    ci = shape[-2]
    functions = [
        lambda x: fs.conv_transpose1d(x, torch.ones(ci, 4, 4), None, 2),
        lambda x: fs.subpixel_conv1d(x, torch.ones(8, ci, 3), None, 2, padding=1),
        lambda x: fs.pixel_unshuffle1d(x, shape[-1]),
        lambda x: fs.pixel_shuffle1d(x, ci),
    ]
    for function in functions:
        x = torch.randn(shape)
        expected = function(x)
        assert expected.is_contiguous()
        other = x.transpose(-1, -2).contiguous().transpose(-1, -2)
        found = function(other)
        torch.testing.assert_close(found, expected)
        if other.is_contiguous():
            assert found.stride() == expected.stride()
        elif len(shape) == 3 and min(found.shape[1:]) > 1:
            assert found.transpose(1, 2).is_contiguous()


def test_every_instruction_set(isa: int) -> None:
    for dtype in DTYPES[:2]:
        x, up = integers(2, 19, 33).to(dtype), integers(19, 5, 7).to(dtype)
        with fs.use_backend("cpu"), cases.outputs_start_as_nan():
            for layout in LAYOUTS:
                found = fs.conv_transpose1d(laid_out(x, layout), up, None, 3, 2, 1)
                assert found.equal(F.conv_transpose1d(x, up, None, 3, 2, 1))


def test_no_batch_and_no_signals(backend: str) -> None:
    x, weight = torch.randn(2, 6, 7), torch.randn(6, 4, 5)
    expected = F.conv_transpose1d(x, weight, None, 3, 1, 1)
    torch.testing.assert_close(fs.conv_transpose1d(x[0], weight, None, (3,), [1], (1,)), expected[0])
    rows = torch.randn(8, 6, 3)
    expected = plain_subpixel(x, rows, None, 2)
    residual = torch.randn(expected.shape)
    found = fs.subpixel_conv1d(x[1], rows, None, (2,), stride=(1,), residual=residual[1], padding=(0,))
    torch.testing.assert_close(found, expected[1] + residual[1])
    for run in (
        lambda x: fs.conv_transpose1d(x, weight, None, 3), lambda x: F.conv_transpose1d(x, weight, None, 3),
    ):  # fmt: skip
        empty = x[:0].clone().requires_grad_()
        output = run(empty)
        assert output.shape == (0, 4, 23)
        output.sum().backward()
        assert empty.grad is not None
        assert empty.grad.shape == empty.shape


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("kind", ["high", "nearest", "low"])
def test_epilogue(kind: str, order: str, backend: str) -> None:
    x, weight, bias = (torch.randn(s, dtype=torch.float64) for s in ((2, 4, 9), (6, 4, 3), (6,)))
    shape = {"high": (2, 3, 14), "nearest": (2, 3, 7), "low": (2, 6, 7)}[kind]
    residual = torch.randn(shape, dtype=torch.float64)
    slopes = torch.rand(6, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (x, weight, bias, slopes, residual)]
    found = fs.subpixel_conv1d(
        x, weight, bias, 2, activation="prelu", activation_weight=slopes, residual=residual, clamp=(-1, 1),
        channel_order=order,
    )  # fmt: skip
    low = F.prelu(F.conv1d(x, weight, bias), slopes)
    added = {
        "high": lambda: residual,
        "nearest": lambda: residual.repeat_interleave(2, 2),
        "low": lambda: shuffled(residual, 2, order),
    }
    expected = (shuffled(low, 2, order) + added[kind]()).clamp(-1, 1)
    torch.testing.assert_close(found, expected)
    grad = torch.randn_like(expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(expected, leaves, grad)
    )
    up = torch.randn(4, 3, 4, dtype=torch.float64)
    high = torch.randn(2, 3, 18, dtype=torch.float64)
    found = fs.conv_transpose1d(x, up, None, 2, 1, activation="tanh", residual=high, clamp=(None, 0.5))
    torch.testing.assert_close(found, (F.conv_transpose1d(x, up, None, 2, 1).tanh() + high).clamp(max=0.5))


def test_gradients_of_gradients(backend: str) -> None:
    x, weight, bias = (
        torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 2, 4), (2, 2, 5), (2,))
    )
    rows = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    runs: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
        (lambda *t: fs.conv_transpose1d(*t, 3, 1, 1), [x, weight, bias]),
        (lambda *t: fs.subpixel_conv1d(*t, None, 2, padding=(1, 0), activation="tanh"), [x, rows]),
    ]
    for run, tensors in runs:
        torch.autograd.gradcheck(run, tensors, check_batched_grad=True, fast_mode=True)
        torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("shape", [(6, 5), (2, 6, 5), (2, 3, 6, 5), (2, 0, 5), (0, 6, 5), (2, 6, 0)])
def test_shuffles(shape: tuple[int, ...], order: str) -> None:
    x = torch.randn(shape, requires_grad=True)
    flat = x.reshape(-1 if 0 not in shape else max(1, shape[0]) * (shape[0] > 0), *shape[-2:])
    found = fs.pixel_shuffle1d(x, 3, order)
    assert found.equal(shuffled(flat, 3, order).view(*shape[:-2], shape[-2] // 3, shape[-1] * 3))
    back = fs.pixel_unshuffle1d(found, 3, order)
    assert back.equal(x)
    back.sum().backward()
    assert x.grad is not None
    # a copy, even where a view would do
    assert fs.pixel_shuffle1d(x, (1,)).data_ptr() != x.data_ptr() or x.numel() == 0


# ---- in PyTorch --------------------------------------------------------------------------------------------


def both(x: Tensor, up: Tensor, rows: Tensor) -> Tensor:
    hidden = fs.conv_transpose1d(x, up, None, 2, 1, activation="leaky_relu")
    return fs.subpixel_conv1d(hidden, rows, None, 3, padding="same")


def both_plain(x: Tensor, up: Tensor, rows: Tensor) -> Tensor:
    hidden = F.leaky_relu(F.conv_transpose1d(x, up, None, 2, 1))
    return shuffled(F.conv1d(hidden, rows, padding="same"), 3)


def operands() -> list[Tensor]:
    return [torch.randn(s, dtype=torch.float64) for s in ((2, 4, 7), (4, 3, 4), (6, 3, 3))]


def test_transforms_and_autocast() -> None:
    x, up, rows = operands()
    expected = both_plain(x, up, rows)
    torch.testing.assert_close(torch.vmap(both, (0, None, None))(x, up, rows), expected)
    torch.testing.assert_close(
        torch.vmap(both, (2, None, None))(x[None].movedim(0, 2), up, rows)[0], expected
    )
    torch.testing.assert_close(
        torch.func.grad(lambda *t: both(*t).square().sum())(x, up, rows),
        torch.func.grad(lambda *t: both_plain(*t).square().sum())(x, up, rows),
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert both(x.float(), up.float(), rows.float()).dtype == torch.bfloat16
        residual = torch.zeros(2, 3, 14)
        found = fs.conv_transpose1d(x.float(), up.float(), None, 2, 1, residual=residual, clamp=(0, 1))
        assert found.dtype == torch.float32  # as the sum of both in PyTorch
        assert found.shape == residual.shape


def test_exported_and_traced() -> None:
    tensors = operands()

    class Model(nn.Module):
        def forward(self, x: Tensor, up: Tensor, rows: Tensor) -> Tensor:
            return both(x, up, rows)

    length = torch.export.Dim("length", min=2, max=1000)
    program = torch.export.export(Model(), tuple(tensors), dynamic_shapes=({2: length}, None, None))
    assert "fused_subpixel.subpixel_conv2d" in program.graph_module.code
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes that become constant
        traced = torch.jit.trace(both, tensors)
    for size in (7, 2, 31):
        x = torch.randn(2, 4, size, dtype=torch.float64)
        expected = both_plain(x, *tensors[1:])
        torch.testing.assert_close(program.module()(x, *tensors[1:]), expected)
        torch.testing.assert_close(traced(x, *tensors[1:]), expected)


@pytest.mark.full
@pytest.mark.parametrize("engine", ["aot_eager", "inductor"])
def test_compiled(engine: str) -> None:
    compiled = torch.compile(both, fullgraph=True, backend=engine, dynamic=True)
    for size in (7, 12):
        _, up, rows = operands()
        leaves = [t.requires_grad_() for t in (torch.randn(2, 4, size, dtype=torch.float64), up, rows)]
        found, expected = compiled(*leaves), both_plain(*leaves)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(
            torch.autograd.grad(found.square().sum(), leaves),
            torch.autograd.grad(expected.square().sum(), leaves),
        )


@pytest.mark.full
def test_compiled_signals_whose_layout_is_ambiguous() -> None:
    """Compiled code has the strides of eager code."""
    for shape in ((2, 1, 8), (2, 8, 1), (2, 4, 8)):
        x = torch.randn(shape[0], shape[2], shape[1]).transpose(1, 2)
        weight = torch.randn(shape[1], 4, 4)

        def run(x: Tensor, weight: Tensor) -> Tensor:
            return fs.conv_transpose1d(x, weight, None, 2)

        found = torch.compile(run, fullgraph=True, backend="aot_eager")(x, weight)
        expected = run(x, weight)
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found, expected)


class Tagged(Tensor):
    """Notes which functions reach its handler."""

    seen: list[Any] = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Noted(torch.overrides.TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(func)
        return func(*args, **(kwargs or {}))


def test_handlers_get_the_function_itself(backend: str) -> None:
    x, up, rows = operands()
    first = x[:, :3]
    calls: list[tuple[Any, Callable[[Any], Any]]] = [
        (fs.conv_transpose1d, lambda t: fs.conv_transpose1d(t, up, None, 2, 1, clamp=(0, 1))),
        (fs.subpixel_conv1d, lambda t: fs.subpixel_conv1d(first, rows, None, 3, residual=t)),
        (fs.pixel_shuffle1d, lambda t: fs.pixel_shuffle1d(t, 2)),
        (fs.pixel_unshuffle1d, lambda t: fs.pixel_unshuffle1d(t, 1)),
    ]
    for function, call in calls:
        t = x if function is not fs.subpixel_conv1d else torch.randn(2, 2, 15, dtype=torch.float64)
        expected = call(t)
        Tagged.seen.clear()
        found = call(t.as_subclass(Tagged))
        assert Tagged.seen == [function]
        assert type(found) is Tagged
        with torch._C.DisableTorchFunctionSubclass():
            assert found.equal(expected)
        with Noted() as mode:
            noted = call(t)
        assert mode.seen == [function]
        assert noted.equal(expected)


def test_explain(backend: str) -> None:
    x, up, rows = operands()
    told = fs.explain(fs.conv_transpose1d, x, up, None, 2, 1)
    assert told.backend == backend
    assert ("cpu library" in told.forward) == (backend == "cpu")
    assert fs.explain(fs.subpixel_conv1d, x[0, :3], rows, upscale_factor=3).backend == backend
    with pytest.raises(
        ValueError, match=re.escape("input: expected 3 channels (weight [6, 3, 3], groups=1)")
    ):
        fs.explain(fs.subpixel_conv1d, x, rows)


# ---- wrong arguments ---------------------------------------------------------------------------------------

X, UP, ROWS = torch.zeros(2, 4, 9), torch.zeros(4, 3, 5), torch.zeros(6, 4, 3)

WRONG_TRANSPOSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": X[0, 0]}, ValueError, "input: expected [N, Ci, L] or [Ci, L], got [9]"),
    ({"input": X[None]}, ValueError, "input: expected [N, Ci, L] or [Ci, L], got [1, 2, 4, 9]"),
    ({"input": torch.tensor(1.0)}, ValueError, "input: expected [N, Ci, L] or [Ci, L], got []"),
    ({"input": [1.0]}, TypeError, "input: expected a torch.Tensor, got [1.0] of type list"),
    (
        {"input": np.zeros((2, 4, 9))},
        TypeError,
        "input: expected a torch.Tensor, got values of shape [2, 4, 9]",
    ),
    ({"input": None}, TypeError, "input: expected a torch.Tensor, got None"),
    ({"input": X.to_sparse()}, TypeError, "input: expected a dense tensor, of layout torch.strided"),
    ({"input": X.to_mkldnn()}, TypeError, "input: expected a dense tensor, of layout torch.strided"),
    ({"input": X.int()}, TypeError, "input: expected dtype"),
    ({"input": X[:, :3]}, ValueError, "input: expected 4 channels (weight [4, 3, 5]), got [2, 3, 9]"),
    ({"input": X.mT}, ValueError, "got [2, 9, 4]; channels come before the length: transpose the axes"),
    ({"input": X[..., :0]}, ValueError, "input: expected a length of at least 1, got [2, 4, 0]"),
    ({"weight": UP[0]}, ValueError, "weight: expected [Ci, C/groups, K], got [3, 5]"),
    ({"weight": UP[None]}, ValueError, "weight: expected [Ci, C/groups, K], got [1, 4, 3, 5]"),
    ({"weight": UP[..., :0]}, ValueError, "weight: expected sizes of at least 1, got [4, 3, 0]"),
    ({"weight": UP.double()}, TypeError, "weight: expected dtype torch.float32 as input has"),
    ({"weight": 3}, TypeError, "weight: expected a torch.Tensor, got 3"),
    (
        {"bias": torch.zeros(4)},
        ValueError,
        "bias: expected [3], one value per channel of the output, got [4]",
    ),
    ({"bias": torch.zeros(3, 1)}, ValueError, "bias: expected [3], one value per channel of the output"),
    ({"stride": (2, 2)}, ValueError, "stride: expected an int, got (2, 2)"),
    ({"stride": 2.0}, TypeError, "stride: expected an int, got 2.0 of type float"),
    ({"stride": 0}, ValueError, "stride: expected at least 1"),
    ({"padding": "same"}, TypeError, "padding: expected an int, got 'same' of type str"),
    ({"padding": -1}, ValueError, "padding: expected at least 0"),
    ({"padding": (1, 1)}, ValueError, "padding: expected an int, got (1, 1)"),
    (
        {"padding": 9},
        ValueError,
        "padding: expected what leaves an output of at least one sample, got 9, an output of -5",
    ),
    ({"output_padding": 1}, ValueError, "output_padding: expected less than stride 1 or dilation 1, got 1"),
    ({"dilation": ()}, ValueError, "dilation: expected an int, got ()"),
    ({"groups": 3}, ValueError, "weight: expected a first size divisible by groups=3, got [4, 3, 5]"),
    (
        {"residual": torch.zeros(2, 3, 9)},
        ValueError,
        "residual: expected [2, 3, 13], as the output, got [2, 3, 9]",
    ),
    (
        {"residual": torch.zeros(3, 13)},
        ValueError,
        "residual: expected [2, 3, 13], as the output, got [3, 13]",
    ),
    ({"residual": torch.tensor(1.0)}, ValueError, "residual: expected [2, 3, 13], as the output, got []"),
    ({"activation": "swish"}, ValueError, "activation: expected one of"),
    ({"stride": 2**30 - 1}, ValueError, "samples long, of less than 2**45 values, got [2, 3, 85899"),
]
WRONG_SUBPIXEL: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"input": X[0, 0]}, ValueError, "input: expected [N, Ci, L] or [Ci, L], got [9]"),
    ({"weight": ROWS[0]}, ValueError, "weight: expected [C*r, Ci/groups, k], got [4, 3]"),
    (
        {"weight": UP.mT.mT[:, :2]},
        ValueError,
        "; a weight [Ci, C, K] of nn.ConvTranspose1d is one for conv_tr",
    ),
    ({"upscale_factor": 4}, ValueError, "weight: expected a first size divisible by r = 4, got [6, 4, 3]"),
    ({"upscale_factor": (1, 2)}, ValueError, "upscale_factor: expected an int, got (1, 2)"),
    ({"upscale_factor": True}, TypeError, "upscale_factor: expected an int, got True of type bool"),
    ({"padding": (1, 2, 3)}, ValueError, "padding: expected an int or a pair (left, right), got (1, 2, 3)"),
    ({"padding": "full"}, ValueError, "padding: expected ints, 'same' or 'valid', got 'full'"),
    (
        {"padding": "same", "stride": 2},
        ValueError,
        "padding: expected ints or 'valid' where stride is not 1, got 'same' with stride 2",
    ),
    (
        {"dilation": 5},
        ValueError,
        "weight: expected a kernel that fits the padded input of 9 samples, got 3 with dilation 5",
    ),
    ({"bias": torch.zeros(3)}, ValueError, "bias: expected [6], one value per row of weight, got [3]"),
    (
        {"residual": torch.zeros(2, 3, 9)},
        ValueError,
        "residual: expected [2, 3, 14] (added), [2, 3, 7] (upsampled) or [2, 6, 7] (shuffled), got [2, 3, 9]",
    ),
    (
        {"activation": "prelu", "activation_weight": torch.zeros(2)},
        ValueError,
        "activation_weight: expected 1, C=3 (after the shuffle) or C*r=6 (before it) values in one dimension",
    ),
    ({"channel_order": "rcd"}, ValueError, "channel_order: expected one of 'crd', 'dcr'"),
]


@pytest.mark.parametrize(("changes", "error", "message"), WRONG_TRANSPOSED, ids=str)
def test_conv_transpose1d_refuses(changes: Any, error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fs.conv_transpose1d(**{"input": X, "weight": UP, **changes})


@pytest.mark.parametrize(("changes", "error", "message"), WRONG_SUBPIXEL, ids=str)
def test_subpixel_conv1d_refuses(changes: Any, error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fs.subpixel_conv1d(**{"input": X, "weight": ROWS, **changes})


def test_shuffles_refuse() -> None:
    for call, message in (
        (lambda: fs.pixel_shuffle1d(X, 3), "input: expected channels divisible by 3, got [2, 4, 9]"),
        (lambda: fs.pixel_unshuffle1d(X, 2), "input: expected a length divisible by 2, got [2, 4, 9]"),
        (lambda: fs.pixel_shuffle1d(X[0, 0], 3), "input: expected [..., C, L], got [9]"),
        (lambda: fs.pixel_shuffle1d(X, (1, 2)), "upscale_factor: expected an int, got (1, 2)"),
        (lambda: fs.pixel_shuffle1d(X, 2, "rcd"), "channel_order: expected one of"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            call()


# ---- modules -----------------------------------------------------------------------------------------------

SUBPIXEL_OPTIONS: list[dict[str, Any]] = [
    {},
    {"bias": False, "stride": 2},
    {"padding": "same", "groups": 2},
    {"padding": 2, "dilation": 2, "dtype": torch.float64},
    {"padding": 2, "padding_mode": "reflect"},
    {"padding": "same", "padding_mode": "replicate"},
    {"padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("options", SUBPIXEL_OPTIONS, ids=str)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_subpixel_module_is_a_drop_in(options: dict[str, Any], backend: str) -> None:
    torch.manual_seed(7)
    conv = nn.Conv1d(4, 12, 4, **options)
    state = torch.get_rng_state()
    torch.manual_seed(7)
    ours = fs.SubpixelConv1d(4, 3, 4, 4, **options)
    assert torch.get_rng_state().equal(state)
    assert list(ours.state_dict()) == list(conv.state_dict())
    assert all(value.equal(conv.state_dict()[name]) for name, value in ours.state_dict().items())
    ours.load_state_dict(conv.state_dict(), strict=True)
    x = torch.randn(2, 4, 9, dtype=options.get("dtype"))
    expected = shuffled(conv(x), 4)
    shared = fs.SubpixelConv1d.from_conv1d(conv.eval(), 4)
    assert shared.weight is conv.weight
    assert not shared.training
    for module in (ours, shared, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        torch.testing.assert_close(module(x), expected)
        torch.testing.assert_close(module(x[0]), expected[0])


def test_subpixel_module_in_words() -> None:
    module = fs.SubpixelConv1d(4, 3, 5, 2, 2, (2, 1), activation="prelu", prelu_parameters=6, clamp=(0, 1))
    assert repr(module) == (
        "SubpixelConv1d(4, 3, kernel_size=(5,), upscale_factor=(2,), stride=(2,), padding=(2, 1), "
        "activation='prelu', clamp=(0.0, 1.0))"
    )
    assert module.activation_weight is not None
    assert module.activation_weight.shape == (6,)
    for options, message in (
        ({"kernel_size": (3, 3)}, "kernel_size: expected an int, got (3, 3)"),
        ({"groups": 3}, "groups: expected a divisor of in_channels=4 and of out_channels*r=6, got 3"),
        ({"padding": (1, 2, 3, 4)}, "padding: expected an int or a pair (left, right)"),
        ({"padding_mode": "zero"}, "padding_mode: expected one of"),
    ):
        arguments: dict[str, Any] = {"in_channels": 4, "out_channels": 3, "kernel_size": 3, **options}
        with pytest.raises(ValueError, match=re.escape(message)):
            fs.SubpixelConv1d(**arguments)
    with pytest.raises(
        TypeError, match=r"conv: expected an nn\.Conv1d whose weight is a Parameter, got Conv2d"
    ):
        fs.SubpixelConv1d.from_conv1d(nn.Conv2d(1, 4, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="conv: expected out_channels divisible by 3, got 4"):
        fs.SubpixelConv1d.from_conv1d(nn.Conv1d(1, 4, 1), 3)


@pytest.mark.parametrize("order", ["crd", "dcr"])
def test_icnr_starts_as_nearest_neighbour(order: str) -> None:
    module = fs.SubpixelConv1d(4, 3, 3, 5, icnr=True, bias=False, channel_order=order)
    output = module(torch.randn(2, 4, 9))
    assert output.equal(output[..., ::5].repeat_interleave(5, 2))


def test_transposed_module_is_a_drop_in(backend: str) -> None:
    arguments: Any = (6, 4, 7, 3, 2)
    torch.manual_seed(1)
    plain = nn.ConvTranspose1d(*arguments, output_padding=1, groups=2)
    torch.manual_seed(1)
    fused = fs.ConvTranspose1d(*arguments, output_padding=1, groups=2)
    assert isinstance(fused, nn.ConvTranspose1d)
    assert fused.weight.equal(plain.weight)
    fused.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(copy.deepcopy(fused).state_dict(), strict=True)
    x = torch.randn(2, 6, 9)
    again = pickle.loads(pickle.dumps(fused))
    for module in (fused, again, fs.replace_conv_transpose(plain)):
        assert type(module) is fs.ConvTranspose1d
        torch.testing.assert_close(module(x), plain(x))
        torch.testing.assert_close(module(x[0]), plain(x[0]))
        for size in ([27], [28], [2, 4, 29]):
            torch.testing.assert_close(module(x, size), plain(x, size))
    with pytest.raises(ValueError, match="requested an output size"):
        fused(x, [90])
    assert repr(fused) == repr(plain)
    # code behind the layer may call view(), which a transposed output would not allow
    assert fused(laid_out(x, "transposed")).is_contiguous()


@pytest.mark.filterwarnings("ignore:Complex modules")
def test_where_pytorchs_forward_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.ConvTranspose1d(3, 2, 4, 2, 1)
    fused = fs.replace_conv_transpose(plain)
    x = torch.randn(2, 3, 5)
    expected = plain(x)
    for owner, name in ((nn.ConvTranspose1d, "forward"), (F, "conv_transpose1d")):
        function = getattr(owner, name)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, lambda *args, function=function: 2 * function(*args))
            assert fused(x).equal(2 * expected)
        torch.testing.assert_close(fused(x), expected)
    with monkeypatch.context() as patch:
        patch.setattr(fused, "_output_padding", lambda *_: (1,))
        assert fused(x).shape[2] == 11
    graph = torch.fx.symbolic_trace(nn.Sequential(fused))
    assert [node.op for node in graph.graph.nodes] == ["placeholder", "call_module", "output"]
    torch.testing.assert_close(graph(x), expected)
    complex_layers = [copy.deepcopy(layer).to(torch.complex64) for layer in (plain, fused)]
    assert complex_layers[1](x.cfloat()).equal(complex_layers[0](x.cfloat()))
    fused.qconfig = "any"  # type: ignore[assignment]
    assert type(fused) is nn.ConvTranspose1d


class Skip(nn.Module):
    """A decoder step that is made as long as what it is joined with."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose1d(3, 3, 3, 2, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.up(x, output_size=skip.shape[-1:]) + skip


def test_output_size_stays_symbolic() -> None:
    plain = Skip()
    fused = fs.replace_conv_transpose(plain)
    dims = {2: torch.export.Dim.AUTO}
    program = torch.export.export(
        fused, (torch.randn(1, 3, 5), torch.randn(1, 3, 10)), dynamic_shapes=(dims, dims)
    ).module()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (9, 10, 14):
        inputs = torch.randn(1, 3, (size + 1) // 2), torch.randn(1, 3, size)
        for run in (fused, program, compiled):
            torch.testing.assert_close(run(*inputs), plain(*inputs))


@pytest.mark.parametrize("kind", ["subpixel", "transposed"])
@pytest.mark.parametrize(
    "weight_norm",
    [
        nn.utils.parametrizations.weight_norm,
        pytest.param(nn.utils.weight_norm, marks=pytest.mark.filterwarnings("ignore")),
    ],
    ids=["new", "old"],
)
def test_weight_norm(weight_norm: Any, kind: str, backend: str) -> None:
    """As vocoders have it, with gradients of magnitudes and directions."""
    torch.manual_seed(2)
    plain: nn.Module = nn.Conv1d(4, 6, 3) if kind == "subpixel" else nn.ConvTranspose1d(4, 6, 4, 2, 1)
    torch.manual_seed(2)
    ours: nn.Module = fs.SubpixelConv1d(4, 3, 3) if kind == "subpixel" else fs.ConvTranspose1d(4, 6, 4, 2, 1)
    plain, ours = weight_norm(plain), weight_norm(ours)
    ours.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 4, 9)
    expected = shuffled(plain(x), 2) if kind == "subpixel" else plain(x)
    found = ours(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), list(ours.parameters())),
        torch.autograd.grad(expected.square().sum(), list(plain.parameters())),
    )


# ---- surgery -----------------------------------------------------------------------------------------------


class Vocoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(8, 16, 7, padding=3)
        self.ups = nn.ModuleList(
            [nn.ConvTranspose1d(16, 8, 16, 8, 4), nn.ConvTranspose1d(8, 4, 4, 2, 1, bias=False)]
        )
        self.last = nn.ConvTranspose1d(4, 1, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for up in self.ups:
            x = up(F.leaky_relu(x, 0.1))
        return self.last(x).tanh()


def test_replace_and_restore() -> None:
    plain = Vocoder().eval()
    x = torch.randn(1, 8, 20)
    fused, report = fs.replace_conv_transpose(plain, return_report=True)
    assert [(site.path, site.layers, site.status) for site in report] == [
        ("ups.0", "ConvTranspose1d(16, 8, 16, stride 8)", "replaced"),
        ("ups.1", "ConvTranspose1d(8, 4, 4, stride 2)", "replaced"),
        ("last", "ConvTranspose1d(4, 1, 3, stride 1)", "left alone"),
    ]
    assert report[0].reason == "runs as conv_transpose1d of this package"
    assert report[2].reason == "dilation (2,): no sub-pixel convolution"
    torch.testing.assert_close(fused(x), plain(x))
    assert len(fs.replace_conv_transpose(fused, return_report=True)[1].already_replaced) == 2
    saved = io.BytesIO()
    torch.save(fused.state_dict(), saved)
    saved.seek(0)
    plain.load_state_dict(torch.load(saved), strict=True)
    restored = fs.restore(fused)
    assert [type(m) for m in restored.modules()] == [type(m) for m in plain.modules()]
    assert restored(x).equal(plain(x))


@pytest.mark.filterwarnings("ignore")
def test_replace_keeps_old_weight_norm() -> None:
    plain = Vocoder().eval()
    for up in plain.ups:
        nn.utils.weight_norm(up)
    x = torch.randn(1, 8, 20)
    with torch.no_grad():
        expected = plain(x)
        fused = fs.replace_conv_transpose(plain)
        torch.testing.assert_close(fused(x), expected)
        for up in fused.ups:
            assert type(up) is fs.ConvTranspose1d
            nn.utils.remove_weight_norm(up)
        torch.testing.assert_close(fused(x), expected)


@pytest.mark.full
def test_onnx(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    model, x = fs.replace_conv_transpose(Vocoder().eval()), torch.randn(1, 8, 20)
    for dynamo in (False, True):
        path = tmp_path / f"vocoder_{dynamo}.onnx"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(model, (x,), path, dynamo=dynamo, verbose=False, input_names=["x"])
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        found = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        torch.testing.assert_close(found, model(x).detach(), rtol=1e-4, atol=1e-5)
