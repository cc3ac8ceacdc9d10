# SPDX-License-Identifier: BSD-3-Clause
"""Compile csrc/ with ninja into plain shared libraries that hold no Python symbol: tools/compile/ says how.

Environment:
    CXX, CXXFLAGS, LDFLAGS          C++ compiler and additional flags (these come last, so they win); what it
                                    compiles for decides what is built: CXX=aarch64-linux-gnu-g++
    FUSED_SUBPIXEL_TORCH            the torch to compile against, where it is not that of this Python: the
                                    folder "torch" of an unpacked wheel for that machine
    FUSED_SUBPIXEL_PURE_PYTHON=1    no libraries: a package that is plain PyTorch, for any system
    MAX_JOBS                        how many compilers run at once
    FUSED_SUBPIXEL_DEBUG=1          assertions and debug information; symbols are kept
    FUSED_SUBPIXEL_CUDA=auto|0|1    the CUDA library: if a toolkit is found (the default), never, or else fail
    FUSED_SUBPIXEL_CUDA_ARCHS       default "75;80;86;89;90a;100a;120+PTX" (of these, what the toolkit knows);
                                    one of them, that of the GPU at hand, compiles several times faster
    CUDA_HOME or CUDA_PATH          the toolkit, where nvcc on PATH is not the one to use
    NVCC_FLAGS                      additional flags for nvcc
    FUSED_SUBPIXEL_NAMESPACE        of the operators, instead of fused_subpixel, for a process that loads this
                                    package twice; not in place, because the Python files have the name too
    FUSED_SUBPIXEL_BUILD_TESTS=1    also build the tests' modules (alone: setup.py build_host_tests)

`setup.py fetch_cuda_toolkit` installs nvcc by pip, where a CUDA library is wanted and no nvcc is found.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    raise SystemExit("fused_subpixel: `pip install --upgrade setuptools`, this one is too old") from None

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tools.compile.cuda_toolkit import cuda_wanted, find_nvcc
from tools.compile.ninja_file import SCHEMAS, NinjaFile
from tools.compile.toolchain import NAMESPACE, PACKAGE, compiles_for, enabled, fail, find_cxx


class BuildPython(build_py):
    """The Python files, which get the operators' namespace."""

    def build_module(self, module: str, module_file: str, package: str) -> tuple[str, bool]:
        built, copied = super().build_module(module, module_file, package)
        if Path(module_file) == SCHEMAS:
            text, named = Path(built).read_text(), f'\nNAMESPACE = "{NAMESPACE}"\n'
            Path(built).write_text(re.sub(r"\nNAMESPACE = .*\n", named, text))
        return built, copied


class BuildLibraries(build_ext):
    """ninja does the work; this command says where the finished libraries go."""

    def get_ext_filename(self, fullname: str) -> str:
        suffix = compiles_for(find_cxx()).library_suffix
        return fullname.replace(".", os.sep) + suffix  # no Python tag: nothing of Python is inside

    def run(self) -> None:
        if not re.fullmatch(r"[A-Za-z_]\w*", NAMESPACE, re.ASCII):
            fail(f"FUSED_SUBPIXEL_NAMESPACE is a C identifier, not {NAMESPACE!r}")
        if self.inplace and NAMESPACE != PACKAGE:
            fail(
                "FUSED_SUBPIXEL_NAMESPACE goes with a wheel, not with a build in place or an editable install"
            )
        ninja = NinjaFile()
        ninja.run(ninja.libraries + (ninja.host_tests() if enabled("FUSED_SUBPIXEL_BUILD_TESTS") else []))

        built = {library.name for library in ninja.libraries}
        suffix = ninja.target.library_suffix
        self.extensions = [e for e in self.extensions if e.name.split(".")[-1] + suffix in built]
        folder = Path("" if self.inplace else self.build_lib, PACKAGE)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob(f"*{suffix}"):
            if old.name not in built:
                old.unlink()
        for library in ninja.libraries:
            copy = folder / library.name
            if not copy.exists() or copy.stat().st_mtime_ns != library.stat().st_mtime_ns:
                # replaced, not written over: a running process may have the old file mapped
                os.replace(shutil.copy2(library, copy.with_suffix(f".{os.getpid()}")), copy)


class BuildHostTests(build_ext):
    description = "build the modules of tests/host and tests/simt, and the library of bench.launch_cost"

    def run(self) -> None:
        ninja = NinjaFile()
        ninja.run(ninja.host_tests())


class FetchCudaToolkit(Command):
    description = "pip install the extra cuda-toolkit, if a CUDA library is wanted and no nvcc is found"
    user_options: ClassVar[list[tuple[str, str | None, str]]] = []

    def initialize_options(self) -> None: ...

    def finalize_options(self) -> None: ...

    def run(self) -> None:
        if not cuda_wanted() or find_nvcc():
            return
        requirements = self.distribution.extras_require["cuda-toolkit"]
        try:  # a torch that brought a CUDA runtime keeps it, and gets the compiler of the same version
            major, minor = importlib.metadata.version("nvidia-cuda-runtime").split(".")[:2]
        except importlib.metadata.PackageNotFoundError:
            major, minor = "13", "0"
        requirements = [r.replace("==13.0.*", f"=={major}.{minor}.*") for r in requirements]
        print(
            f"{PACKAGE}: no nvcc found, so pip installs that of CUDA {major}.{minor} into {sys.prefix}: "
            "105 MB to download, 270 MB on disk (FUSED_SUBPIXEL_CUDA=0 goes without)",
            flush=True,
        )
        pip = [sys.executable, "-m", "pip", "install", *([] if sys.stdout.isatty() else ["--quiet"])]
        if subprocess.run([*pip, *requirements]).returncode:
            print(f"{PACKAGE}: the CUDA compiler could not be installed, see above", flush=True)


class Wheel(bdist_wheel):
    """For any Python 3, and from an empty build_lib: no file of an earlier build may slip in."""

    def get_tag(self) -> tuple[str, str, str]:
        named = self.plat_name if self.plat_name_supplied else None
        return ("py3", "none", (named or compiles_for(find_cxx()).wheel_tag) if LIBRARIES else "any")

    def run(self) -> None:
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()


# Elsewhere than on Linux the package is plain PyTorch, at PyTorch's speed, unless CXX asks for a build:
# libraries for macOS and Windows compile, but no such machine has run them yet.
LIBRARIES: tuple[str, ...] = ("cpu", "cuda", "schemas")
if enabled("FUSED_SUBPIXEL_PURE_PYTHON") or not (sys.platform == "linux" or "CXX" in os.environ):
    LIBRARIES = ()

setup(
    ext_modules=[Extension(f"{PACKAGE}.{NAMESPACE}_{library}", []) for library in LIBRARIES],
    cmdclass={
        "build_ext": BuildLibraries,
        "build_py": BuildPython,
        "build_host_tests": BuildHostTests,
        "fetch_cuda_toolkit": FetchCudaToolkit,
        "bdist_wheel": Wheel,
    },
)
