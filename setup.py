# SPDX-License-Identifier: BSD-3-Clause
"""Compile csrc/ with ninja into plain shared libraries that hold no Python symbol.

The whole build is one generated file, build/ninja/build.ninja: look there for what is compiled how.

Environment:
    CXX, CXXFLAGS, LDFLAGS          host compiler and additional flags (these come last, so they win)
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
import importlib.util
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import ClassVar, NoReturn

from setuptools import Command, Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:
    raise SystemExit("fused_subpixel: `pip install --upgrade setuptools`, this one is too old") from None

PACKAGE = "fused_subpixel"
NAMESPACE = os.environ.get("FUSED_SUBPIXEL_NAMESPACE") or PACKAGE
BUILD = Path("build/ninja")  # a fixed place: wheels, editable and in-place builds share the objects in it
CUDA_ARCHS = "75;80;86;89;90a;100a;120+PTX"
# A file sm80_*.cu is compiled for these of them only: the asynchronous copies and tensor cores of Ampere and
# later; sm90_*.cu for what Hopper alone has. A file is left out if none of its architectures is asked for;
# FS_HAVE_SM80=1 and FS_HAVE_SM90=1 tell what was compiled.
CUDA_FILE_ARCHS = {"sm80": r"(8|9|1\d)\d.*", "sm90": "90a"}

SCHEMAS = Path(PACKAGE, "ops/schemas.py")

# Kernels are compiled once per instruction set, each time into a namespace of its own (FS_ISA), and the right
# one is chosen at run time. No other file gets instruction-set flags: it would run before that choice.
ISA_SOURCE = Path("csrc/cpu/kernels/kernels.cpp")
ISA_FLAGS = {"portable": ""}
# Innermost loops start where processors like it: where the linker left them, some took much longer.
KERNEL_FLAGS = "-falign-functions=64 -falign-loops=32"
if platform.machine() in ("x86_64", "AMD64"):
    ISA_FLAGS["avx2"] = "-mavx2 -mfma -mf16c"
    ISA_FLAGS["avx512"] = "-mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx2 -mfma -mf16c"
    ISA_FLAGS["avx512"] += " -mprefer-vector-width=512 -Wno-uninitialized"  # GCC 12's own intrinsics do warn
# Kernels for matrix tiles of bfloat16: by instructions of the processor, or in software, which lets any
# machine test them.
MATRIX_SOURCE = Path("csrc/cpu/kernels/matrix.cpp")
MATRIX_FLAGS = {"amx_stand_in": "", "avx512_bf16_stand_in": "-DFS_TILE_VECTORS=1"}
if "avx512" in ISA_FLAGS:
    MATRIX_FLAGS["avx512_bf16"] = f"{ISA_FLAGS['avx512']} -mavx512bf16 -DFS_TILE_VECTORS=1"
    MATRIX_FLAGS["amx"] = f"{ISA_FLAGS['avx512']} -mavx512bf16 -mamx-tile -mamx-bf16"

RULES = """\
ninja_required_version = 1.5
builddir = {builddir}
cxx = {cxx}
nvcc = {nvcc}
torch_headers = -isystem {torch}/include -DTORCH_TARGET_VERSION=0x020a000000000000ULL
common = -Icsrc {defines}
cxxflags = -O3 -std=c++20 -fPIC -fvisibility=hidden -ffp-contract=fast -Wall -Wextra $common
nvccflags = -O3 -std=c++17 -Xcompiler=-fPIC,-fvisibility=hidden,-Wall -Xfatbin=-compress-all $common
torch = -Wl,--no-as-needed -L{torch}/lib -ltorch -ltorch_cpu

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


def fail(message: str) -> NoReturn:
    raise SystemExit(f"{PACKAGE}: {message}")


def env_flags(name: str) -> str:
    return " ".join(os.environ.get(name, "").split())


