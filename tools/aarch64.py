# SPDX-License-Identifier: BSD-3-Clause
"""Build for aarch64 on another machine and run the tests of the kernels there, under qemu.

    make test-aarch64                       # the fast tests of tests/kernels
    make test-aarch64 ARGS="-k matrix"      # arguments are pytest's
    python -m tools.aarch64 --build         # build only, into build/aarch64/package
    python -m tools.aarch64 --mutants       # make mistakes in what only aarch64 compiles: these tests notice

Needs Debian's g++-aarch64-linux-gnu, qemu-user-static and mmdebstrap, and this project's virtual environment.
Everything else is fetched into build/aarch64:

    root/     Python of the distribution for aarch64, unpacked
    site/     wheels for aarch64: torch, in the oldest version that is supported, and what the tests import
    package/  the package with libraries for aarch64, and the tests
    python    starts that Python under qemu
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import mutants

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build/aarch64"
SYSTEM, SITE, PACKAGE, PYTHON = (FOLDER / name for name in ("root", "site", "package", "python"))
PROGRAMS = {
    "aarch64-linux-gnu-g++": "g++-aarch64-linux-gnu",
    "qemu-aarch64-static": "qemu-user-static",
    "mmdebstrap": "mmdebstrap",
}
# All that the tests import: pip would resolve dependencies for the machine at hand. Of torch's wheels for
# aarch64, that of 2.10 is the last one without CUDA.
REQUIREMENTS = [
    "torch==2.10.0", "filelock", "typing-extensions", "sympy", "mpmath", "networkx<3.7", "jinja2",
    "markupsafe", "fsspec", "numpy<2.4", "pytest", "pytest-xdist", "execnet", "pluggy", "iniconfig",
    "packaging", "pygments", "hypothesis", "sortedcontainers",
]  # fmt: skip
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")


def run(*command: str | Path, **env: str) -> int:
    return subprocess.run([*map(str, command)], cwd=ROOT, env={**os.environ, **env}).returncode


def check(*command: str | Path, **env: str) -> None:
    if run(*command, **env):
        raise SystemExit(f"failed: {' '.join(map(str, command))}")


def say(what: str) -> None:
    print(f"aarch64: {what}", flush=True)


def distribution() -> str:
    """The name of this machine's release, whose Python is unpacked: "bookworm"."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')


def make_system() -> None:
    """Unpacked only: nothing of it runs but Python, so nothing is configured."""
    if SYSTEM.is_dir():
        return
    say("fetching Python for aarch64")
    archive, sources = FOLDER / "root.tar", Path("/etc/apt/sources.list.d/debian.sources")
    command = [
        "mmdebstrap",
        "--quiet",
        "--variant=extract",
        "--architectures=arm64",
        "--include=python3,libstdc++6",
    ]
    check(*command, distribution(), archive, *([sources] if sources.exists() else []))
    partial = SYSTEM.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    check("tar", "-xf", archive, "-C", partial, "--exclude=./dev/*")
    archive.unlink()
    partial.rename(SYSTEM)


def make_python() -> None:
    """As a script, tests start it like any other."""
    python = os.path.realpath(SYSTEM / "usr/bin/python3")
    PYTHON.write_text(f'#!/bin/sh\nexec qemu-aarch64-static -L "{SYSTEM}" -0 "{PYTHON}" "{python}" "$@"\n')
    PYTHON.chmod(0o755)


def make_site() -> None:
    stamp = SITE / ".stamp"
    if stamp.exists() and stamp.read_text().split() == REQUIREMENTS:
        return
    say("fetching wheels for aarch64")
    shutil.rmtree(SITE, ignore_errors=True)
    version = next((SYSTEM / "usr/lib").glob("python3.*")).name.removeprefix("python")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
    command += ["--target", str(SITE), "--only-binary", ":all:", "--python-version", version]
    command += [word for platform in PLATFORMS for word in ("--platform", platform)]
    check(*command, *REQUIREMENTS)
    stamp.write_text("\n".join(REQUIREMENTS))


def environment() -> dict[str, str]:
    """That of setup.py, so that it builds for aarch64."""
    return {
        "CXX": "aarch64-linux-gnu-g++",
        "FUSED_SUBPIXEL_TORCH": str(SITE / "torch"),
        "FUSED_SUBPIXEL_CUDA": "0",
        "FUSED_SUBPIXEL_BUILD_TESTS": "0",
    }


def prepare() -> None:
    """Fetch what is not there yet."""
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program) is None]
    if missing:
        raise SystemExit(f"not installed here: apt-get install {' '.join(missing)}")
    FOLDER.mkdir(parents=True, exist_ok=True)
    make_system()
    make_python()
    make_site()


def build() -> int:
    say("compiling")
    shutil.rmtree(PACKAGE, ignore_errors=True)
    return run(sys.executable, "setup.py", "--quiet", "build", "--build-lib", PACKAGE, **environment())


def run_tests(package: Path, arguments: Sequence[str], **env: str) -> int:
    env = {**os.environ, "PYTHONPATH": f"{package}:{SITE}", "PYTHONDONTWRITEBYTECODE": "", **env}
    command = [str(PYTHON), "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=package, env=env).returncode


def test(arguments: Sequence[str]) -> int:
    if status := build():
        return status
    for name in ("tests", "pyproject.toml"):
        (PACKAGE / name).symlink_to(ROOT / name)
    say("testing")
    return run_tests(PACKAGE, ["tests/kernels", *arguments])


def try_mutants() -> int:
    """How many mutants no test notices."""
    every = [mutant for mutant in mutants.read_table() if mutant.machine == "aarch64"]
    tree, survived = FOLDER / "mutants", 0
    say(f"compiling {len(every)} mutants, at once")
    mutants.build(every, tree, **environment())
    for mutant in every:
        env = {mutants.SWITCH: str(mutant.number)}
        status = run_tests(tree, ["-x", "-q", "--tb=no", *mutant.tests], **env)
        if status not in (0, 1):
            raise SystemExit(f"aarch64: the tests of {mutant.text!r} did not run")
        say(
            f"{'killed' if status else 'SURVIVED'}: {mutant.file}:{mutant.line}, {mutant.kind}, {mutant.text}"
        )
        survived += status == 0
    return survived


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--build", action="store_true", help="build only")
    parser.add_argument("--mutants", action="store_true", help="make mistakes, which the tests must notice")
    options, arguments = parser.parse_known_args()
    prepare()
    if options.mutants:
        return try_mutants()
    return build() if options.build else test(arguments)


if __name__ == "__main__":
    sys.exit(main())
