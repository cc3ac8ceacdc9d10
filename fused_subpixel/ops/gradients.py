# SPDX-License-Identifier: BSD-3-Clause
"""Formulas of the gradients.

*Epilogue.* The operator keeps no intermediate. Where the gradient of the epilogue can be computed from its
output (:meth:`Epilogue.has_grad_from_output`), the output is all that is saved. Elsewhere functional.py
stores the pre-activation and applies the epilogue as ordinary PyTorch.

*Convolution.* Either the operators ``subpixel_conv2d_input_grad`` and ``subpixel_conv2d_weight_grad``
(eager calls: one operator for both), which apply the activation's gradient too, or PyTorch's convolution
backward on the unshuffled gradient. PyTorch's serves wherever ours are not faster, do not exist, or must be
differentiated. On CUDA the operator ``unshuffle_reduce`` prepares the gradient for it in one pass. What
leads to PyTorch's is written here and not in C++, because traced graphs need it as PyTorch's operators, and
it serves large layers, where nobody waits for Python.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference, torch_compat
from ..dispatch.call import BackwardPlan, has_whole_phases
from ..dispatch.tensors import is_plainly_eager
from ..weights import subpixel_weight_and_bias, subpixel_weight_to_conv_transpose
from .fakes import counting
from .geometry import ACTIVATIONS, CHANNEL_ORDERS, KERNEL_DTYPES, Epilogue, Geometry, Problem
from .layout import is_channels_last
from .library import libraries, operators

aten = torch.ops.aten
_input_grad_operator = operators.subpixel_conv2d_input_grad.default
_weight_grad_operator = operators.subpixel_conv2d_weight_grad.default
_unshuffle_reduce_operator = operators.unshuffle_reduce.default
_eager_operator = torch_compat.builtin_of(operators._subpixel_conv2d_backward.default)
_PYTORCHS = BackwardPlan(False, False)
_RELU, _LEAKY_RELU = ACTIVATIONS["relu"], ACTIVATIONS["leaky_relu"]
_RELU6, _TANH, _SIGMOID = ACTIVATIONS["relu6"], ACTIVATIONS["tanh"], ACTIVATIONS["sigmoid"]
_CRD, _DCR = CHANNEL_ORDERS["crd"], CHANNEL_ORDERS["dcr"]


def activation_gradient(grad: Tensor, output: Tensor, epilogue: Epilogue) -> Tensor:
    """The gradient before an activation, from the one after it and the output; differentiable again."""
    if epilogue.activation == _RELU:
        return aten.threshold_backward(grad, output, 0)
    if epilogue.activation == _LEAKY_RELU:
        return aten.leaky_relu_backward(grad, output, epilogue.negative_slope, True)
    if epilogue.activation == _RELU6:
        return aten.hardtanh_backward(grad, output, 0, 6)
    if epilogue.activation == _TANH:
        return aten.tanh_backward(grad, output)
    return aten.sigmoid_backward(grad, output)


def residual_gradient(grad: Tensor, residual_shape: torch.Size, geometry: Geometry) -> Tensor:
    """The gradient of the residual, whose shape tells how it was added."""
    if residual_shape == grad.shape:
        return grad
    if residual_shape[1] != grad.shape[1]:
        return reference.uncrop_and_unshuffle(grad, geometry)
    unshuffled = reference.uncrop_and_unshuffle(grad, geometry._replace(channel_order=0))
    n, c, p, q = residual_shape
    return unshuffled.view(n, c, geometry.upscale_h * geometry.upscale_w, p, q).sum(2)


class Operands(NamedTuple):
    """A convolution whose gradients are computed, from the one of its output."""

    input: Tensor | None  # may be None where the weight's gradient is not needed
    weight: Tensor | None  # may be None where the input's gradient is not needed
    geometry: Geometry
    input_shape: tuple[int, ...]
    weight_shape: tuple[int, ...]
    needed: tuple[bool, bool, bool]  # the gradients of (input, weight, bias)


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def convolution_gradients(
    grad: Tensor,
    output: Tensor | None,
    epilogue: Epilogue,
    operands: Operands,
    channels_last: bool,
    plan: BackwardPlan,
    options: Tensor | None = None,
) -> Gradients:
    """Gradients of (input, weight, bias), each where it is needed, from the one of the output.

    ``output`` is that of the forward pass if the gradient of its activation is still to be applied, else
    None. ``channels_last`` is the layout of the input. ``options`` are those of an eager call.
    """
    need_input, need_weight, need_bias = operands.needed
    if is_differentiated():
        plan = _PYTORCHS
    our_input, our_weight = need_input and plan.input_grad, need_weight and plan.weight_grad
    rest = (need_input and not our_input, need_weight and not our_weight, need_bias and not our_weight)
    gradients: Gradients = (None, None, None)
    if True in rest:
        others = operands._replace(needed=rest)
        if has_reducing_unshuffle(grad, output, operands.geometry):
            saved = () if output is None else (output, epilogue.activation, epilogue.negative_slope)
            lr_grad, sums = _unshuffle_reduce_operator(grad, tuple(operands.geometry), *saved)
            gradients = prepared_convolution_gradients(lr_grad, sums, others)
        else:
            if output is not None:
                grad, output = activation_gradient(grad, output, epilogue), None
            gradients = pytorch_convolution_gradients(grad, others)
    if our_input or our_weight:
        wanted = operands._replace(needed=(our_input, our_weight, need_bias and our_weight))
        ours = _our_gradients(grad, output, epilogue, wanted, channels_last, options)
        gradients = (
            ours[0] if our_input else gradients[0],
            ours[1] if our_weight else gradients[1],
            ours[2] if our_weight else gradients[2],
        )
    return gradients


def is_differentiated() -> bool:
    """Whether gradients may be differentiated again: our operators cannot, PyTorch's can."""
    return torch.is_grad_enabled() or torch_compat.in_forward_mode()