def enabled(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def find_torch() -> Path:
    """Where torch lies. Found, not imported: it is only compiled against, and a CPU-only one will do."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        fail("torch is needed to build: `pip install torch ninja`, then `pip install --no-build-isolation .`")
    version = importlib.metadata.version("torch")
    if tuple(int(n) for n in version.split("+")[0].split(".")[:2]) < (2, 10):
        fail(f"torch {version} is too old to build with: 2.10 or newer is needed")
    return Path(spec.origin).parent


def find_cxx() -> str:
    named = env_flags("CXX")
    if named and not works(named):
        fail(f"CXX names a compiler that does not run: `{named} --version` fails")
    found = [named] if named else list(filter(shutil.which, ("g++", "clang++")))
    return found[0] if found else fail("no C++ compiler: install g++ or clang++, or name one in CXX")


def works(compiler: str) -> bool:
    """Whether a command, which may have arguments and start with a launcher, is a compiler."""
    try:
        command = [*shlex.split(compiler), "--version"]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except (OSError, ValueError):
        return False


def host_compiler() -> str:
    """nvcc's options for the compiler named in CXX: nvcc takes a program, neither arguments nor launchers."""
    words = shlex.split(env_flags("CXX"))
    if words and Path(words[0]).name in ("ccache", "sccache", "distcc", "icecc"):
        del words[0]
    options = ["-ccbin", words[0], *(f"-Xcompiler={word}" for word in words[1:])] if words else []
    return shlex.join(options)


def find_ninja() -> list[str]:
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    return [shutil.which("ninja") or fail("ninja is needed to build: `pip install ninja`")]


def cuda_wanted() -> bool:
    want = os.environ.get("FUSED_SUBPIXEL_CUDA", "auto")
    if want not in ("auto", "0", "1"):
        fail(f"FUSED_SUBPIXEL_CUDA is auto, 0 or 1, not {want!r}")
    have_sources = any(Path("csrc/cuda/instances").glob("*.cu"))
    if want == "1" and not have_sources:
        fail("FUSED_SUBPIXEL_CUDA=1, but there are no sources csrc/cuda/instances/*.cu")
    return want != "0" and have_sources and sys.platform == "linux"


def find_nvcc() -> tuple[str, Path] | None:
    """(nvcc, toolkit root), or None."""
    folders = []
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if named := os.environ.get(name):
            folders.append(f"{named}/bin")
            if not shutil.which("nvcc", path=folders[-1]):
                message = f"{name} names {named}, which holds no bin/nvcc"
                if os.environ.get("FUSED_SUBPIXEL_CUDA") == "1":
                    fail(message)
                print(f"{PACKAGE}: {message}: looking elsewhere")
    installed_by_pip = importlib.util.find_spec("nvidia")  # a namespace: folders that many packages share
    places = installed_by_pip.submodule_search_locations if installed_by_pip else None
    folders += [os.environ.get("PATH", ""), *(str(f) for p in places or () for f in Path(p).glob("cu*/bin"))]
    folders += ["/usr/local/cuda/bin"]
    for nvcc in filter(None, (shutil.which("nvcc", path=folder) for folder in folders)):
        # nvcc itself knows its root; what was found may be a wrapper script that lies elsewhere
        dryrun = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull]
        for line in subprocess.run(dryrun, capture_output=True, text=True).stderr.splitlines():
            if line.startswith("#$ TOP="):
                return nvcc, Path(line.removeprefix("#$ TOP=")).resolve()
    return None


def find_cuda() -> tuple[str, Path] | None:
    """The toolkit to build with, or None. Sources and toolkit decide, never whether there is a GPU here."""
    found = find_nvcc() if cuda_wanted() else None
    if found is None and os.environ.get("FUSED_SUBPIXEL_CUDA") == "1":
        fail("FUSED_SUBPIXEL_CUDA=1, but no nvcc works here: set CUDA_HOME or put nvcc on PATH")
    if found is None and cuda_wanted():
        print(f"{PACKAGE}: no CUDA toolkit found, building the CPU library only")
    return found


def cuda_archs(nvcc: str) -> list[str]:
    asked = os.environ.get("FUSED_SUBPIXEL_CUDA_ARCHS", "")
    archs = (asked or CUDA_ARCHS).replace(".", "").replace(",", ";").replace(" ", "").strip(";").split(";")
    listed = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True).stdout.split()
    known = [code.removeprefix("sm_") for code in listed]
    unknown = [arch for arch in archs if arch.removesuffix("+PTX").rstrip("af") not in known]
    if asked and unknown:
        fail(
            f"FUSED_SUBPIXEL_CUDA_ARCHS: {nvcc} knows no architecture {unknown[0]!r}, but "
            f'{", ".join(known)}; write them like "80;90a;120+PTX"'
        )
    return [arch for arch in archs if arch not in unknown]


def file_archs(source: Path, archs: list[str]) -> list[str]:
    family = source.name.partition("_")[0]
    some = [arch for arch in archs if re.fullmatch(CUDA_FILE_ARCHS.get(family, ".*"), arch)]
    if family == "sm80" and "80" in some:  # long to compile, and machine code for 8.0 runs on 8.x
        some = [arch for arch in some if arch == "80" or not re.fullmatch("8[0-9]", arch)]
    return some


def arch_flags(archs: list[str]) -> str:
    flags = [f"-gencode arch=compute_{a},code=sm_{a}" for a in (arch.removesuffix("+PTX") for arch in archs)]
    flags += [f"-gencode arch=compute_{a[:-4]},code=compute_{a[:-4]}" for a in archs if a.endswith("+PTX")]
    return " ".join(flags)


def host_sources(device: str) -> list[Path]:
    """A device's C++ files but the planners: its folder's, and its operators."""
    found = [s for s in sorted(Path("csrc", device).glob("*.cpp")) if not s.name.startswith("plan")]
    operators = Path("csrc/torch", f"ops_{device}.cpp")
    return found + ([operators] if operators.exists() else [])


