# SPDX-License-Identifier: BSD-3-Clause
"""Transposed convolutions of a model on the fused kernels: :func:`replace_conv_transpose`."""

from __future__ import annotations

import warnings
from typing import Any

from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin

from ..dispatch.resolve_3d import Volumes
from ..modules import ConvTranspose2d
from ..modules_1d import ConvTranspose1d
from ..modules_3d import ConvTranspose3d
from .arguments import check_model, copied
from .report import ALREADY_REPLACED, LEFT_ALONE, REPLACED, TRANSPOSED, Report, Site, Status, what_else_finds

# PyTorch's classes and ours.
FUSED: dict[type[nn.Module], type[nn.Module]] = dict(
    zip(TRANSPOSED, (ConvTranspose1d, ConvTranspose2d, ConvTranspose3d), strict=True)
)


def replace_conv_transpose(model: nn.Module, *, inplace: bool = False, return_report: bool = False) -> Any:
    """Let the ``nn.ConvTranspose1d``, ``2d`` and ``3d`` layers of a model run on the fused kernels.

    They run as :func:`fused_subpixel.conv_transpose1d`, :func:`fused_subpixel.conv_transpose2d` and
    :func:`fused_subpixel.conv_transpose3d`. The modules stay the objects they are, of a subclass: parameters,
    state_dict, hooks, old ``weight_norm``, names and references all stay. What is not exactly of these
    classes - a subclass, a layer with parametrizations, a lazy one - is left alone, and so are layers with
    dilation, which are no sub-pixel convolutions, and those of volumes whose kernel and stride differ in
    depth. A second call changes nothing. :func:`restore` undoes it.

    Args:
        model: any module, a transposed convolution itself included.
        inplace: change ``model`` itself, instead of a deep copy.
        return_report: return (model, :class:`fused_subpixel.Report`).

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.
        ValueError: it is scripted, or cannot be copied.

    Warns:
        UserWarning: no transposed convolution was found, or none that could be replaced.
    """
    check_model(model)
    model = model if inplace else copied(model)
    sites = []
    for path, module in model.named_modules():
        if not isinstance(module, TRANSPOSED):
            continue
        reason = why_not(module)
        status: Status
        if type(module) in FUSED.values():
            status = ALREADY_REPLACED
        elif reason is None:
            status = REPLACED
            module.__class__ = FUSED[type(module)]  # type: ignore[assignment]
        else:
            status = LEFT_ALONE
        sites.append(Site(path, layers_of(module), status, reason or how(module)))
    report = Report(sites, "" if sites else what_else_finds(model, "replace_conv_transpose"))
    if not report.replaced and not report.already_replaced:
        warnings.warn(f"replace_conv_transpose changed nothing: {report.summary}", stacklevel=2)
    return (model, report) if return_report else model


def why_not(module: Any) -> str | None:
    """Why a module is left alone; None if it can be replaced."""
    if type(module) not in (*FUSED, *FUSED.values()):
        if isinstance(module, LazyModuleMixin):
            return "it is not initialised yet; run the model once first"
        if hasattr(module, "parametrizations"):
            return "its parameters are parametrized, which makes it a class of its own"
        return f"{type(module).__name__} is a subclass of nn.{_name(module)} and may compute something else"
    if "forward" in vars(module):
        return "its forward has been exchanged"
    if set(module.dilation) != {1}:
        return f"dilation {tuple(module.dilation)}: no sub-pixel convolution"
    if isinstance(module, nn.ConvTranspose3d):
        return Volumes.of(module).why_not_by_slices()
    return None


def layers_of(module: Any) -> str:
    """A layer and its shape."""
    kernel = "x".join(map(str, module.kernel_size))
    stride = module.stride[0] if len(set(module.stride)) == 1 else tuple(module.stride)
    return f"{_name(module)}({module.in_channels}, {module.out_channels}, {kernel}, stride {stride})"


def how(module: Any) -> str:
    """How a replaced layer runs."""
    return f"runs as conv_transpose{len(module.kernel_size)}d of this package"


def _name(module: Any) -> str:
    """The name of a layer's class in PyTorch."""
    return f"ConvTranspose{len(module.kernel_size)}d"
