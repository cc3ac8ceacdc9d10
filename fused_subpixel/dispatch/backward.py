# SPDX-License-Identifier: BSD-3-Clause
"""Who computes the gradients of a call: the kernels of this package or PyTorch's convolution backward.

On CPUs estimates of both decide. ``python -m bench.gradients --random 100`` measures how good they are.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from .. import torch_compat
from ..ops.geometry import KERNEL_DTYPES, Geometry
from ..ops.library import operators
from .call import BackwardPlan

_PYTORCH = BackwardPlan(False, False)
_NARROW_ROWS_CUDA, _SMALL_IMAGES_CUDA = 16, 1 << 17
# On images of few columns the bfloat16 gradients of PyTorch's convolutions (2.13, on CPUs) hold uninitialised
# memory: of a weight, and of a transposed convolution's input. With up to 4 columns that was seen. The
# weight's does so at any width where taps are apart: seen of one channel in a group, with AMX.
_SAFE_WIDTH = 8


def pytorch_errs(geometry: Geometry, input_shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether PyTorch's own gradients may be wrong, as _SAFE_WIDTH says."""
    dilated = (geometry.dilation_h, geometry.dilation_w) != (1, 1)
    return dtype == torch.bfloat16 and (dilated or input_shape[3] <= _SAFE_WIDTH)


def plan_backward(
    backend: str,
    geometry: Geometry,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    transposed: bool = False,
) -> BackwardPlan:
    """Decide who computes the gradients of a call that runs on ``backend``."""
    if backend == "cuda":
        return _plan_on_cuda(geometry, input_shape, weight_shape, dtype, transposed)
    if backend == "reference":
        return _PYTORCH
    unit_stride = (geometry.stride_h, geometry.stride_w) == (1, 1)
    if pytorch_errs(geometry, input_shape, dtype):
        return BackwardPlan(unit_stride, True)
    if not unit_stride or geometry.groups != 1:
        return _PYTORCH
    if not estimates_decide(geometry, input_shape, dtype):
        return BackwardPlan(True, True)
    estimates = estimate(geometry, tuple(input_shape), tuple(weight_shape), dtype, transposed)
    return cheapest(*estimates, not (transposed and lacks_taps(geometry)))


def lacks_taps(geometry: Geometry) -> bool:
    """Whether some phases of a transposed convolution have fewer taps than others.

    Our input gradient multiplies zeros in their place. PyTorch's strided convolution multiplies none: it
    takes half the time for 3x3 kernels with stride 2, and there an infinite gradient makes no NaN.
    """
    return geometry.kernel_pad_h + geometry.kernel_pad_w > 0


def estimates_decide(geometry: Geometry, input_shape: tuple[int, ...], dtype: torch.dtype) -> bool:
    """Whether :func:`plan_backward` compares estimates, on a CPU."""
    return (
        (geometry.stride_h, geometry.stride_w, geometry.groups) == (1, 1, 1)
        and dtype != torch.float16  # in which PyTorch takes seconds where float32 takes milliseconds
        and not pytorch_errs(geometry, input_shape, dtype)
        # to ask would tie a traced graph to sizes; and without pixels there is nothing to compare
        and all(isinstance(size, int) and size > 0 for size in input_shape)
    )


def _plan_on_cuda(
    geometry: Geometry,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    transposed: bool,
) -> BackwardPlan:
    g = geometry
    # float64 has no tensor-core kernels, nor has exact float32; groups are left to those who are made for
    # them. Measured on an H100: forward and backward together take 0.7 to 0.99 times as long with ours
    # where PyTorch pads narrow layers and starts many small kernels; elsewhere 1.06 to 3.1 times.
    tensor_cores = g.groups == 1 and (dtype.itemsize == 2 or (dtype == torch.float32 and g.tf32 == 1))
    ours = (
        tensor_cores
        and not transposed
        and weight_shape[0] <= _NARROW_ROWS_CUDA
        # of a traced graph sizes are not asked, which would tie it to them
        and all(isinstance(size, int) for size in input_shape)
        and math.prod((input_shape[0], *input_shape[2:])) <= _SMALL_IMAGES_CUDA
    )
    return BackwardPlan(ours and (g.stride_h, g.stride_w) == (1, 1), ours)


# ---- estimates on CPUs -------------------------------------------------------------------------------------


class GradientCycles(NamedTuple):
    """Estimates in cycles of all threads together, idle ones included."""

    input_grad: float
    weight_grad: float
    once: float = 0.0  # in addition, if any of the two is computed this way


class _Rates(NamedTuple):
    """Cycles of PyTorch's convolution backward, for each vector of lanes of its best instruction set."""

    product: float  # a vector of multiply-adds
    image: (
        float  # a vector of the input, or of the unshuffled gradient, brought into oneDNN's layout and back
    )
    weight: float  # the same of the weight


