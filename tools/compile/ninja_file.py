# SPDX-License-Identifier: BSD-3-Clause
"""The build as one file for ninja, build/ninja/build.ninja: look there for what is compiled how."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import runpy
import shlex
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from tools.compile.cuda_toolkit import (
    CUDA_FILE_ARCHS,
    arch_flags,
    cuda_archs,
    file_archs,
    find_cuda,
    find_nvcc,
    host_compiler,
)
from tools.compile.toolchain import (
    NAMESPACE,
    PACKAGE,
    compiles_for,
    enabled,
    env_flags,
    fail,
    find_cxx,
    find_ninja,
    find_torch,
    this_machine,
)

SCHEMAS = Path(PACKAGE, "ops/schemas.py")
OLD_RUNTIME, NO_EXPORTS = Path("csrc/common/old_runtime.cpp"), Path("csrc/common/no_exports.map")

# Kernels are compiled once per instruction set, each time into a namespace of its own (FS_ISA), and the right
# one is chosen at run time. No other file gets instruction-set flags: it would run before that choice.
# What every processor of a kind has is "portable": SSE2 of x86-64, NEON of aarch64.
ISA_SOURCE = Path("csrc/cpu/kernels/kernels.cpp")
AVX2 = "-mavx2 -mfma -mf16c"
AVX512 = f"-mavx512f -mavx512bw -mavx512vl -mavx512dq {AVX2} -mprefer-vector-width=512"
AVX512 += " -Wno-uninitialized"  # GCC 12's own intrinsics do warn
ISA_FLAGS = {"x86_64": {"avx2": AVX2, "avx512": AVX512}}
# Kernels for matrix tiles of bfloat16: by instructions of the processor, or in software, which lets any
# machine test them.
MATRIX_SOURCE = Path("csrc/cpu/kernels/matrix.cpp")
MATRIX_STAND_INS = {"amx_stand_in": "", "avx512_bf16_stand_in": "-DFS_TILE_VECTORS=1"}
MATRIX_FLAGS = {
    "x86_64": {
        "avx512_bf16": f"{AVX512} -mavx512bf16 -DFS_TILE_VECTORS=1",
        "amx": f"{AVX512} -mavx512bf16 -mamx-tile -mamx-bf16",
    },
    "aarch64": {"neon_bf16": "-march=armv8.2-a+bf16 -DFS_TILE_VECTORS=1"},
}
# Innermost loops start where processors like it: where the linker left them, some took much longer.
KERNEL_FLAGS = "-falign-functions=64 -falign-loops=32"
# The kernels' own order of instructions needs few registers; on aarch64 g++ would change it.
MACHINE_FLAGS = {"aarch64": " -fno-schedule-insns"}

RULES = """\
ninja_required_version = 1.5
builddir = {builddir}
cxx = {cxx}
nvcc = {nvcc}
torch_headers = -isystem {torch}/include -DTORCH_TARGET_VERSION=0x020a000000000000ULL
common = -Icsrc {defines}
cxxflags = -O3 -std=c++20 {position} -fvisibility=hidden -ffp-contract=fast -Wall -Wextra $common
nvccflags = -O3 -std=c++17 -Xcompiler=-fPIC,-fvisibility=hidden,-Wall -Xfatbin=-compress-all $common
torch = -L{torch}/lib {libraries}

rule cxx
  command = $cxx $cxxflags $torch_headers $flags {user_cxxflags} -MD -MF $out.d -c $in -o $out
  description = $cxx $out
  deps = gcc
  depfile = $out.d
rule nvcc
  command = $nvcc $nvccflags $torch_headers $flags {user_nvccflags} -MD -MF $out.d -c $in -o $out
  description = nvcc $out
  deps = gcc
  depfile = $out.d
rule link
  command = $cxx -shared {strip} -o $out $in $flags {user_ldflags}
  description = link $out

"""

# How libraries are linked with torch.
LINUX = {"position": "-fPIC", "libraries": "-Wl,--no-as-needed -ltorch -ltorch_cpu -ldl", "strip": "-s"}
LINKING = {
    "darwin": {"position": "-fPIC", "libraries": "-ltorch -ltorch_cpu", "strip": "-Wl,-x"},
    "windows": {"position": "", "libraries": "-ltorch -ltorch_cpu -lc10", "strip": "-s"},
}


def host_sources(device: str) -> list[Path]:
    """A device's C++ files but the planners: its folder's, and its operators."""
    found = [s for s in sorted(Path("csrc", device).glob("*.cpp")) if not s.name.startswith("plan")]
    operators = Path("csrc/torch", f"ops_{device}.cpp")
    return found + ([operators] if operators.exists() else [])


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Wait until no other process is in here with the same file; on Windows there is no such wait."""
    with open(path, "w") as file:
        with contextlib.suppress(ImportError):
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


