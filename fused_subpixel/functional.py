# SPDX-License-Identifier: BSD-3-Clause
"""The public functions: check the arguments, choose the backend, run.

Eager calls are on a diet, because on small images the caller waits for Python more than for arithmetic: what
follows from shapes, dtypes and options is worked out once and cached (:func:`prepare`).
"""

from __future__ import annotations

import marshal
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function, has_torch_function_unary

from . import reference
from .dispatch import backends
from .dispatch.call import Call
from .dispatch.checks import Backend, check_dense, check_tensor, lookup, pair
from .dispatch.choose import prepare, prepare_cached
from .dispatch.resolve import resolve_conv_transpose2d, resolve_subpixel_conv2d
from .dispatch.resolve_1d import resolve_conv_transpose1d, resolve_subpixel_conv1d
from .dispatch.tensors import (
    PLAIN_TENSORS,
    PLAIN_TENSORS_OR_NONE,
    plain_tensor,
    plain_tensors,
    warn_of_dispatching,
    why_only_reference,
)
from .ops import library
from .ops.autograd import run_below_autograd, run_with_gradients
from .ops.geometry import CHANNEL_ORDERS, DTYPES, Activation, ChannelOrder, Problem
from .torch_compat import (
    has_torch_function_mode,
    has_transforms,
    in_forward_mode,
    is_any_autocast_enabled,
    is_exporting,
    jit_tracing_state,
)
from .weights import subpixel_operands

_operator = library.operators.subpixel_conv2d.default
_shuffle_operator = library.operators.shuffle.default


