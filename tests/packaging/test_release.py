# SPDX-License-Identifier: BSD-3-Clause
"""What the build is for, and what a release consists of."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from fused_subpixel.ops import library

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "tools/compile").is_dir(), reason="not a source tree")


@pytest.mark.parametrize(
    "triple, name, glibc, suffix, tag",
    [
        ("x86_64-linux-gnu", "x86_64-linux", True, ".so", "linux_x86_64"),
        ("x86_64-pc-linux-gnu\n", "x86_64-linux", True, ".so", "linux_x86_64"),
        ("x86_64-redhat-linux", "x86_64-linux", False, ".so", "linux_x86_64"),
        ("aarch64-linux-gnu", "aarch64-linux", True, ".so", "linux_aarch64"),
        ("aarch64-unknown-linux5.10.0-gnu2.28.0", "aarch64-linux", True, ".so", "linux_aarch64"),
        ("x86_64-alpine-linux-musl", "x86_64-linux", False, ".so", "linux_x86_64"),
        ("arm64-apple-darwin24.1.0", "aarch64-darwin", False, ".dylib", "macosx_11_0_arm64"),
        ("aarch64-unknown-macos11.7.1...26.3-none", "aarch64-darwin", False, ".dylib", "macosx_11_0_arm64"),
        ("x86_64-pc-windows-msvc", "x86_64-windows", False, ".dll", "win_amd64"),
        ("x86_64-w64-mingw32", "x86_64-windows", False, ".dll", "win_amd64"),
    ],
)
def test_a_compilers_name_says_what_it_compiles_for(triple, name, glibc, suffix, tag):
    from tools.compile.toolchain import target_of

    target = target_of(triple)
    assert (target.name, target.glibc) == (name, glibc)
    assert (target.library_suffix, target.wheel_tag) == (suffix, tag)


def test_the_torch_to_compile_against_can_be_named(monkeypatch, tmp_path):
    from tools.compile import toolchain

    torch_folder = Path(torch.__file__).parent
    monkeypatch.setenv("FUSED_SUBPIXEL_TORCH", str(torch_folder))
    assert toolchain.find_torch() == torch_folder.resolve()
    monkeypatch.setenv("FUSED_SUBPIXEL_TORCH", str(tmp_path))
    with pytest.raises(SystemExit, match=r"names .* which holds no include/torch/csrc/stable"):
        toolchain.find_torch()


def test_the_wheel_without_libraries_says_what_it_is(monkeypatch, tmp_path):
    package, about = tmp_path / "fused_subpixel", tmp_path / "fused_subpixel-1.dist-info"
    for folder in (package, about):
        folder.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: fused_subpixel\nVersion: 1\n")
    monkeypatch.setattr(library, "FOLDER", package)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.syspath_prepend(tmp_path)
    for tag, pure in (("py3-none-any", True), ("py3-none-linux_x86_64", False)):
        (about / "WHEEL").write_text(f"Wheel-Version: 1.0\nTag: {tag}\n")
        assert library.is_pure_python() == pure
        found = library._load("fused_subpixel_cpu")
        assert found.expected != pure  # verify fails only where a library is missing
        assert ("py3-none-any, has no compiled kernels" in str(found.problem)) == pure


# ---- the whole of it ----


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """`make release` but for the slow parts; the objects of this tree are those that it would compile."""
    if not (ROOT / "build/ninja/build.ninja").exists():
        pytest.skip("no objects in build/ninja: `make build` leaves them there")
    pytest.importorskip("auditwheel", reason="pip install -e '.[release]'")
    folder = tmp_path_factory.mktemp("release")
    shutil.copytree(ROOT / "build/ninja", folder / "work/source/build/ninja")
    command = [sys.executable, "-m", "tools.release", "--only", "sdist,any,cpu", "--no-try"]
    command += ["--dist", str(folder / "dist"), "--work", str(folder / "work")]
    ours = ("FUSED_SUBPIXEL_CUDA", "FUSED_SUBPIXEL_CUDA_ARCHS", "FUSED_SUBPIXEL_BUILD_TESTS")
    env = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist", done.stdout


@pytest.mark.full
def test_the_checkers_pass(dist):
    """Those of tools/release.py, or the fixture fails."""
    folder, said = dist
    assert "release: checkers" in said
    sdist, pure = sorted(path.name for path in folder.iterdir() if path.is_file())
    (compiled,) = (path.name for path in (folder / "cpu").iterdir())
    assert re.fullmatch(r"fused_subpixel-[\d.]+\.tar\.gz", pure)
    assert re.fullmatch(r"fused_subpixel-[\d.]+-py3-none-any\.whl", sdist)
    assert re.fullmatch(r"fused_subpixel-[\d.]+\+cpu-py3-none-manylinux_2_28_\w+\.whl", compiled)
    for name in (sdist, pure, compiled):
        assert re.search(rf"^{re.escape(name)} .* MB$", said, re.MULTILINE)


@pytest.mark.full
def test_the_wheel_without_libraries_runs(dist, tmp_path):
    (wheel,) = dist[0].glob("*-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    use = "import torch, fused_subpixel as fs; fs.pixel_shuffle(torch.zeros(1, 4, 2, 2), 2); "
    use += "fs.subpixel_conv2d(torch.zeros(1, 2, 4, 4), torch.zeros(4, 2, 1, 1))"
    commands = (["-c", use], ["-m", "fused_subpixel", "info"], ["-m", "fused_subpixel", "verify"])
    used, info, verify = (
        subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            capture_output=True,
            text=True,
        )
        for command in commands
    )
    assert used.returncode == 0
    assert "RuntimeWarning: fused_subpixel runs as plain PyTorch, slower: the installed wheel" in used.stderr
    assert "glibc 2.28, on x86_64 or aarch64" in info.stdout
    assert verify.returncode == 0 and "not checked: the installed wheel" in verify.stdout