class NinjaFile:
    """All that can be built here, as steps for ninja. Paths are relative: a copied tree is up to date.

    Each target has a folder of its own, so that wheels, editable and in-place builds share the objects in it.
    """

    def __init__(self) -> None:
        cxx, debug = find_cxx(), enabled("FUSED_SUBPIXEL_DEBUG")
        self.target = compiles_for(cxx)
        native = (self.target.machine, self.target.system) == this_machine()
        self.folder = Path("build/ninja" if native else f"build/ninja-{self.target.name}")
        self.cuda = find_cuda() if native else None
        isas = {"portable": "", **ISA_FLAGS.get(self.target.machine, {})}
        matrices = {**MATRIX_STAND_INS, **MATRIX_FLAGS.get(self.target.machine, {})}
        of_kernels = KERNEL_FLAGS + MACHINE_FLAGS.get(self.target.machine, "")
        defines = [f"-DFS_HAVE_{isa.upper()}=1" for isa in (*isas, *matrices)]
        defines.append("-g" if debug else "-DNDEBUG")
        values = {
            "builddir": self.folder,
            "cxx": cxx,
            "nvcc": shlex.quote(self.cuda[0]) if self.cuda else "",
            "torch": shlex.quote(str(find_torch())),
            "defines": " ".join(defines),
            "user_cxxflags": env_flags("CXXFLAGS"),
            "user_nvccflags": env_flags("NVCC_FLAGS"),
            "user_ldflags": env_flags("LDFLAGS"),
            **LINKING.get(self.target.system, LINUX),
        }
        if debug:
            values["strip"] = ""
        self.text = RULES.format_map({name: str(value).replace("$", "$$") for name, value in values.items()})
        # ninja starts steps in this order, so the longest come first.
        self.kernels = [
            self.compile(source, f"{flags} {of_kernels} -DFS_ISA={isa}", f".{isa}")
            for source, flags_of in ((ISA_SOURCE, isas), (MATRIX_SOURCE, matrices))
            for isa, flags in reversed(flags_of.items())
        ]
        # The planners know neither torch nor CUDA: the tests' modules link them too.
        self.planners = {
            device: [self.compile(source) for source in sorted(Path("csrc", device).glob("plan*.cpp"))]
            for device in ("cpu", "cuda")
        }
        self.runtime = [self.compile(OLD_RUNTIME)] if self.target.glibc and OLD_RUNTIME.exists() else []
        self.libraries = [self.cpu_library(), *([self.cuda_library(*self.cuda)] if self.cuda else [])]
        self.libraries += [self.schemas_library()] if SCHEMAS.exists() else []

    def step(self, rule: str, out: Path, inputs: list[Path], flags: str) -> Path:
        self.text += f"build {out}: {rule} {' '.join(map(str, inputs))}\n  flags = {flags}\n"
        return out

    def compile(self, source: Path, flags: str = "", variant: str = "") -> Path:
        if source.parent == Path("csrc/torch") and NAMESPACE != PACKAGE:  # all else serves any namespace
            flags, variant = f"{flags} -DFS_NAMESPACE={NAMESPACE}", f".{NAMESPACE}{variant}"
        out = self.folder / source.with_name(f"{source.name}{variant}.o")
        if source.parts[0] == "tests":  # torch has a pybind11 of its own, which refuses to be used like this
            flags += "\n  torch_headers ="
        return self.step("nvcc" if source.suffix == ".cu" else "cxx", out, [source], flags)

    def library(self, name: str, objects: list[Path], flags: str = "") -> Path:
        out = self.folder / f"{NAMESPACE}_{name}{self.target.library_suffix}"
        if name != "cuda" and self.target.system == "linux":
            # A symbol that torch lacks is an error here, not a crash later. (Only CUDA builds have CUDA's.)
            flags += " -Wl,-z,defs"
        if self.runtime:
            flags += f" -Wl,--version-script={NO_EXPORTS}"
        return self.step("link", out, objects + self.runtime, f"{flags} $torch".lstrip())

    def cpu_library(self) -> Path:
        objects = self.planners["cpu"] + [self.compile(source) for source in host_sources("cpu")]
        return self.library("cpu", [*objects, *reversed(self.kernels)])

    def cuda_library(self, nvcc: str, root: Path) -> Path:
        folder, toolkit, archs = Path("csrc/cuda/instances"), shlex.quote(str(root)), cuda_archs(nvcc)
        chosen = {source: file_archs(source, archs) for source in sorted(folder.glob("*.cu"))}
        families = {source.name.partition("_")[0] for source, some in chosen.items() if some}
        defines = f"-DFS_CUDA_ARCHS='\"{';'.join(archs)}\"'"
        defines += "".join(f" -DFS_HAVE_{f.upper()}=1" for f in CUDA_FILE_ARCHS if f in families)
        flags = f"{defines} {host_compiler()}".replace("$", "$$").rstrip()
        objects = [self.compile(cu, f"{arch_flags(some)} {flags}") for cu, some in chosen.items() if some]
        flags = f"{defines} -isystem {toolkit}/include"
        objects += self.planners["cuda"] + [self.compile(source, flags) for source in host_sources("cuda")]
        # The static runtime needs nothing but a driver. Of $torch, libtorch.so is there for the loader: it
        # leads to the CUDA symbols, which a CPU-only torch lacks.
        flags = f"-L{toolkit}/lib64 -L{toolkit}/lib -lcudart_static -lrt -lpthread -ldl"
        return self.library("cuda", objects, f"{flags} -Wl,--exclude-libs,ALL")

    def stubbed_cuda_library(self) -> list[Path]:
        """The CUDA library without kernels and GPU, for bench.launch_cost: nothing if there is no toolkit."""
        stubs, found = Path("bench/launch_stubs.cpp"), find_nvcc()
        if not stubs.exists() or found is None:
            return []
        flags = f"-DFS_HAVE_SM80=1 -DFS_HAVE_SM90=1 -isystem {shlex.quote(str(found[1]))}/include"
        flags += " -DFS_CUDA_DISPATCH_KEY=CPU"
        objects = [self.compile(source, flags, ".stubbed") for source in host_sources("cuda")]
        objects += [self.compile(stubs, f"{flags} -UTORCH_TARGET_VERSION")]
        out = Path("build/tests", f"{PACKAGE}_cuda_stubbed.so")
        # -Bsymbolic: calls of torch functions that have a stub reach the stub
        return [
            self.step("link", out, self.planners["cuda"] + objects, "-Wl,-z,defs,-Bsymbolic $torch -lc10")
        ]

    def schemas_library(self) -> Path:
        """The schemas in C++, for processes without Python; never loaded where Python defines them."""
        lines = "".join(f'    R"({schema})",\n' for schema in runpy.run_path(str(SCHEMAS))["SCHEMAS"])
        text = f"constexpr const char* kSchemas[] = {{\n{lines}}};\n"
        generated = self.folder / "schemas.h"
        if not generated.exists() or generated.read_text() != text:
            self.folder.mkdir(parents=True, exist_ok=True)
            generated.write_text(text)
        objects = [self.compile(Path("csrc/torch/schemas.cpp"), f"-I{self.folder}")]
        return self.library("schemas", objects)

    def host_tests(self) -> list[Path]:
        """The pybind11 modules of tests/host (host logic) and tests/simt (emulated kernels): no torch."""
        # Only the emulator's own speed counts: the rest is compiled at -O1, which takes half as long.
        folders = {"host": "", "simt": "-DFS_SIMT -DFS_SIMT_KERNELS=1 -Itests/simt"}
        optimised = ("kernels.cpp", "simt.cpp")
        sources = {name: sorted(Path("tests", name).glob("*.cpp")) for name in folders}
        if not any(sources.values()):
            return []
        pybind11, python = importlib.util.find_spec("pybind11"), sysconfig.get_path("include")
        if pybind11 is None or pybind11.origin is None:
            fail("pybind11 is needed for the tests' C++ modules: `pip install pybind11`")
        if not Path(python, "Python.h").exists():
            fail("Python.h is needed for the tests' C++ modules: install python3-dev (or python3-devel)")
        include = f"-isystem {Path(pybind11.origin).parent}/include -isystem {python}"
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        modules = []
        for name, flags in folders.items():
            objects = [
                self.compile(source, f"{include} {flags} {'-O2' if source.name in optimised else '-O1'}")
                for source in sorted(sources[name], key=lambda source: source.name not in optimised)
            ]
            module = Path("build/tests") / f"{PACKAGE}_{name}{suffix}"
            planners = self.planners["cpu"] + self.planners["cuda"]
            modules += [self.step("link", module, objects + planners, "")] if objects else []
        return modules + self.stubbed_cuda_library()

    def run(self, targets: list[Path]) -> None:
        if not targets:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "lock"):  # two ninjas in one folder would spoil each other's work
            (self.folder / "build.ninja").write_text(self.text)
            jobs = os.environ.get("MAX_JOBS", "").strip()
            if jobs and not re.fullmatch(r"[1-9]\d*", jobs):
                fail(f"MAX_JOBS is a number of compilers, 1 or more, not {jobs!r}")
            options = ["-f", str(self.folder / "build.ninja"), *([f"-j{jobs}"] if jobs else [])]
            command = [*find_ninja(), *options, *map(str, targets)]
            if subprocess.run(command).returncode:
                fail("the compiler failed, see above")
