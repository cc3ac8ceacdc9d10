# SPDX-License-Identifier: BSD-3-Clause
"""The operators' schemas, their shape functions ("fakes"), and the compiled libraries that implement them.

Schemas are defined here and kernels in C++ (``STABLE_TORCH_LIBRARY_IMPL``), so that an operator exists, can
be traced and can be exported even where no library was built. A library that is missing or does not load is
not an error: the reason is kept in :data:`libraries` and told by ``python -m fused_subpixel info``.

PyTorch takes every registration once per process, but a package may be imported again, after it was deleted
from ``sys.modules`` or by a notebook's autoreload. What an earlier import registered stays then, here and in
autograd.py: each registration asks first whether it was made (:func:`has_kernel`). PyTorch's registries keep
the earlier functions and their modules alive.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import pathlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry, register_flop_formula

from ._arguments import Geometry, Transposed, low_size, output_size
from ._layout import is_channels_last, memory_format
from ._schemas import SCHEMAS

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Must live as long as the process.
definitions = torch.library.Library("fused_subpixel", "FRAGMENT")
# Exact strides: an operator's output has its input's memory format. It is Inductor's default for operators
# of others, but not for those in the list that _stays_a_call_in_inductor() extends.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def _define(schema: str) -> None:
    """Define an operator, unless an earlier import did."""
    operator = schema.partition("(")[0]
    earlier = torch._C._jit_get_schemas_for_operator(f"fused_subpixel::{operator}")
    if not earlier:
        definitions.define(schema, tags=_TAGS)
    elif earlier[0] != torch._C.parse_schema(f"fused_subpixel::{schema}"):
        raise ImportError(
            "fused_subpixel was imported before in this process, in another version: its operator "
            f"{operator} has other arguments. Restart Python (in a notebook, the kernel) to use this version"
        )


for _schema in SCHEMAS:
    _define(_schema)


def has_kernel(operator: str, key: str) -> bool:
    """Whether an operator has a kernel of its own for a dispatch key, registered by an earlier import."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(f"fused_subpixel::{operator}", key)


def _register_fake(operator: str) -> Callable[[_Function], _Function]:
    def register(fake: _Function) -> _Function:
        if not has_kernel(operator, "Meta"):
            torch.library.register_fake(f"fused_subpixel::{operator}", fake)
        return fake

    return register


def _register_flops(operator: str) -> Callable[[_Function], _Function]:
    def register(formula: _Function) -> _Function:
        packet = getattr(torch.ops.fused_subpixel, operator)
        if packet not in flop_registry:
            register_flop_formula(packet)(formula)
        return formula

    return register


def _stays_a_call_in_inductor(operator: str) -> None:
    """Have Inductor keep an operator as a call though it has a decomposition, which ONNX export needs.

    It does so by itself, except where the environment variable CI is set: there it takes that for a mistake
    and raises, unless the operator's name is in this list. Shape functions call this, for they run whenever
    Inductor traces a graph, and not before: importing it takes longer than importing all else.
    """
    if lowering := sys.modules.get("torch._inductor.lowering"):
        lowering.FALLBACK_ALLOW_LIST.add(f"fused_subpixel::{operator}")


def _as_rows(weight: Sequence[int], geometry: Geometry) -> Sequence[int]:
    """The shape of a weight, which may be a transposed convolution's, [1, Ci, C, K_h, K_w]."""
    if len(weight) == 4:
        return weight
    g, (_, channels_in, channels, height, width) = geometry, weight
    rows = channels * g.upscale_h * g.upscale_w
    return rows, channels_in, (height + g.extension_h) // g.upscale_h, (width + g.extension_w) // g.upscale_w


def _empty(like: Tensor, shape: tuple[int, ...], channels_last: bool) -> Tensor:
    layout = memory_format(channels_last)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


@_register_fake("subpixel_conv2d")
def fake_subpixel_conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation_weight: Tensor | None,
    residual: Tensor | None,
    numbers: Sequence[int],
    *epilogue: Any,
) -> Tensor:
    _stays_a_call_in_inductor("subpixel_conv2d")
    geometry = Geometry(*numbers)
    batch, _, height, width = input.shape
    low_channels, _, kernel_h, kernel_w = _as_rows(weight.shape, geometry)
    size = output_size(geometry, height, width, kernel_h, kernel_w)
    channels = low_channels // (geometry.upscale_h * geometry.upscale_w)
    return _empty(input, (batch, channels, *size), is_channels_last(input))


