# SPDX-License-Identifier: BSD-3-Clause
"""The public function of three dimensions: for volumes, as of medical imaging.

Where kernel and stride are equal in depth, each slice of the input gives slices of the output that depend on
no other. Slices are then images, and the taps in depth are channels:

    [N, Ci, D, H, W] and [Ci, C, K_d, K_h, K_w]  ->  [N*D, Ci, H, W] and [Ci, C*K_d, K_h, K_w]
"""

from __future__ import annotations

import functools
import marshal
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from . import torch_compat
from .dispatch import backends
from .dispatch.checks import Backend, check_dense, check_tensor, describe
from .dispatch.resolve_3d import Volumes, resolve_conv_transpose3d
from .dispatch.tensors import is_plainly_eager
from .functional import autocast, autocasts, conv_transpose2d
from .ops import library

# Slices are computed in groups, whose output is still in the cache when it is copied to its place: bytes of
# it, and voxels of the input, below which a group is too little work for the weight that each call packs.
_GROUP_BYTES, _GROUP_VOXELS = 4 << 20, 1024


def conv_transpose3d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
    *,
    backend: Backend | None = None,
) -> Tensor:
    """Transposed convolution of volumes, slice by slice as :func:`fused_subpixel.conv_transpose2d`.

    A drop-in for :func:`torch.nn.functional.conv_transpose3d`, whose arguments come first. The kernels
    compute it where kernel and stride are equal in depth, without padding or dilation there, as in the
    decoders of U-Nets for volumes (2x2x2 with stride 2): F. Isensee et al., "nnU-Net", Nature Methods 2021.
    PyTorch computes all others, tensors in channels_last_3d, and those on GPUs.

    Args:
        input: [N, Ci, D, H, W] or [Ci, D, H, W], of dtype float16, bfloat16, float32 or float64.
        weight: [Ci, C/groups, K_d, K_h, K_w], as of ``nn.ConvTranspose3d``.
        bias: [C].
        stride: an int or (depth, vertical, horizontal), as all triples.
        padding: output voxels taken off at every side.
        output_padding: output voxels added at the end of each direction; less than stride or dilation.
        groups: as in ``conv_transpose3d``.
        dilation: distance of the kernel's taps, in output voxels.
        backend: as in :class:`use_backend`, for this call.

    Returns:
        [N, C, (D-1)*stride_d - 2*padding_d + dilation_d*(K_d-1) + output_padding_d + 1, ...], without N for
        an input without, in the input's dtype and memory format (channels_last_3d or contiguous). Under
        autocast in autocast's dtype. Infinities and NaN: as in :func:`fused_subpixel.conv_transpose2d`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong value or shape, or the demanded backend cannot run.
    """
    tensors = input, weight, bias
    if not torch.compiler.is_compiling() and has_torch_function(tensors):
        return handle_torch_function(
            conv_transpose3d, tensors, input, weight, bias, stride, padding, output_padding, groups, dilation,
            backend=backend,
        )  # fmt: skip
    check_tensor("input", input)
    check_tensor("weight", weight)
    check_dense(None, None, bias, None, None)
    if torch_compat.is_any_autocast_enabled() and autocasts(input.device.type):
        input, weight, bias = autocast(input, weight, bias)
    if input.dim() == 4:
        return conv_transpose3d(
            input.unsqueeze(0), weight, bias, stride, padding, output_padding, groups, dilation,
            backend=backend,
        ).squeeze(0)  # fmt: skip
    volumes = prepare(input, weight, bias, (stride, padding, output_padding, groups, dilation))
    requested = backend or backends.requested(torch.compiler.is_compiling())
    if why_pytorch(input, weight, volumes, requested) is not None:
        return F.conv_transpose3d(input, weight, bias, *volumes.options())
    return _by_slices(input, weight, bias, volumes, requested)