class NinjaFile:
    """All that can be built here, as steps for ninja. Paths are relative: a copied tree is up to date."""

    def __init__(self) -> None:
        debug, self.cuda = enabled("FUSED_SUBPIXEL_DEBUG"), find_cuda()
        defines = [f"-DFS_HAVE_{isa.upper()}=1" for isa in (*ISA_FLAGS, *MATRIX_FLAGS)]
        defines.append("-g" if debug else "-DNDEBUG")
        values = {
            "builddir": BUILD,
            "cxx": find_cxx(),
            "nvcc": shlex.quote(self.cuda[0]) if self.cuda else "",
            "torch": shlex.quote(str(find_torch())),
            "defines": " ".join(defines),
            "user_cxxflags": env_flags("CXXFLAGS"),
            "user_nvccflags": env_flags("NVCC_FLAGS"),
            "user_ldflags": env_flags("LDFLAGS"),
            "strip": "" if debug else "-s",
        }
        self.text = RULES.format_map({name: str(value).replace("$", "$$") for name, value in values.items()})
        # ninja starts steps in this order, so the longest come first.
        self.kernels = [
            self.compile(ISA_SOURCE, f"{flags} {KERNEL_FLAGS} -DFS_ISA={isa}", f".{isa}")
            for isa, flags in reversed(ISA_FLAGS.items())
        ]
        self.kernels += [
            self.compile(MATRIX_SOURCE, f"{flags} {KERNEL_FLAGS} -DFS_ISA={isa}", f".{isa}")
            for isa, flags in reversed(MATRIX_FLAGS.items())
        ]
        # The planners know neither torch nor CUDA: the tests' modules link them too.
        self.planners = {
            device: [self.compile(source) for source in sorted(Path("csrc", device).glob("plan*.cpp"))]
            for device in ("cpu", "cuda")
        }
        self.libraries = [self.cpu_library(), *([self.cuda_library(*self.cuda)] if self.cuda else [])]
        self.libraries += [self.schemas_library()] if SCHEMAS.exists() else []

    def step(self, rule: str, out: Path, inputs: list[Path], flags: str) -> Path:
        self.text += f"build {out}: {rule} {' '.join(map(str, inputs))}\n  flags = {flags}\n"
        return out

    def compile(self, source: Path, flags: str = "", variant: str = "") -> Path:
        if source.parent == Path("csrc/torch") and NAMESPACE != PACKAGE:  # all else serves any namespace
            flags, variant = f"{flags} -DFS_NAMESPACE={NAMESPACE}", f".{NAMESPACE}{variant}"
        out = BUILD / source.with_name(f"{source.name}{variant}.o")
        if source.parts[0] == "tests":  # torch has a pybind11 of its own, which refuses to be used like this
            flags += "\n  torch_headers ="
        return self.step("nvcc" if source.suffix == ".cu" else "cxx", out, [source], flags)

    def cpu_library(self) -> Path:
        objects = self.planners["cpu"] + [self.compile(source) for source in host_sources("cpu")]
        objects += reversed(self.kernels)
        # -z defs: a symbol that torch lacks is an error here and not a crash later
        return self.step("link", BUILD / f"{NAMESPACE}_cpu.so", objects, "-Wl,-z,defs $torch")

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
        flags = f"-L{toolkit}/lib64 -L{toolkit}/lib -lcudart_static -lrt -lpthread -ldl $torch"
        flags += " -Wl,--exclude-libs,ALL"
        return self.step("link", BUILD / f"{NAMESPACE}_cuda.so", objects, flags)

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
        generated = BUILD / "schemas.h"
        if not generated.exists() or generated.read_text() != text:
            BUILD.mkdir(parents=True, exist_ok=True)
            generated.write_text(text)
        objects = [self.compile(Path("csrc/torch/schemas.cpp"), f"-I{BUILD}")]
        return self.step("link", BUILD / f"{NAMESPACE}_schemas.so", objects, "-Wl,-z,defs $torch")

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
        import fcntl

        if not targets:
            return
        BUILD.mkdir(parents=True, exist_ok=True)
        with open(BUILD / "lock", "w") as lock:  # two ninjas in one folder would spoil each other's work
            fcntl.flock(lock, fcntl.LOCK_EX)
            (BUILD / "build.ninja").write_text(self.text)
            jobs = os.environ.get("MAX_JOBS", "").strip()
            if jobs and not re.fullmatch(r"[1-9]\d*", jobs):
                fail(f"MAX_JOBS is a number of compilers, 1 or more, not {jobs!r}")
            options = ["-f", str(BUILD / "build.ninja"), *([f"-j{jobs}"] if jobs else [])]
            command = [*find_ninja(), *options, *map(str, targets)]
            if subprocess.run(command).returncode:
                fail("the compiler failed, see above")


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
        return fullname.replace(".", os.sep) + ".so"  # no Python tag: nothing of Python is inside

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
        self.extensions = [e for e in self.extensions if f"{e.name.split('.')[-1]}.so" in built]
        folder = Path("" if self.inplace else self.build_lib, PACKAGE)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.so"):
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
        return ("py3", "none", super().get_tag()[2])

    def run(self) -> None:
        shutil.rmtree(self.get_finalized_command("build").build_lib, ignore_errors=True)
        super().run()


# Elsewhere than on Linux the package is plain PyTorch: it works, at PyTorch's speed.
LIBRARIES = ("cpu", "cuda", "schemas") if sys.platform == "linux" else ()
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
