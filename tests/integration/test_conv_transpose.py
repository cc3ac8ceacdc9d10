# SPDX-License-Identifier: BSD-3-Clause
"""conv_transpose2d against PyTorch's, its two other faces, its module and the converters of parameters."""

from __future__ import annotations

import copy
import functools
import math
import random
import re
import runpy
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import cases
import pytest
import torch
import torch.nn.functional as F
from cases import DTYPES, LAYOUTS
from tiers import tiered
from torch import Tensor, nn

import fused_subpixel as fs
from fused_subpixel import reference
from fused_subpixel.dispatch.resolve import resolve_conv_transpose2d


class Configuration(NamedTuple):
    """A transposed convolution; pairs are (vertical, horizontal)."""

    batch: int
    channels_in: int
    size: tuple[int, int]
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    output_padding: tuple[int, int]
    groups: int
    bias: bool

    @property
    def options(self) -> tuple[Any, ...]:
        """What follows input, weight and bias."""
        return self.stride, self.padding, self.output_padding, self.groups

    @property
    def output_size(self) -> tuple[int, ...]:
        return tuple(
            (n - 1) * s - 2 * p + k + o
            for n, s, p, k, o in zip(
                self.size, self.stride, self.padding, self.kernel, self.output_padding, strict=True
            )
        )


def random_configuration(draw: random.Random) -> Configuration:
    while True:
        kernel = (draw.randint(1, 9), draw.randint(1, 9))
        stride = (draw.randint(1, 5), draw.randint(1, 5))
        groups = draw.choice((1, 1, 1, 2, 3))
        found = Configuration(
            batch=draw.choice((1, 2, 3)),
            channels_in=groups * draw.choice((1, 2, 3, 5, 19)),
            size=(draw.randint(1, 9), draw.randint(1, 21)),
            channels=groups * draw.choice((1, 2, 3, 4, 16, 32)),
            kernel=kernel,
            stride=stride,
            padding=(draw.randint(0, kernel[0]), draw.randint(0, kernel[1])),
            output_padding=(draw.randint(0, stride[0] - 1), draw.randint(0, stride[1] - 1)),
            groups=groups,
            bias=draw.random() < 0.7,
        )
        work = math.prod((found.batch, found.channels_in, *found.size, found.channels, *kernel)) / groups
        if min(found.output_size) > 0 and work < 5e6:
            return found


_DRAW = random.Random(0)
CONFIGURATIONS = [random_configuration(_DRAW) for _ in range(500)]
FAMOUS = {
    "DCGAN": Configuration(2, 32, (8, 8), 32, (4, 4), (2, 2), (1, 1), (0, 0), 1, True),
    "U-Net": Configuration(1, 32, (9, 13), 16, (2, 2), (2, 2), (0, 0), (0, 0), 1, True),
    "FSRCNN x3": Configuration(1, 56, (11, 17), 1, (9, 9), (3, 3), (4, 4), (2, 2), 1, True),
    "kernel 3 stride 2": Configuration(1, 64, (7, 9), 32, (3, 3), (2, 2), (1, 1), (1, 1), 1, False),
    "padding beyond the kernel": Configuration(1, 3, (9, 9), 4, (2, 2), (2, 2), (5, 4), (1, 0), 1, True),
    "one row": Configuration(1, 16, (1, 40), 16, (1, 4), (1, 2), (0, 1), (0, 0), 1, True),
}


def tensors_of(c: Configuration, integers: bool = False) -> list[Tensor]:
    """Input, weight and, if there is one, bias, in float64; scaled for outputs of about one."""

    def values(*shape: int) -> Tensor:
        if integers:
            return torch.randint(-3, 4, shape).double()
        return torch.randn(shape, dtype=torch.float64)

    fan_in = c.channels_in // c.groups * math.prod(c.kernel)
    weight = values(c.channels_in, c.channels // c.groups, *c.kernel) / (1 if integers else fan_in**0.5)
    tensors = [values(c.batch, c.channels_in, *c.size), weight]
    return [*tensors, values(c.channels)] if c.bias else tensors


def forward_and_gradients(
    function: Any, c: Configuration, tensors: list[Tensor], grad: Tensor
) -> list[Tensor]:
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    bias = leaves[2] if c.bias else None
    output = function(leaves[0], leaves[1], bias, *c.options)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]