class _Costs(NamedTuple):
    """What the estimates are made of, in cycles; ours are factors to what a plan counts, and a call."""

    input: _Rates
    weight: _Rates
    unshuffle: float  # a vector of the gradient, copied
    call: float  # of PyTorch's
    our_input: float
    our_weight: float
    our_call: float


# Our plans count what a loop does and not what it waits for. Fitted to 350 random layers on Intel's AVX-512
# and 200 on AMD's, with 1 and 2 threads. The standard deviation of the logarithm of the ratio of estimate
# and time is 0.45 for PyTorch's input gradient and 0.4 for the weight's, and as much for ours.
_VECTORS = _Costs(_Rates(0.68, 15, 23), _Rates(0.72, 20, 40), 40, 2.5e5, 1.5, 1.1, 2.5e4)
# The same of bfloat16 where both multiply vectors of pairs (AVX512-BF16 of AMD), 190 layers; 0.35 and 0.34.
_PAIRS = _Costs(_Rates(0.32, 9.3, 44), _Rates(0.34, 11, 57), 40, 3e5, 1.5, 1.07, 6e4)
# And where both multiply in tile registers (AMX), 270 layers; 0.4 and 0.3.
_TILE_REGISTERS = _Costs(_Rates(0.08, 32, 28), _Rates(0.11, 37, 36), 40, 1.7e5, 1.1, 0.75, 6e4)
_AVX512_BF16, _AMX = 3, 4  # enum Isa of csrc/cpu
# The weight gradient is left to PyTorch only if its estimate is so much less: ours is slower on 6 % of the
# random layers, so that a small difference is likely to be an error of the estimates.
_DOUBT = 1.5


@functools.lru_cache(maxsize=4096)
def estimate(
    geometry: Geometry,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    transposed: bool = False,
) -> tuple[GradientCycles, GradientCycles]:
    """What the gradients of a call cost by the CPU library's kernels, and by PyTorch's."""
    problem = [
        0, KERNEL_DTYPES.index(dtype), 2 * transposed, *input_shape,
        weight_shape[0], *weight_shape[2:], *geometry,
    ]  # fmt: skip

    def planned(direction: int) -> float:
        with torch_compat.without_dispatch_modes():
            numbers, _ = operators._cpu_plan([direction, *problem[1:]])
        return float(numbers[-1])

    threads = torch.get_num_threads()
    costs = _costs_of(dtype)
    call = costs.our_call * threads
    ours = GradientCycles(costs.our_input * planned(1) + call, costs.our_weight * planned(2) + call)

    registers = 1 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 2  # of 64 bytes
    lanes = 64 // max(dtype.itemsize, 4) // registers
    pixels = input_shape[0] * input_shape[2] * input_shape[3] / lanes
    weights = math.prod(weight_shape)
    images = pixels * (weight_shape[0] + weight_shape[1])

    def whole(channels: int) -> int:  # oneDNN multiplies blocks of so many channels
        block = 16 // registers
        return -(-channels // block) * block

    products = whole(weight_shape[0]) * whole(weight_shape[1]) * math.prod(weight_shape[2:])

    def pytorch(rates: _Rates) -> float:
        return rates.product * pixels * products + rates.image * images + rates.weight * weights / lanes

    shuffled = geometry.upscale_h * geometry.upscale_w > 1 and not transposed
    once = costs.call * threads + (costs.unshuffle * pixels * weight_shape[0] if shuffled else 0)
    return ours, GradientCycles(pytorch(costs.input), pytorch(costs.weight), once)


def _costs_of(dtype: torch.dtype) -> _Costs:
    if dtype != torch.bfloat16:
        return _VECTORS
    with torch_compat.without_dispatch_modes():
        current, usable = operators._cpu_capability()[:2]
    if usable >> _AMX & 1:
        return _TILE_REGISTERS
    return _PAIRS if current == _AVX512_BF16 else _VECTORS


def cheapest(ours: GradientCycles, pytorchs: GradientCycles, may_be_ours: bool = True) -> BackwardPlan:
    """The plan that takes the fewest cycles for both gradients.

    ``may_be_ours``: whether our kernels may compute the input's gradient.
    """

    def cycles(plan: BackwardPlan) -> float:
        total = 0.0 if plan.input_grad and plan.weight_grad else pytorchs.once
        total += ours.input_grad if plan.input_grad else pytorchs.input_grad
        return total + (ours.weight_grad if plan.weight_grad else _DOUBT * pytorchs.weight_grad)

    of_input = (True, False) if may_be_ours else (False,)
    plans = (BackwardPlan(by_input, by_weight) for by_input in of_input for by_weight in (True, False))
    return min(plans, key=cycles)
