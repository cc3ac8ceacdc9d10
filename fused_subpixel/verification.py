# SPDX-License-Identifier: BSD-3-Clause
"""A self-check of seconds: every backend that can run here against the reference in float64."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from . import reference
from .dispatch import backends
from .dispatch.checks import Backend
from .functional import subpixel_conv2d
from .ops.geometry import DTYPES
from .ops.layout import memory_format
from .ops.library import libraries


class Row(NamedTuple):
    """One comparison; errors are the largest absolute ones against float64."""

    backend: str
    case: str
    dtype: torch.dtype
    channels_last: bool
    error: float
    bound: float
    tf32: bool = False  # float32 whose operands tensor cores round to tf32

    @property
    def passed(self) -> bool:
        """Whether the error is within the bound; a NaN is not."""
        return self.error <= self.bound


class Unchecked(NamedTuple):
    """A compiled backend that cannot be checked here."""

    backend: str
    reason: str
    remedy: str
    expected: bool  # it was to run here: its library lies here or is installed, and so is its device

    def __str__(self) -> str:
        text = f"{self.backend:10} {'FAILED' if self.expected else 'not checked'}: {self.reason}"
        return f"{text}. {self.remedy}" if self.remedy else text


_WITH_KINKS = ("relu", "leaky_relu", "relu6", "hardswish", "hardsigmoid")


class Case(NamedTuple):
    """One problem. Sizes are uneven so that no two can be mixed up."""

    name: str
    input_shape: tuple[int, int, int, int]  # [N, Ci, H, W]
    weight_shape: tuple[int, int, int, int]  # [C*r_h*r_w, Ci/groups, k_h, k_w]
    options: dict[str, Any]

    @property
    def has_kink(self) -> bool:
        """Whether the epilogue's gradient jumps somewhere."""
        return self.options.get("activation") in _WITH_KINKS or "clamp" in self.options


TF32_EPS = 2.0**-10  # of operands that tensor cores round to ten bits

CASES = (
    Case("3x3", (2, 16, 17, 23), (12, 16, 3, 3), {"padding": 1}),
    Case("r=3 relu", (1, 16, 9, 33), (27, 16, 3, 3), {"upscale_factor": 3, "activation": "relu"}),
    Case("1x1 silu", (2, 24, 8, 19), (64, 24, 1, 1), {"activation": "silu"}),
    Case(
        "3x2 r=(2,1) dcr", (2, 8, 11, 13), (10, 8, 3, 2), {"upscale_factor": (2, 1), "channel_order": "dcr"}
    ),
    Case("5x5 groups gelu", (1, 8, 12, 15), (16, 4, 5, 5), {"groups": 2, "activation": "gelu"}),
    Case("2x3 hardswish", (1, 12, 9, 14), (16, 12, 2, 3), {"activation": "hardswish"}),
    Case("r=1 mish", (2, 16, 7, 18), (24, 16, 3, 3), {"upscale_factor": 1, "activation": "mish"}),
    Case("stride dilation", (1, 6, 21, 19), (8, 6, 3, 3), {"stride": (2, 1), "dilation": (1, 2)}),
    Case(
        "r=4 clamp", (1, 32, 10, 10), (48, 32, 3, 3), {"upscale_factor": 4, "padding": 1, "clamp": (-0.5, 1)}
    ),
)


