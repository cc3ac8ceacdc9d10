# SPDX-License-Identifier: BSD-3-Clause
"""Builds of this project, or of a copy of it, in other processes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ISA_OBJECTS = sorted((ROOT / "build/ninja/csrc/cpu/kernels").glob("*.cpp.*.o"))
BUILD_FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "tools/__init__.py")
BUILD_FILES += tuple(str(path.relative_to(ROOT)) for path in (ROOT / "tools/compile").glob("*.py"))


def run(*command, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    # of the build under test, not of these
    names = ("CUDA", "CUDA_ARCHS", "BUILD_TESTS", "NAMESPACE")
    ours = [f"FUSED_SUBPIXEL_{name}" for name in names]
    environment = {**{name: value for name, value in os.environ.items() if name not in ours}, **env}
    return subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)


def build(tree: Path, *arguments: str, **env: str) -> str:
    """Run setup.py in tree and return what it said; arguments default to an in-place build."""
    result = run(sys.executable, "setup.py", *(arguments or ("build_ext", "--inplace")), cwd=tree, **env)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def compiled(output: str) -> set[str]:
    """The files that ninja made, from its progress lines: '[2/5] g++ build/ninja/csrc/cpu/plan.cpp.o'."""
    return {line.split("/")[-1] for line in output.splitlines() if re.match(r"\[\d+/\d+\] ", line)}


def copy_of_project(tree: Path) -> Path:
    """Copy this project with its objects to ``tree``, so that nothing needs compiling there."""
    if not ISA_OBJECTS:
        pytest.skip("no objects in build/ninja: `make build` leaves them there")
    for name in filter(lambda name: (ROOT / name).exists(), BUILD_FILES):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree / name)
    for folder in ("csrc", "fused_subpixel", "build/ninja"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored, dirs_exist_ok=True)
    return tree


def hub_kernel(tree: Path, *arguments: str) -> Path:
    """Write a kernel for the Hugging Face Hub from a copy of this project; return its folder."""
    tool = tree / "tools/hub_kernel.py"
    tool.parent.mkdir(exist_ok=True)
    shutil.copy2(ROOT / "tools/hub_kernel.py", tool)
    result = run(sys.executable, tool, "--backends", "cpu", *arguments, cwd=tree)
    assert result.returncode == 0, result.stdout + result.stderr
    return tree / "build/hub"
