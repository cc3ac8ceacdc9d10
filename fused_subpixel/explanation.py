# SPDX-License-Identifier: BSD-3-Clause
"""What would run for a call, and why nothing faster: :func:`explain`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import functional, functional_1d, functional_3d
from .dispatch import backends, choose
from .dispatch.backward import estimate, estimates_decide, lacks_taps
from .dispatch.call import Call
from .dispatch.checks import Backend, check_dense, describe
from .dispatch.resolve import resolve_conv_transpose2d, resolve_subpixel_conv2d
from .dispatch.resolve_1d import resolve_conv_transpose1d, resolve_subpixel_conv1d
from .dispatch.tensors import plain_tensors, why_only_reference
from .ops.geometry import KERNEL_DTYPES, Problem
from .ops.layout import is_channels_last
from .ops.library import operators


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

    backend: Backend
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


def explain(function: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Explanation:
    """Tell which kernel a call would run, forward and backward, and why nothing faster.

    Args:
        function: :func:`fused_subpixel.subpixel_conv2d`, :func:`fused_subpixel.conv_transpose2d` or one of
            their counterparts of one or three dimensions. A signal is explained as an image of one row, a
            volume as a batch of its slices.
        args: the arguments of the call.
        kwargs: the same, by name.

    Returns:
        The backends with reasons, and the kernel of each direction. Nothing is computed.

    Raises:
        TypeError: ``function`` is another one, or as the call would raise.
        ValueError: as the call would raise.

    >>> print(explain(subpixel_conv2d, x, weight, upscale_factor=2))
    """
    resolve = _RESOLVERS.get(function)
    if resolve is None and function is not functional_3d.conv_transpose3d:
        known = " or ".join(
            f"fused_subpixel.{known.__name__}" for known in (*_RESOLVERS, functional_3d.conv_transpose3d)
        )
        got = getattr(function, "__qualname__", None) or f"a {type(function).__name__}"
        raise TypeError(f"function: expected {known}, got {got}")
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    if resolve is None:
        return _explain_volumes(**given)
    tensors = tuple(given[name] for name in ("input", "weight", "bias", "activation_weight", "residual"))
    if resolve in (resolve_subpixel_conv1d, resolve_conv_transpose1d):
        tensors = functional_1d.as_rows(*tensors)
    options = (given[name] for name in functional.OPTION_NAMES[resolve])
    return _explain(resolve, *tensors, given["backend"], *options)


_RESOLVERS: dict[Any, Callable[..., Problem]] = {
    functional.subpixel_conv2d: resolve_subpixel_conv2d,
    functional.conv_transpose2d: resolve_conv_transpose2d,
    functional_1d.subpixel_conv1d: resolve_subpixel_conv1d,
    functional_1d.conv_transpose1d: resolve_conv_transpose1d,
}


def _explain_volumes(
    input: Tensor, weight: Tensor, bias: Tensor | None, backend: Backend | None, **options: Any
) -> Explanation:
    input, weight, bias, *_ = plain_tensors(input, weight, bias, None, None)
    check_dense(input, weight, bias, None, None)
    if input.dim() == 4:
        input = input.unsqueeze(0)
    volumes = functional_3d.prepare(input, weight, bias, tuple(options.values()))
    requested = backend or backends.requested()
    reason = functional_3d.why_pytorch(input, weight, volumes, requested)
    if reason is None:
        images = functional_3d.as_images(input, weight, bias)
        return _explain(
            resolve_conv_transpose2d, *images, None, None, requested, *functional_3d.image_options(volumes),
            None, 0.01, None,
        )  # fmt: skip
    candidates = [
        Candidate(name, False, backends.refusal(name, input.device) or reason) for name in ("cuda", "cpu")
    ]
    candidates.append(Candidate("reference", True, "plain PyTorch, runs everything"))
    plain = "PyTorch's autograd"
    return Explanation("reference", tuple(candidates), "PyTorch's conv_transpose3d", plain, plain, plain)


def _explain(
    resolve: Callable[..., Problem],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    backend: Backend | None,
    *options: Any,
) -> Explanation:
    tensors = plain_tensors(input, weight, bias, activation_weight, residual)
    check_dense(*tensors)
    only_reference = why_only_reference(False, *tensors)
    input, weight, bias, activation_weight, residual = tensors
    if input.dim() == 3:
        input = input.unsqueeze(0)
        residual = None if residual is None else residual.unsqueeze(0)
    call = choose.prepare(
        backend or backends.requested(),
        backends.allows_tf32(input.is_cuda),
        resolve,
        (input.shape, input.dtype, input.device), (weight.shape, weight.dtype, weight.device),
        describe(bias), describe(activation_weight), describe(residual), *options,
    )  # fmt: skip
    chosen = "reference" if only_reference else call.backend

    candidates = []
    for name in ("cuda", "cpu"):
        reason = backends.refusal(name, call.problem.device) or only_reference
        reason = reason or choose.why_no_kernel(call.problem)
        if reason is None and chosen == "reference":
            asked = (backend or backends.requested()) == "reference"
            slower = None if asked else choose.why_pytorch_is_faster(call.problem)
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
    estimates = _estimates(call)
    return Explanation(
        chosen,
        tuple(candidates),
        forward=kernels[0],
        input_gradient=(kernels[1] if call.plan.input_grad else elsewhere) + estimates[0],
        weight_gradient=(kernels[2] if call.plan.weight_grad else elsewhere) + estimates[1],
        epilogue_gradient=_epilogue_gradient(call, residual is not None),
    )


def _estimates(call: Call) -> tuple[str, str]:
    """Of the gradients of input and weight, in words; empty where no estimates decide."""
    problem = call.problem
    if call.backend != "cpu" or not estimates_decide(problem.geometry, problem.input_shape, problem.dtype):
        return "", ""
    ours, pytorchs = estimate(
        problem.geometry, tuple(problem.input_shape), tuple(problem.weight_shape), problem.dtype,
        problem.transposed is not None,
    )  # fmt: skip

    def words(our: float, their: float) -> str:
        return f" (all told, ours {our:.2g} cycles; PyTorch's convolution backward {their:.2g})"

    by_taps = problem.transposed is not None and lacks_taps(problem.geometry)
    return (
        ", which multiplies no zeros in place of missing taps"
        if by_taps
        else words(ours.input_grad, pytorchs.input_grad + pytorchs.once),
        words(ours.weight_grad, pytorchs.weight_grad + pytorchs.once),
    )


def _epilogue_gradient(call: Call, has_residual: bool) -> str:
    epilogue, plan = call.problem.epilogue, call.plan
    if not epilogue.has_grad_from_output(has_residual):
        return "in training the pre-activation is stored, and the epilogue runs as plain PyTorch"
    read = "read from the output, nothing else is stored"
    if epilogue.activation == 0:
        return read
    if plan.input_grad and plan.weight_grad:
        return f"{read}; applied by the kernels of both gradients as they load that of the output"
    return f"{read}; applied by PyTorch first"


def _kernels(call: Call, channels_last: bool) -> list[str]:
    """The kernels of a compiled library for (forward, input gradient, weight gradient)."""
    problem = call.problem
    lr_channels, _, kernel_h, kernel_w = problem.weight_shape
    native = problem.transposed is not None and problem.geometry.groups == 1
    layout = channels_last + 2 * native  # see op_calls.h
    described = []
    for direction in range(3):
        numbers = [
            direction, KERNEL_DTYPES.index(problem.dtype), layout, *problem.input_shape,
            lr_channels, kernel_h, kernel_w, *problem.geometry,
        ]  # fmt: skip
        described.append(
            _cuda_kernel(call, numbers) if call.backend == "cuda" else _cpu_kernel(call, numbers)
        )
    return described


def _cpu_kernel(call: Call, problem: list[int]) -> str:
    geometry = call.problem.geometry
    if problem[0] > 0 and (geometry.stride_h, geometry.stride_w) != (1, 1):
        return ""  # the gradients' kernels know stride 1 only
    _, words = operators._cpu_plan(problem)
    return f"cpu library, {words}"


def _cuda_kernel(call: Call, problem: list[int]) -> str:
    target = operators._cuda_capability(call.problem.device.index or 0)[2:5]
    activated = problem[0] > 0 and call.problem.epilogue.activation != 0 and all(call.plan)
    _, words = operators._cuda_plan(problem, target, activated)
    return str(words)