def prepare(input: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...]) -> Volumes:
    """Check a call."""
    infos: Any = describe(input), describe(weight), describe(bias)
    if not torch.compiler.is_compiling():
        try:
            return _prepare_cached(*infos, marshal.dumps(options, 2))  # as functional.convolve does
        except (TypeError, ValueError):
            pass  # what cannot be cached, or is wrong and refused just below
    return resolve_conv_transpose3d(*infos, *options)


@functools.lru_cache(maxsize=1024)
def _prepare_cached(*arguments: Any) -> Volumes:
    *infos, options = arguments
    return resolve_conv_transpose3d(*infos, *marshal.loads(options))


def why_pytorch(input: Tensor, weight: Tensor, volumes: Volumes, requested: Backend) -> str | None:
    """Why PyTorch computes a call, if it does. Raises ValueError where the backend asked for cannot."""
    device = input.device
    chosen = backends.choose(requested, device)
    reason = volumes.why_not_by_slices()
    if requested not in ("auto", "reference"):
        if reason is not None:
            raise ValueError(f"backend {requested!r} cannot run here: {reason}")
        return None
    if chosen == "reference":
        if requested == "auto" and not torch.compiler.is_compiling():
            library.warn_if_missing(device.type)
        return reason or "the reference runs"
    if reason is not None:
        return reason
    if device.type == "cuda":
        return "on a GPU volumes are PyTorch's"
    if is_channels_last_3d(input) or is_channels_last_3d(weight):
        return "PyTorch is faster in channels_last_3d"
    return None


def is_channels_last_3d(tensor: Tensor) -> bool:
    """Whether PyTorch gives a result computed from ``tensor`` this layout."""
    if tensor.is_contiguous():
        return False
    if torch_compat.jit_tracing_state() is not None:  # see is_channels_last()
        return tensor.is_contiguous(memory_format=torch.channels_last_3d)
    return torch_compat.suggest_memory_format(tensor) is torch.channels_last_3d


def as_images(input: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The tensors of the two-dimensional call; of one volume, views."""
    taps = weight.shape[2]
    return (
        input.transpose(1, 2).flatten(0, 1),
        weight.flatten(1, 2),
        None if bias is None else bias.repeat_interleave(taps),
    )


def image_options(volumes: Volumes) -> tuple[Any, Any, Any, Any, Any]:
    """The options of the two-dimensional call, in the order of its arguments."""
    stride, padding, output_padding, groups, dilation = volumes.options()
    return stride[1:], padding[1:], output_padding[1:], groups, dilation[1:]


def _by_slices(
    input: Tensor, weight: Tensor, bias: Tensor | None, volumes: Volumes, backend: Backend
) -> Tensor:
    """All slices as one batch of images, or, where nobody follows the operations, groups of them."""
    layout = torch.channels_last_3d if is_channels_last_3d(input) else torch.contiguous_format
    needs_gradient = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in (input, weight, bias)
    )
    n, _, depth, *_ = input.shape
    taps = weight.shape[2]

    def compute(slices: Tensor) -> Tensor:
        """[N, C, D, K_d, ...], still in the order in which the images are."""
        images = conv_transpose2d(
            *as_images(slices, weight, bias),
            *image_options(volumes),
            backend=backend,
        )
        blocks = images.unflatten(1, (-1, taps)).unflatten(0, (slices.shape[0], slices.shape[2]))
        return blocks.transpose(1, 2)

    if needs_gradient or not is_plainly_eager(input, weight, bias) or input.numel() == 0:
        return compute(input).flatten(2, 3).contiguous(memory_format=layout)
    output = torch.empty(volumes.output, dtype=input.dtype, device=input.device, memory_format=layout)
    of_slices = output.unflatten(2, (depth, taps))
    bytes_of_slice = output.nbytes // (n * depth)
    together = max(_GROUP_BYTES // max(bytes_of_slice, 1), -(-_GROUP_VOXELS // input[0, 0, 0].numel()), 1)
    for volume in range(n):
        for first in range(0, depth, together):
            slices = input[volume : volume + 1, :, first : first + together]
            of_slices[volume : volume + 1, :, first : first + together] = compute(slices)
    return output
