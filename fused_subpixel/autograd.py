# SPDX-License-Identifier: BSD-3-Clause
"""Gradients.

Two entries lead to the same formulas: :class:`SubpixelConv2dFunction` for eager calls (two to three times
cheaper per call), and autograd registered on the raw operator for torch.compile and torch.export.

*Epilogue.* The operator keeps no intermediate. Where the gradient of the epilogue can be read from its output
(:func:`recoverable`), the output is all that is saved. Elsewhere functional.py stores the pre-activation and
applies the epilogue as ordinary PyTorch; a raw operator called with such an epilogue computes the
pre-activation again in its backward.

*Convolution.* Either the operators ``subpixel_conv2d_input_grad`` and ``subpixel_conv2d_weight_grad``, which
apply the activation's gradient as they read that of the output, or PyTorch's convolution backward on the
unshuffled gradient. The latter serves wherever the former are not better, are not there, or need gradients
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._decomp import decomposition_table, meta_table, register_decomposition

from . import _library, backends, reference
from ._arguments import ACTIVATIONS, CHANNEL_ORDERS, Epilogue, Geometry, Problem, check_dense
from ._layout import is_channels_last, memory_format
from .conversion import subpixel_operands, subpixel_weight_to_conv_transpose

aten = torch.ops.aten
# Overloads, because choosing among them costs a microsecond per call.
_operator = torch.ops.fused_subpixel.subpixel_conv2d.default
_input_grad_operator = torch.ops.fused_subpixel.subpixel_conv2d_input_grad.default
_weight_grad_operator = torch.ops.fused_subpixel.subpixel_conv2d_weight_grad.default

_RELU, _LEAKY_RELU = ACTIVATIONS["relu"], ACTIVATIONS["leaky_relu"]
_TANH, _SIGMOID = ACTIVATIONS["tanh"], ACTIVATIONS["sigmoid"]
_CRD, _DCR = CHANNEL_ORDERS["crd"], CHANNEL_ORDERS["dcr"]
_NO_EPILOGUE = Epilogue().numbers


def recoverable(epilogue: Epilogue, has_residual: bool) -> bool:
    """Whether the epilogue's gradient can be computed from its output alone.

    Without activation and clamp the gradient is one, whatever was added. relu, leaky_relu (with a finite
    slope that keeps the sign), tanh and sigmoid have derivatives in terms of their results, if nothing was
    added to these. silu and gelu are not monotonic, prelu's slopes may have any sign, a clamp hides what it
    cut off.
    """
    if epilogue.clamps:
        return False
    if epilogue.activation == 0:
        return True
    if has_residual:
        return False
    if epilogue.activation == _LEAKY_RELU:
        return 0 <= epilogue.negative_slope < math.inf
    return epilogue.activation in (_RELU, _TANH, _SIGMOID)


def activation_gradient(grad: Tensor, output: Tensor, epilogue: Epilogue) -> Tensor:
    """The gradient before a :func:`recoverable` activation, from the one after it; differentiable again."""
    if epilogue.activation == _RELU:
        return aten.threshold_backward(grad, output, 0)
    if epilogue.activation == _LEAKY_RELU:
        return aten.leaky_relu_backward(grad, output, epilogue.negative_slope, True)
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


# ---- the convolution's gradients -------------------------------------------------------------------------


class BackwardPlan(NamedTuple):
    """Which gradients our operators compute; PyTorch computes the others."""

    input_grad: bool
    weight_grad: bool


_NARROW_ROWS, _LARGE_IMAGE, _TINY_WORK = 48, 1024, 1_000_000
_NARROW_ROWS_CUDA, _SMALL_IMAGES_CUDA = 16, 1 << 17
# On images of few columns the bfloat16 gradients of PyTorch's convolutions (2.13, on CPUs) hold uninitialised
# memory: of a weight, and of a transposed convolution's input. With up to 4 columns that was seen.
_SAFE_WIDTH = 8


def plan_backward(
    backend: str,
    geometry: Geometry,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    dtype: torch.dtype,
    transposed: bool = False,
) -> BackwardPlan:
    """Decide who computes the gradients of a call that runs on ``backend``."""
    g = geometry
    pixels = input_shape[2] * input_shape[3]
    if backend == "cuda":
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
            and input_shape[0] * pixels <= _SMALL_IMAGES_CUDA
        )
        return BackwardPlan(ours and (g.stride_h, g.stride_w) == (1, 1), ours)
    unit_stride = (g.stride_h, g.stride_w) == (1, 1)
    if backend == "cpu" and dtype == torch.bfloat16 and input_shape[3] <= _SAFE_WIDTH:
        return BackwardPlan(unit_stride, True)
    if backend == "reference" or not unit_stride or g.groups != 1:
        return BackwardPlan(False, False)
    # Measured on AVX-512: up to 48 rows of weight over images of some size, ours take 0.6 to 1.1 times what
    # PyTorch does with its unshuffled copy; on wider layers and small images its blocked kernels win. In
    # float16 it has none on CPUs and takes seconds where float32 takes milliseconds.
    narrow = weight_shape[0] <= _NARROW_ROWS and pixels >= _LARGE_IMAGE
    # Tiny problems wait for Python: two operators are called sooner than PyTorch's three.
    tiny = input_shape[0] * pixels * math.prod(weight_shape) <= _TINY_WORK
    ours = narrow or tiny or dtype == torch.float16
    return BackwardPlan(ours, ours)


def convolution_gradients(
    grad: Tensor,
    output: Tensor | None,
    epilogue: Epilogue,
    input: Tensor | None,
    weight: Tensor | None,
    geometry: Geometry,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    channels_last: bool,
    needed: tuple[bool, bool, bool],
    plan: BackwardPlan,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of (input, weight, bias), each where ``needed``, from the one of the output.

    ``output`` is that of the forward pass where a :func:`recoverable` activation is to be passed first, else
    None. ``input`` may be None where the weight's gradient is not needed, ``weight`` where the input's is
    not.
    """
    need_input, need_weight, need_bias = needed
    # Gradients that are to be differentiated again are PyTorch's: our operators cannot be.
    ours = BackwardPlan(False, False) if torch.is_grad_enabled() else plan
    our_input, our_weight = need_input and ours.input_grad, need_weight and ours.weight_grad
    rest = (need_input and not our_input, need_weight and not our_weight, need_bias and not our_weight)
    grad_input = grad_weight = grad_bias = None
    if output is not None and any(rest):
        grad, output = activation_gradient(grad, output, epilogue), None
    if any(rest):
        grad_input, grad_weight, grad_bias = pytorch_convolution_gradients(
            grad, input, weight, geometry, input_shape, weight_shape, rest
        )
    saved = () if output is None else (output, epilogue.activation, epilogue.negative_slope)
    if our_input:
        assert weight is not None
        grad_input = _input_grad_operator(
            grad, weight, input_shape[2], input_shape[3], tuple(geometry), channels_last, *saved
        )
    if our_weight:
        assert input is not None
        grad_weight, grad_bias = _weight_grad_operator(
            grad, input, weight_shape[2], weight_shape[3], tuple(geometry), *saved
        )
    return grad_input, grad_weight, grad_bias if need_bias else None


