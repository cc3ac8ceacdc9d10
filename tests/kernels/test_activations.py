# SPDX-License-Identifier: BSD-3-Clause
"""Activations of the CPU kernels, but for rectifiers, value by value: a 1x1 kernel of one passes input on."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from conftest import needs_cpu_library
from torch import Tensor

import fused_subpixel as fs

pytestmark = needs_cpu_library

# In float64, without cancellation.
EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda x: torch.where(x < 0, x.exp(), torch.ones_like(x)) / (1 + (-x.abs()).exp()),
    "tanh": torch.tanh,
    "silu": lambda x: x * EXACT["sigmoid"](x),
    "gelu": lambda x: 0.5 * x * torch.special.erfc(-x * 0.5**0.5),
    "relu6": lambda x: x.clamp(0, 6),
    "hardswish": lambda x: x * ((x + 3).clamp(0, 6) / 6),
    "hardsigmoid": lambda x: (x + 3).clamp(0, 6) / 6,
    "gelu_tanh": lambda x: x * EXACT["sigmoid"](2 * argument_of_tanh(x)),
    "elu": lambda x: torch.where(x > 0, x, x.clamp_max(0).expm1()),
    "mish": lambda x: x * tanh_of_softplus(x),
    "softplus": lambda x: x.clamp_min(0) + (-x.abs()).exp().log1p(),
}
# Of float32. The rounding of a product comes on top of the sigmoid's.
MOST_ULPS = {
    "sigmoid": 2.0, "tanh": 2.0, "silu": 3.0, "relu6": 0.0, "hardswish": 2.5, "hardsigmoid": 1.5,
    "gelu_tanh": 3.0, "elu": 1.0, "mish": 3.1, "softplus": 2.2,
}  # fmt: skip


def argument_of_tanh(x: Tensor) -> Tensor:
    """In the approximation of gelu."""
    return math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)


def tanh_of_softplus(x: Tensor) -> Tensor:
    e = (-x.abs()).exp()
    return torch.where(x < 0, e * (e + 2) / (e * (e + 2) + 2), (1 + 2 * e) / (1 + 2 * e + 2 * e**2))


def activated(x: Tensor, activation: str, channels_last: bool) -> Tensor:
    """Of each value of a vector; by way of an image, both of whose layouts have a store of their own."""
    channels = 16 if channels_last else 1
    image = torch.nn.functional.pad(x, (0, -x.numel() % (64 * channels)))
    image = (
        image.view(1, channels, -1, 64)
        if channels == 1
        else image.view(1, -1, 64, channels).permute(0, 3, 1, 2)
    )
    weight = torch.eye(channels, dtype=x.dtype).view(channels, channels, 1, 1)
    output = fs.subpixel_conv2d(image, weight, None, 1, activation=activation, backend="cpu")
    return (
        output.permute(0, 2, 3, 1).flatten()[: x.numel()] if channels > 1 else output.flatten()[: x.numel()]
    )


def ulps(found: Tensor, exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Distances in units of the last place of ``dtype``, at the exact value."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(exact).exponent
    unit = torch.ldexp(torch.full_like(exact, info.eps / 2), exponent)
    smallest = info.tiny * info.eps  # between denormals
    return (found.double() - exact).abs() / unit.clamp_min(smallest)


def all_of(dtype: torch.dtype) -> Tensor:
    """Every value of a half type but NaN; of float32 one in 4093, which all binades have thousands of."""
    if dtype == torch.float32:
        x = torch.arange(-(2**31), 2**31, 4093, dtype=torch.int64).to(torch.int32).view(dtype)
    else:
        x = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    return x[~torch.isnan(x)]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", EXACT)
def test_values(activation: str, channels_last: bool, dtype: torch.dtype, isa: int) -> None:
    if dtype == torch.float64:
        pytest.skip("by libm")
    x = all_of(dtype)
    if channels_last:  # a sum over channels makes NaN of an infinity times zero
        x = x[torch.isfinite(x)]
    found, exact = activated(x, activation, channels_last), EXACT[activation](x.double())
    assert found.dtype == dtype
    nans = torch.isnan(exact)  # of minus infinity, as PyTorch has it
    nans |= (x == -torch.inf) & torch.tensor(activation in ("silu", "gelu", "gelu_tanh", "mish"))
    assert torch.isnan(found[nans]).all() and not torch.isnan(found[~nans]).any()
    found, exact, x = found[~nans], exact[~nans], x[~nans]
    if activation == "gelu":  # 1 + erf loses digits where it is small, as PyTorch's does
        bound = 4 * torch.finfo(torch.float32).eps * x.double().abs() + torch.finfo(dtype).tiny
        bound += 0.51 * torch.finfo(dtype).eps * exact.abs()
        finite = torch.isfinite(x)
        assert ((found.double() - exact).abs() <= bound)[finite].all()
        return
    distance = ulps(found, exact.to(dtype).double().where(torch.isinf(exact), exact), dtype)
    distance[found.double() == exact] = 0
    most = torch.full_like(exact, MOST_ULPS[activation] if dtype == torch.float32 else 0.51)
    if dtype == torch.float32:
        x = x.double()
        if activation == "gelu_tanh":  # the argument's rounding counts, where PyTorch's own sum cancels
            most[x < 0] *= 1 + 2 * argument_of_tanh(x[x < 0]).abs()
        if activation in ("silu", "gelu_tanh", "mish"):  # a factor has lost digits where it is denormal
            lost = exact.abs() < torch.finfo(dtype).tiny * x.abs()
            most[lost] = most[lost].maximum(x[lost].abs())
    worst = (distance - most).argmax()
    assert distance[worst] <= most[worst], f"{activation}({x[worst]}) = {found[worst]}, not {exact[worst]}"


@pytest.mark.parametrize("activation", [name for name in EXACT if name != "gelu"])  # which 1 + erf limits
def test_float64_keeps_its_digits(activation: str, isa: int) -> None:
    x = torch.linspace(-40, 40, 20011, dtype=torch.float64)
    x = torch.cat([x, x.abs().log2().exp2().neg() * 1e-9])
    found, exact = activated(x, activation, False), EXACT[activation](x)
    if activation == "softplus":  # PyTorch's threshold
        exact = torch.where(x > 20, x, exact)
    condition = 1 + 2 * argument_of_tanh(x).abs() if activation == "gelu_tanh" else torch.ones_like(x)
    assert ((found - exact).abs() <= 1e-15 * condition * exact.abs() + 1e-305).all()


@pytest.mark.parametrize("activation", EXACT)
def test_special_values(activation: str, dtype: torch.dtype, isa: int) -> None:
    """As PyTorch has them in float64: NaN stays NaN, and what underflows keeps its sign.

    In float32, PyTorch's gelu of infinity is NaN on some processors.
    """
    x = torch.tensor(
        [torch.nan, -torch.inf, torch.inf, 0.0, 1.0, -1.0, -200.0, 200.0, torch.finfo(dtype).min], dtype=dtype
    )
    functions = {"gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "tanh": torch.tanh}
    function = functions.get(activation) or getattr(F, activation)
    found = activated(x, activation, False)
    exact = function(x.double())
    torch.testing.assert_close(found, exact.to(dtype), equal_nan=True)
    assert found.signbit().equal(exact.signbit().where(~exact.isnan(), found.signbit()))
