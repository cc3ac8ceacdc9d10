# SPDX-License-Identifier: BSD-3-Clause
"""How the surgery's tests replace a model's pixel shuffles and what they compare."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fused_subpixel as fs
from fused_subpixel.surgery import chain, timing

SHAPE = (2, 4, 10, 8)


def image(dtype: torch.dtype = torch.float64, layout: str = "contiguous") -> Tensor:
    x = torch.randn(SHAPE, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def replace(model: nn.Module, *arguments: Any, **options: Any) -> tuple[nn.Module, fs.Report]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return fs.replace_pixel_shuffle(model, *arguments, return_report=True, **options)


def accelerate(model: nn.Module, *arguments: Any, **options: Any) -> tuple[nn.Module, fs.Report]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return fs.accelerate(model, *arguments, progress=False, return_report=True, **options)


def saying(before: float, after: float) -> Any:
    """A comparison that runs both ways once, and says what they take."""

    def compare(first: Any, second: Any, seconds: float, devices: Any = ()) -> timing.Comparison:
        first(), second()
        return timing.Comparison(before, after)

    return compare


def outcomes(model: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, its gradients with respect to input and parameters, and the output without gradients."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    output = model(x)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad((output * weights).sum(), wanted, allow_unused=True)
    with torch.no_grad():
        plain = model(x)
    return [output.detach(), plain, *(g for g in gradients if g is not None)]


def types(model: nn.Module) -> list[type]:
    return [type(module) for module in model.modules()]


def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A list that gets an entry for each fused call that surgery makes from now on."""
    calls: list[Any] = []
    run, run_unshuffle_conv = chain.run, chain.run_unshuffle_conv
    monkeypatch.setattr(chain, "run", lambda *a: [run(*a), calls.append(a)][0])
    monkeypatch.setattr(chain, "run_unshuffle_conv", lambda *a: [run_unshuffle_conv(*a), calls.append(a)][0])
    return calls


def compare_in_all_modes(found: nn.Module, model: nn.Module, x: Tensor, *, knowable: bool = True) -> None:
    """To rounding, in all modes. Where the original has no gradient, none is asked.

    ``knowable``: whether tensors without a version do not hide that something was overwritten.
    """
    with torch.no_grad():
        torch.testing.assert_close(found(x.clone()), model(x.clone()), rtol=1e-9, atol=1e-11)
    with torch.inference_mode():
        try:
            torch.testing.assert_close(found(x.clone()), model(x.clone()), rtol=1e-9, atol=1e-11)
        except RuntimeError as error:
            assert not knowable and "changed in place" in str(error)
    try:
        expected = outcomes(model, x)
    except RuntimeError as error:
        assert any(text in str(error) for text in NO_GRADIENT)
        return
    torch.testing.assert_close(outcomes(found, x), expected, rtol=1e-9, atol=1e-11)


NO_GRADIENT = ("modified by an inplace operation", "out=... arguments", "does not require grad")