def subpixel_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    upscale_factor: int | Sequence[int] = 2,
    *,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] | str = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    activation_weight: Tensor | None = None,
    residual: Tensor | None = None,
    clamp: Sequence[float | None] | None = None,
    channel_order: ChannelOrder = "crd",
    backend: Backend | None = None,
) -> Tensor:
    """Sub-pixel convolution: ``pixel_shuffle(conv2d(input, weight, bias), r)`` in one pass.

    The convolution writes its values straight to their shuffled places; the low-resolution tensor of
    C*r_h*r_w channels never exists. Before the store come, in this order: bias, activation, residual, clamp.

    W. Shi et al., "Real-Time Single Image and Video Super-Resolution Using an Efficient Sub-Pixel
    Convolutional Neural Network", CVPR 2016. The counterparts in PyTorch are
    :func:`torch.nn.functional.conv2d` and :func:`torch.nn.functional.pixel_shuffle`.

    Args:
        input: [N, Ci, H, W] or [Ci, H, W], of dtype float16, bfloat16, float32 or float64.
        weight: [C*r_h*r_w, Ci/groups, k_h, k_w], as of the ``nn.Conv2d`` before a ``nn.PixelShuffle``.
        bias: [C*r_h*r_w].
        upscale_factor: r, or (r_h, r_w).
        stride: of the convolution, in input pixels; an int or (vertical, horizontal), as all pairs.
        padding: zeros around the input, in pixels: an int, a pair, (top, left, bottom, right), ``"valid"``
            (none) or ``"same"`` (an odd pixel goes to the bottom and right, as in PyTorch).
        dilation: distance of the kernel's taps, in input pixels.
        groups: as in ``conv2d``.
        activation: None, ``"relu"``, ``"leaky_relu"``, ``"prelu"``, ``"silu"``, ``"gelu"`` (the exact one),
            ``"gelu_tanh"`` (its approximation by tanh), ``"tanh"``, ``"sigmoid"``, ``"relu6"``,
            ``"hardswish"``, ``"hardsigmoid"``, ``"elu"`` (of alpha 1), ``"mish"`` or ``"softplus"``
            (of beta 1 and threshold 20).
        negative_slope: of ``"leaky_relu"``.
        activation_weight: slopes of ``"prelu"``: one, C (one per output channel) or C*r_h*r_w (one per row
            of ``weight``, as a PReLU before the shuffle has).
        residual: added after the activation; its shape tells how. As the output: as is. [N, C, P, Q] with
            P x Q the size before the shuffle: upsampled to the nearest neighbour. [N, C*r_h*r_w, P, Q]:
            shuffled as the convolution is.
        clamp: (lowest, highest) value of the output; either may be None.
        channel_order: which low-resolution channel gives phase (i, j) of output channel c: ``"crd"``
            c*r_h*r_w + i*r_w + j (PyTorch), ``"dcr"`` (i*r_w + j)*C + c (TensorFlow's depth_to_space).
        backend: as in :class:`use_backend`, for this call.

    Returns:
        [N, C, P*r_h, Q*r_w], without N for an input without, in the input's dtype and memory format
        (channels_last or contiguous). Under autocast in autocast's dtype, as ``conv2d``; with a residual of
        another dtype in the one that PyTorch's addition of both has. On CPUs an infinity or a NaN in the
        input can make NaN of a whole tile of the output, where a sum tap by tap gives infinity: Winograd's
        algorithm subtracts neighbouring pixels, whatever the deterministic and precision settings are.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape, or the demanded backend cannot run.
    """
    return convolve(
        resolve_subpixel_conv2d, input, weight, bias, activation_weight, residual, backend,
        upscale_factor, stride, padding, dilation, groups, activation, negative_slope, clamp, channel_order,
    )  # fmt: skip


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    activation: Activation | None = None,
    negative_slope: float = 0.01,
    activation_weight: Tensor | None = None,
    residual: Tensor | None = None,
    clamp: Sequence[float | None] | None = None,
    backend: Backend | None = None,
) -> Tensor:
    """Transposed convolution ("deconvolution") as a sub-pixel convolution: the same numbers, one pass.

    A drop-in for :func:`torch.nn.functional.conv_transpose2d`, whose arguments come first. A transposed
    convolution of stride s is a convolution whose kernel has ceil(K/s) taps a side, a pixel shuffle by s and
    a crop; shuffle and crop happen as the kernel stores. W. Shi et al., "Is the deconvolution layer the same
    as a convolutional layer?", arXiv 1609.07009. With dilation PyTorch computes it.

    Args:
        input: [N, Ci, H, W] or [Ci, H, W], of dtype float16, bfloat16, float32 or float64.
        weight: [Ci, C/groups, K_h, K_w], as of ``nn.ConvTranspose2d``.
        bias: [C].
        stride: an int or (vertical, horizontal), as all pairs.
        padding: output pixels taken off at every side.
        output_padding: output pixels added at the bottom and right; less than the stride or the dilation.
        groups: as in ``conv_transpose2d``.
        dilation: distance of the kernel's taps, in output pixels.
        activation: as in :func:`subpixel_conv2d`.
        negative_slope: of ``"leaky_relu"``.
        activation_weight: slopes of ``"prelu"``: one, or C.
        residual: shaped as the output, added after the activation.
        clamp: (lowest, highest) value of the output; either may be None.
        backend: as in :class:`use_backend`, for this call.

    Returns:
        [N, C, (H-1)*stride_h - 2*padding_h + dilation_h*(K_h-1) + output_padding_h + 1, ...], without N for
        an input without, in the input's dtype and memory format (channels_last or contiguous). Under autocast
        in autocast's dtype, with a residual of another dtype in the one that PyTorch's addition of both has.
        On a GPU an infinite weight makes NaN of the border, where zeros stand around the input. If the kernel
        is no multiple of the stride, an infinity in the input can there make NaN of outputs that do not read
        it. On CPUs neither happens. For infinities and NaN in the input see also :func:`subpixel_conv2d`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape, or the demanded backend cannot run.
    """
    return convolve(
        resolve_conv_transpose2d, input, weight, bias, activation_weight, residual, backend,
        stride, padding, output_padding, groups, dilation, activation, negative_slope, clamp,
    )  # fmt: skip