def _our_gradients(
    grad: Tensor,
    output: Tensor | None,
    epilogue: Epilogue,
    operands: Operands,
    channels_last: bool,
    options: Tensor | None,
) -> Gradients:
    """By our operators: by one where the call is eager, else by one for the input and one for the weight."""
    input, weight, geometry, input_shape, weight_shape, (need_input, need_weight, need_bias) = operands
    grad_input = grad_weight = grad_bias = None
    if options is not None and is_plainly_eager(grad, output, input, weight):
        wanted = need_input + 2 * need_weight + 4 * channels_last  # as in csrc/torch/operators.h
        grad_input, grad_weight, grad_bias = _eager_operator(grad, input, weight, output, options, wanted)
        return grad_input, grad_weight, grad_bias if need_bias else None
    saved = () if output is None else (output, epilogue.activation, epilogue.negative_slope)
    if need_input:
        assert weight is not None
        grad_input = _input_grad_operator(
            grad, weight, input_shape[2], input_shape[3], tuple(geometry), channels_last, *saved
        )
    if need_weight:
        assert input is not None
        grad_weight, grad_bias = _weight_grad_operator(
            grad, input, weight_shape[2], weight_shape[3], tuple(geometry), *saved
        )
    return grad_input, grad_weight, grad_bias if need_bias else None


# Of `wanted`, as in csrc/torch/operators.h: the weight and its gradient are a transposed convolution's own.
TRANSPOSED_WEIGHT = 8


def sum_phases(grad_phases: Tensor, grad: Tensor) -> Tensor:
    """The gradient of a transposed convolution's bias, from that of each phase in the arithmetic type."""
    return grad_phases.view(grad.shape[1], -1).sum(1).to(grad.dtype)