def transposed_convolution_gradients(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    problem: Problem,
    channels_last: bool,
    needed: tuple[bool, bool, bool],
    plan: BackwardPlan,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """:func:`convolution_gradients` of a transposed convolution, in the shapes of its own operands.

    PyTorch's own transposed backward needs no unshuffled gradient: the input's gradient is a strided
    convolution of the output's.
    """
    transposed, groups = problem.transposed, problem.geometry.groups
    assert transposed is not None
    need_input, need_weight, need_bias = needed
    grad_input = grad_weight = grad_bias = None
    if not torch.is_grad_enabled() and not any(transposed.unused):
        numbers = tuple(problem.geometry)
        if need_input and plan.input_grad:
            assert weight is not None
            _, rows, _ = subpixel_operands(problem, grad, weight, None, False)
            height, width = problem.input_shape[2:]
            with _library.counting(transposed):
                grad_input = _input_grad_operator(grad, rows, height, width, numbers, channels_last)
            need_input = False
        if need_weight and plan.weight_grad:
            assert input is not None
            with _library.counting(transposed):
                grad_rows, grad_phases = _weight_grad_operator(
                    grad, input, *problem.weight_shape[2:], numbers
                )
            grad_weight = subpixel_weight_to_conv_transpose(
                grad_rows, transposed.stride, groups=groups, kernel_size=transposed.weight_shape[2:]
            )
            need_weight = False
            if need_bias and grad.element_size() > 2:  # in half types the phases would be rounded one by one
                grad_bias = grad_phases.view(grad.shape[1], -1).sum(1)
                need_bias = False
    if need_input or need_weight or need_bias:
        input = grad.new_empty(()).expand(transposed.input_shape) if input is None else input
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


def pytorch_convolution_gradients(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    geometry: Geometry,
    input_shape: tuple[int, ...],
    weight_shape: tuple[int, ...],
    needed: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same by PyTorch: unshuffle the gradient, then its convolution backward. Differentiable again."""
    g = geometry
    channels, cell = grad.shape[1], g.upscale_h * g.upscale_w
    # In channels_last, dcr order unshuffles by whole pixels, several times as fast as the interleaving of
    # crd. Then the weight's rows follow, and its gradient's go back: small tensors both.
    reorder = g.channel_order == _CRD and g.groups == 1 and channels > 1 and is_channels_last(grad)
    low_grad = reference.uncrop_and_unshuffle(grad, g._replace(channel_order=_DCR) if reorder else g)
    if weight is not None:
        weight = reference.grouped_weight(weight, g.groups)
        weight = _transpose_rows(weight, channels, cell) if reorder else weight
    # A tensor that is not needed stands in with its shape only.
    input = grad.new_empty(()).expand(input_shape) if input is None else input
    weight = grad.new_empty(()).expand(weight_shape) if weight is None else weight
    padded, padding = reference.symmetric_padding(input, g)
    grad_input, grad_weight, grad_bias = aten.convolution_backward(
        low_grad, padded, weight, [weight_shape[0]], (g.stride_h, g.stride_w), padding,
        (g.dilation_h, g.dilation_w), False, (0, 0), g.groups, needed,
    )  # fmt: skip
    if needed[0] and padded is not input:
        height, width = input_shape[2:]
        grad_input = grad_input[:, :, g.pad_top : g.pad_top + height, g.pad_left : g.pad_left + width]
    if reorder:
        grad_weight = _transpose_rows(grad_weight, cell, channels) if needed[1] else None
        grad_bias = _transpose_rows(grad_bias, cell, channels) if needed[2] else None
    return grad_input, grad_weight, grad_bias


def _transpose_rows(tensor: Tensor, rows: int, columns: int) -> Tensor:
    """[rows*columns, ...] -> [columns*rows, ...], the first axis transposed, in the same memory format."""
    in_memory = (0, 2, 3, 1) if tensor.dim() == 4 and is_channels_last(tensor) else range(tensor.dim())
    ordered = tensor.permute(*in_memory)
    # With batched gradients, flatten and unflatten have no batching rule; reshape has one.
    rest = ordered.shape[1:]
    turned = ordered.reshape(rows, columns, *rest).transpose(0, 1).reshape(columns * rows, *rest)
    return turned.permute(*(list(in_memory).index(axis) for axis in range(tensor.dim())))


# ---- eager -----------------------------------------------------------------------------------------------


class SubpixelConv2dFunction(torch.autograd.Function):
    """The operator with a :func:`recoverable` epilogue and without ``activation_weight``, for eager calls.

    Of the old form, ``forward(ctx, ...)``: with a separate setup_context every call costs 25 µs more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Any,  # functional.Call
    ) -> Tensor:
        """The output; keeps what :meth:`backward` needs and no more."""
        with torch._C._AutoDispatchBelowAutograd():  # as in functional.py
            transposed = call.problem.transposed
            if transposed is None:
                output = _operator(input, weight, bias, None, residual, *call.numbers)
            else:
                operands = subpixel_operands(call.problem, input, weight, bias, True)
                with _library.counting(transposed):
                    output = _operator(*operands, None, residual, *call.numbers)
        needs_input_grad = ctx.needs_input_grad
        ctx.save_for_backward(
            input if needs_input_grad[1] else None,
            weight if needs_input_grad[0] else None,
            output if call.problem.epilogue.activation else None,
        )
        ctx.call = call
        # The cheap test first: nearly every tensor is contiguous.
        ctx.channels_last = needs_input_grad[0] and not input.is_contiguous() and is_channels_last(input)
        ctx.residual_shape = residual.shape if needs_input_grad[3] and residual is not None else None
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of (input, weight, bias, residual)."""
        problem: Problem = ctx.call.problem
        input, weight, output = ctx.saved_tensors
        grad_residual = None
        if ctx.residual_shape is not None:
            grad_residual = residual_gradient(grad, ctx.residual_shape, problem.geometry)
        if problem.transposed is not None:
            if output is not None:
                grad = activation_gradient(grad, output, problem.epilogue)
            gradients = transposed_convolution_gradients(
                grad, input, weight, problem, ctx.channels_last, ctx.needs_input_grad[:3], ctx.call.plan
            )
            return *gradients, grad_residual, None
        grad_input, grad_weight, grad_bias = convolution_gradients(
            grad,
            output,
            problem.epilogue,
            input,
            weight,
            problem.geometry,
            problem.input_shape,
            problem.weight_shape,
            ctx.channels_last,
            ctx.needs_input_grad[:3],
            ctx.call.plan,
        )
        return grad_input, grad_weight, grad_bias, grad_residual, None


# ---- torch.compile and torch.export ----------------------------------------------------------------------


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, activation_weight, residual, numbers, *epilogue = inputs
    ctx.geometry = Geometry(*numbers)
    ctx.epilogue = Epilogue.of(*epilogue)
    ctx.input_shape, ctx.weight_shape = input.shape, weight.shape
    ctx.residual_shape = None if residual is None else residual.shape
    ctx.channels_last = is_channels_last(input)
    if recoverable(ctx.epilogue, residual is not None):
        needs_input_grad = ctx.needs_input_grad
        ctx.save_for_backward(
            input if needs_input_grad[1] else None,
            weight if needs_input_grad[0] else None,
            output if ctx.epilogue.activation else None,
        )
    else:
        ctx.save_for_backward(input, weight, None, bias, activation_weight, residual)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    input, weight, output, *epilogue_tensors = ctx.saved_tensors
    needed = ctx.needs_input_grad
    grad_activation_weight = grad_residual = None
    if epilogue_tensors:
        grad, grad_activation_weight, grad_residual = _epilogue_gradients(
            grad, input, weight, *epilogue_tensors, geometry=ctx.geometry, epilogue=ctx.epilogue
        )
    else:
        if needed[4]:
            grad_residual = residual_gradient(grad, ctx.residual_shape, ctx.geometry)
    backend = backends.choose("auto", grad.device, grad.dtype)
    plan = plan_backward(backend, ctx.geometry, ctx.input_shape, ctx.weight_shape, grad.dtype)
    gradients = convolution_gradients(
        grad,
        output,
        ctx.epilogue,
        input,
        weight,
        ctx.geometry,
        ctx.input_shape,
        ctx.weight_shape,
        ctx.channels_last,
        needed[:3],
        plan,
    )
    return *gradients, grad_activation_weight, grad_residual, *(None,) * (len(needed) - 5)


def _epilogue_gradients(
    grad: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    *,
    geometry: Geometry,
    epilogue: Epilogue,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of (pre-activation, activation_weight, residual): compute the former again, differentiate."""
    create_graph = torch.is_grad_enabled()
    hidden = _operator(input, weight, bias, None, None, tuple(geometry), *_NO_EPILOGUE)
    with torch.enable_grad():
        if not create_graph:
            hidden = hidden.detach().requires_grad_()
        elif not hidden.requires_grad:
            hidden.requires_grad_()
        output = reference.apply_epilogue(hidden, activation_weight, residual, geometry, epilogue)
        wanted = [
            tensor
            for tensor in (hidden, activation_weight, residual)
            if tensor is not None and tensor.requires_grad
        ]
        found = iter(torch.autograd.grad(output, wanted, grad, create_graph=create_graph))
    gradients = [
        next(found) if tensor is not None and tensor.requires_grad else None
        for tensor in (hidden, activation_weight, residual)
    ]
    assert gradients[0] is not None
    return gradients[0], gradients[1], gradients[2]


if not _library.has_kernel("subpixel_conv2d", "Autograd"):
    torch.library.register_autograd(
        "fused_subpixel::subpixel_conv2d", _backward, setup_context=_setup_context
    )


# ---- the shuffle alone -----------------------------------------------------------------------------------


def _setup_shuffle(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[1:]


def _shuffle_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    factor_h, factor_w, channel_order, inverse = ctx.options
    shuffle = torch.ops.fused_subpixel.shuffle.default
    return shuffle(grad, factor_h, factor_w, channel_order, not inverse), None, None, None, None


if not _library.has_kernel("shuffle", "Autograd"):
    torch.library.register_autograd(
        "fused_subpixel::shuffle", _shuffle_backward, setup_context=_setup_shuffle
    )


# ---- kernels of last resort --------------------------------------------------------------------------------
# An exported graph may be loaded where no library was built, or on a device that has none. There the
# operators run as plain PyTorch.


def _plain_subpixel_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    numbers: Sequence[int],
    *epilogue: Any,
) -> Tensor:
    check_dense(input, weight, bias, activation_weight, residual)
    return reference.run(
        input, weight, bias, activation_weight, residual, Geometry(*numbers), Epilogue.of(*epilogue)
    )


def _before_activation(
    grad: Tensor, output: Tensor | None = None, activation: int = 0, negative_slope: float = 0.0
) -> Tensor:
    epilogue = Epilogue(activation, negative_slope)
    if (output is None) != (activation == 0) or not recoverable(epilogue, False):
        raise ValueError("output goes with an activation whose gradient can be read from it")
    if output is None:
        return grad
    if output.shape != grad.shape:
        raise ValueError(f"output {list(output.shape)} differs in shape from grad_output {list(grad.shape)}")
    return activation_gradient(grad, output, epilogue)


def _plain_input_grad(
    grad: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    numbers: Sequence[int],
    channels_last: bool,
    *saved: Any,
) -> Tensor:
    geometry = Geometry(*numbers)
    input_shape = (grad.shape[0], weight.shape[1] * geometry.groups, height, width)
    gradients = pytorch_convolution_gradients(
        _before_activation(grad, *saved),
        None,
        weight,
        geometry,
        input_shape,
        weight.shape,
        (True, False, False),
    )
    assert gradients[0] is not None
    return gradients[0].contiguous(memory_format=memory_format(channels_last))


def _plain_weight_grad(
    grad: Tensor, input: Tensor, kernel_h: int, kernel_w: int, numbers: Sequence[int], *saved: Any
) -> tuple[Tensor, Tensor]:
    geometry = Geometry(*numbers)
    low_channels = grad.shape[1] * geometry.upscale_h * geometry.upscale_w
    weight_shape = (low_channels, input.shape[1] // geometry.groups, kernel_h, kernel_w)
    _, grad_weight, grad_bias = pytorch_convolution_gradients(
        _before_activation(grad, *saved),
        input,
        None,
        geometry,
        input.shape,
        weight_shape,
        (False, True, True),
    )
    assert grad_weight is not None
    assert grad_bias is not None
    return grad_weight.contiguous(), grad_bias


def _plain_shuffle(input: Tensor, factor_h: int, factor_w: int, channel_order: int, inverse: bool) -> Tensor:
    run = reference.unshuffle if inverse else reference.shuffle
    return run(input, factor_h, factor_w, channel_order)


PLAIN_KERNELS: dict[str, Callable[..., Any]] = {
    "shuffle": _plain_shuffle,
    "subpixel_conv2d": _plain_subpixel_conv2d,
    "subpixel_conv2d_input_grad": _plain_input_grad,
    "subpixel_conv2d_weight_grad": _plain_weight_grad,
}
for _name, _kernel in PLAIN_KERNELS.items():
    if not _library.has_kernel(_name, "CompositeExplicitAutograd"):
        _library.definitions.impl(_name, _kernel, "CompositeExplicitAutograd")

# torch.onnx.export writes an operator that it does not know as its decomposition, here Conv and DepthToSpace.
# Fake tensors of symbolic sizes would run that too, where there is no meta function.
for _operation, _fake, _kernel in (
    (_operator, _library.fake_subpixel_conv2d, _plain_subpixel_conv2d),
    (torch.ops.fused_subpixel.shuffle.default, _library.fake_shuffle, _plain_shuffle),
):
    if _operation not in meta_table:
        register_decomposition(_operation, type="meta")(_fake)
    if _operation not in decomposition_table:
        register_decomposition(_operation)(_kernel)