def to(tensors: list[Tensor], dtype: torch.dtype, layout: str) -> list[Tensor]:
    return [
        t.to(dtype).contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t.to(dtype)
        for t in tensors
    ]


ALL = [*FAMOUS.values(), *CONFIGURATIONS]


BACKENDS = ("reference", *(["cpu"] if cases.usable_isas() else []))
# Of the fast tier, each problem meets one layout; of the full tier, the other one.
every_problem = pytest.mark.parametrize(
    ("part", "turn"),
    [(part, 0) for part in range(10)] + [pytest.param(part, 1, marks=pytest.mark.full) for part in range(10)],
)


@every_problem
@pytest.mark.usefixtures("poisoned_outputs")
def test_as_accurate_as_pytorch(part: int, turn: int, one_thread: None) -> None:
    """Output and all gradients: at most twice PyTorch's own error against float64, and one rounding of its.

    That rounding grows like a random walk with the number of products, of the size of the largest value, for
    PyTorch is at times exact where there are few outputs. For the half types PyTorch's are its float32
    results, rounded: the bfloat16 gradients of its CPU kernels (2.13) hold uninitialised memory on images of
    few columns, and its float16 kernels round partial sums on some processors, which is why nothing is asked
    of them where they are what runs.
    """
    for number, c in enumerate(ALL[part::10]):
        dtype = DTYPES[number % len(DTYPES)]
        layout = tuple(LAYOUTS)[(number // len(DTYPES) + part + turn) % 2]
        exact = tensors_of(c)
        rounded = to(exact, dtype, layout)
        grad = torch.randn(c.batch, c.channels, *c.output_size, dtype=torch.float64)
        grad = to([grad], dtype, layout)[0]
        truths = forward_and_gradients(F.conv_transpose2d, c, [t.double() for t in rounded], grad.double())
        arithmetic = torch.promote_types(dtype, torch.float32)
        plain = [
            result.to(dtype)
            for result in forward_and_gradients(
                F.conv_transpose2d, c, [t.to(arithmetic) for t in rounded], grad.to(arithmetic)
            )
        ]
        products = [
            c.channels_in // c.groups * math.prod(c.kernel),
            c.channels // c.groups * math.prod(c.kernel),
            c.batch * math.prod(c.size),
            c.batch * math.prod(c.output_size),
        ]
        for backend in BACKENDS:
            with fs.use_backend(backend):
                found = forward_and_gradients(fs.conv_transpose2d, c, rounded, grad)
            pytorchs = backend == "reference" and dtype.itemsize == 2
            for truth, ours, theirs, terms in zip(truths, found, plain, products, strict=False):
                assert ours.dtype == dtype
                assert ours.shape == theirs.shape
                walk = (torch.finfo(dtype).eps + torch.finfo(arithmetic).eps * max(2, terms**0.5)) * float(
                    truth.abs().max()
                )
                if pytorchs and (dtype == torch.float16 or ours is not found[0]):
                    continue
                error, allowed = ((t.double() - truth).abs().max() for t in (ours, theirs))
                assert error <= 2 * allowed + walk, (c, dtype, layout, backend)
            assert found[0].is_contiguous(memory_format=LAYOUTS[layout]) or rounded[0].is_contiguous()


@every_problem
@pytest.mark.usefixtures("poisoned_outputs")
def test_exact_on_integers(part: int, turn: int, one_thread: None) -> None:
    """In float32, whose 24 bits hold every sum; output and gradients; by the reference and by all kernels."""
    for number, c in enumerate(ALL[part::10]):
        layout = tuple(LAYOUTS)[(number + turn) % 2]
        tensors = to(tensors_of(c, integers=True), torch.float32, layout)
        grad = torch.randint(-2, 3, (c.batch, c.channels, *c.output_size)).float()
        grad = grad.contiguous(memory_format=LAYOUTS[layout])
        truth = forward_and_gradients(F.conv_transpose2d, c, [t.double() for t in tensors], grad.double())
        with fs.use_backend("reference"):
            results = [forward_and_gradients(fs.conv_transpose2d, c, tensors, grad)]
        for isa in cases.usable_isas():
            with fs.use_backend("cpu"), cases.instruction_set(isa):
                results.append(forward_and_gradients(fs.conv_transpose2d, c, tensors, grad))
        for number_of_result, found in enumerate(results):
            for ours, theirs in zip(found, truth, strict=True):
                assert ours.double().equal(theirs), (c, layout, number_of_result)


@pytest.mark.parametrize("name", FAMOUS)
def test_three_faces(name: str) -> None:
    """The transposed convolution, zeros inserted and convolved, and the sub-pixel convolution are one."""
    c = FAMOUS[name]
    tensors = tensors_of(c, integers=True)
    x, weight, bias = (*tensors, None)[:3]
    transposed = F.conv_transpose2d(x, weight, bias, *c.options)
    assert reference.fractionally_strided_conv2d(x, weight, bias, *c.options).equal(transposed)
    rows = fs.conv_transpose_weight_to_subpixel(weight, c.stride)
    taps = rows.shape[2:]
    whole = fs.subpixel_conv2d(x, rows, None, c.stride, padding=(taps[0] - 1, taps[1] - 1))
    size = transposed.shape[2:]
    whole = F.pad(whole, (0, c.output_padding[1], 0, c.output_padding[0]))
    cropped = whole[:, :, c.padding[0] :, c.padding[1] :][:, :, : size[0], : size[1]]
    assert cropped.equal(transposed if bias is None else transposed - bias.view(1, -1, 1, 1))


def test_no_more_pixels_than_needed() -> None:
    """The common layers are convolutions without wasted taps, and nothing of their input is unused."""

    def geometry(kernel: int, stride: int, padding: int, extra: int = 0) -> Any:
        info = (torch.float32, torch.device("cpu"))
        options = (stride, padding, extra, 1, 1, None, 0.01, None)
        found = resolve_conv_transpose2d(
            ((1, 8, 10, 10), *info), ((8, 4, kernel, kernel), *info), None, None, None, *options
        )
        g = found.geometry
        assert found.transposed is not None
        assert found.transposed.unused == (0, 0, 0, 0)
        return found.weight_shape[2:], g[4:8], g[11:15], g[-2:]

    assert geometry(4, 2, 1) == ((2, 2), (1, 1, 1, 1), (1, 1, 1, 1), (0, 0))
    assert geometry(2, 2, 0) == ((1, 1), (0, 0, 0, 0), (0, 0, 0, 0), (0, 0))
    assert geometry(6, 2, 2) == ((3, 3), (1, 1, 1, 1), (0, 0, 0, 0), (0, 0))
    assert geometry(9, 3, 4, 2) == ((3, 3), (1, 1, 2, 2), (1, 1, 2, 2), (0, 0))
    assert geometry(3, 2, 1, 1) == ((2, 2), (1, 1, 1, 1), (1, 1, 1, 1), (1, 1))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kernel", [1, 3, 7])
def test_wide_layers_do_not_multiply_what_extends_their_kernel(
    kernel: int, layout: str, backend: str
) -> None:
    """Infinity times a zero of the extension would be NaN where PyTorch's output is finite."""
    x, weight = torch.ones(1, 16, 7, 9), torch.ones(16, 64, kernel, kernel)
    x[0, 3, 2, 4] = x[0, 8, 5, 1] = math.inf
    x = x.contiguous(memory_format=LAYOUTS[layout])
    expected = F.conv_transpose2d(x, weight, stride=2, padding=kernel // 2)
    assert not expected.isnan().any()
    assert fs.conv_transpose2d(x, weight, stride=2, padding=kernel // 2).equal(expected)
    weight[:, ::5] = 0  # a tap that is there is multiplied, zero or not
    expected = F.conv_transpose2d(x, weight, stride=2, padding=kernel // 2)
    assert expected.isnan().any()
    found = fs.conv_transpose2d(x, weight, stride=2, padding=kernel // 2)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


WINDOWS = {  # kernel, stride, padding, output padding
    "4x4": (4, 2, 1, 0), "5x5": (5, 2, 2, 1), "3x3": (3, 2, 1, 1), "4x5": ((4, 5), 2, (1, 2), (0, 1)),
    "6x6 by 3": (6, 3, 1, 1), "9x6 by 3x2": ((9, 6), (3, 2), 3, 0),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("groups", [1, 2])
def test_phases_share_a_window(window: str, groups: int, layout: str, backend: str) -> None:
    """Wide layers, in which a vector of output channels has one phase; integers make every sum exact."""
    kernel, *options = WINDOWS[window]
    generator = torch.Generator().manual_seed(0)
    kernel_h, kernel_w = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    x, weight, bias = (
        torch.randint(-3, 4, shape, generator=generator).float()
        for shape in ((2, 40, 13, 39), (40, 64 // groups, kernel_h, kernel_w), (64,))
    )
    for of_weight in LAYOUTS.values():
        arguments = (
            x.contiguous(memory_format=LAYOUTS[layout]),
            weight.contiguous(memory_format=of_weight), bias, *options, groups,
        )  # fmt: skip
        found = fs.conv_transpose2d(*arguments, activation="relu")
        assert found.equal(F.conv_transpose2d(*arguments).relu())


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_pixel_that_is_not_finite_reaches_its_own_outputs_alone(
    layout: str, value: float, backend: str
) -> None:
    weight = torch.ones(64, 64, 4, 4)
    for pixel in ((0, 3, 2, 4), (1, 8, 17, 35), (1, 60, 0, 0), (0, 0, 9, 31)):
        x = torch.ones(2, 64, 18, 36)
        x[pixel] = value
        x = x.contiguous(memory_format=LAYOUTS[layout])
        expected = F.conv_transpose2d(x.double(), weight.double(), stride=2, padding=1).float()
        found = fs.conv_transpose2d(x, weight, stride=2, padding=1)
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("activation", [None, "relu", "prelu", "gelu", "tanh"])
@pytest.mark.parametrize("clamp", [None, (-0.5, 0.5)])
def test_epilogue(backend: str, activation: Any, clamp: Any) -> None:
    c = FAMOUS["DCGAN"]
    x, weight, bias = (t.requires_grad_() for t in tensors_of(c))
    residual = torch.randn(c.batch, c.channels, *c.output_size, dtype=torch.float64, requires_grad=True)
    slopes = (
        torch.rand(c.channels, dtype=torch.float64, requires_grad=True) if activation == "prelu" else None
    )
    found = fs.conv_transpose2d(
        x,
        weight,
        bias,
        *c.options,
        activation=activation,
        activation_weight=slopes,
        residual=residual,
        clamp=clamp,
    )
    plain = F.conv_transpose2d(x, weight, bias, *c.options)
    if activation == "prelu":
        plain = F.prelu(plain, slopes)
    elif activation:
        plain = getattr(F, activation, torch.tanh)(plain)
    plain = plain + residual
    plain = plain if clamp is None else plain.clamp(*clamp)
    torch.testing.assert_close(found, plain)
    leaves = [t for t in (x, weight, bias, residual, slopes) if t is not None]
    grad = torch.randn_like(plain)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, grad), torch.autograd.grad(plain, leaves, grad), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


@tiered("name", FAMOUS, fast=("kernel 3 stride 2",))
def test_gradients_of_gradients(name: str, backend: str) -> None:
    c = FAMOUS[name]._replace(
        channels_in=2, channels=2, size=(3, 4) if name != "padding beyond the kernel" else (9, 9)
    )
    leaves = [t.requires_grad_() for t in tensors_of(c)]

    def run(*tensors: Tensor) -> Tensor:
        return fs.conv_transpose2d(*(*tensors, None)[:3], *c.options)

    torch.autograd.gradcheck(run, leaves, check_batched_grad=True)
    torch.autograd.gradgradcheck(run, leaves, check_batched_grad=True)


@pytest.mark.parametrize("frozen", ["input", "weight", "bias"])
def test_only_what_is_needed(backend: str, frozen: str) -> None:
    c = FAMOUS["DCGAN"]
    tensors = dict(zip(("input", "weight", "bias"), tensors_of(c), strict=True))
    for name, tensor in tensors.items():
        tensor.requires_grad_(name != frozen)
    fs.conv_transpose2d(*tensors.values(), *c.options).sum().backward()
    ours = {name: tensor.grad for name, tensor in tensors.items()}
    for tensor in tensors.values():
        tensor.grad = None
    F.conv_transpose2d(*tensors.values(), *c.options).sum().backward()
    for name, tensor in tensors.items():
        torch.testing.assert_close(ours[name], tensor.grad)


def test_unusual_inputs(backend: str) -> None:
    """No batch dimension, no images, views, an expanded gradient."""
    c = FAMOUS["kernel 3 stride 2"]
    x, weight = tensors_of(c)
    expected = F.conv_transpose2d(x, weight, None, *c.options)
    torch.testing.assert_close(fs.conv_transpose2d(x[0], weight, None, *c.options), expected[0])
    assert fs.conv_transpose2d(x[:0], weight, None, *c.options).shape == (0, *expected.shape[1:])
    for view in (x.transpose(2, 3).contiguous().transpose(2, 3), x.flip(0)[:, :, 1:, 2:], x[:, :, ::2, ::3]):
        turned = weight.transpose(2, 3).contiguous().transpose(2, 3)
        torch.testing.assert_close(
            fs.conv_transpose2d(view, turned, None, *c.options),
            F.conv_transpose2d(view, turned, None, *c.options),
        )
    x.requires_grad_()
    fs.conv_transpose2d(x, weight, None, *c.options).sum().backward()
    torch.testing.assert_close(
        x.grad, torch.autograd.grad(F.conv_transpose2d(x, weight, None, *c.options).sum(), x)[0]
    )


def test_under_transforms_and_autocast() -> None:
    c = FAMOUS["DCGAN"]
    x, weight, bias = tensors_of(c)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fs.conv_transpose2d(x, weight, bias, *c.options, activation="relu")

    expected = F.conv_transpose2d(x, weight, bias, *c.options).relu()
    torch.testing.assert_close(torch.vmap(run, (0, None, None))(x, weight, bias), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(x.float(), weight.float(), bias.float()).dtype == torch.bfloat16


@pytest.mark.full
def test_under_compile() -> None:
    c = FAMOUS["DCGAN"]
    x, weight, bias = tensors_of(c)
    options = c.options  # torch.compile of torch 2.10 reads no properties of named tuples

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return fs.conv_transpose2d(x, weight, bias, *options, activation="relu")

    expected = F.conv_transpose2d(x, weight, bias, *c.options).relu()
    for parameter in (weight, bias):  # as those of a module are
        torch._dynamo.mark_static(parameter)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x, weight, bias), expected)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    for ours, theirs in zip(
        torch.autograd.grad(compiled(*leaves).square().sum(), leaves),
        torch.autograd.grad(F.conv_transpose2d(*leaves, *c.options).relu().square().sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_dilation_is_left_to_pytorch() -> None:
    x, weight = torch.randn(1, 2, 4, 5), torch.randn(2, 3, 3, 3)
    found = fs.conv_transpose2d(x, weight, None, 2, 1, 2, 1, 3)
    assert found.equal(F.conv_transpose2d(x, weight, None, 2, 1, 2, 1, 3))
    told = fs.explain(fs.conv_transpose2d, x, weight, dilation=2)
    assert told.backend == "reference"
    assert told.forward == "PyTorch's conv_transpose2d"
    assert "a transposed convolution with dilation is no sub-pixel convolution" in str(told)
    with pytest.raises(ValueError, match="backend 'cpu' cannot run here"):
        fs.conv_transpose2d(x, weight, dilation=2, backend="cpu")


def test_explain(backend: str) -> None:
    x, weight = torch.randn(1, 64, 40, 50), torch.randn(64, 3, 4, 4)
    told = fs.explain(fs.conv_transpose2d, x, weight, None, 2, 1)
    assert told.backend == backend
    assert ("cpu library" in told.forward) == (backend == "cpu")


X, W = torch.zeros(1, 4, 5, 6), torch.zeros(4, 3, 3, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0, 0], W), {}, ValueError, "input: expected [N, Ci, H, W] or [Ci, H, W], got [5, 6]"),
        ((X, W[0]), {}, ValueError, "weight: expected [Ci, C/groups, K_h, K_w], got [3, 3, 3]"),
        ((X[:, :3], W), {}, ValueError, "input: expected 4 channels (weight [4, 3, 3, 3]), got [1, 3, 5, 6]"),
        ((X, W, torch.zeros(4)), {}, ValueError, "bias: expected [3], one value per channel of the output"),
        ((X, W.double()), {}, TypeError, "weight: expected dtype torch.float32 as input has"),
        ((X, W), {"groups": 3}, ValueError, "weight: expected a first size divisible by groups=3"),
        ((X, W), {"stride": 0}, ValueError, "stride: expected at least 1"),
        ((X, W), {"stride": 2.0}, TypeError, "stride: expected an int"),
        ((X, W), {"padding": -1}, ValueError, "padding: expected at least 0"),
        ((X, W), {"padding": "same"}, TypeError, "padding: expected an int"),
        ((X, W), {"padding": 4}, ValueError, "padding: expected what leaves an output of at least one pixel"),
        ((X, W), {"output_padding": 1}, ValueError, "output_padding: expected less than stride (1, 1) or"),
        ((X, W), {"activation": "swish"}, ValueError, "activation: expected one of"),
        (
            (X, W),
            {"residual": torch.zeros(1, 3, 5, 6)},
            ValueError,
            "residual: expected [1, 3, 7, 8], as the output, got [1, 3, 5, 6]",
        ),
        (([1], W), {}, TypeError, "input: expected a torch.Tensor"),
    ],
    ids=str,
)
def test_refuses(arguments: Any, options: Any, error: type[Exception], message: str, backend: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        fs.conv_transpose2d(*arguments, **options)


# ---- the module --------------------------------------------------------------------------------------------


def test_module_is_a_drop_in(backend: str) -> None:
    torch.manual_seed(1)
    plain = nn.ConvTranspose2d(6, 4, (3, 4), (2, 3), (1, 2), output_padding=(1, 2), groups=2)
    torch.manual_seed(1)
    fused = fs.ConvTranspose2d(6, 4, (3, 4), (2, 3), (1, 2), output_padding=(1, 2), groups=2)
    assert isinstance(fused, nn.ConvTranspose2d)
    assert fused.weight.equal(plain.weight)
    fused.load_state_dict(plain.state_dict(), strict=True)
    plain.load_state_dict(copy.deepcopy(fused).state_dict(), strict=True)
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(fused(x), plain(x))
    for size in ([9, 18], [10, 20], [2, 4, 10, 19]):
        torch.testing.assert_close(fused(x, size), plain(x, size))
    torch.testing.assert_close(fused(x[0]), plain(x[0]))
    with pytest.raises(ValueError, match="requested an output size"):
        fused(x, [90, 90])
    assert repr(fused).startswith("ConvTranspose2d(6, 4, kernel_size=(3, 4)")


def plain_and_fused(*arguments: Any, **options: Any) -> tuple[nn.ConvTranspose2d, nn.Module]:
    """``nn.ConvTranspose2d`` and the fused layer, with the same parameters."""
    plain = nn.ConvTranspose2d(*arguments, **options)
    return plain, fs.replace_conv_transpose(plain)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64], ids=str)
def test_other_dtypes_are_pytorchs(dtype: torch.dtype) -> None:
    plain, fused = plain_and_fused(3, 2, 3, 2, 1)
    for layer in (plain, fused):
        for parameter in layer.parameters():
            parameter.requires_grad_(False)
            parameter.data = (10 * parameter.data).to(dtype)
    x = (10 * torch.randn(2, 3, 4, 5)).to(dtype)
    assert fused(x).equal(plain(x))
    assert fused(x, [8, 9]).equal(plain(x, [8, 9]))


def test_mkldnn_tensors_are_pytorchs() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("PyTorch is built without MKL-DNN")
    plain, fused = plain_and_fused(3, 2, 3, 2, 1)
    x = torch.randn(1, 3, 4, 5).to_mkldnn()
    assert fused(x).to_dense().equal(plain(x).to_dense())


class Patched:
    """Doubles what a function returns."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return 2 * self.function(*args, **kwargs)


def test_patches_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is not PyTorch's own at the time of the call."""
    plain, fused = plain_and_fused(3, 2, 3, 2, 1)
    x = torch.randn(1, 3, 4, 5)
    expected = plain(x)
    for owner, name in ((nn.ConvTranspose2d, "forward"), (F, "conv_transpose2d")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, Patched(getattr(owner, name)))
            assert fused(x).equal(2 * expected)
        torch.testing.assert_close(fused(x), expected)
    one_more = [lambda *_: (1, 1), lambda self, *_: (1, 1)]
    for owner, patched in zip((fused, nn.modules.conv._ConvTransposeNd), one_more, strict=True):
        with monkeypatch.context() as patch:
            patch.setattr(owner, "_output_padding", patched)
            assert fused(x).shape[2:] == (8, 10)
        assert fused(x).shape[2:] == (7, 9)
    plain.padding_mode = fused.padding_mode = "reflect"  # type: ignore[assignment]
    for layer in (plain, fused):
        with pytest.raises(ValueError, match="Only `zeros` padding mode"):
            layer(x)


class Skip(nn.Module):
    """The decoder step of a U-Net: as large as what it is joined with."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 3, 3, 2, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.up(x, output_size=skip.shape[-2:]) + skip


def skip_inputs(height: int, width: int) -> tuple[Tensor, Tensor]:
    return torch.randn(1, 3, (height + 1) // 2, (width + 1) // 2), torch.randn(1, 3, height, width)


@tiered("strict", [False, True], fast=[False])
def test_output_size_stays_symbolic_in_exported_programs(strict: bool) -> None:
    plain = Skip()
    dims = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(
        fs.replace_conv_transpose(plain), skip_inputs(9, 10), dynamic_shapes=(dims, dims), strict=strict
    )
    for size in ((9, 10), (10, 9), (8, 8), (13, 5)):
        inputs = skip_inputs(*size)
        torch.testing.assert_close(program.module()(*inputs), plain(*inputs))
    static = torch.export.export(fs.replace_conv_transpose(plain), skip_inputs(9, 10), strict=strict)
    assert "fused_subpixel" in static.graph_module.code


def test_output_size_in_compiled_and_traced_code() -> None:
    plain, inputs = Skip(), skip_inputs(9, 10)
    fused = fs.replace_conv_transpose(plain)
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in ((9, 10), (10, 9), (8, 8)):
        others = skip_inputs(*size)
        torch.testing.assert_close(compiled(*others), plain(*others))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's forward compares sizes
        traced = torch.jit.trace(fused, inputs)
    torch.testing.assert_close(traced(*inputs), plain(*inputs))
    graph = torch.fx.symbolic_trace(fused)
    torch.testing.assert_close(graph(*others), plain(*others))


@tiered("dynamo", [False, True], fast=[False])
def test_onnx_of_output_size(dynamo: bool, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    model, inputs = fs.replace_conv_transpose(Skip()).eval(), skip_inputs(9, 10)
    path = tmp_path / "skip.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, inputs, path, dynamo=dynamo, verbose=False, input_names=["x", "skip"])
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": inputs[0].numpy(), "skip": inputs[1].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), model(*inputs).detach(), rtol=1e-4, atol=1e-5)


# ---- converters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["crd", "dcr"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride", [1, 2, (3, 2)])
def test_converters(order: str, groups: int, stride: Any) -> None:
    r_h, r_w = (stride, stride) if isinstance(stride, int) else stride
    if groups > 1 and order == "dcr":
        pytest.skip("groups of dcr rows are not those of a transposed convolution")
    k, p = (3, 2), (1, 1)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    weight = torch.randn(6 * r_h * r_w, 4 // groups, *k, dtype=torch.float64)
    bias = fs.conv_transpose_bias_to_subpixel(
        torch.randn(6, dtype=torch.float64), stride, channel_order=order
    )
    transposed = fs.subpixel_weight_to_conv_transpose(weight, stride, groups=groups, channel_order=order)
    assert transposed.shape == (4, 6 // groups, 3 * r_h, 2 * r_w)
    expected = fs.subpixel_conv2d(x, weight, bias, stride, padding=p, groups=groups, channel_order=order)
    padding = (r_h * (k[0] - 1 - p[0]), r_w * (k[1] - 1 - p[1]))
    after = fs.subpixel_bias_to_conv_transpose(bias, stride, channel_order=order)
    torch.testing.assert_close(F.conv_transpose2d(x, transposed, after, stride, padding, 0, groups), expected)
    back = fs.conv_transpose_weight_to_subpixel(transposed, stride, groups=groups, channel_order=order)
    assert back.equal(weight)


def test_converters_where_the_kernel_does_not_divide() -> None:
    weight = torch.randn(4, 3, 5, 7)
    rows = fs.conv_transpose_weight_to_subpixel(weight, (2, 3))
    assert rows.shape == (18, 4, 3, 3)
    assert fs.subpixel_weight_to_conv_transpose(rows, (2, 3), kernel_size=(5, 7)).equal(weight)
    whole = fs.subpixel_weight_to_conv_transpose(rows, (2, 3))
    assert whole.equal(F.pad(weight, (0, 2, 0, 1)))
    message = "kernel_size: expected at least 5x7 and at most 6x9, got 4x7"
    with pytest.raises(ValueError, match=re.escape(message)):
        fs.subpixel_weight_to_conv_transpose(rows, (2, 3), kernel_size=(4, 7))


def test_converters_refuse() -> None:
    with pytest.raises(ValueError, match="bias: expected the same value for all phases of a channel"):
        fs.subpixel_bias_to_conv_transpose(torch.arange(8.0), 2)
    with pytest.raises(ValueError, match=r"bias: expected a size divisible by 2\*2=4, got \[6\]"):
        fs.subpixel_bias_to_conv_transpose(torch.zeros(6), 2)
    with pytest.raises(ValueError, match=r"weight: expected a first size divisible by 2\*2"):
        fs.subpixel_weight_to_conv_transpose(torch.zeros(6, 1, 3, 3), 2)
    with pytest.raises(ValueError, match="weight: expected a first size divisible by groups=2"):
        fs.conv_transpose_weight_to_subpixel(torch.zeros(3, 1, 3, 3), 2, groups=2)
    with pytest.raises(ValueError, match=r"weight: expected \[Ci, C/groups, K_h, K_w\]"):
        fs.conv_transpose_weight_to_subpixel(torch.zeros(3), 2)


@pytest.mark.full
def test_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints three equal results, draws both pictures."""
    for package in ("matplotlib", "skimage"):
        pytest.importorskip(package)
    path = Path(__file__).resolve().parents[2] / "examples" / "deconvolution_is_convolution.py"
    example = runpy.run_path(str(path))
    assert example["main"](["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert [line.split(": ")[1] for line in printed.splitlines() if "difference" in line] == ["0", "0", "0"]
    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes.keys() == {"deconvolution_is_convolution.png", "checkerboard.png"}
    assert min(sizes.values()) > 10_000


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("stride", [100, (1, 1000)])
def test_strides_far_larger_than_the_kernel(stride: Any, size: int) -> None:
    """Nearly all phases would have no tap, and their tables would take more memory than the output."""
    x, weight = torch.randint(-3, 4, (1, 3, size, size)).float(), torch.randint(-3, 4, (3, 2, 3, 3)).float()
    assert fs.conv_transpose2d(x, weight, stride=stride).equal(F.conv_transpose2d(x, weight, stride=stride))
    if size > 1:  # over a single pixel nothing strides
        assert "have no tap" in str(fs.explain(fs.conv_transpose2d, x, weight, stride=stride))
        with pytest.raises(ValueError, match="have no tap of a 3x3 kernel"):
            fs.conv_transpose2d(x, weight, stride=stride, backend="cpu")
