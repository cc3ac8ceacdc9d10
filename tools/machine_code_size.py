# SPDX-License-Identifier: BSD-3-Clause
"""Compare the size of CUDA machine code, kernel by kernel: python -m tools.machine_code_size OLD NEW.

OLD and NEW are libraries (fused_subpixel_cuda.so), cubins, or folders of cubins. The table has one line for
each kernel whose instructions differ in number, largest growth first, and the sum of all. Where kernels or
types have been renamed, `--rename OLD=NEW` makes the names equal. The exit status is 1 if a kernel grew by
more than `--tolerance` per cent, or if the two do not hold the same kernels.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support")]

import machine_code  # noqa: E402


class Size(NamedTuple):
    instructions: int
    registers: int


def demangled(names: list[str]) -> list[str]:
    """`conv_mma_kernel<TF32, 32, 2, 1>` for its mangled name: no namespaces, parameters and casts."""
    done = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
    short = []
    for name in done.stdout.splitlines():
        name = re.sub(r"\((int|bool|long)\)", "", name.removeprefix("void "))
        short.append(re.sub(r"\w+::|\(.*\)$", "", name))
    return short


def sizes(binaries: list[Path], arch: str, renames: dict[str, str]) -> dict[str, Size]:
    found: dict[str, Size] = {}
    for binary in binaries:
        kernels = machine_code.kernels(binary, arch)
        for name, kernel in zip(demangled(list(kernels)), kernels.values(), strict=True):
            for old, new in renames.items():
                name = re.sub(rf"\b{re.escape(old)}\b", new, name)
            found[name] = Size(kernel.instructions, kernel.resources["REG"])
    return found


def compare(old: dict[str, Size], new: dict[str, Size], arch: str, tolerance: float) -> bool:
    """Prints the table of one architecture; whether all is well."""
    both = sorted(old.keys() & new.keys(), key=lambda name: old[name].instructions - new[name].instructions)
    print(f"{arch}: {len(old)} kernels before, {len(new)} after")
    print(f"{'before':>8} {'after':>8} {'change':>8}  {'registers':>9}  kernel")
    well = old.keys() == new.keys()
    for name in both:
        before, after = old[name], new[name]
        share = after.instructions / before.instructions - 1
        well &= share * 100 <= tolerance
        if after.instructions != before.instructions:
            registers = f"{before.registers} {after.registers}"
            print(f"{before.instructions:8} {after.instructions:8} {share:+8.1%}  {registers:>9}  {name}")
    before_all, after_all = (sum(table[name].instructions for name in both) for table in (old, new))
    if before_all:
        print(f"{before_all:8} {after_all:8} {after_all / before_all - 1:+8.1%}  {'':9}  all")
    for names, where in ((old.keys() - new.keys(), "before"), (new.keys() - old.keys(), "after")):
        for name in sorted(names):
            print(f"only {where}: {name}")
    return well


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--arch", nargs="+", default=["sm_80", "sm_90a"])
    parser.add_argument("--rename", nargs="+", default=[], metavar="OLD=NEW")
    parser.add_argument("--tolerance", type=float, default=1.0, metavar="PERCENT")
    args = parser.parse_args()
    renames = dict(pair.split("=", 1) for pair in args.rename)
    binaries = [sorted(path.glob("*.cubin")) if path.is_dir() else [path] for path in (args.old, args.new)]
    well = True
    for arch in args.arch:
        old, new = (sizes(paths, arch, renames) for paths in binaries)
        well &= compare(old, new, arch, args.tolerance)
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