@_register_fake("subpixel_conv2d_input_grad")
def _(
    grad_output: Tensor,
    weight: Tensor,
    height: int,
    width: int,
    numbers: Sequence[int],
    channels_last: bool,
    *saved: Any,
) -> Tensor:
    groups = Geometry(*numbers).groups
    shape = (grad_output.shape[0], weight.shape[1] * groups, height, width)
    return _empty(grad_output, shape, channels_last)


@_register_fake("subpixel_conv2d_weight_grad")
def _(
    grad_output: Tensor, input: Tensor, kernel_h: int, kernel_w: int, numbers: Sequence[int], *saved: Any
) -> tuple[Tensor, Tensor]:
    geometry = Geometry(*numbers)
    low_channels = grad_output.shape[1] * geometry.upscale_h * geometry.upscale_w
    weight_shape = (low_channels, input.shape[1] // geometry.groups, kernel_h, kernel_w)
    return grad_output.new_empty(weight_shape), grad_output.new_empty(low_channels)


@_register_fake("shuffle")
def fake_shuffle(input: Tensor, factor_h: int, factor_w: int, channel_order: int, inverse: bool) -> Tensor:
    _stays_a_call_in_inductor("shuffle")
    n, c, h, w = input.shape
    cell = factor_h * factor_w
    shape = (
        (n, c * cell, h // factor_h, w // factor_w) if inverse else (n, c // cell, h * factor_h, w * factor_w)
    )
    return _empty(input, shape, is_channels_last(input))


# ---- floating-point operations, for torch.utils.flop_counter -----------------------------------------------


class _Counted(threading.local):
    """The transposed convolution whose operators run: their operands do not always tell that it is one."""

    transposed: Transposed | None = None


_counted = _Counted()


@contextlib.contextmanager
def _counted_as(transposed: Transposed) -> Iterator[None]:
    outer, _counted.transposed = _counted.transposed, transposed
    try:
        yield
    finally:
        _counted.transposed = outer


def counting(transposed: Transposed) -> contextlib.AbstractContextManager[None]:
    """Let the operators inside count, where one counts, as many operations as PyTorch's convolution."""
    if torch._C._len_torch_dispatch_stack() == 0:
        return contextlib.nullcontext()
    return _counted_as(transposed)


@_register_flops("subpixel_conv2d")
def _(input: torch.Size, weight: torch.Size, *rest: Any, **_: Any) -> int:
    if len(weight) == 5 and _counted.transposed is None:
        return 2 * input[0] * input[2] * input[3] * math.prod(weight)
    return _flops(Geometry(*rest[3]), input[0], (input[2], input[3]), weight)


@_register_flops("subpixel_conv2d_input_grad")
def _(grad_output: torch.Size, weight: torch.Size, height: int, width: int, *rest: Any, **_: Any) -> int:
    return _flops(Geometry(*rest[0]), grad_output[0], (height, width), weight)


@_register_flops("subpixel_conv2d_weight_grad")
def _(grad_output: torch.Size, input: torch.Size, *rest: Any, out_shape: Any, **_: Any) -> int:
    geometry = Geometry(*rest[2])  # of a weight's gradient PyTorch counts the products between groups, too
    return geometry.groups * _flops(geometry, input[0], (input[2], input[3]), out_shape[0])


def _flops(geometry: Geometry, batch: int, size: tuple[int, int], weight: Sequence[int]) -> int:
    """Two per tap and pixel of the convolution, as PyTorch counts; its gradients have as many.

    PyTorch counts a transposed convolution by its input's pixels: what padding takes off is in, too.
    """
    if (transposed := _counted.transposed) is not None:
        batch, _, *size_before = transposed.input_shape
        return 2 * batch * math.prod(size_before) * math.prod(transposed.weight_shape)
    low_h, low_w = low_size(geometry, *size, weight[2], weight[3])
    return 2 * batch * low_h * low_w * math.prod(weight)


# ---- the libraries -----------------------------------------------------------------------------------------


FOLDER = pathlib.Path(__file__).parent
_BUILD_IN_PLACE = "'pip install --no-build-isolation -e .'"


def is_source_folder() -> bool:
    """Whether the package lies in its source folder, where only an in-place build leaves libraries."""
    return (FOLDER.parent / "setup.py").exists() and (FOLDER.parent / "csrc").exists()


@dataclasses.dataclass
class LoadedLibrary:
    """What became of one compiled library."""

    path: pathlib.Path | None = None  # None where it does not exist
    problem: str | None = None  # why it did not load, in words; None if it did
    remedy: str = f"Build it with {_BUILD_IN_PLACE} in the source folder"  # what to do, in words
    expected: bool = False  # a library that did not load was expected to: it lies here or is installed

    @property
    def loaded(self) -> bool:
        return self.problem is None


def _load(stem: str) -> LoadedLibrary:
    folder = os.environ.get("FUSED_SUBPIXEL_LIBRARY_DIR")
    path = (pathlib.Path(folder) if folder else FOLDER) / f"{stem}.so"
    if not path.exists():
        return _missing(path)
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        return LoadedLibrary(path, f"{path} does not load: {error}", expected=True)
    return LoadedLibrary(path)


def _missing(path: pathlib.Path) -> LoadedLibrary:
    """Why a library does not exist, and what to do.

    A library that is installed elsewhere is not loaded: what was built from other sources might compute other
    numbers without a word.
    """
    if sys.platform != "linux":
        return LoadedLibrary(problem=f"there are no compiled kernels for {sys.platform}", remedy="")
    if path.parent != FOLDER:  # named by the environment
        return LoadedLibrary(problem=f"{path} does not exist: not built", expected=_is_cpu(path))
    if (installed := _installed_elsewhere(path.name)) is not None:
        return LoadedLibrary(
            problem=f"{path} does not exist: the folder {FOLDER.parent} hides the built package, which is "
            f"installed in {installed}",
            remedy="To use that one, start Python in another folder (or with the option -P, from Python 3.11 "
            f"on; or without this folder in PYTHONPATH). Or build in this one, with {_BUILD_IN_PLACE}",
            expected=True,
        )
    if is_source_folder():
        remedy = f"Build it with {_BUILD_IN_PLACE} in {FOLDER.parent}"
        return LoadedLibrary(problem=f"{path} does not exist: not built", remedy=remedy)
    return LoadedLibrary(
        problem=f"{path} does not exist: the package was installed without it",
        remedy="Install it again, with 'pip install --force-reinstall --no-build-isolation .' in the source "
        "folder" + ("" if _is_cpu(path) else ", where a CUDA toolkit is found"),
        expected=_is_cpu(path),
    )


def _is_cpu(path: pathlib.Path) -> bool:
    """Of the libraries, every build makes that for CPUs."""
    return path.stem.endswith("cpu")


def _installed_elsewhere(name: str) -> pathlib.Path | None:
    """The folder of this package further down in sys.path that holds the library ``name``."""
    for entry in sys.path:
        folder = pathlib.Path(entry, FOLDER.name)
        if (folder / name).exists() and folder.resolve() != FOLDER.resolve():
            return folder
    return None


def _load_all() -> dict[str, LoadedLibrary]:
    loaded = {"cpu": _load("fused_subpixel_cpu")}
    if torch.version.cuda is None:  # the CUDA library needs symbols that only a CUDA build of torch has
        problem = f"torch {torch.__version__} is built without CUDA"
        loaded["cuda"] = LoadedLibrary(problem=problem, remedy="")
    else:
        loaded["cuda"] = _load("fused_subpixel_cuda")
    return loaded


libraries: dict[str, LoadedLibrary] = _load_all()
_told: set[str] = set()


def warn_if_missing(device_type: str) -> None:
    """Say, once per process, why the library that would have run a call is not loaded, and what to do."""
    library = libraries.get(device_type)
    if library is None or library.loaded or device_type in _told:
        return
    _told.add(device_type)
    warnings.warn(
        f"fused_subpixel runs as plain PyTorch, slower: {library.problem}. "
        f"{library.remedy and f'{library.remedy}. '}'python -m fused_subpixel info' tells more.",
        RuntimeWarning,
        stacklevel=_callers_depth(),
    )


def warn_of_class(kind: type) -> None:
    """Say, once per class of tensors, that no kernel reaches the values of such tensors.

    Not of those by which PyTorch itself traces: nobody waits for these.
    """
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _told or name.startswith("torch._subclasses."):
        return
    _told.add(name)
    warnings.warn(
        f"fused_subpixel runs as plain PyTorch, slower, for tensors of {name}: by its __torch_dispatch__ "
        "their values may lie anywhere. Where a plain tensor is at hand, call with that.",
        RuntimeWarning,
        stacklevel=_callers_depth(),
    )


def _callers_depth() -> int:
    """How many frames above a warning function the first one is that is not this package's or nn.Module's."""
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        ("fused_subpixel", "torch.nn.modules")
    ):
        depth, frame = depth + 1, frame.f_back
    return depth