def pixel_shuffle(
    input: Tensor, upscale_factor: int | Sequence[int], channel_order: ChannelOrder = "crd"
) -> Tensor:
    """Rearrange [..., C*r_h*r_w, H, W] to [..., C, H*r_h, W*r_w], keeping the memory format.

    As :func:`torch.nn.functional.pixel_shuffle`, and beyond it: unequal factors (r_h, r_w), the ``"dcr"``
    channel order (see :func:`subpixel_conv2d`), channels_last in and out on every device, empty batches
    with gradients.

    Raises TypeError or ValueError where the shape does not fit the factor.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(pixel_shuffle, (input,), input, upscale_factor, channel_order)
    factor_h, factor_w = _check_shuffle(input, "upscale_factor", upscale_factor)
    phases = factor_h * factor_w
    if input.shape[-3] % phases:
        found = list(input.shape)
        raise ValueError(f"input: expected channels divisible by {factor_h}*{factor_w}={phases}, got {found}")
    return shuffle(input, factor_h, factor_w, channel_order, False)


def pixel_unshuffle(
    input: Tensor, downscale_factor: int | Sequence[int], channel_order: ChannelOrder = "crd"
) -> Tensor:
    """Rearrange [..., C, H*r_h, W*r_w] to [..., C*r_h*r_w, H, W], the inverse of :func:`pixel_shuffle`.

    Raises TypeError or ValueError where the shape does not fit the factor.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(pixel_unshuffle, (input,), input, downscale_factor, channel_order)
    factor_h, factor_w = _check_shuffle(input, "downscale_factor", downscale_factor)
    if input.shape[-2] % factor_h or input.shape[-1] % factor_w:
        found = list(input.shape)
        raise ValueError(f"input: expected a size divisible by {factor_h} and {factor_w}, got {found}")
    return shuffle(input, factor_h, factor_w, channel_order, True)


def shuffle(
    input: Tensor, factor_h: int, factor_w: int, channel_order: ChannelOrder, inverse: bool
) -> Tensor:
    """By the CUDA library's kernel, which keeps the layout, where that can run; else by PyTorch."""
    if input.is_cuda and input.dim() == 4 and input.element_size() <= 8:
        tracing = torch.compiler.is_compiling()
        input = input if tracing else plain_tensor("input", input)
        chosen = backends.choose(backends.requested(tracing), input.device)
        if chosen == "cuda" and why_only_reference(tracing, input) is None:
            order = lookup("channel_order", channel_order, CHANNEL_ORDERS)
            return _shuffle_operator(input, factor_h, factor_w, order, inverse)
    run = reference.pixel_unshuffle if inverse else reference.pixel_shuffle
    return run(input, (factor_h, factor_w), channel_order)


def _check_shuffle(input: Any, name: str, factor: Any) -> tuple[int, int]:
    check_tensor("input", input)
    if input.dim() < 3:
        raise ValueError(f"input: expected [..., C, H, W], got {list(input.shape)}")
    return pair(name, factor, minimum=1)


# ---- tensor subclasses, and other things that PyTorch's functions take for tensors -------------------------

_SUBPIXEL_OPTIONS = (
    "upscale_factor", "stride", "padding", "dilation", "groups", "activation", "negative_slope", "clamp",
    "channel_order",
)  # fmt: skip
_TRANSPOSED_OPTIONS = (
    "stride", "padding", "output_padding", "groups", "dilation", "activation", "negative_slope", "clamp",
)  # fmt: skip
# Of the public functions, by what checks their arguments: the names of those that are no tensors.
OPTION_NAMES: dict[Any, tuple[str, ...]] = {
    resolve_subpixel_conv1d: _SUBPIXEL_OPTIONS,
    resolve_subpixel_conv2d: _SUBPIXEL_OPTIONS,
    resolve_conv_transpose1d: _TRANSPOSED_OPTIONS,
    resolve_conv_transpose2d: _TRANSPOSED_OPTIONS,
}


