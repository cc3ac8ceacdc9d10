# SPDX-License-Identifier: BSD-3-Clause
"""The public functions of one dimension: for audio and other signals.

A signal [N, C, L] is computed as the image [N, C, 1, L], which is a view of the same memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function, has_torch_function_unary

from .dispatch.checks import Backend, check_dense, check_tensor, single
from .dispatch.resolve_1d import resolve_conv_transpose1d, resolve_subpixel_conv1d
from .functional import convolve, shuffle
from .ops.geometry import Activation, ChannelOrder, Problem


def subpixel_conv1d(
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
    """Sub-pixel convolution of signals: ``pixel_shuffle1d(conv1d(input, weight, bias), r)`` in one pass.

    The one-dimensional :func:`fused_subpixel.subpixel_conv2d`, for audio and other sequences. The counterpart
    of the convolution in PyTorch is :func:`torch.nn.functional.conv1d`. PyTorch has no shuffle of one
    dimension; see :func:`fused_subpixel.pixel_shuffle1d`.

    Args:
        input: [N, Ci, L] or [Ci, L], of dtype float16, bfloat16, float32 or float64.
        weight: [C*r, Ci/groups, k], as of an ``nn.Conv1d`` with C*r output channels.
        bias: [C*r].
        upscale_factor: r.
        stride: of the convolution, in input samples.
        padding: zeros around the input, in samples: an int, a pair (left, right), ``"valid"`` (none) or
            ``"same"`` (an odd sample goes to the right, as in PyTorch).
        dilation: distance of the kernel's taps, in input samples.
        groups: as in ``conv1d``.
        activation: as in :func:`fused_subpixel.subpixel_conv2d`.
        negative_slope: of ``"leaky_relu"``.
        activation_weight: slopes of ``"prelu"``: one, C (one per output channel) or C*r (one per row of
            ``weight``, as a PReLU before the shuffle has).
        residual: added after the activation; its shape tells how. As the output: as is. [N, C, Q] with Q the
            length before the shuffle: upsampled to the nearest neighbour. [N, C*r, Q]: shuffled as the
            convolution is.
        clamp: (lowest, highest) value of the output; either may be None.
        channel_order: which low-resolution channel gives phase i of output channel c: ``"crd"`` c*r + i,
            ``"dcr"`` i*C + c.
        backend: as in :class:`use_backend`, for this call.

    Options that are ints may be sequences of one int, as in PyTorch.

    Returns:
        [N, C, Q*r], without N for an input without, in the input's dtype: contiguous, or for an input that is
        [N, L, Ci] in memory, [N, Q*r, C] in memory. Nothing is copied to change the layout. Autocast,
        infinities and NaN: as in :func:`fused_subpixel.subpixel_conv2d`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape, or the demanded backend cannot run.
    """
    tensors = input, weight, bias, activation_weight, residual
    if not torch.compiler.is_compiling() and has_torch_function(tensors):
        return handle_torch_function(
            subpixel_conv1d, tensors, input, weight, bias, upscale_factor, stride=stride, padding=padding,
            dilation=dilation, groups=groups, activation=activation, negative_slope=negative_slope,
            activation_weight=activation_weight, residual=residual, clamp=clamp, channel_order=channel_order,
            backend=backend,
        )  # fmt: skip
    return _convolve(
        resolve_subpixel_conv1d, tensors, backend,
        upscale_factor, stride, padding, dilation, groups, activation, negative_slope, clamp, channel_order,
    )  # fmt: skip


def conv_transpose1d(
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
    """Transposed convolution of signals, as a sub-pixel convolution: the same numbers, one pass.

    A drop-in for :func:`torch.nn.functional.conv_transpose1d`, whose arguments come first; the
    one-dimensional :func:`fused_subpixel.conv_transpose2d`. It is the upsampling layer of vocoders and of
    neural audio codecs: J. Kong et al., "HiFi-GAN: Generative Adversarial Networks for Efficient and High
    Fidelity Speech Synthesis", arXiv 2010.05646. With dilation PyTorch computes it.

    Args:
        input: [N, Ci, L] or [Ci, L], of dtype float16, bfloat16, float32 or float64.
        weight: [Ci, C/groups, K], as of ``nn.ConvTranspose1d``.
        bias: [C].
        stride: an int.
        padding: output samples taken off at both ends.
        output_padding: output samples added at the end; less than the stride or the dilation.
        groups: as in ``conv_transpose1d``.
        dilation: distance of the kernel's taps, in output samples.
        activation: as in :func:`fused_subpixel.subpixel_conv2d`.
        negative_slope: of ``"leaky_relu"``.
        activation_weight: slopes of ``"prelu"``: one, or C.
        residual: shaped as the output, added after the activation.
        clamp: (lowest, highest) value of the output; either may be None.
        backend: as in :class:`use_backend`, for this call.

    Options that are ints may be sequences of one int, as in PyTorch.

    Returns:
        [N, C, (L-1)*stride - 2*padding + dilation*(K-1) + output_padding + 1], without N for an input
        without, in the input's dtype: contiguous, or for an input that is [N, L, Ci] in memory, also with its
        channels last in memory, where PyTorch copies such an input and returns a contiguous output. Autocast,
        infinities and NaN: as in :func:`fused_subpixel.conv_transpose2d`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape, or the demanded backend cannot run.
    """
    tensors = input, weight, bias, activation_weight, residual
    if not torch.compiler.is_compiling() and has_torch_function(tensors):
        return handle_torch_function(
            conv_transpose1d, tensors, input, weight, bias, stride, padding, output_padding, groups, dilation,
            activation=activation, negative_slope=negative_slope, activation_weight=activation_weight,
            residual=residual, clamp=clamp, backend=backend,
        )  # fmt: skip
    return _convolve(
        resolve_conv_transpose1d, tensors, backend,
        stride, padding, output_padding, groups, dilation, activation, negative_slope, clamp,
    )  # fmt: skip


def pixel_shuffle1d(
    input: Tensor, upscale_factor: int | Sequence[int], channel_order: ChannelOrder = "crd"
) -> Tensor:
    """Rearrange [..., C*r, L] to [..., C, L*r]: the one-dimensional :func:`fused_subpixel.pixel_shuffle`.

    Output sample l*r + i of channel c comes from input channel c*r + i (``"crd"``) or i*C + c (``"dcr"``).

    Raises TypeError or ValueError where the shape does not fit the factor.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(pixel_shuffle1d, (input,), input, upscale_factor, channel_order)
    factor = _check_shuffle(input, "upscale_factor", upscale_factor)
    if input.shape[-2] % factor:
        raise ValueError(f"input: expected channels divisible by {factor}, got {list(input.shape)}")
    return _as_signal(input, shuffle(input.unsqueeze(-2), 1, factor, channel_order, False))


