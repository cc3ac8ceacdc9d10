# SPDX-License-Identifier: BSD-3-Clause
"""The operators as plain PyTorch, for devices and machines without a compiled library.

An exported graph may be loaded where no library was built. torch.onnx.export writes an operator that it does
not know as its decomposition, which is made of these too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import reference, torch_compat
from ..dispatch.call import read_eager_options
from ..dispatch.checks import check_dense
from ..weights import subpixel_weight_and_bias
from . import fakes, library
from .geometry import Epilogue, Geometry
from .gradients import Operands, activation_gradient, pytorch_convolution_gradients
from .layout import memory_format


def _plain_subpixel_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    numbers: Sequence[int],
    activation: int,
    negative_slope: float,
    clamp_min: float | None,
    clamp_max: float | None,
    transposed_weight: bool = False,
) -> Tensor:
    check_dense(input, weight, bias, activation_weight, residual)
    geometry = Geometry(*numbers)
    epilogue = Epilogue.of(activation, negative_slope, clamp_min, clamp_max)
    if transposed_weight:
        weight, bias = subpixel_weight_and_bias(weight, bias, geometry)
    return reference.run(input, weight, bias, activation_weight, residual, geometry, epilogue)


def _before_activation(
    grad: Tensor, output: Tensor | None = None, activation: int = 0, negative_slope: float = 0.0
) -> Tensor:
    epilogue = Epilogue(activation, negative_slope)
    if (output is None) != (activation == 0) or not epilogue.has_grad_from_output(False):
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
    operands = Operands(None, weight, geometry, input_shape, weight.shape, (True, False, False))
    gradients = pytorch_convolution_gradients(_before_activation(grad, *saved), operands)
    assert gradients[0] is not None
    return gradients[0].contiguous(memory_format=memory_format(channels_last))


def _plain_weight_grad(
    grad: Tensor, input: Tensor, kernel_h: int, kernel_w: int, numbers: Sequence[int], *saved: Any
) -> tuple[Tensor, Tensor]:
    geometry = Geometry(*numbers)
    lr_channels = grad.shape[1] * geometry.upscale_h * geometry.upscale_w
    weight_shape = (lr_channels, input.shape[1] // geometry.groups, kernel_h, kernel_w)
    operands = Operands(input, None, geometry, input.shape, weight_shape, (False, True, True))
    _, grad_weight, grad_bias = pytorch_convolution_gradients(_before_activation(grad, *saved), operands)
    assert grad_weight is not None
    assert grad_bias is not None
    return grad_weight.contiguous(), grad_bias


def _plain_eager(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    options: Tensor,
) -> Tensor:
    geometry, epilogue, transposed_weight, _ = read_eager_options(options)
    return _plain_subpixel_conv2d(
        input, weight, bias, activation_weight, residual, geometry, *epilogue, transposed_weight
    )


def _plain_eager_backward(
    grad: Tensor,
    input: Tensor | None,
    weight: Tensor | None,
    output: Tensor | None,
    options: Tensor,
    wanted: int,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    geometry, epilogue, _, (height, width, kernel_h, kernel_w) = read_eager_options(options)
    saved = () if output is None else (output, epilogue.activation, epilogue.negative_slope)
    grad_input = grad_weight = grad_bias = None
    if wanted & 1:
        assert weight is not None
        grad_input = _plain_input_grad(grad, weight, height, width, geometry, bool(wanted & 4), *saved)
    if wanted & 2:
        assert input is not None
        grad_weight, grad_bias = _plain_weight_grad(grad, input, kernel_h, kernel_w, geometry, *saved)
    return grad_input, grad_weight, grad_bias


def _plain_unshuffle_reduce(grad: Tensor, numbers: Sequence[int], *saved: Any) -> tuple[Tensor, Tensor]:
    low = reference.uncrop_and_unshuffle(_before_activation(grad, *saved), Geometry(*numbers))
    padding = fakes.vector_padding(low.shape[1], low.dtype)
    padded = F.pad(low, (0, 0, 0, 0, 0, padding))
    return padded.contiguous(memory_format=torch.channels_last), low.sum((0, 2, 3))


def _plain_shuffle(input: Tensor, factor_h: int, factor_w: int, channel_order: int, inverse: bool) -> Tensor:
    run = reference.unshuffle if inverse else reference.shuffle
    return run(input, factor_h, factor_w, channel_order)


PLAIN_KERNELS: dict[str, Callable[..., Any]] = {
    "shuffle": _plain_shuffle,
    "unshuffle_reduce": _plain_unshuffle_reduce,
    "subpixel_conv2d": _plain_subpixel_conv2d,
    "subpixel_conv2d_input_grad": _plain_input_grad,
    "subpixel_conv2d_weight_grad": _plain_weight_grad,
    "_subpixel_conv2d": _plain_eager,
    "_subpixel_conv2d_backward": _plain_eager_backward,
}
for _name, _kernel in PLAIN_KERNELS.items():
    if not library.has_kernel(_name, "CompositeExplicitAutograd"):
        library.definitions.impl(_name, _kernel, "CompositeExplicitAutograd")
# torch.onnx.export writes an operator that it does not know as its decomposition, here Conv and DepthToSpace.
# Fake tensors of symbolic sizes would run that too, where there is no meta function.
for _operation, _fake, _kernel in (
    (library.operators.subpixel_conv2d.default, fakes.fake_subpixel_conv2d, _plain_subpixel_conv2d),
    (library.operators.shuffle.default, fakes.fake_shuffle, _plain_shuffle),
):
    if _operation not in torch_compat.meta_table:
        torch_compat.register_decomposition(_operation, type="meta")(_fake)
    if _operation not in torch_compat.decomposition_table:
        torch_compat.register_decomposition(_operation)(_kernel)
