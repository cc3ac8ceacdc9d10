# SPDX-License-Identifier: BSD-3-Clause
"""nvcc, the architectures it compiles for, and which file is compiled for which of them."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from tools.compile.toolchain import PACKAGE, env_flags, fail

CUDA_ARCHS = "75;80;86;89;90a;100a;120+PTX"
# A file sm80_*.cu is compiled for these of them only: the asynchronous copies and tensor cores of Ampere and
# later; sm90_*.cu for what Hopper alone has. A file is left out if none of its architectures is asked for;
# FS_HAVE_SM80=1 and FS_HAVE_SM90=1 tell what was compiled.
CUDA_FILE_ARCHS = {"sm80": r"(8|9|1\d)\d.*", "sm90": "90a"}


def host_compiler() -> str:
    """nvcc's options for the compiler named in CXX: nvcc takes a program, neither arguments nor launchers."""
    words = shlex.split(env_flags("CXX"))
    if words and Path(words[0]).name in ("ccache", "sccache", "distcc", "icecc"):
        del words[0]
    options = ["-ccbin", words[0], *(f"-Xcompiler={word}" for word in words[1:])] if words else []
    return shlex.join(options)


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
