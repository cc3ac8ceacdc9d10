# SPDX-License-Identifier: BSD-3-Clause
"""What would run for a call, and why nothing faster: :func:`explain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from . import backends, functional
from ._arguments import Problem, check_dense, describe, resolve, resolve_transposed
from ._layout import is_channels_last
from .autograd import recoverable


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute a call: whether it is possible and, in words, why or why not."""

    name: str
    accepted: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What runs for a call, best printed.

    Attributes:
        backend: ``"cuda"``, ``"cpu"`` or ``"reference"``.
        candidates: all backends, the preferred ones first.
        forward, input_gradient, weight_gradient, epilogue_gradient: who computes what, with which kernel.
    """

    backend: str
    candidates: tuple[Candidate, ...]
    forward: str
    input_gradient: str
    weight_gradient: str
    epilogue_gradient: str

    def __str__(self) -> str:
        lines = [f"backend {self.backend}"]
        lines += [f"  {'yes' if c.accepted else 'no ':3} {c.name}: {c.reason}" for c in self.candidates]
        for field in ("forward", "input_gradient", "weight_gradient", "epilogue_gradient"):
            lines.append(f"{field.replace('_', ' ')}: {getattr(self, field)}")
        return "\n".join(lines)


def explain(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    upscale_factor: int | Sequence[int] = 2,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: str | None = None,
    negative_slope: float = 0.01,
    activation_weight: Tensor | None = None,
    residual: Tensor | None = None,
    clamp: Sequence[float | None] | None = None,
    channel_order: str = "crd",
    backend: str | None = None,
) -> Explanation:
    """Tell which kernel :func:`fused_subpixel.subpixel_conv2d` would run for these arguments, and why.

    Takes the same arguments and raises the same errors; nothing is computed.
    """
    return _explain(
        resolve, input, weight, bias, activation_weight, residual, backend,
        upscale_factor, stride, padding, dilation, groups, activation, negative_slope, clamp, channel_order,
    )  # fmt: skip


def explain_conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    activation: str | None = None,
    negative_slope: float = 0.01,
    activation_weight: Tensor | None = None,
    residual: Tensor | None = None,
    clamp: Sequence[float | None] | None = None,
    backend: str | None = None,
) -> Explanation:
    """Tell which kernel :func:`fused_subpixel.conv_transpose2d` would run for these arguments, and why.

    Takes the same arguments and raises the same errors; nothing is computed.
    """
    return _explain(
        resolve_transposed, input, weight, bias, activation_weight, residual, backend,
        stride, padding, output_padding, groups, dilation, activation, negative_slope, clamp,
    )  # fmt: skip


def _explain(
    resolve: Callable[..., Problem],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    backend: str | None,
    *options: Any,
) -> Explanation:
    tensors = functional.plain_tensors(input, weight, bias, activation_weight, residual)
    check_dense(*tensors)
    only_reference = functional.why_only_reference(False, *tensors)
    input, weight, bias, activation_weight, residual = tensors
    if input.dim() == 3:
        input = input.unsqueeze(0)
        residual = None if residual is None else residual.unsqueeze(0)
    call = functional.prepare(
        backend or backends.requested(),
        input.is_cuda and backends.allows_tf32(),
        resolve,
        (input.shape, input.dtype, input.device), (weight.shape, weight.dtype, weight.device),
        describe(bias), describe(activation_weight), describe(residual), *options,
    )  # fmt: skip
    chosen = "reference" if only_reference else call.backend

    candidates = []
    for name in ("cuda", "cpu"):
        reason = backends.refusal(name, call.problem.device, call.problem.dtype) or only_reference
        reason = reason or functional.why_no_kernel(call.problem)
        if reason is None and chosen == "reference":
            asked = (backend or backends.requested()) == "reference"
            slower = None if asked else functional.why_pytorch_is_faster(call.problem)
            reason = (
                "the reference was asked for" if slower is None else f"slower than PyTorch here: {slower}"
            )
        candidates.append(Candidate(name, reason is None, reason or "runs"))
    candidates.append(Candidate("reference", True, "plain PyTorch, runs everything"))

    transposed = call.problem.transposed is not None
    if chosen == "reference":
        plain = "PyTorch's autograd"
        forward = "PyTorch's conv_transpose2d" if transposed else "PyTorch's convolution, then a shuffle"
        return Explanation(chosen, tuple(candidates), forward, plain, plain, plain)
    elsewhere = "PyTorch's convolution backward, on the unshuffled gradient"
    if transposed:
        elsewhere = "PyTorch's backward of a transposed convolution"
    kernels = _kernels(call, is_channels_last(input))
    return Explanation(
        chosen,
        tuple(candidates),
        forward=kernels[0],
        input_gradient=kernels[1] if call.plan.input_grad else elsewhere,
        weight_gradient=kernels[2] if call.plan.weight_grad else elsewhere,
        epilogue_gradient=_epilogue_gradient(call, residual is not None),
    )


# As the enumerations in csrc: DType of common/scalar.h and ConvKernel of cpu/plan.h.
_PLAN_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_CPU_KERNELS = (
    "pixels in the vector lanes",
    "output channels in the vector lanes",
    "Winograd F(2x2, 3x3), tiles in the vector lanes",
)


# As enum Refusal of csrc/cuda/plan.h: why the tensor cores do not compute a problem.
_CUDA_REFUSALS = (
    "",
    "the tensor-core kernels need compute capability 8.0",
    "float64 is summed in float64, which the tensor-core kernels cannot",
    "float32 is exact: torch.backends.cudnn.conv.fp32_precision does not allow tf32",
    "the tensor-core kernels know one group only",
    "more channels, or a larger filter, than the tensor-core kernels count",
    "what one tile reads does not fit into shared memory",
    "the input gradient of a strided convolution is no convolution of the gradient",
)


def _epilogue_gradient(call: functional.Call, has_residual: bool) -> str:
    epilogue, plan = call.problem.epilogue, call.plan
    if not recoverable(epilogue, has_residual):
        return "in training the pre-activation is stored, and the epilogue runs as plain PyTorch"
    read = "read from the output, nothing else is stored"
    if epilogue.activation == 0:
        return read
    if plan.input_grad and plan.weight_grad:
        return f"{read}; applied by the kernels of both gradients as they load that of the output"
    return f"{read}; applied by PyTorch first"


def _kernels(call: functional.Call, channels_last: bool) -> list[str]:
    """The kernels of a compiled library for (forward, input gradient, weight gradient), in words."""
    problem = call.problem
    low_channels, _, kernel_h, kernel_w = problem.weight_shape
    described = []
    for direction in range(3):
        numbers = [
            direction, _PLAN_DTYPES.index(problem.dtype), channels_last, *problem.input_shape,
            low_channels, kernel_h, kernel_w, *problem.geometry,
        ]  # fmt: skip
        described.append(
            _cuda_kernel(call, numbers) if call.backend == "cuda" else _cpu_kernel(call, numbers)
        )
    return described


def _cpu_kernel(call: functional.Call, problem: list[int]) -> str:
    geometry = call.problem.geometry
    if problem[0] > 0 and (geometry.stride_h, geometry.stride_w) != (1, 1):
        return ""  # the gradients' kernels know stride 1 only
    kernel, rows, pixels, _, block_n, block_h, block_w, *_, items, _, parallel = (
        torch.ops.fused_subpixel.cpu_plan(problem)
    )
    return (
        f"cpu library, {_CPU_KERNELS[kernel]}, tile of {rows} x {pixels}, "
        f"{items} blocks of {block_n} x {block_h} x {block_w} pixels"
        + ("" if parallel else ", on one thread")
    )


def _cuda_kernel(call: functional.Call, problem: list[int]) -> str:
    target = torch.ops.fused_subpixel.cuda_capability(call.problem.device.index or 0)[2:5]
    activated = problem[0] > 0 and call.problem.epilogue.activation != 0 and all(call.plan)
    kernel, refusal, pixels, rows, blocks = torch.ops.fused_subpixel.cuda_plan(problem, target, activated)
    if kernel == 0:
        return f"cuda library, one thread per result: {_CUDA_REFUSALS[refusal]}"
    cores = "Hopper's tensor cores (wgmma)" if kernel == 2 else "tensor cores"
    return f"cuda library, {cores}, {blocks} blocks, tiles of {pixels} pixels x {rows} rows of weight"
