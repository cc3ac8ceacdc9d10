# SPDX-License-Identifier: BSD-3-Clause
"""tools/gpu_checks: the programs compile, prove themselves, and ask with the right instructions."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import machine_code
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.gpu_checks import __main__ as gpu_checks

# by program: the instruction that its question is about, and how often it is there
INSTRUCTIONS = {
    "shifted_swizzle": (r"HGMMA\.64x128x\S+ R\d+, gdesc\[UR\d+\],", 8),
    "n_major": (r"HGMMA\.64x128x16\S+ R\d+, gdesc\[UR\d+\]\.tnspB,", 8),
    "tensor_store": (r"UTMASTG\.5D", 1),
}


def test_all_programs_are_known_here() -> None:
    assert set(gpu_checks.PROGRAMS) == set(INSTRUCTIONS)


@pytest.mark.full
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="no nvcc")
@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_check_program(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_checks, "FOLDER", tmp_path)
    program = gpu_checks.program(name)
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([program], env=hidden, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (2, "no answer: there is no GPU\n")  # 3: its own proof failed
    if torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0):
        done = subprocess.run([program], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout.split(":")[0]) in ((0, "yes"), (1, "no")), done.stdout
    if machine_code.tools() is None:
        pytest.skip("no cuobjdump")
    code = machine_code.cuobjdump("--dump-sass", program)
    instruction, count = INSTRUCTIONS[name]
    assert machine_code.Kernel(code, {}).count(instruction) == count
    assert "FENCE.VIEW.ASYNC" in code and "DEPBAR" in code  # written memory is seen; the end is waited for


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 0), (2, 0), (3, 1)])
def test_every_answer_is_a_success(
    status: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setattr(gpu_checks, "program", lambda name: program)
    assert gpu_checks.main() == expected


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_what_does_not_compile_is_a_failure(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_checks, "FOLDER", tmp_path)
    monkeypatch.setattr(gpu_checks, "NVCC", (compiler,))
    assert gpu_checks.main() == 1
    assert capfd.readouterr().out.count(compiler) == len(gpu_checks.PROGRAMS)
