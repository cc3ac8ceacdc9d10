# SPDX-License-Identifier: BSD-3-Clause
"""Two ways into autograd, with the formulas of gradients.py.

:class:`SubpixelConv2dFunction` serves eager calls, because it costs a third to a half per call of what
autograd registered on the operator costs. That serves torch.compile and torch.export. A raw operator whose
epilogue has no gradient from the output computes the pre-activation again in its backward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import reference, torch_compat
from ..dispatch import backends
from ..dispatch.backward import plan_backward
from ..dispatch.call import Call
from ..dispatch.tensors import is_plainly_eager
from ..weights import (
    subpixel_operands,
    subpixel_weight_and_bias,
    subpixel_weight_to_conv_transpose,
    used_input,
)
from . import library
from .fakes import counting
from .geometry import Epilogue, Geometry, Problem, subpixel_weight_shape
from .gradients import (
    TRANSPOSED_WEIGHT,
    Operands,
    activation_gradient,
    convolution_gradients,
    is_differentiated,
    residual_gradient,
    sum_phases,
    transposed_convolution_gradients,
)
from .layout import is_channels_last

# Overloads, because choosing among them costs a microsecond per call.
_operator = library.operators.subpixel_conv2d.default
_eager_operator = torch_compat.builtin_of(library.operators._subpixel_conv2d.default)
_eager_backward = torch_compat.builtin_of(library.operators._subpixel_conv2d_backward.default)
_NO_EPILOGUE = Epilogue().numbers()


def run_below_autograd(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """The operator of an eager call, past the autograd registered on it, for twice the time of a small call.

    Kernels read the weight of a transposed convolution of one group where it is.
    """
    transposed, native = call.problem.transposed, False
    if transposed is not None:
        native = call.problem.geometry.groups == 1
        if native:
            input = used_input(transposed, input)
        else:
            input, weight, bias = subpixel_operands(call.problem, input, weight, bias)
    # What else could watch, functional.py has asked about.
    if (
        call.options is not None
        and torch_compat.dispatch_mode_depth() == 0
        and not torch_compat.in_pre_dispatch()
    ):
        return _eager_operator(input, weight, bias, activation_weight, residual, call.options)
    with torch_compat.below_autograd(), counting(transposed):
        return _operator(input, weight, bias, activation_weight, residual, *call.numbers, native)


class SubpixelConv2dFunction(torch.autograd.Function):
    """The operator in eager calls; the gradient of its epilogue must follow from the output.

    Of the old form, ``forward(ctx, ...)``: with a separate setup_context every call costs 25 µs more.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        residual: Tensor | None,
        call: Call,
    ) -> Tensor:
        """The output; keeps what :meth:`backward` needs and no more."""
        output = run_below_autograd(call, input, weight, bias, None, residual)
        needs_input, needs_weight, needs_bias, needs_residual, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            input if needs_weight else None,
            weight if needs_input else None,
            output if call.activated else None,
        )
        # The cheap tests first: nearly every tensor is dense in one of the two layouts.
        channels_last = (
            needs_input
            and not input.is_contiguous()
            and (input.is_contiguous(memory_format=torch.channels_last) or is_channels_last(input))
        )
        # Usually one operator computes all gradients: its `wanted`, as in csrc/torch/operators.h, or 0.
        wanted = 0
        if call.one_backward and not needs_residual and (needs_weight or not needs_bias):
            wanted = needs_input + 2 * needs_weight + 4 * channels_last
            if call.problem.transposed is not None:
                wanted += TRANSPOSED_WEIGHT
        residual_shape = residual.shape if needs_residual and residual is not None else None
        ctx.rest = wanted, call, channels_last, residual_shape
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of (input, weight, bias, residual)."""
        wanted, call, channels_last, residual_shape = ctx.rest
        input, weight, output = ctx.saved_tensors
        needed = ctx.needs_input_grad
        if wanted and not is_differentiated() and is_plainly_eager(grad, output, input, weight):
            of_input, of_weight, of_bias = _eager_backward(grad, input, weight, output, call.options, wanted)
            if not needed[2]:
                of_bias = None
            elif wanted & TRANSPOSED_WEIGHT:
                of_bias = sum_phases(of_bias, grad)
            return of_input, of_weight, of_bias, None, None
        needed = needed[:3]
        problem: Problem = call.problem
        grad_residual = None
        if residual_shape is not None:
            grad_residual = residual_gradient(grad, residual_shape, problem.geometry)
        if problem.transposed is not None:
            if output is not None:
                grad = activation_gradient(grad, output, problem.epilogue)
            gradients = transposed_convolution_gradients(
                grad, input, weight, problem, channels_last, needed, call.plan, call.options
            )
        else:
            operands = Operands(
                input, weight, problem.geometry, problem.input_shape, problem.weight_shape, needed
            )
            gradients = convolution_gradients(
                grad, output, problem.epilogue, operands, channels_last, call.plan, call.options
            )
        return *gradients, grad_residual, None


_apply = super(torch.autograd.Function, SubpixelConv2dFunction).apply


def run_with_gradients(
    input: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, call: Call
) -> Tensor:
    """``SubpixelConv2dFunction.apply`` outside of transforms, without asking again whether there are any.

    Function.apply asks that, and which of all arguments are tensors to be unwrapped, for 6 µs.
    """
    unwrap = torch_compat.unwrap_if_dead
    output: Tensor = _apply(
        unwrap(input),
        unwrap(weight),
        None if bias is None else unwrap(bias),
        None if residual is None else unwrap(residual),
        call,
    )
    return output


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weight, bias, activation_weight, residual, numbers, *epilogue, transposed_weight = inputs
    ctx.geometry = Geometry(*numbers)
    ctx.epilogue = Epilogue.of(*epilogue)
    ctx.input_shape, ctx.weight_shape, ctx.kernel_size = input.shape, weight.shape, None
    if transposed_weight:
        ctx.weight_shape = torch.Size(subpixel_weight_shape(weight.shape, ctx.geometry))
        ctx.kernel_size = weight.shape[2:]
    ctx.residual_shape = None if residual is None else residual.shape
    ctx.channels_last = is_channels_last(input)
    if ctx.epilogue.has_grad_from_output(residual is not None):
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
    if ctx.kernel_size is not None:  # of a transposed weight
        if weight is not None:
            weight, _ = subpixel_weight_and_bias(weight, None, ctx.geometry)
        if epilogue_tensors and epilogue_tensors[0] is not None:
            phases = ctx.geometry.upscale_h * ctx.geometry.upscale_w
            epilogue_tensors[0] = epilogue_tensors[0].repeat_interleave(phases)
    if epilogue_tensors:
        grad, grad_activation_weight, grad_residual = _epilogue_gradients(
            grad, input, weight, *epilogue_tensors, geometry=ctx.geometry, epilogue=ctx.epilogue
        )
    else:
        if needed[4]:
            grad_residual = residual_gradient(grad, ctx.residual_shape, ctx.geometry)
    backend = backends.choose("auto", grad.device)
    plan = plan_backward(backend, ctx.geometry, ctx.input_shape, ctx.weight_shape, grad.dtype)
    operands = Operands(input, weight, ctx.geometry, ctx.input_shape, ctx.weight_shape, needed[:3])
    grad_input, grad_weight, grad_bias = convolution_gradients(
        grad, output, ctx.epilogue, operands, ctx.channels_last, plan
    )
    if ctx.kernel_size is not None:
        factor = (ctx.geometry.upscale_h, ctx.geometry.upscale_w)
        if grad_weight is not None:
            grad_weight = subpixel_weight_to_conv_transpose(grad_weight, factor, kernel_size=ctx.kernel_size)
        if grad_bias is not None:
            grad_bias = grad_bias.view(grad.shape[1], -1).sum(1)
    gradients = (grad_input, grad_weight, grad_bias, grad_activation_weight, grad_residual)
    return *gradients, *(None,) * (len(needed) - len(gradients))


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


if not library.has_kernel("subpixel_conv2d", "Autograd"):
    torch.library.register_autograd(
        library.qualified("subpixel_conv2d"), _backward, setup_context=_setup_context
    )


def _setup_shuffle(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.options = inputs[1:]


def _shuffle_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    factor_h, factor_w, channel_order, inverse = ctx.options
    shuffle = library.operators.shuffle.default
    return shuffle(grad, factor_h, factor_w, channel_order, not inverse), None, None, None, None


if not library.has_kernel("shuffle", "Autograd"):
    torch.library.register_autograd(
        library.qualified("shuffle"), _shuffle_backward, setup_context=_setup_shuffle
    )
