# SPDX-License-Identifier: BSD-3-Clause
"""Compile and run the check programs: python -m tools.gpu_checks. Each prints one line, "yes: …" or "no: …".

The exit status is 0 if each has answered, or said that no GPU here can, and 1 if one could not be compiled or
has failed.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = Path(__file__).resolve().parent
FOLDER = ROOT / "build" / "gpu_checks"
PROGRAMS = tuple(sorted(path.stem for path in SOURCES.glob("*.cu")))
NVCC = ("nvcc", "-arch=sm_90a", "-std=c++17", "-O2", "-I", str(ROOT / "csrc"))
ANSWERS = (0, 1, 2)  # yes, no, no GPU of capability 9.0
SECONDS = 15  # for each program, so that all fit into the step of make gpu


def program(name: str) -> Path:
    """Compile one of PROGRAMS. Raises CalledProcessError."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / name
    subprocess.run([*NVCC, "-o", str(path), str(SOURCES / f"{name}.cu")], check=True)
    return path


def main() -> int:
    failed = False
    for name in PROGRAMS:
        try:
            done = subprocess.run([str(program(name))], check=False, timeout=SECONDS)
        except (OSError, subprocess.SubprocessError) as problem:
            print(f"{name}: {problem}", flush=True)
            failed = True
        else:
            failed |= done.returncode not in ANSWERS
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