def transposed_convolution_gradients(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    problem: Problem,
    channels_last: bool,
    needed: tuple[bool, bool, bool],
    plan: BackwardPlan,
    options: Tensor | None,
) -> Gradients:
    """:func:`convolution_gradients` of a transposed convolution, in the shapes of its own operands.

    PyTorch's own transposed backward needs no unshuffled gradient: the input's gradient is a strided
    convolution of the output's.
    """
    transposed, groups = problem.transposed, problem.geometry.groups
    assert transposed is not None
    need_input, need_weight, need_bias = needed
    grad_input = grad_weight = grad_bias = None
    if not is_differentiated() and not any(transposed.unused):
        our_input, our_weight = need_input and plan.input_grad, need_weight and plan.weight_grad
        if not (our_input or our_weight):
            pass
        elif (
            options is not None
            and has_whole_phases(problem, grad.device.type)
            and is_plainly_eager(grad, input, weight)
        ):
            wanted = our_input + 2 * our_weight + 4 * channels_last + TRANSPOSED_WEIGHT
            grad_input, grad_weight, phases = _eager_operator(grad, input, weight, None, options, wanted)
            if need_bias and our_weight:
                grad_bias, need_bias = sum_phases(phases, grad), False
        else:
            rows = None
            if our_input:
                assert weight is not None
                rows, _ = subpixel_weight_and_bias(weight, None, problem.geometry)
            operands = Operands(
                input, rows, problem.geometry, problem.input_shape, problem.weight_shape,
                (our_input, our_weight, our_weight),
            )  # fmt: skip
            with counting(transposed):
                grad_input, grad_rows, phases = _our_gradients(
                    grad, None, problem.epilogue, operands, channels_last, options
                )
            if our_weight:
                assert grad_rows is not None
                grad_weight = subpixel_weight_to_conv_transpose(
                    grad_rows, transposed.stride, groups=groups, kernel_size=transposed.weight_shape[2:]
                )
            # in half types the phases would be rounded one by one
            if need_bias and our_weight and grad.element_size() > 2:
                assert phases is not None
                grad_bias, need_bias = sum_phases(phases, grad), False
        need_input, need_weight = need_input and not our_input, need_weight and not our_weight
    if need_input or need_weight or need_bias:
        input = _stand_in(grad, transposed.input_shape, channels_last) if input is None else input
        weight = (
            grad.new_empty(()).expand(transposed.weight_shape)
            if weight is None
            else reference.grouped_weight(weight, groups)
        )
        rest = aten.convolution_backward(
            grad, input, weight, [grad.shape[1]], transposed.stride, transposed.padding,
            transposed.dilation, True, transposed.output_padding, groups,
            (need_input, need_weight, need_bias),
        )  # fmt: skip
        grad_input, grad_weight, grad_bias = (
            rest[0] if need_input else grad_input,
            rest[1] if need_weight else grad_weight,
            rest[2] if need_bias else grad_bias,
        )
    return grad_input, grad_weight, grad_bias


def _stand_in(like: Tensor, shape: Sequence[int], channels_last: bool) -> Tensor:
    """A tensor that is not needed: its shape, and its layout, which PyTorch's kernels go by."""
    if channels_last:  # memory that nobody touches
        return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)
    return like.new_empty(()).expand(shape)


def has_reducing_unshuffle(grad: Tensor, output: Tensor | None, geometry: Geometry) -> bool:
    """Whether the operator ``unshuffle_reduce`` prepares this gradient for PyTorch's convolution backward.

    It is not differentiable, and its result is channels_last: of contiguous models cuDNN would copy the input
    to that format as well.
    """
    if not grad.is_cuda or is_differentiated() or geometry.groups > 1 or not libraries["cuda"].loaded:
        return False
    if not is_channels_last(grad):
        return False
    if grad.dtype not in KERNEL_DTYPES or (output is not None and output.dtype != grad.dtype):
        return False
    return fits_reducing_unshuffle(grad.shape, geometry)


def fits_reducing_unshuffle(shape: Sequence[int], geometry: Geometry) -> bool:
    """Whether the kernel can count a gradient: its offsets and its number of pixels have 32 bits.

    The sizes of a traced graph may be symbols.
    """
    g, (batch, channels, height, width) = geometry, shape
    pixels = (height + g.crop_top + g.crop_bottom) * (width + g.crop_left + g.crop_right)
    bounds = (batch * pixels < 1 << 31, channels * pixels < 1 << 30)
    if all(isinstance(bound, bool) for bound in bounds):
        return all(bounds)
    from torch.fx.experimental.symbolic_shapes import guard_or_false

    return all(guard_or_false(bound) for bound in bounds)


