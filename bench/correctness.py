# SPDX-License-Identifier: BSD-3-Clause
"""The gate before the clock: nobody is timed who computes something else.

The truth is computed here, in float64, tap by tap as matrix products: independent of every contender, and
without the gigabytes of a float64 conv2d.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from .peers import Peer, Prepared
from .workloads import Operands, Transposed, Workload, memory_format


class WrongNumbers(Exception):
    """A contender is not within the bound, or not in its layout."""


def true_outcomes(workload: Workload, operands: Operands, backward: bool) -> dict[str, Tensor]:
    """The output and, if asked for, the gradients of input, weight and bias, in float64."""
    if isinstance(workload, Transposed):
        return _true_transposed(workload, operands, backward)
    n, _, h, w = workload.input_shape
    c, r, kernel = workload.c, workload.r, workload.kernel
    before = (kernel - 1) // 2
    after = kernel - 1 - before
    sides = (before, after, before, after)
    image = F.pad(operands.input.double(), sides)  # [N, Ci, H + k - 1, W + k - 1]
    weight = operands.weight.double()
    taps = [(a, b) for a in range(kernel) for b in range(kernel)]

    def seen_by(a: int, b: int, image: Tensor = image) -> Tensor:
        """What a tap sees of a padded image, [N, Ci, H, W]."""
        return image[:, :, a : a + h, b : b + w]

    low = image.new_zeros(n, c * r * r, h * w)  # before the shuffle
    if operands.bias is not None:
        low += operands.bias.double()[:, None]
    for a, b in taps:
        low += weight[:, :, a, b] @ seen_by(a, b).flatten(2)
    output = low.view(n, c, r, r, h, w).permute(0, 1, 4, 2, 5, 3).reshape(workload.output_shape)
    outcomes = {"output": output.relu() if workload.activation == "relu" else output}
    if not backward:
        return outcomes

    gradient = operands.gradient.double()
    if workload.activation == "relu":
        gradient = gradient * (output > 0)
    low_gradient = gradient.view(n, c, h, r, w, r).permute(0, 1, 3, 5, 2, 4).reshape(n, c * r * r, h * w)
    image_gradient = torch.zeros_like(image)
    weight_gradient = torch.empty_like(weight)
    for a, b in taps:
        weight_gradient[:, :, a, b] = (low_gradient @ seen_by(a, b).flatten(2).transpose(1, 2)).sum(0)
        seen_by(a, b, image_gradient).add_((weight[:, :, a, b].t() @ low_gradient).view(n, -1, h, w))
    outcomes["input gradient"] = seen_by(before, before, image_gradient)
    outcomes["weight gradient"] = weight_gradient
    if operands.bias is not None:
        outcomes["bias gradient"] = low_gradient.sum((0, 2))
    return outcomes


def _true_transposed(workload: Transposed, operands: Operands, backward: bool) -> dict[str, Tensor]:
    """The same of a transposed convolution: every tap adds its multiple of the input to every r-th pixel."""
    n, ci, h, w = workload.input_shape
    c, r, kernel, cut = workload.c, workload.r, workload.kernel, workload.cut
    image, weight = operands.input.double().flatten(2), operands.weight.double()
    canvas = image.new_zeros(n, c, (h - 1) * r + kernel, (w - 1) * r + kernel)
    inner = (..., slice(cut, canvas.shape[2] - cut), slice(cut, canvas.shape[3] - cut))
    taps = [(a, b) for a in range(kernel) for b in range(kernel)]

    def reached_by(a: int, b: int) -> Tensor:
        """What a tap reaches of the uncut output, [N, C, H, W]."""
        return canvas[:, :, a : a + (h - 1) * r + 1 : r, b : b + (w - 1) * r + 1 : r]

    for a, b in taps:
        reached_by(a, b).add_((weight[:, :, a, b].t() @ image).view(n, c, h, w))
    if operands.bias is not None:
        canvas += operands.bias.double()[:, None, None]
    outcomes = {"output": canvas[inner].clone()}
    if not backward:
        return outcomes

    canvas.zero_()[inner] = operands.gradient.double()
    image_gradient, weight_gradient = torch.zeros_like(image), torch.empty_like(weight)
    for a, b in taps:
        gradient = reached_by(a, b).flatten(2)
        image_gradient += weight[:, :, a, b] @ gradient
        weight_gradient[:, :, a, b] = (image @ gradient.transpose(1, 2)).sum(0)
    outcomes["input gradient"] = image_gradient.view(n, ci, h, w)
    outcomes["weight gradient"] = weight_gradient
    if operands.bias is not None:
        outcomes["bias gradient"] = canvas.sum((0, 2, 3))
    return outcomes


TF32_EPS = 2.0**-10  # what the tensor cores keep of a float32 operand


def eps_of(dtype: torch.dtype, tf32: bool) -> float:
    """Relative distance of neighbouring numbers."""
    return TF32_EPS if tf32 else torch.finfo(dtype).eps


def avoid_kink(workload: Workload, operands: Operands, tf32: bool = False) -> Operands:
    """With relu, no gradient where the output is next to zero: there rounding decides between 0 and all."""
    if workload.activation != "relu":
        return operands
    linear = dataclasses.replace(workload, activation=None)
    before = true_outcomes(linear, operands, backward=False)["output"]
    near = before.abs() < eps_of(operands.input.dtype, tf32) ** 0.5
    return operands._replace(gradient=operands.gradient.masked_fill(near, 0))


def check(
    workload: Workload,
    operands: Operands,
    contenders: Mapping[Peer, Prepared],
    backward: bool,
    tf32: bool = False,
) -> dict[Peer, str]:
    """Raise WrongNumbers unless ours and eager PyTorch are as accurate as PyTorch, up to a factor of two.

    What is wrong with further contenders, which raise or return something else, is returned: these are left
    out. One that computes other numbers by nature need only return the right shape.
    """
    truth = true_outcomes(workload, operands, backward)
    yardstick = next(peer for peer in contenders if not (peer.fused or peer.group))
    plain = _errors(workload, yardstick, contenders[yardstick], truth, backward)
    eps, problems = eps_of(operands.input.dtype, tf32), {}
    for peer, prepared in contenders.items():
        try:
            own = _as_of(workload, prepared, truth)
            errors = plain if peer is yardstick else _errors(workload, peer, prepared, own, backward)
            for name, error in errors.items():
                rounding = _rounding(name, workload, own[name], operands.input.dtype, eps)
                bound = 2 * plain[name] + rounding * float(own[name].abs().max())
                if not error <= bound:  # a NaN is not
                    raise WrongNumbers(
                        f"{workload.name}: the {name} of {peer.name} is off by {error:.2e}, "
                        f"allowed are {bound:.2e} ({yardstick.name}: {plain[name]:.2e})"
                    )
        except Exception as problem:
            if not peer.group:
                raise
            problems[peer] = (str(problem).strip() or repr(problem)).splitlines()[0]
    return problems


def _as_of(workload: Workload, prepared: Prepared, truth: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The truth for a contender that may have one bias for all phases."""
    if "bias gradient" not in truth or len(prepared.leaves[2]) == len(truth["bias gradient"]):
        return truth
    return {**truth, "bias gradient": truth["bias gradient"].view(workload.c, -1).sum(1)}


