# SPDX-License-Identifier: BSD-3-Clause
"""``python -m fused_subpixel info`` and ``python -m fused_subpixel verify``."""

from __future__ import annotations

import argparse
import platform
import sys

import torch

from . import __version__, _library, backends, verification

_INSTRUCTION_SETS = ("portable", "AVX2", "AVX-512")  # as enum Isa in csrc/cpu


def info() -> int:
    """Print versions, what of the package can run here, and why the rest cannot."""
    print(f"fused_subpixel {__version__}")
    print(f"python         {platform.python_version()}, {platform.platform()}")
    print(f"torch          {torch.__version__}, CUDA {torch.version.cuda or 'not built in'}")
    capability = torch.backends.cpu.get_cpu_capability()
    print(f"cpu            {torch.get_num_threads()} threads, torch uses {capability}")
    for name, library in _library.libraries.items():
        print(f"{name + ' library':14} {library.problem or f'{library.path} loaded'}")
    if _library.libraries["cpu"].loaded:
        current, usable, l2_bytes = torch.ops.fused_subpixel.cpu_capability()
        names = ", ".join(name for bit, name in enumerate(_INSTRUCTION_SETS) if usable >> bit & 1)
        print(f"               {_INSTRUCTION_SETS[current]} of {names}; L2 cache {l2_bytes // 1024} KiB")
    for device in range(torch.cuda.device_count()):
        major, minor = torch.cuda.get_device_capability(device)
        reason = backends.refusal("cuda", torch.device("cuda", device), torch.float32)
        print(f"cuda:{device:<9} {torch.cuda.get_device_name(device)}, sm_{major}{minor}, {reason or 'runs'}")
    print("reference      plain PyTorch, always runs")
    return 0


def verify() -> int:
    """Compare every backend that can run with float64; the exit status is 1 if one is wrong."""
    rows = verification.run()
    print(verification.table(rows))
    wrong = [row for row in rows if not row.passed]
    print(f"{len(rows) - len(wrong)} of {len(rows)} checks passed")
    return 1 if wrong else 0


def main(arguments: list[str] | None = None) -> int:
    """Run the command given by ``arguments``, by default those of the process; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m fused_subpixel", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help=info.__doc__)
    commands.add_parser("verify", help=verify.__doc__)
    command = parser.parse_args(arguments).command
    return {"info": info, "verify": verify}[command]()


if __name__ == "__main__":
    sys.exit(main())