def run() -> list[Row]:
    """Make all comparisons: output and gradients of every case, dtype, layout and backend."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for case, dtype, channels_last in itertools.product(CASES, DTYPES, (False, True)):
        tensors = _tensors(case, dtype, channels_last, generator)
        truth = _outcomes(reference.subpixel_conv2d, [t.double() for t in tensors.values()], case.options)
        for backend, device, tf32 in _runnable():
            # at a kink, what tf32 rounds away decides between all of a gradient and nothing
            if tf32 and (dtype != torch.float32 or case.has_kink):
                continue
            on_device = [tensor.to(device) for tensor in tensors.values()]
            with _tf32_allowed(tf32):
                plain = _outcomes(reference.subpixel_conv2d, on_device, case.options)
                with backends.use_backend(backend):
                    found = _outcomes(subpixel_conv2d, on_device, case.options)
            eps = TF32_EPS if tf32 else torch.finfo(dtype).eps
            rows += [
                Row(
                    backend, f"{case.name}, {name}", dtype, channels_last,
                    _distance(found[name], truth[name]),
                    _bound(name, case, dtype, eps, plain[name], truth[name]), tf32,
                )
                for name in truth
            ]  # fmt: skip
    return rows


def table(rows: list[Row]) -> str:
    """All rows as text."""
    lines = [f"{'backend':10} {'dtype':9} {'layout':14} {'case':32} {'max error':>10} {'bound':>10}"]
    lines += [f"{_kind(row)} {row.case:32} {_numbers(row)}" for row in rows]
    return "\n".join(lines)


def summary(rows: list[Row]) -> str:
    """A line for each backend, dtype and layout, with the row closest to its bound; then the wrong rows."""
    head = f"{'backend':10} {'dtype':9} {'layout':14} {'passed':>9}"
    lines = [f"{head}  {'closest to its bound':32} {'max error':>10} {'bound':>10}"]
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(_kind(row), []).append(row)
    for kind, of_kind in sorted(kinds.items(), key=lambda item: item[1][0].backend):
        closest = max(of_kind, key=lambda row: (not row.passed, row.error / row.bound if row.bound else 0.0))
        passed = f"{sum(row.passed for row in of_kind)} of {len(of_kind)}"
        lines.append(f"{kind} {passed:>9}  {closest.case:32} {_numbers(closest)}")
    wrong = [row for row in rows if not row.passed]
    return "\n".join([*lines, "", table(wrong)] if wrong else lines)


def _kind(row: Row) -> str:
    dtype = "tf32" if row.tf32 else str(row.dtype).removeprefix("torch.")
    return f"{row.backend:10} {dtype:9} {'channels_last' if row.channels_last else 'contiguous':14}"


def _numbers(row: Row) -> str:
    return f"{row.error:10.2e} {row.bound:10.2e}" + ("" if row.passed else "  FAILED")


def unchecked() -> list[Unchecked]:
    """The compiled backends that :func:`run` leaves out, because they cannot run here."""
    found = []
    for name, library in libraries.items():
        if library.problem is not None:
            found.append(Unchecked(name, library.problem, library.remedy, library.expected))
        elif name == "cuda" and not torch.cuda.is_available():
            found.append(Unchecked(name, "torch finds no CUDA GPU", "", False))
        elif (reason := backends.refusal(name, torch.device(name))) is not None:
            found.append(Unchecked(name, reason, "", True))
    return found


def _runnable() -> Iterator[tuple[Backend, torch.device, bool]]:
    """(backend, device, whether float32 may be tf32)."""
    left_out = {backend.backend for backend in unchecked()}
    for name in libraries:
        backend, device = cast(Backend, name), torch.device(name)
        if name not in left_out:
            yield backend, device, False
            if name == "cuda" and backends.has_tensor_cores(device):
                yield backend, device, True
    yield "reference", torch.device("cpu"), False


@contextlib.contextmanager
def _tf32_allowed(allowed: bool) -> Iterator[None]:
    """For convolutions on a GPU, whatever the user has set. PyTorch's default allows it."""
    conv = cast(Any, torch.backends.cudnn).conv  # torch's annotations lack it
    before = conv.fp32_precision
    conv.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        conv.fp32_precision = before


def _tensors(
    case: Case, dtype: torch.dtype, channels_last: bool, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random (input, weight, bias) that are exact in ``dtype``, scaled for outputs of about one."""
    fan_in = case.weight_shape[1] * case.weight_shape[2] * case.weight_shape[3]
    input = torch.randn(case.input_shape, generator=generator)
    weight = torch.randn(case.weight_shape, generator=generator) / fan_in**0.5
    bias = torch.randn(case.weight_shape[0], generator=generator)
    input = input.contiguous(memory_format=memory_format(channels_last))
    return {"input": input.to(dtype), "weight": weight.to(dtype), "bias": bias.to(dtype)}


def _outcomes(
    function: Callable[..., Tensor], tensors: list[Tensor], options: dict[str, Any]
) -> dict[str, Tensor]:
    """The output and the gradients of (input, weight, bias), all in float64 on the CPU."""
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*leaves, **options)
    # An uneven direction of small integers, the same in all dtypes.
    direction = torch.arange(output.numel(), device=output.device).mul(7).remainder(5).sub(2)
    gradients = torch.autograd.grad(output, leaves, direction.view(output.shape).to(output.dtype))
    names = ("output", "input gradient", "weight gradient", "bias gradient")
    return {n: t.detach().double().cpu() for n, t in zip(names, (output, *gradients), strict=True)}


def _distance(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).abs().max())


def _bound(name: str, case: Case, dtype: torch.dtype, eps: float, plain: Tensor, truth: Tensor) -> float:
    """Twice PyTorch's own error in the same dtype, plus the rounding of the result and of its sum.

    The sum's share, eps*sqrt(terms) in the type that is summed in, matters where PyTorch's error happens to
    be small: always in float64, against itself.
    """
    lr_channels, channels, kernel_h, kernel_w = case.weight_shape
    taps = kernel_h * kernel_w
    pixels = case.input_shape[0] * case.input_shape[2] * case.input_shape[3]
    terms = {"output": channels * taps, "input gradient": lr_channels * taps}.get(name, pixels)
    summed_in = torch.float64 if dtype == torch.float64 else torch.float32
    rounding = eps + torch.finfo(summed_in).eps * terms**0.5
    return 2 * _distance(plain, truth) + rounding * float(truth.abs().max())
