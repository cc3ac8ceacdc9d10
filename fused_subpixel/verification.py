# SPDX-License-Identifier: BSD-3-Clause
"""A self-check of seconds: every backend that can run here against the reference in float64."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import backends, reference
from ._arguments import DTYPES
from .functional import subpixel_conv2d


class Row(NamedTuple):
    """One comparison; errors are the largest absolute ones against float64."""

    backend: str
    case: str
    dtype: torch.dtype
    channels_last: bool
    error: float
    bound: float

    @property
    def passed(self) -> bool:
        return self.error <= self.bound  # False for NaN


# name, [N, Ci, H, W], [C*r_h*r_w, Ci/groups, k_h, k_w], options. Sizes are uneven so that no two can be mixed up.
_CASES: tuple[tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]], ...] = (
    ("3x3 r=2", (2, 16, 17, 23), (12, 16, 3, 3), {"padding": 1}),
    ("3x3 r=3 relu", (1, 16, 9, 33), (27, 16, 3, 3), {"upscale_factor": 3, "padding": 1, "activation": "relu"}),
    ("1x1 r=2 silu", (2, 24, 8, 19), (64, 24, 1, 1), {"activation": "silu"}),
    ("3x2 r=(2,1) dcr", (2, 8, 11, 13), (10, 8, 3, 2), {"upscale_factor": (2, 1), "channel_order": "dcr"}),
    ("5x5 groups gelu", (1, 8, 12, 15), (16, 4, 5, 5), {"padding": 2, "groups": 2, "activation": "gelu"}),
    ("3x3 stride dilation", (1, 6, 21, 19), (8, 6, 3, 3), {"stride": (2, 1), "dilation": (1, 2), "padding": "valid"}),
    ("3x3 r=4 clamp", (1, 32, 10, 10), (48, 32, 3, 3), {"upscale_factor": 4, "padding": 1, "clamp": (-0.5, 1.0)}),
)  # fmt: skip


def _runnable() -> Iterator[tuple[str, torch.device]]:
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        if name == "cuda" and not torch.cuda.is_available():
            continue
        if backends.refusal(name, device, torch.float32) is None:
            yield name, device
    yield "reference", torch.device("cpu")


def _outcomes(function: Any, tensors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    """The output and the gradients of (input, weight, bias), all in float64 on the CPU."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves, **options)
    # A fixed, uneven direction; zero somewhere, and the same in all dtypes.
    direction = (
        (torch.arange(output.numel(), device=output.device) % 5 - 2).view(output.shape).to(output.dtype)
    )
    gradients = torch.autograd.grad(output, leaves, direction)
    return [tensor.detach().double().cpu() for tensor in (output, *gradients)]


def run() -> list[Row]:
    """All comparisons. Allowed is twice the error of PyTorch in the same dtype, plus a rounding of the result."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for (name, shape, weight_shape, options), dtype, channels_last in itertools.product(
        _CASES, DTYPES, (False, True)
    ):
        fan_in = weight_shape[1] * weight_shape[2] * weight_shape[3]
        tensors = [
            torch.randn(shape, generator=generator, dtype=torch.float64),
            torch.randn(weight_shape, generator=generator, dtype=torch.float64) / fan_in**0.5,
            torch.randn(weight_shape[0], generator=generator, dtype=torch.float64),
        ]
        layout = torch.channels_last if channels_last else torch.contiguous_format
        for backend, device in _runnable():
            rounded = [tensor.to(device, dtype) for tensor in tensors]
            rounded[0] = rounded[0].contiguous(memory_format=layout)
            truth = _outcomes(
                reference.subpixel_conv2d, [tensor.double().cpu() for tensor in rounded], options
            )
            plain = _outcomes(reference.subpixel_conv2d, rounded, options)
            with backends.use_backend(backend):
                found = _outcomes(subpixel_conv2d, rounded, options)
            for what, true, other, ours in zip(
                ("output", "input gradient", "weight gradient", "bias gradient"),
                truth,
                plain,
                found,
                strict=True,
            ):
                scale = float(true.abs().max())
                bound = 2 * float((other - true).abs().max()) + torch.finfo(dtype).eps * scale
                error = float((ours - true).abs().max())
                rows.append(Row(backend, f"{name}, {what}", dtype, channels_last, error, bound))
    return rows


def table(rows: list[Row]) -> str:
    """The worst row of every case and backend, and all failures, as text."""
    lines = [f"{'backend':10} {'case':36} {'dtype':9} {'layout':14} {'max error':>10} {'bound':>10}"]
    for row in rows:
        verdict = "" if row.passed else "  FAILED"
        layout = "channels_last" if row.channels_last else "contiguous"
        dtype = str(row.dtype).removeprefix("torch.")
        lines.append(
            f"{row.backend:10} {row.case:36} {dtype:9} {layout:14} {row.error:10.2e} {row.bound:10.2e}{verdict}"
        )
    return "\n".join(lines)
