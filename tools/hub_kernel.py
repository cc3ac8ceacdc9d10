# SPDX-License-Identifier: BSD-3-Clause
"""Write this package as a kernel of the Hugging Face Hub, for the Python package `kernels`.

    .venv/bin/python tools/hub_kernel.py --repo-id someone/fused-subpixel

`make hub-kernel` does that. The folder build/hub is what `kernel-builder upload` takes: build.toml, and for
each backend the package with its metadata, as in build/hub/build/torch-stable-abi210-cpu-x86_64-linux.

A process may load several versions of a kernel, and this package too. So the operators get a namespace of
their own, which ends in a checksum of the sources; `kernels` imports the kernel under the same name. Only the
C++ files that register operators are compiled for it.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "fused_subpixel"
NAME = "fused-subpixel"


def written(file: str, pattern: str) -> str:
    """What the group of ``pattern`` is in a file of this project."""
    found = re.search(pattern, (ROOT / file).read_text(), re.MULTILINE)
    assert found, f"{file} has no {pattern}"
    return found[1]


def checksum() -> str:
    """Of all that a build reads."""
    found = hashlib.sha256()
    folders = (ROOT / folder for folder in ("csrc", PACKAGE, "tools/compile"))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files = [path for path in files if path.suffix not in (".so", ".pyc")]
    for path in sorted([*files, ROOT / "setup.py"]):
        found.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return found.hexdigest()[:10]


def torch_version() -> str:
    """The oldest that the libraries run with."""
    digits = written("tools/compile/ninja_file.py", r"TORCH_TARGET_VERSION=0x(\w{4})")
    return f"{int(digits[:2], 16)}.{int(digits[2:], 16)}"


def toolkit_and_archs() -> tuple[str, list[str]]:
    """Of the latest build: CUDA's version, as 13.0, and the architectures, as 9.0a and 12.0+PTX."""
    nvcc = shlex.split(written("build/ninja/build.ninja", r"^nvcc = (.*)$"))
    said = subprocess.run([*nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    release = re.search(r"release (\d+\.\d+)", said)
    assert release, said
    archs = written("build/ninja/build.ninja", r"-DFS_CUDA_ARCHS='\"([^\"]*)\"'").split(";")
    return release[1], [re.sub(r"^(\d+)(\d)", r"\1.\2", arch) for arch in archs]


def write_variant(backend: str, folder: Path, general: dict[str, object]) -> Path:
    """Build the package for a backend, into a folder whose name tells ``kernels`` where it runs."""
    namespace = f"_{PACKAGE}_{backend}_{checksum()}"
    wanted = {"FUSED_SUBPIXEL_NAMESPACE": namespace, "FUSED_SUBPIXEL_CUDA": str(int(backend == "cuda"))}
    built = folder / "unfinished"
    command = [sys.executable, "setup.py", "--quiet", "build", "--build-lib", str(built)]
    subprocess.run(command, check=True, cwd=ROOT, env={**os.environ, **wanted})
    for made in list((ROOT / "build/ninja").rglob(f"*{namespace}*")):
        made.unlink()  # another version has another name

    described: dict[str, object] = {"type": backend}
    compute = backend
    if backend == "cuda":
        toolkit, described["archs"] = toolkit_and_archs()
        compute = f"cu{toolkit.replace('.', '')}"
    abi = torch_version().replace(".", "")
    variant = folder / f"torch-stable-abi{abi}-{compute}-{platform.machine()}-linux"
    (built / PACKAGE).rename(variant)
    built.rmdir()
    digests = {
        path.relative_to(variant).as_posix(): base64.b64encode(hashlib.sha256(path.read_bytes()).digest())
        for path in sorted(variant.rglob("*"))
        if path.is_file()
    }
    metadata = {
        **general,
        "id": namespace,
        "python-depends": [],
        "backend": described,
        "digest": {"algorithm": "sha256", "files": {path: value.decode() for path, value in digests.items()}},
    }
    (variant / "metadata.json").write_text(json.dumps(metadata, indent=2) + "\n")
    return variant


def build_toml(general: dict[str, object], backends: list[str], repo_id: str | None) -> str:
    """The same for kernel-builder. JSON's strings, numbers and lists are TOML's."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in {**general, "backends": backends}.items()]
    hub = ["", "[general.hub]", f"repo-id = {json.dumps(repo_id)}"] if repo_id else []
    torch = ["", "[torch]", f"stable-abi = {json.dumps(torch_version())}"]
    return "\n".join(["[general]", "edition = 5", *lines, *hub, *torch]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "build/hub", help="the folder to write")
    parser.add_argument("--repo-id", help="where kernel-builder uploads it to")
    parser.add_argument(
        "--backends", nargs="+", choices=("cpu", "cuda"),
        help="by default cpu, and cuda if the package has a CUDA library",
    )  # fmt: skip
    options = parser.parse_args()
    has_cuda = (ROOT / PACKAGE / f"{PACKAGE}_cuda.so").exists()
    backends = options.backends or ["cpu", *(["cuda"] if has_cuda else [])]
    general: dict[str, object] = {
        "name": NAME,
        "version": int(written(f"{PACKAGE}/__init__.py", r'^__version__ = "(\d+)\.')),
        "license": written("pyproject.toml", r'^license = "(.*)"$'),
        "upstream": written("pyproject.toml", r'^Repository = "(.*)"$'),
    }
    variants = options.out.resolve() / "build"
    shutil.rmtree(variants, ignore_errors=True)
    variants.mkdir(parents=True)
    for backend in backends:
        print(write_variant(backend, variants, general))
    (options.out / "build.toml").write_text(build_toml(general, backends, options.repo_id))


if __name__ == "__main__":
    main()