def _hand_over(
    resolve: Callable[..., Problem],
    tensors: tuple[Any, ...],
    backend: Backend | None,
    options: tuple[Any, ...],
) -> Any:
    """Let an argument's ``__torch_function__``, or a mode, do the call, as PyTorch's own functions do."""
    function: Any = subpixel_conv2d if resolve is resolve_subpixel_conv2d else conv_transpose2d
    input, weight, bias, activation_weight, residual = tensors
    return handle_torch_function(
        function, tensors, input, weight, bias, activation_weight=activation_weight, residual=residual,
        backend=backend, **dict(zip(OPTION_NAMES[resolve], options, strict=True)),
    )  # fmt: skip


def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)


# torch 2.10 cannot trace it. As torch.compiler.assume_constant_result does, which would import Dynamo.
_has_autocast.__dict__["_dynamo_marked_constant"] = True


def autocasts(device_type: str) -> bool:
    """Whether autocast decides what calls on these devices compute in."""
    return _has_autocast(device_type) and torch.is_autocast_enabled(device_type)


def autocast(*tensors: Any) -> tuple[Any, ...]:
    """Cast as F.conv2d does under autocast: all but float64 to autocast's dtype."""
    dtype = torch.get_autocast_dtype(tensors[0].device.type)
    return tuple(
        tensor if tensor is None or tensor.dtype == torch.float64 or not tensor.is_floating_point()
        else tensor.to(dtype)
        for tensor in tensors
    )  # fmt: skip


# ---- running -----------------------------------------------------------------------------------------------