def pixel_unshuffle1d(
    input: Tensor, downscale_factor: int | Sequence[int], channel_order: ChannelOrder = "crd"
) -> Tensor:
    """Rearrange [..., C, L*r] to [..., C*r, L], the inverse of :func:`pixel_shuffle1d`.

    Raises TypeError or ValueError where the shape does not fit the factor.
    """
    if has_torch_function_unary(input):
        return handle_torch_function(pixel_unshuffle1d, (input,), input, downscale_factor, channel_order)
    factor = _check_shuffle(input, "downscale_factor", downscale_factor)
    if input.shape[-1] % factor:
        raise ValueError(f"input: expected a length divisible by {factor}, got {list(input.shape)}")
    return _as_signal(input, shuffle(input.unsqueeze(-2), 1, factor, channel_order, True))


def _check_shuffle(input: Any, name: str, factor: Any) -> int:
    check_tensor("input", input)
    if input.dim() < 2:
        raise ValueError(f"input: expected [..., C, L], got {list(input.shape)}")
    return single(name, factor, minimum=1)


# ---- signals as images of one row --------------------------------------------------------------------------


def as_rows(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
) -> tuple[Any, ...]:
    """A call's tensors as those of images of one row; views. The resolvers check the number of dimensions."""
    try:
        return (
            input.unsqueeze(-2),
            weight.unsqueeze(-2),
            bias,
            activation_weight,
            None if residual is None else residual.unsqueeze(-2),
        )
    except (AttributeError, IndexError, RuntimeError):
        check_tensor("input", input)
        check_tensor("weight", weight)
        check_dense(None, None, bias, activation_weight, residual)
        # one of them has no dimension
        rows = [t if t is None or t.dim() == 0 else t.unsqueeze(-2) for t in (input, weight, residual)]
        return rows[0], rows[1], bias, activation_weight, rows[2]


def _convolve(
    resolve: Callable[..., Problem], tensors: tuple[Any, ...], backend: Backend | None, *options: Any
) -> Tensor:
    input, *others = as_rows(*tensors)
    return _as_signal(tensors[0], convolve(resolve, input, *others, backend, *options))


def _as_signal(input: Tensor, output: Tensor) -> Tensor:
    """The row of ``output``, contiguous where ``input`` is.

    The strides of a contiguous signal of one channel or of one sample can also be those of a channels_last
    image; only then is anything copied here.
    """
    output = output.squeeze(-2)
    return output.contiguous() if input.is_contiguous() else output
