# SPDX-License-Identifier: BSD-3-Clause
"""Transcendental activations of the CPU kernels, value by value: a 1x1 kernel of one passes its input on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
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
}
# Of float32. The rounding of the product comes on top of the sigmoid's.
MOST_ULPS = {"sigmoid": 2.0, "tanh": 2.0, "silu": 3.0}


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
    nans |= (x == -torch.inf) & torch.tensor(activation in ("silu", "gelu"))
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
    most = MOST_ULPS[activation] if dtype == torch.float32 else 0.51
    if activation == "silu" and dtype == torch.float32:  # the sigmoid has lost digits where it is denormal
        lost = EXACT["sigmoid"](x.double()) < torch.finfo(dtype).tiny
        assert (distance[lost] <= x[lost].abs()).all()
        distance[lost] = 0
    worst = distance.argmax()
    assert distance[worst] <= most, f"{activation}({x[worst]}) = {found[worst]}, exactly {exact[worst]}"


@pytest.mark.parametrize("activation", EXACT)
def test_special_values(activation: str, dtype: torch.dtype, isa: int) -> None:
    """As PyTorch has them: NaN stays NaN, and a zero keeps its sign where the function is odd."""
    x = torch.tensor([torch.nan, -torch.inf, torch.inf, 0.0, 1.0, -1.0], dtype=dtype)
    function = torch.nn.functional.__dict__.get(activation) or getattr(torch, activation)
    torch.testing.assert_close(activated(x, activation, False), function(x), equal_nan=True)
