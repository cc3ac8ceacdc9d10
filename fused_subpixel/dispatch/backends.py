# SPDX-License-Identifier: BSD-3-Clause
"""Which implementations are available: ``cuda``, ``cpu`` (compiled libraries) and ``reference`` (plain
PyTorch).

``auto`` takes the compiled library of the tensors' device if it can run, else the reference; on a GPU also
the reference where PyTorch's kernels are faster (choose.py). ``cuda`` and ``cpu`` are demands: where one
cannot be met, ValueError says why.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Collection
from types import TracebackType
from typing import Any, TypeVar, cast

import torch

from .. import torch_compat
from ..ops.library import libraries, operators
from .checks import BACKENDS, Backend

# In the environment, for csrc/cpu/isa.cpp, which ignores other names.
_INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16", "amx", "neon_bf16")


_Name = TypeVar("_Name", bound=str)


def _check_name(name: Any, origin: str, known: Collection[_Name]) -> _Name:
    for one in known:
        if name == one:
            return one
    raise ValueError(f"{origin}: expected one of {', '.join(map(repr, known))}, got {name!r}")


_default = _check_name(os.environ.get("FUSED_SUBPIXEL_BACKEND") or "auto", "FUSED_SUBPIXEL_BACKEND", BACKENDS)
_check_name(
    os.environ.get("FUSED_SUBPIXEL_MAX_CPU_ISA") or "amx", "FUSED_SUBPIXEL_MAX_CPU_ISA", _INSTRUCTION_SETS
)


class _Requested(threading.local):
    name: Backend = _default


_requested = _Requested()
# For torch.compile, which guards on globals, so that a change of backend recompiles, not on thread-locals.
_requested_by_latest_thread = _default


def requested(tracing: bool = False) -> Backend:
    """The backend asked for by the innermost :class:`use_backend`, else by the environment, else ``auto``."""
    return _requested_by_latest_thread if tracing else _requested.name


class use_backend:
    """Context manager: run everything inside on one backend.

    Args:
        name: ``"auto"``, ``"cuda"``, ``"cpu"`` or ``"reference"``.

    Holds for the calling thread and nests. The default, outside, is the environment variable
    FUSED_SUBPIXEL_BACKEND as it was at import, else ``"auto"``. Raises ValueError for unknown names.

    >>> with use_backend("reference"):
    ...     y = subpixel_conv2d(x, weight)
    """

    def __init__(self, name: Backend) -> None:
        self.name = _check_name(name, "use_backend", BACKENDS)

    def __enter__(self) -> None:
        global _requested_by_latest_thread
        self._outer = _requested.name
        _requested.name = _requested_by_latest_thread = self.name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _requested_by_latest_thread
        _requested.name = _requested_by_latest_thread = self._outer


def allows_tf32(is_cuda: bool = True) -> bool:
    """Whether torch's settings let convolutions compute float32 as tf32 on CUDA, or less exactly on CPUs."""
    if is_cuda:
        return torch_compat.cudnn_conv_precision() == "tf32"
    return torch_compat.mkldnn_conv_precision() in ("tf32", "bf16")


@functools.cache
def _capability(index: int) -> tuple[int, ...]:
    return tuple(operators._cuda_capability(index))


def cuda_versions() -> tuple[str, str]:
    """The CUDA versions of the driver ("0.0": there is none) and of the CUDA library, which is loaded."""
    driver, built_with = _capability(0)[:2]
    return _version(driver), _version(built_with)


def has_tensor_cores(device: torch.device) -> bool:
    """Whether the CUDA library has tensor-core kernels for a GPU on which it runs."""
    return _capability(_index(device))[2] >= 80


def multiprocessors(device: torch.device) -> int:
    """Of a GPU on which the CUDA library runs."""
    return _capability(_index(device))[3]


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def _gpu_refusal(index: int) -> str | None:
    """Why the CUDA library cannot run on a GPU; None if it can."""
    driver, built_with, *gpu = _capability(index)
    if driver // 1000 < built_with // 1000:  # such a driver does not even count the GPUs for the library
        return (
            f"the driver is for CUDA {_version(driver)}, the library was built with {_version(built_with)}: "
            "update the driver, or build with an older toolkit"
        )
    if not gpu:
        return f"the driver shows no GPU {index}"
    compute_capability, _, _, error = gpu
    if error == 0:
        return None
    return (
        f"the library holds no kernels for compute capability {compute_capability / 10:.1f} (CUDA error "
        f"{error}): build it with FUSED_SUBPIXEL_CUDA_ARCHS"
    )


for _function in (allows_tf32, has_tensor_cores, _gpu_refusal):
    torch_compat.constant_when_compiled(_function)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def refusal(backend: str, device: torch.device) -> str | None:
    """Why a compiled backend cannot run tensors of this device; None if it can."""
    if device.type != backend:
        return f"the tensors are on {device}"
    library = libraries[backend]
    if not library.loaded:
        return library.problem
    if backend == "cuda":
        return _gpu_refusal(_index(device))
    return None


def choose(requested: Backend, device: torch.device) -> Backend:
    """The backend for tensors of this device: ``cuda``, ``cpu`` or ``reference``."""
    _check_name(requested, "backend", BACKENDS)
    if requested == "reference":
        return requested
    if requested != "auto":
        reason = refusal(requested, device)
        if reason is not None:
            raise ValueError(f"backend {requested!r} cannot run here: {reason}")
        return requested
    if device.type in libraries and refusal(device.type, device) is None:
        return cast(Backend, device.type)
    return "reference"