def _rounding(name: str, workload: Workload, truth: Tensor, dtype: torch.dtype, eps: float) -> float:
    """The relative error of a plain sum: of its result, and eps*sqrt(terms) in the type that is summed in.

    PyTorch's NCHW kernels stay below it at times, its channels_last kernels do not: hence this beside the
    factor of two. `python -m fused_subpixel verify` has the same rule.
    """
    n, ci, h, w = workload.input_shape
    terms = {
        "output": workload.fan_in,
        "input gradient": math.prod(workload.weight_shape) // ci,
        "weight gradient": n * h * w,
        "bias gradient": math.prod(workload.output_shape) // truth.numel(),
    }[name]
    summed_in = torch.float64 if dtype == torch.float64 else torch.float32
    return eps + torch.finfo(summed_in).eps * terms**0.5


def _errors(
    workload: Workload, peer: Peer, prepared: Prepared, truth: Mapping[str, Tensor], backward: bool
) -> dict[str, float]:
    """By outcome, the largest distance from the truth."""
    backward = backward and not peer.runtime
    found = _outcomes(prepared, backward)
    output = found["output"]
    # others may answer in another layout: of channels_last on a GPU, PyTorch's pixel shuffle does
    if peer.fused and not output.is_contiguous(memory_format=memory_format(peer.channels_last)):
        raise WrongNumbers(f"{workload.name}: the output of {peer.name} is not in its layout")
    if not peer.comparable:
        if output.shape != workload.output_shape:
            raise WrongNumbers(f"{workload.name}: the output of {peer.name} has the shape {output.shape}")
        return {}
    if backward and peer.parameters and peer.parameters.weight_back:
        found["weight gradient"] = peer.parameters.weight_back(workload, found["weight gradient"])
    return {name: _distance(outcome, truth[name]) for name, outcome in found.items()}


def _outcomes(prepared: Prepared, backward: bool) -> dict[str, Tensor]:
    with torch.set_grad_enabled(backward):
        output = prepared.forward()
    names = ("input gradient", "weight gradient", "bias gradient")
    gradients = torch.autograd.grad(output, prepared.leaves, prepared.gradient) if backward else ()
    return {"output": output.detach(), **dict(zip(names, gradients, strict=False))}


def _distance(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth).abs().max())
