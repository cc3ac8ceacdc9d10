# SPDX-License-Identifier: BSD-3-Clause
"""Check that the built libraries work under another Python and another torch, without a GPU.

    python tools/load_elsewhere.py /path/to/venv/bin/python [more pythons]

Each of them needs torch 2.10 or newer and nothing else, at best a CUDA build; no compiler, no GPU. The
package is copied to a folder of its own, with the libraries that lie beside it here. Both must load and
register their operators there, calls on the CPU must be right, a demand for CUDA must be refused in words,
and `python -m fused_subpixel verify` must pass.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "fused_subpixel"

CHECKS = """
import pathlib, sys
import torch
import fused_subpixel as fs
from fused_subpixel.ops import library

print(f"python {sys.version.split()[0]}, torch {torch.__version__}, "
      f"CUDA {torch.version.cuda or 'not built in'}, GPU {'yes' if torch.cuda.is_available() else 'no'}")
assert pathlib.Path(fs.__file__).parent == pathlib.Path(sys.argv[1]), f"imported from {fs.__file__}"

cuda_too = torch.version.cuda is not None and pathlib.Path(sys.argv[1], "fused_subpixel_cuda.so").exists()
for device in ("cpu", "cuda") if cuda_too else ("cpu",):
    loaded = library.libraries[device]
    assert loaded.loaded, loaded.problem
    for op in ("subpixel_conv2d", "subpixel_conv2d_input_grad", "subpixel_conv2d_weight_grad"):
        has = torch._C._dispatch_has_kernel_for_dispatch_key(f"fused_subpixel::{op}", device.upper())
        assert has, f"{op} has no kernel for {device}"
    print(f"{device} library: loaded, operators registered")
if not cuda_too:
    print(f"cuda library: not checked, {library.libraries['cuda'].problem}")

x, weight = torch.randn(2, 5, 6, 7), torch.randn(12, 5, 3, 3)
expected = torch.pixel_shuffle(torch.nn.functional.conv2d(x, weight, padding=1), 2)
for backend in ("auto", "cpu", "reference"):
    with fs.use_backend(backend):
        found = fs.subpixel_conv2d(x, weight, None, 2, padding=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
try:
    with fs.use_backend("cuda"):
        fs.subpixel_conv2d(x, weight, None, 2, padding=1)
except ValueError as refusal:
    print(f"backend cuda on CPU tensors: {refusal}")
else:
    raise SystemExit("backend cuda took CPU tensors")
"""


def check(python: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        package = Path(folder, PACKAGE.name)
        shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
        env = {**os.environ, "PYTHONPATH": folder, "PYTHONWARNINGS": "error::RuntimeWarning"}
        env.pop("FUSED_SUBPIXEL_LIBRARY_DIR", None)
        for arguments in (["-c", CHECKS, str(package)], ["-m", "fused_subpixel", "verify"]):
            done = subprocess.run(
                [python, *arguments],
                cwd=folder,
                env=env,
                text=True,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            lines = done.stdout.splitlines()
            if done.returncode:
                print("\n".join([*lines[-30:], f"FAILED under {python}: exit status {done.returncode}"]))
                return False
            print("\n".join(lines if "verify" not in arguments else lines[-1:]), flush=True)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("python", nargs="+", help="the other Python")
    pythons = [os.path.abspath(shutil.which(name) or name) for name in parser.parse_args().python]
    if not any(PACKAGE.glob("*.so")):
        parser.error(f"no library in {PACKAGE}: `make build` first")
    return 0 if all([check(python) for python in pythons]) else 1


if __name__ == "__main__":
    sys.exit(main())
