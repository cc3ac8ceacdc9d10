# SPDX-License-Identifier: BSD-3-Clause
"""What would run for a call, and why nothing faster: :func:`explain`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from . import backends, functional
from ._arguments import describe
from .autograd import recoverable


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to compute the call: whether it was taken into account and, in words, why or why not."""

    name: str
    accepted: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What runs for a call. ``print`` it."""

    backend: str  # "cuda", "cpu" or "reference"
    kernel: str
    candidates: tuple[Candidate, ...]  # fastest first
    forward: str
    input_gradient: str
    weight_gradient: str
    epilogue_gradient: str

    def __str__(self) -> str:
        lines = [f"backend {self.backend}, kernel {self.kernel}"]
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
    """Which kernel :func:`fused_subpixel.subpixel_conv2d` would run for these arguments, and why no faster one.

    Takes the same arguments and raises the same errors; nothing is computed.
    """
    if isinstance(input, Tensor) and input.dim() == 3:
        input = input.unsqueeze(0)
        residual = residual.unsqueeze(0) if residual is not None else None
    reference_reason = functional.why_only_reference(False, input, weight, bias, activation_weight, residual)
    requested = backend or backends.requested()
    call = functional.prepare(
        requested,
        describe(input), describe(weight), describe(bias), describe(activation_weight), describe(residual),
        upscale_factor, stride, padding, dilation, groups, activation, negative_slope, clamp, channel_order,
    )  # fmt: skip
    chosen = "reference" if reference_reason is not None else call.backend

    candidates = []
    for name in ("cuda", "cpu"):
        refusal = backends.refusal(name, call.problem.device, call.problem.dtype) or reference_reason
        if refusal is None and chosen == "reference":
            refusal = "the reference was asked for"
        candidates.append(Candidate(name, refusal is None, refusal or "runs"))
    candidates.append(Candidate("reference", True, "plain PyTorch, runs everything"))

    if chosen == "reference":
        plain = "PyTorch's convolution, then a shuffle"
        return Explanation(
            chosen,
            "PyTorch",
            tuple(candidates),
            plain,
            "PyTorch's autograd",
            "PyTorch's autograd",
            "PyTorch's autograd",
        )
    kernel, kernel_candidates = _kernels(call)
    gradients = [
        f"fused_subpixel, {chosen}" if ours else "PyTorch's convolution backward on the unshuffled gradient"
        for ours in call.plan
    ]
    if recoverable(call.problem.epilogue, residual is not None):
        epilogue_gradient = "read from the output, nothing else is stored"
    else:
        epilogue_gradient = "in training the pre-activation is stored and the epilogue runs as plain PyTorch"
    return Explanation(
        chosen,
        kernel,
        (*kernel_candidates, *candidates),
        f"fused_subpixel, {chosen}",
        *gradients,
        epilogue_gradient,
    )


def _kernels(call: functional.Call) -> tuple[str, list[Candidate]]:
    """The kernel a compiled library takes for a call, and what its plan says about the candidates."""
    return f"{call.backend} library", []
