# SPDX-License-Identifier: BSD-3-Clause
"""The C++ compiler, what it compiles for, and the torch that is compiled against."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, NoReturn

PACKAGE = "fused_subpixel"
NAMESPACE = os.environ.get("FUSED_SUBPIXEL_NAMESPACE") or PACKAGE  # of the operators


def fail(message: str) -> NoReturn:
    raise SystemExit(f"{PACKAGE}: {message}")


def env_flags(name: str) -> str:
    return " ".join(os.environ.get(name, "").split())


def enabled(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def works(compiler: str) -> bool:
    """Whether a command, which may have arguments and start with a launcher, is a compiler."""
    try:
        command = [*shlex.split(compiler), "--version"]
        return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
    except (OSError, ValueError):
        return False


def find_cxx() -> str:
    named = env_flags("CXX")
    if named and not works(named):
        fail(f"CXX names a compiler that does not run: `{named} --version` fails")
    found = [named] if named else list(filter(shutil.which, ("g++", "clang++")))
    return found[0] if found else fail("no C++ compiler: install g++ or clang++, or name one in CXX")


class Target(NamedTuple):
    """What the compiler compiles for."""

    machine: str  # x86_64, aarch64 or another
    system: str  # linux, darwin, windows or another
    glibc: bool  # its C library

    @property
    def name(self) -> str:
        return f"{self.machine}-{self.system}"

    @property
    def library_suffix(self) -> str:
        return {"darwin": ".dylib", "windows": ".dll"}.get(self.system, ".so")

    @property
    def wheel_tag(self) -> str:
        """The platform of a wheel's name; auditwheel makes a manylinux tag of a linux one."""
        if self.system == "darwin":
            return "macosx_11_0_arm64" if self.machine == "aarch64" else f"macosx_11_0_{self.machine}"
        if self.system == "windows":
            return "win_arm64" if self.machine == "aarch64" else "win_amd64"
        return f"{self.system}_{self.machine}"


MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
SYSTEMS = {"linux": "linux", "macos": "darwin", "darwin": "darwin"}
SYSTEMS |= {"win32": "windows", "windows": "windows", "w64": "windows"}


def target_of(triple: str) -> Target:
    """From a compiler's name for it, for example "x86_64-linux-gnu" or "arm64-apple-darwin24.1.0"."""
    machine, *rest = triple.strip().lower().split("-")
    systems = [SYSTEMS[name] for word in rest for name in SYSTEMS if word.startswith(name)]
    system = systems[0] if systems else rest[-1] if rest else ""
    return Target(MACHINES.get(machine, machine), system, system == "linux" and rest[-1].startswith("gnu"))


def this_machine() -> tuple[str, str]:
    """Its kind and its system, as a target names them."""
    machine = platform.machine().lower()
    return MACHINES.get(machine, machine), SYSTEMS.get(sys.platform, sys.platform)


@functools.cache
def compiles_for(cxx: str) -> Target:
    asked = subprocess.run([*shlex.split(cxx), "-dumpmachine"], capture_output=True, text=True)
    return target_of(asked.stdout) if asked.returncode == 0 else fail(f"`{cxx} -dumpmachine` fails")


def find_torch() -> Path:
    """Where torch lies. Found, not imported: it is only compiled against, and a CPU-only one will do."""
    if named := os.environ.get("FUSED_SUBPIXEL_TORCH"):
        if not Path(named, "include/torch/csrc/stable").is_dir():
            fail(f"FUSED_SUBPIXEL_TORCH names {named}, which holds no include/torch/csrc/stable")
        return Path(named).resolve()
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        fail("torch is needed to build: `pip install torch ninja`, then `pip install --no-build-isolation .`")
    version = importlib.metadata.version("torch")
    if tuple(int(n) for n in version.split("+")[0].split(".")[:2]) < (2, 10):
        fail(f"torch {version} is too old to build with: 2.10 or newer is needed")
    return Path(spec.origin).parent


def find_ninja() -> list[str]:
    if importlib.util.find_spec("ninja"):
        return [sys.executable, "-m", "ninja"]
    return [shutil.which("ninja") or fail("ninja is needed to build: `pip install ninja`")]