def prepared_convolution_gradients(lr_grad: Tensor, grad_bias: Tensor, operands: Operands) -> Gradients:
    """Of (input, weight, bias), from what ``unshuffle_reduce`` returns."""
    input, weight, g, input_shape, weight_shape, (need_input, need_weight, need_bias) = operands
    rows = weight_shape[0]
    grad_input = grad_weight = None
    if need_input or need_weight:
        # cuDNN computes in channels_last if the weight is.
        padded_rows = lr_grad.shape[1]
        if weight is None:
            weight = _stand_in(lr_grad, (padded_rows, *weight_shape[1:]), True)
        elif padded_rows > rows:
            weight = F.pad(weight, (0, 0, 0, 0, 0, 0, 0, padded_rows - rows))
        weight = weight.contiguous(memory_format=torch.channels_last)
        input = _stand_in(lr_grad, input_shape, True) if input is None else input
        grad_input, grad_weight, _ = _convolution_backward(
            lr_grad, input, weight, g, (need_input, need_weight, False)
        )
        grad_weight = grad_weight[:rows] if grad_weight is not None else None
    return grad_input, grad_weight, grad_bias if need_bias else None


def pytorch_convolution_gradients(grad: Tensor, operands: Operands) -> Gradients:
    """The same by PyTorch: unshuffle the gradient, then its convolution backward. Differentiable again."""
    input, weight, g, input_shape, weight_shape, needed = operands
    channels, phases = grad.shape[1], g.upscale_h * g.upscale_w
    # In channels_last, dcr order unshuffles by whole pixels, several times as fast as the interleaving of
    # crd. Then the weight's rows follow, and its gradient's go back: small tensors both.
    reorder = g.channel_order == _CRD and g.groups == 1 and channels > 1 and is_channels_last(grad)
    lr_grad = reference.uncrop_and_unshuffle(grad, g._replace(channel_order=_DCR) if reorder else g)
    if weight is not None:
        weight = reference.grouped_weight(weight, g.groups)
        weight = _transpose_rows(weight, channels, phases) if reorder else weight
    input = _stand_in(grad, input_shape, is_channels_last(lr_grad)) if input is None else input
    weight = grad.new_empty(()).expand(weight_shape) if weight is None else weight
    grad_input, grad_weight, grad_bias = _convolution_backward(lr_grad, input, weight, g, needed)
    if reorder:
        grad_weight = None if grad_weight is None else _transpose_rows(grad_weight, phases, channels)
        grad_bias = None if grad_bias is None else _transpose_rows(grad_bias, phases, channels)
    return grad_input, grad_weight, grad_bias


def _convolution_backward(
    lr_grad: Tensor, input: Tensor, weight: Tensor, geometry: Geometry, needed: tuple[bool, bool, bool]
) -> Gradients:
    g = geometry
    padded, padding = reference.symmetric_padding(input, g)
    grad_input, grad_weight, grad_bias = aten.convolution_backward(
        lr_grad, padded, weight, [weight.shape[0]], (g.stride_h, g.stride_w), padding,
        (g.dilation_h, g.dilation_w), False, (0, 0), g.groups, needed,
    )  # fmt: skip
    if needed[0] and padded is not input:
        height, width = input.shape[2:]
        grad_input = grad_input[:, :, g.pad_top : g.pad_top + height, g.pad_left : g.pad_left + width]
    return grad_input, grad_weight, grad_bias


def _transpose_rows(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """[rows*columns, ...] -> [columns*rows, ...], the first axis transposed, in the same memory format."""
    in_memory = (0, 2, 3, 1) if tensor.dim() == 4 and is_channels_last(tensor) else range(tensor.dim())
    ordered = tensor.permute(*in_memory)
    # With batched gradients, flatten and unflatten have no batching rule; reshape has one.
    rest = ordered.shape[1:]
    turned = ordered.reshape(rows, columns, *rest).transpose(0, 1).reshape(columns * rows, *rest)
    return turned.permute(*(list(in_memory).index(axis) for axis in range(tensor.dim())))
