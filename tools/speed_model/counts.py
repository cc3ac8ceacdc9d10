# SPDX-License-Identifier: BSD-3-Clause
"""How many instructions a warp executes from one mark of csrc/cuda/marks.h to the next.

The kernels are compiled with FS_MARKS, which puts an instruction without effect at each mark. The shortest
way between two marks counts, so marks also stand where the common way parts from a shorter one.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests" / "support")]

import machine_code  # noqa: E402

from tools.machine_code_size import demangled  # noqa: E402

Pair = tuple[str, str]


def mark_names() -> list[str]:
    """Those of enum Mark, "start" first, by number."""
    body = re.search(r"enum class Mark[^{]*\{(.*?)\}", (ROOT / "csrc/cuda/marks.h").read_text(), re.S)
    assert body is not None
    words = re.findall(r"^\s*k(\w+),", body[1], re.M)
    return [re.sub(r"(?<!^)([A-Z])", r"_\1", word).lower() for word in words]


MARKS = mark_names()
START = MARKS[0]


class Code(NamedTuple):
    """A kernel's instructions: which mark each is, or None, and which may come next."""

    marks: list[str | None]
    successors: list[tuple[int, ...]]  # len(marks): the end

    @classmethod
    def read(cls, text: str) -> Code:
        """From cuobjdump's text."""
        found = re.findall(r"^\s*/\*([0-9a-f]+)\*/\s+(@!?U?P\w+\s+)?([^;]+);", text, re.M)
        index = {int(address, 16): i for i, (address, _, _) in enumerate(found)}
        marks: list[str | None] = []
        successors: list[tuple[int, ...]] = []
        for i, (_, predicate, operation) in enumerate(found):
            mark = re.match(r"PMTRIG (0x[0-9a-f]+)", operation)
            marks.append(MARKS[int(mark[1], 16).bit_length() - 1] if mark else None)
            following: tuple[int, ...] = (i + 1,) if i + 1 < len(found) else ()
            name = operation.split()[0].split(".")[0]
            if name == "BRA":
                # `BRA P2, 0x40` is conditional without a predicate in front
                target = re.search(r"0x([0-9a-f]+)", operation)
                assert target is not None, operation
                conditional = predicate or re.match(r"BRA\S* !?U?P", operation)
                branch = (index[int(target[1], 16)],)
                following = branch + following if conditional else branch
            elif name == "EXIT":
                following = (len(found), *following) if predicate else (len(found),)
            elif name in ("RET", "BRX"):  # ends of subroutines, and switches that these ways do not meet
                following = following if predicate else ()
            successors.append(following)
        return cls(marks, successors)

    def ways_from(self, first: int) -> dict[str, int]:
        """Instructions of the shortest ways from here to marks, and to the end, past no other mark."""
        found: dict[str, int] = {}
        seen = {first}
        queue = deque([(first, 0 if self.marks[first] else 1)])
        while queue:
            here, length = queue.popleft()
            for following in self.successors[here]:
                mark = START if following == len(self.marks) else self.marks[following]
                if mark:
                    found.setdefault(mark, length)
                elif following not in seen:
                    seen.add(following)
                    queue.append((following, length + 1))
        return found

    def ways(self) -> dict[Pair, float]:
        """From each mark to each that may come next; the mean if a mark has copies, as in unrolled loops."""
        lengths: dict[Pair, list[int]] = {}
        for i, mark in enumerate(self.marks):
            if mark or i == 0:
                for other, length in self.ways_from(i).items():
                    lengths.setdefault((mark or START, other), []).append(length)
        return {pair: sum(some) / len(some) for pair, some in lengths.items()}


class Kernel(NamedTuple):
    ways: dict[Pair, float]
    registers: int


def source_of(instances: list[str]) -> str:
    """A .cu file that instantiates kernels: "conv_wgmma_kernel<TF32, 8, true>"."""
    lines = [f"template __global__ void {name}(const __grid_constant__ MmaParams);" for name in instances]
    begin = ['#include "cuda/kernels/sm90_conv.cuh"', "namespace fused_subpixel::cuda {"]
    return "\n".join([*begin, *lines, "}", ""])


def compiled(instances: list[str], nvcc: str = "nvcc", marked: bool = True) -> dict[str, machine_code.Kernel]:
    """Machine code of instances for sm_90a, by their names; about a second for each."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "kernels.cu"), Path(folder, "kernels.cubin")
        source.write_text(source_of(instances))
        options = ["-O3", "-std=c++17", "-DNDEBUG", f"-I{ROOT / 'csrc'}", "-arch=sm_90a", "-cubin"]
        options += ["-DFS_MARKS"] if marked else []
        subprocess.run([nvcc, *options, str(source), "-o", str(cubin)], check=True)
        kernels = machine_code.kernels(cubin, "sm_90a")
    return dict(zip(demangled(list(kernels)), kernels.values(), strict=True))


def count(kernels: dict[str, machine_code.Kernel]) -> dict[str, Kernel]:
    """Ways and registers of marked kernels, by name."""
    return {name: Kernel(Code.read(k.code).ways(), k.resources["REG"]) for name, k in kernels.items()}
