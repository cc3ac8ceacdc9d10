# SPDX-License-Identifier: BSD-3-Clause
"""Who computes a call, and why; backward.py decides about its gradients.

Every reason is a sentence, for errors and for :func:`fused_subpixel.explain`.
"""

from __future__ import annotations

import functools
import marshal
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..ops.geometry import Epilogue, Geometry, Problem
from ..ops.library import libraries
from . import backends
from .backward import plan_backward, pytorch_errs
from .call import BackwardPlan, Call, make_call
from .checks import Backend, TensorInfo


def prepare(
    requested: Backend,
    tf32: bool,
    resolve: Callable[..., Problem],
    input: TensorInfo,
    weight: TensorInfo,
    bias: TensorInfo | None,
    activation_weight: TensorInfo | None,
    residual: TensorInfo | None,
    *options: Any,
) -> Call:
    """Check a call and choose its backend; ``options`` in the order that ``resolve`` takes them."""
    problem = resolve(input, weight, bias, activation_weight, residual, *options)
    if tf32:
        problem = problem._replace(geometry=problem.geometry._replace(tf32=1))
    backend = backends.choose(requested, problem.device)
    if backend != "reference" and (reason := why_no_kernel(problem)) is not None:
        if requested != "auto":
            raise ValueError(f"backend {requested!r} cannot run here: {reason}")
        backend = "reference"
    tracing = torch.compiler.is_compiling()
    if requested == "auto" and backend != "reference" and why_pytorch_is_faster(problem, tracing) is not None:
        backend = "reference"
    if tracing:  # the operator plans by itself; to ask would tie the graph to sizes
        plan = BackwardPlan(False, False)
    else:
        plan = plan_backward(
            backend, problem.geometry, problem.input_shape, problem.weight_shape, problem.dtype,
            problem.transposed is not None,
        )  # fmt: skip
    linear = None
    if not problem.epilogue.has_grad_from_output(residual is not None):
        without = problem._replace(epilogue=Epilogue())
        linear = make_call(without, backend, plan, not tracing)
    return make_call(problem, backend, plan, not tracing, linear)


@functools.lru_cache(maxsize=4096)
def prepare_cached(*arguments: Any) -> Call:
    """:func:`prepare`, its options written by marshal, which keeps 1, 1.0 and True apart in tuples too."""
    *others, options = arguments
    return prepare(*others, *marshal.loads(options))


def why_no_kernel(problem: Problem) -> str | None:
    """Why no compiled backend can compute a problem, whatever its dtype and device."""
    if problem.transposed is not None and problem.transposed.dilation != (1, 1):
        return "a transposed convolution with dilation is no sub-pixel convolution"
    if problem.transposed is not None and (problem.output_shape[2] < 1 or problem.output_shape[3] < 1):
        return "the output has no pixel"
    if problem.transposed is not None:
        stride, kernel = problem.transposed.stride, problem.transposed.weight_shape[2:]
        if math.prod(stride) > _MOST_IDLE_PHASES * math.prod(kernel) and math.prod(stride) > _MANY_PHASES:
            return (
                f"most of the {stride[0]}*{stride[1]} phases have no tap of a {kernel[0]}x{kernel[1]} kernel"
            )
    return None


# Phases of a transposed convolution for each tap, past which tables of them take more than the output does.
_MOST_IDLE_PHASES, _MANY_PHASES = 4, 256


def why_no_tensor_cores(geometry: Geometry, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why a call on a GPU would get the generic CUDA kernel, slower than PyTorch's convolution.

    For any shape, so that torch.compile can ask. The plan may find more reasons, in odd geometries.
    """
    if dtype == torch.float64:
        return "float64 has no tensor-core kernel"
    if dtype == torch.float32 and not geometry.tf32:
        return "exact float32 has no tensor-core kernel, and PyTorch's settings do not allow tf32"
    if geometry.groups != 1:
        return "the tensor-core kernels know one group only"
    if not backends.has_tensor_cores(device):
        return "the tensor-core kernels need compute capability 8.0"
    return None


# Rows of the weight, products in a sum, and low-resolution pixels in the batch for each multiprocessor.
_WIDE_ROWS, _LONG_SUM, _FEW_PIXELS = 128, 256, 62


def why_pytorch_is_faster(problem: Problem, tracing: bool = False) -> str | None:
    """Why a call is better left to PyTorch. While tracing, whatever the sizes."""
    if problem.device.type == "cpu":
        geometry, dtype = problem.geometry, problem.dtype
        by_pytorch = dtype == torch.float32 or (
            dtype == torch.bfloat16 and not tracing and not pytorch_errs(geometry, problem.input_shape, dtype)
        )
        if problem.transposed is not None or not by_pytorch:
            return None
        return why_depthwise(geometry.groups, problem.weight_shape)
    reason = why_no_tensor_cores(problem.geometry, problem.dtype, problem.device)
    if reason is not None or tracing:
        return reason
    batch, _, height, width = problem.input_shape
    rows, channels, kernel_h, kernel_w = problem.weight_shape
    pixels = batch * height * width // (problem.geometry.stride_h * problem.geometry.stride_w)
    # Measured on an H100: 0.35 to 0.75 of PyTorch's speed below these limits, 1.1 and more above.
    few = pixels < _FEW_PIXELS * backends.multiprocessors(problem.device)
    if few and rows >= _WIDE_ROWS and channels * kernel_h * kernel_w >= _LONG_SUM:
        return (
            f"{pixels} pixels before the shuffle are too few to give every multiprocessor tiles of a wide "
            "layer; PyTorch's kernels share one sum among several"
        )
    return None


def why_depthwise(groups: int, weight_shape: Sequence[int]) -> str | None:
    """Why PyTorch is faster on a CPU, if this is a depthwise convolution in float32 or bfloat16."""
    # Measured on Zen 4: 0.06 to 0.9 of PyTorch's speed. In the other dtypes it is 4 to 22 times as fast.
    if groups > 1 and (weight_shape[0], weight_shape[1]) == (groups, 1):
        return "a depthwise convolution multiplies no pixel more than once for each tap"
    return None


def why_not_in_graph(geometry: Geometry, weight_shape: Sequence[int], like: Tensor) -> str | None:
    """Why a convolution of a graph, with a result as ``like``, is not to become the operator.

    A library that is not built is no reason: the operator is then as fast as what it replaces.
    """
    device, requested = like.device, backends.requested()
    if requested == "reference":
        return "the backend asked for is the reference"
    if device.type not in libraries:
        return f"there are no kernels for {device.type}"
    if device.type == "cuda" and requested == "auto" and backends.refusal("cuda", device) is None:
        return why_no_tensor_cores(geometry, like.dtype, device)
    if device.type == "cpu" and requested == "auto" and like.dtype == torch.float32:
        return why_depthwise(geometry.groups, weight_shape)
    return None
