# SPDX-License-Identifier: BSD-3-Clause
"""What a kernel of the Hugging Face Hub has to be. tests/clients loads one with the package kernels."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import platform
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from building import copy_of_project, hub_kernel

import fused_subpixel

PACKAGE = Path(fused_subpixel.__file__).parent
OPTIONAL = {"tqdm"}  # a progress bar, where it is installed


def foreign_imports(path: Path) -> Iterator[str]:
    """Modules that a file imports, but for Python's, torch's, and, by relative imports, its own package's."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        for name in names:
            if name.partition(".")[0] not in {*sys.stdlib_module_names, *OPTIONAL, "torch"}:
                yield name


def test_the_package_imports_nothing_else() -> None:
    found = {path.name: list(foreign_imports(path)) for path in PACKAGE.rglob("*.py")}
    assert found and {name: names for name, names in found.items() if names} == {}


def test_foreign_imports_would_be_noticed(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    text = "import math, torch.nn, numpy as np\nfrom . import a\nfrom .a import b\n"
    module.write_text(text + "from fused_subpixel.ops import c\n")
    assert list(foreign_imports(module)) == ["numpy", "fused_subpixel.ops"]


@pytest.mark.full
def test_the_layout(tmp_path: Path) -> None:
    folder = hub_kernel(copy_of_project(tmp_path), "--repo-id", "someone/fused-subpixel")
    (variant,) = (folder / "build").iterdir()
    assert variant.name == f"torch-stable-abi210-cpu-{platform.machine()}-linux"
    metadata = json.loads((variant / "metadata.json").read_text())
    namespace = metadata["id"]
    assert re.fullmatch(r"_fused_subpixel_cpu_[0-9a-f]{10}", namespace)
    assert f'\nNAMESPACE = "{namespace}"\n' in (variant / "ops/schemas.py").read_text()
    assert metadata["backend"] == {"type": "cpu"} and metadata["python-depends"] == []

    digests = {
        path.relative_to(variant).as_posix(): hashlib.sha256(path.read_bytes()).digest()
        for path in variant.rglob("*")
        if path.is_file() and path.name != "metadata.json"
    }
    assert metadata["digest"]["algorithm"] == "sha256"
    assert {p: base64.b64decode(text) for p, text in metadata["digest"]["files"].items()} == digests
    python = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py")}
    assert set(digests) == python | {f"{namespace}_cpu.so", f"{namespace}_schemas.so", "py.typed"}

    tomllib = pytest.importorskip("tomllib", reason="from Python 3.11 on")
    build = tomllib.loads((folder / "build.toml").read_text())
    shared = ("name", "version", "license", "upstream")
    assert {key: build["general"][key] for key in shared} == {key: metadata[key] for key in shared}
    assert build["general"]["hub"] == {"repo-id": "someone/fused-subpixel"}
    assert build["torch"] == {"stable-abi": "2.10"}