def convolve(
    resolve: Callable[..., Problem],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    backend: Backend | None,
    *options: Any,
) -> Tensor:
    """:func:`subpixel_conv2d` or :func:`conv_transpose2d`, with ``options`` in the order of ``resolve``.

    Or a function of one dimension, whose tensors are images of one row.
    """
    tracing = torch.compiler.is_compiling()
    if tracing or (
        type(input) in PLAIN_TENSORS
        and type(weight) in PLAIN_TENSORS
        and type(bias) in PLAIN_TENSORS_OR_NONE
        and type(activation_weight) in PLAIN_TENSORS_OR_NONE
        and type(residual) in PLAIN_TENSORS_OR_NONE
        and not has_torch_function_mode()
    ):
        # what why_only_reference() asks, without a call that would cost 0.2 µs
        only_reference = (
            None
            if not tracing and not in_forward_mode() and jit_tracing_state() is None and not has_transforms()
            else why_only_reference(tracing)
        )
    else:
        tensors = (input, weight, bias, activation_weight, residual)
        if has_torch_function(tensors):
            return _hand_over(resolve, tensors, backend, options)
        tensors = plain_tensors(*tensors)
        only_reference = why_only_reference(tracing, *tensors)
        input, weight, bias, activation_weight, residual = tensors
    promotes = False
    if is_any_autocast_enabled() and autocasts(input.device.type):
        input, weight, bias, activation_weight = autocast(input, weight, bias, activation_weight)
        promotes = residual is not None and input.dtype != residual.dtype in DTYPES

    key = None
    if not tracing:
        try:  # noqa: SIM105  (contextlib.suppress would cost 0.5 µs)
            key = marshal.dumps(options, 2)
        except ValueError:
            pass  # NumPy's numbers, and what is wrong
    try:
        arguments = (
            backend or backends.requested(tracing),
            backends.allows_tf32(input.is_cuda),
            resolve,
            (input.shape, input.dtype, input.device),  # written out: five calls would cost 0.5 µs
            (weight.shape, weight.dtype, weight.device),
            None if bias is None else (bias.shape, bias.dtype, bias.device),
            None if activation_weight is None
            else (activation_weight.shape, activation_weight.dtype, activation_weight.device),
            None if residual is None
            else (residual.shape, input.dtype if promotes else residual.dtype, residual.device),
            key,
        )  # fmt: skip
    except RuntimeError:  # of what has no shape
        check_dense(input, weight, bias, activation_weight, residual)
        raise
    if len(arguments[3][0]) == 3:
        return convolve(
            resolve, input.unsqueeze(0), weight, bias, activation_weight,
            None if residual is None else residual.unsqueeze(0), backend, *options,
        ).squeeze(0)  # fmt: skip
    call = None
    if key is not None:
        try:  # noqa: SIM105
            call = prepare_cached(*arguments)
        except (TypeError, ValueError):
            pass  # symbolic sizes cannot be cached; what is wrong is refused just below
    if call is None:
        # Symbolic sizes are for the reference: to plan a kernel and write its options would fix them.
        symbolic = key is not None and only_reference is not None and arguments[0] == "auto"
        call = prepare("reference" if symbolic else arguments[0], *arguments[1:-1], *options)

    if promotes:
        # PyTorch's addition gives the wider of two dtypes; the kernels write that of the convolution.
        position = OPTION_NAMES[resolve].index("clamp")
        output = convolve(
            resolve, input, weight, bias, activation_weight, None, backend,
            *options[:position], None, *options[position + 1 :],
        )  # fmt: skip
        return reference.add_and_clamp(output, residual, call.problem.geometry, call.problem.epilogue)
    if call.backend != "reference":
        if only_reference is None:
            try:
                return _run(call, tracing, input, weight, bias, activation_weight, residual)
            except RuntimeError:
                check_dense(input, weight, bias, activation_weight, residual)
                if call.backend == "cuda" and not tracing:
                    # LibTorch's stable ABI forgets the type of an error. If it was memory, this one is right:
                    # as much as the output and the copy that a contiguous input is given in channels_last.
                    copied = input.numel() // input.shape[1] * (input.shape[1] + 7)
                    size = math.prod(call.problem.output_shape) + copied
                    torch.empty(size, dtype=input.dtype, device=input.device)
                raise
        if arguments[0] != "auto":
            raise ValueError(f"backend {call.backend!r} cannot run here: {only_reference}")
        if not tracing:
            warn_of_dispatching(input, weight, bias, activation_weight, residual)
    elif arguments[0] == "auto" and not tracing:
        library.warn_if_missing(input.device.type)
    check_dense(input, weight, bias, activation_weight, residual)
    return reference.run_problem(call.problem, input, weight, bias, activation_weight, residual)


def _run(
    call: Call,
    tracing: bool,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
) -> Tensor:
    """Run the operator, with gradients if they are needed."""
    needs_gradient = torch.is_grad_enabled() and (
        input.requires_grad
        or weight.requires_grad
        or (bias is not None and bias.requires_grad)
        or (activation_weight is not None and activation_weight.requires_grad)
        or (residual is not None and residual.requires_grad)
    )
    if needs_gradient and call.linear is not None and not (tracing and is_exporting()):
        # The gradient of this epilogue needs the values before it. Store these, shuffled, and go on in
        # ordinary PyTorch: it would have had to keep that tensor as well, and torch.compile fuses what
        # follows. An exported graph keeps the whole operator: it is for inference mostly, and can still be
        # differentiated (autograd.py).
        check_dense(None, None, None, activation_weight, residual)  # PyTorch adds sparse tensors
        hidden = _run(call.linear, tracing, input, weight, bias, None, None)
        return reference.apply_epilogue(
            hidden, activation_weight, residual, call.problem.geometry, call.problem.epilogue
        )
    if needs_gradient and not tracing:
        return run_with_gradients(input, weight, bias, residual, call)
    if tracing:
        if call.problem.transposed is not None:
            input, weight, bias = subpixel_operands(call.problem, input, weight, bias)
        return _operator(input, weight, bias, activation_weight, residual, *call.numbers)
    return run_below_autograd(call, input, weight, bias, activation_weight, residual)
