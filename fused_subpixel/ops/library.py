# SPDX-License-Identifier: BSD-3-Clause
"""The operators' definitions, and the compiled libraries that implement them.

Schemas are defined here and kernels in C++ (``STABLE_TORCH_LIBRARY_IMPL``), so that an operator exists, can
be traced and can be exported even where no library was built. A library that is missing or does not load is
not an error: the reason is kept in :data:`libraries`, and ``python -m fused_subpixel info`` prints it.

PyTorch takes every registration once per process, but a package may be imported again, after it was deleted
from ``sys.modules`` or by a notebook's autoreload. Then the registrations of the earlier import stay, here
and in the other modules of this folder: each asks first whether it was made (:func:`has_kernel`). PyTorch's
registries keep the earlier functions and their modules alive.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import pathlib
import sys
import warnings
from typing import Any

import torch

from .. import torch_compat
from .schemas import NAMESPACE, SCHEMAS

operators: Any = getattr(torch.ops, NAMESPACE)
# Must live as long as the process.
definitions = torch.library.Library(NAMESPACE, "FRAGMENT")
# Exact strides: an operator's output has its input's memory format. It is Inductor's default for operators
# of others, but not for those in the list that torch_compat.keep_call_in_inductor() extends.
_TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)


def qualified(operator: str) -> str:
    """An operator's name with its namespace, as PyTorch's registries take it."""
    return f"{NAMESPACE}::{operator}"


def _define(schema: str) -> None:
    """Define an operator, unless an earlier import did."""
    operator = schema.partition("(")[0]
    earlier = torch_compat.schemas_of_operator(qualified(operator))
    if not earlier:
        definitions.define(schema, tags=_TAGS)
    elif earlier[0] != torch_compat.parse_schema(qualified(schema)):
        raise ImportError(
            "fused_subpixel was imported before in this process, in another version: its operator "
            f"{operator} has other arguments. Restart Python (in a notebook, the kernel) to use this version"
        )


for _schema in SCHEMAS:
    _define(_schema)


def has_kernel(operator: str, key: str) -> bool:
    """Whether an operator has a kernel of its own for a dispatch key, registered by an earlier import."""
    return bool(torch_compat.has_kernel_for_dispatch_key(qualified(operator), key))


# These are called below autograd: nothing is to be recorded, and a context that says so costs 2 µs per call.
for _name in ("_subpixel_conv2d", "_subpixel_conv2d_backward"):
    if not has_kernel(_name, "Autograd"):
        definitions.impl(_name, torch.library.fallthrough_kernel, "Autograd")

FOLDER = pathlib.Path(__file__).parent.parent  # the package
_SUFFIX = {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_BUILD_IN_PLACE = "'pip install --no-build-isolation -e .'"


def is_source_folder() -> bool:
    """Whether the package is in its source folder, where only an in-place build leaves libraries."""
    return (FOLDER.parent / "setup.py").exists() and (FOLDER.parent / "csrc").exists()


@dataclasses.dataclass
class LoadedLibrary:
    """What became of one compiled library."""

    path: pathlib.Path | None = None  # None where it does not exist
    problem: str | None = None  # why it did not load; None if it did
    remedy: str = f"Build it with {_BUILD_IN_PLACE} in the source folder"  # what to do, in words
    expected: bool = False  # a library that did not load was expected to: it lies here or is installed

    @property
    def loaded(self) -> bool:
        """Whether its operators can be called."""
        return self.problem is None


def _load(stem: str) -> LoadedLibrary:
    folder = os.environ.get("FUSED_SUBPIXEL_LIBRARY_DIR")
    path = (pathlib.Path(folder) if folder else FOLDER) / f"{stem}{_SUFFIX}"
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
    if is_pure_python():
        return LoadedLibrary(
            problem="the installed wheel, py3-none-any, has no compiled kernels: it is for systems that the "
            "other wheels do not fit, which need Linux with glibc 2.28, on x86_64 or aarch64",
            remedy="Build the kernels with 'pip install --no-binary fused_subpixel --no-build-isolation "
            "fused_subpixel'",
        )
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
        remedy="Install it again: 'pip install --force-reinstall --no-deps' and the wheel; or, in the source "
        "folder, 'pip install --force-reinstall --no-build-isolation .'"
        + ("" if _is_cpu(path) else ", where a CUDA toolkit is found"),
        expected=_is_cpu(path),
    )


def is_pure_python() -> bool:
    """Whether the package was installed from the wheel without libraries."""
    try:
        installed = importlib.metadata.distribution(FOLDER.name)
    except importlib.metadata.PackageNotFoundError:
        return False
    here = pathlib.Path(str(installed.locate_file(FOLDER.name))).resolve() == FOLDER.resolve()
    return here and "Tag: py3-none-any" in (installed.read_text("WHEEL") or "")


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
    loaded = {"cpu": _load(f"{NAMESPACE}_cpu")}
    if torch.version.cuda is None:  # the CUDA library needs symbols that only a CUDA build of torch has
        problem = f"torch {torch.__version__} is built without CUDA"
        loaded["cuda"] = LoadedLibrary(problem=problem, remedy="")
    else:
        loaded["cuda"] = _load(f"{NAMESPACE}_cuda")
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
    package = __name__.partition(".")[
        0
    ]  # not always fused_subpixel: a Hub kernel is imported as its namespace
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith(
        (package, "torch.nn.modules")
    ):
        depth, frame = depth + 1, frame.f_back
    return depth
