# SPDX-License-Identifier: BSD-3-Clause
"""Build what a release consists of, check it, and try it: into dist/.

    make release                             # all of it
    make release ARGS="--only sdist,any"     # some of it
    make release ARGS="--no-try"             # install nothing

Everything is built from the source distribution, in build/release/source, where the objects of an earlier run
stay. The wheels hold no library of others, so auditwheel repairs nothing: it says whether tags are true. What
comes of it:

    sdist     the source distribution
    any       a wheel of plain PyTorch, for every system that has no other one
    cpu       a wheel for this machine without the CUDA library; its version ends in +cpu, so that it can lie
              beside the next one on an index. A package index takes no such version: dist/cpu holds it
    cuda      the wheel for this machine; needs nvcc, which is fetched where there is none
    aarch64   the wheel for aarch64, cross-compiled on x86_64 (tools/aarch64.py)
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from tools import aarch64

ROOT = Path(__file__).resolve().parents[1]
GLIBC = (2, 28)  # as torch's own wheels
MANYLINUX = "manylinux_{}_{}".format(*GLIBC)


@dataclass(frozen=True)
class Kind:
    """A wheel."""

    megabytes: float  # at most
    machine: str = ""  # that it is for; none: any
    env: dict[str, str] = field(default_factory=dict)  # of setup.py
    local_version: str = ""

    @property
    def tag(self) -> str:
        return f"py3-none-{MANYLINUX}_{self.machine}" if self.machine else "py3-none-any"


def kinds() -> dict[str, Kind]:
    here = platform.machine()
    found = {
        "any": Kind(1, env={"FUSED_SUBPIXEL_PURE_PYTHON": "1"}),
        "cpu": Kind(5, here, {"FUSED_SUBPIXEL_CUDA": "0"}, "+cpu"),
        "cuda": Kind(25, here, {"FUSED_SUBPIXEL_CUDA": "1"}),
    }
    if here == "x86_64":
        found["aarch64"] = Kind(5, "aarch64", aarch64.environment())
    return found


def run(*command: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """What the command printed; ends the program, with all of that, if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\nrelease: failed: {' '.join(words)}")
    return done.stdout


def say(what: str) -> None:
    print(f"release: {what}", flush=True)


# ---- building ----


class Release:
    """The folders, and what was built so far."""

    def __init__(self, dist: Path, work: Path) -> None:
        self.dist, self.work, self.source = dist, work, work / "source"
        self.sdist: Path | None = None
        self.wheels: dict[str, Path] = {}

    def build_sdist(self) -> None:
        say("sdist")
        run(sys.executable, "setup.py", "-q", "sdist", "-d", self.dist)
        (self.sdist,) = self.dist.glob("*.tar.gz")
        for path in self.source.glob("*"):
            if path.name != "build":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with tarfile.open(self.sdist) as archive:
            for member in archive.getmembers():
                member.name = member.name.partition("/")[2]
                if member.name:
                    archive.extract(member, self.source)

    def build_wheel(self, name: str, kind: Kind) -> None:
        say(f"wheel {name}")
        if name == "cuda":
            run(sys.executable, "setup.py", "-q", "fetch_cuda_toolkit", cwd=self.source, **kind.env)
        if name == "aarch64":
            aarch64.prepare()
        to = self.dist / "cpu" if kind.local_version else self.dist
        options = ["-d", to, *(["--plat-name", f"{MANYLINUX}_{kind.machine}"] if kind.machine else [])]
        version = ["egg_info", f"--tag-build={kind.local_version}"]
        setup = [sys.executable, "setup.py", "-q", *version, "bdist_wheel", *options]
        run(*setup, cwd=self.source, **{"FUSED_SUBPIXEL_BUILD_TESTS": "0", **kind.env})
        (self.wheels[name],) = to.glob(f"*-{kind.tag}.whl")


# ---- checking ----


