# SPDX-License-Identifier: BSD-3-Clause
"""``python -m fused_subpixel info`` and ``python -m fused_subpixel verify``."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys

import torch

from . import __version__, torch_compat, verification
from .dispatch import backends
from .ops import library as compiled
from .ops.geometry import INSTRUCTION_SETS

# Variables of others that change what runs here, or how fast.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "LD_PRELOAD",
    "MKL_NUM_THREADS", "NVIDIA_TF32_OVERRIDE", "OMP_NUM_THREADS", "OMP_PROC_BIND", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def info() -> int:
    """Print versions, surroundings, what of the package can run here, and why the rest cannot."""
    _row(f"fused_subpixel {__version__},", _place())
    _row("python", f"{platform.python_version()}, {platform.platform()}")
    _row("torch", f"{torch.__version__}, {_cuda()}; numpy {_version_of('numpy')}")
    set_here = sorted(n for n in os.environ if n.startswith("FUSED_SUBPIXEL_") or n in _VARIABLES)
    _row("environment", ", ".join(f"{name}={os.environ[name]}" for name in set_here) or "nothing set")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    capability = torch.backends.cpu.get_cpu_capability()
    _row("cpu", f"{torch.get_num_threads()} threads on {usable} processors, torch uses {capability}")
    for name, library in compiled.libraries.items():
        _row(f"{name} library", library.problem or f"{library.path} loaded")
        if library.remedy and not library.loaded:
            _row("", library.remedy)
        if library.loaded:
            _row("", _cpu_kernels() if name == "cpu" else _cuda_kernels())
    _row("backends", f"{backends.requested()} unless a call or use_backend says otherwise")
    left_out = {backend.backend: backend.reason for backend in verification.unchecked()}
    for name, library in compiled.libraries.items():
        reason = left_out.get(name) if library.loaded else "its library is not loaded"
        _row(f"  {name}", f"does not run: {reason}" if reason else "runs")
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        reason = backends.refusal("cuda", torch.device("cuda", device))
        gpu = f"{torch.cuda.get_device_name(device)}, sm_{major}{minor}"
        _row(f"  cuda:{device}", f"{gpu}, {reason or 'runs'}")
    _row("  reference", "runs always, plain PyTorch")
    for problem in torch_compat.problems(compiler=False):
        _row("problem", problem)
    return 0


def _row(label: str, text: str) -> None:
    print(f"{label:14} {text}")


def _place() -> str:
    return f"{'source folder' if compiled.is_source_folder() else 'installed in'} {compiled.FOLDER}"


def _cuda() -> str:
    if torch.version.cuda is None:
        return "CUDA not built in"
    return f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_kernels() -> str:
    current, usable, l2_bytes, tile_registers = compiled.operators._cpu_capability()
    others = (name for bit, name in enumerate(INSTRUCTION_SETS) if usable >> bit & 1 and bit != current)
    tf32 = "" if backends.allows_tf32(is_cuda=False) else "not "
    refused = "; the operating system refuses AMX" if tile_registers == 1 else ""
    kernels = f"kernels for {INSTRUCTION_SETS[current]} (usable too: {', '.join(others) or 'none'}){refused}"
    return f"{kernels}; L2 cache {l2_bytes // 1024} KiB; tf32 {tf32}allowed"


def _cuda_kernels() -> str:
    driver, built_with = backends.cuda_versions()
    found = "no driver" if driver == "0.0" else f"driver for CUDA {driver}"
    return f"built with CUDA {built_with}; {found}; tf32 {'' if backends.allows_tf32() else 'not '}allowed"


def verify(every_check: bool = False) -> int:
    """Compare every backend that can run with float64, and name the others.

    The exit status is 1 if one is wrong, or if an installed library did not run.
    """
    rows, left_out = verification.run(), verification.unchecked()
    print(verification.table(rows) if every_check else verification.summary(rows))
    for backend in left_out:
        print(backend)
    wrong = [row for row in rows if not row.passed]
    names = ", ".join(backend.backend for backend in left_out)
    rest = f"; not checked: {names}" if names else ""
    print(f"{len(rows) - len(wrong)} of {len(rows)} checks passed{rest}")
    return 1 if wrong or any(backend.expected for backend in left_out) else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command given by ``arguments``, by default those of the process; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fused_subpixel", description=(__doc__ or "").replace("``", "")
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help=info.__doc__)
    of_verify = commands.add_parser("verify", help=verify.__doc__)
    of_verify.add_argument("--all", action="store_true", help="print every check, not a line for each kind")
    parsed = parser.parse_args(arguments)
    return info() if parsed.command == "info" else verify(parsed.all)


if __name__ == "__main__":
    sys.exit(main())