def check_contents(wheel: Path, kind: Kind) -> None:
    """What no checker knows: which libraries belong in, that nothing was added to them, and the size."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (about,) = (name for name in names if name.endswith(".dist-info/WHEEL"))
        tags = re.findall(r"^Tag: (.*)$", archive.read(about).decode(), re.MULTILINE)
    libraries = {Path(name).name for name in names if ".so" in name}
    wanted = {f"fused_subpixel_{library}.so" for library in ("cpu", "schemas") if kind.machine}
    if kind.env.get("FUSED_SUBPIXEL_CUDA") == "1":
        wanted.add("fused_subpixel_cuda.so")
    if libraries != wanted:
        raise SystemExit(f"release: {wheel.name} holds {sorted(libraries)}, not {sorted(wanted)}")
    if tags != [kind.tag]:
        raise SystemExit(f"release: {wheel.name} is tagged {tags}, not {kind.tag}")
    if wheel.stat().st_size > kind.megabytes * 1e6:
        raise SystemExit(f"release: {wheel.name} is larger than {kind.megabytes} MB")


def check(release: Release) -> None:
    say("checkers")
    files: Iterable[Path] = filter(None, (release.sdist, *release.wheels.values()))
    run(sys.executable, "-m", "validate_pyproject", "pyproject.toml")
    run(sys.executable, "-m", "twine", "check", "--strict", *files)
    for name, wheel in release.wheels.items():
        kind = kinds()[name]
        check_contents(wheel, kind)
        run(Path(sys.executable).with_name("check-wheel-contents"), wheel)
        if not kind.machine:
            continue
        shown = " ".join(run(sys.executable, "-m", "auditwheel", "show", wheel).split())
        # Not manylinux to it, as torch's libraries are not of the system; but it says what else is needed.
        oldest = re.search(rf'constrains the platform tag to "manylinux_(\d+)_(\d+)_{kind.machine}"', shown)
        if oldest is None or tuple(map(int, oldest.groups())) > GLIBC:
            raise SystemExit(f"release: auditwheel says of {wheel.name}: {shown}")
        unpacked = release.work / "unpacked" / name
        shutil.rmtree(unpacked, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        audit = Path(sys.executable).with_name("torch-abi-audit")
        run(audit, "--check", "torch", unpacked / "fused_subpixel")


# ---- trying ----


def try_wheels(release: Release, torch: str) -> None:
    """Install each wheel into a fresh environment with nothing but torch, look at it and verify it."""
    folder = release.work / "fresh"
    say(f"a fresh environment with {torch}")
    venv.create(folder, clear=True, with_pip=True)
    python = folder / "bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    run(*pip, torch)
    for name, wheel in release.wheels.items():
        if kinds()[name].machine not in ("", platform.machine()):
            continue
        run(*pip, "--no-deps", "--force-reinstall", wheel)
        verify(name, [python, "-I"], folder)
    if "aarch64" in release.wheels:
        package = release.work / "unpacked/aarch64"
        verify("aarch64", [aarch64.PYTHON], folder, PYTHONPATH=f"{package}{os.pathsep}{aarch64.SITE}")


def verify(name: str, python: list[str | Path], folder: Path, **env: str) -> None:
    info = run(*python, "-W", "ignore", "-m", "fused_subpixel", "info", cwd=folder, **env)
    loaded = re.search(r"^cpu library .* loaded$", info, re.M) is not None
    if loaded != (name != "any"):
        raise SystemExit(f"{info}\nrelease: {name}: the library for CPUs is {'' if loaded else 'not '}loaded")
    verified = run(*python, "-W", "ignore", "-m", "fused_subpixel", "verify", cwd=folder, **env)
    say(f"{name}: {verified.splitlines()[-1]}")


def table(release: Release) -> str:
    rows = [("file", "tag", "size")]
    if release.sdist:
        rows.append((release.sdist.name, "", f"{release.sdist.stat().st_size / 1e6:.2f} MB"))
    for name, wheel in release.wheels.items():
        rows.append((wheel.name, kinds()[name].tag, f"{wheel.stat().st_size / 1e6:.2f} MB"))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def main() -> None:
    names = ("sdist", *kinds())
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default=",".join(names), help=f"some of {','.join(names)}")
    parser.add_argument("--no-try", action="store_true", help="do not install what was built")
    parser.add_argument("--torch", default="torch", help="pip's requirement of the environment to try it in")
    parser.add_argument("--dist", type=Path, default=ROOT / "dist")
    parser.add_argument("--work", type=Path, default=ROOT / "build/release")
    options = parser.parse_args()
    wanted = options.only.split(",")
    if unknown := set(wanted) - set(names):
        parser.error(f"--only: {sorted(unknown)[0]!r} is not one of {', '.join(names)}")

    shutil.rmtree(options.dist, ignore_errors=True)
    release = Release(options.dist.resolve(), options.work.resolve())
    release.build_sdist()
    for name, kind in kinds().items():
        if name in wanted:
            release.build_wheel(name, kind)
    check(release)
    if not options.no_try:
        try_wheels(release, options.torch)
    print(table(release))


if __name__ == "__main__":
    main()
