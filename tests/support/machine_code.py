# SPDX-License-Identifier: BSD-3-Clause
"""Reads the machine code of CUDA kernels from a library, or from cubins, by NVIDIA's cuobjdump."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

INSTRUCTION_BYTES = 16


@functools.cache
def tools() -> str | None:
    """A PATH with cuobjdump and nvdisasm, which it calls: a toolkit's, or those of the extra `test`."""
    nvidia = importlib.util.find_spec("nvidia")
    places = (nvidia and nvidia.submodule_search_locations) or ()
    folders = [str(folder) for place in places for folder in Path(place).glob("cu*/bin")]
    homes = [f"{os.environ[name]}/bin" for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    path = os.pathsep.join([*homes, os.environ.get("PATH", ""), *folders, "/usr/local/cuda/bin"])
    return path if all(shutil.which(tool, path=path) for tool in ("cuobjdump", "nvdisasm")) else None


def cuobjdump(*arguments: str | Path) -> str:
    path = tools()
    if path is None:
        raise FileNotFoundError("cuobjdump and nvdisasm are not found: they come with the extra `test`")
    command = [shutil.which("cuobjdump", path=path) or "", *map(str, arguments)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PATH": path}, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[:2000]}")
    return done.stdout


class Kernel(NamedTuple):
    code: str  # its instructions, one a line
    resources: dict[str, int]  # REG, STACK, LOCAL, SHARED, in bytes

    def count(self, instruction: str) -> int:
        """How many instructions match a regular expression from the operation on: r"HMMA\\."."""
        return len(re.findall(rf"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?{instruction}", self.code, re.M))

    def loops_with(self, instruction: str) -> list[int]:
        """Lengths of the innermost loops around each instruction that matches, in instructions.

        A loop is what a backward branch encloses: all its ways, also those that exclude each other.
        """
        found = re.findall(r"^\s*/\*([0-9a-f]+)\*/\s+(?:@!?U?P\w+\s+)?([^;]+);", self.code, re.M)
        code = [(int(address, 16), operation.strip()) for address, operation in found]
        branches = [
            (int(target[1], 16), address)
            for address, operation in code
            if (target := re.match(r"BRA\S* (?:\S+ )?(?:`\()?0x([0-9a-f]+)", operation))
        ]
        lengths = []
        for address, operation in code:
            if re.match(instruction, operation):
                around = [end - start for start, end in branches if start <= address < end]
                if around:
                    lengths.append(min(around) // INSTRUCTION_BYTES + 1)
        return lengths

    @property
    def instructions(self) -> int:
        """All of them, without the endless loop and the NOPs that pad the end."""
        operations = re.findall(r"^\s*/\*[0-9a-f]+\*/\s+([^;/]+)", self.code, re.M)
        while operations and re.match(r"NOP\b|BRA\b", operations[-1].strip()):
            operations.pop()
        return len(operations)


@functools.cache
def architectures(binary: Path) -> frozenset[str]:
    return frozenset(re.findall(r"\.(sm_\w+)\.cubin", cuobjdump("-lelf", binary)))


@functools.cache
def kernels(binary: Path, arch: str) -> dict[str, Kernel]:
    """All kernels of one architecture, by mangled name. One dump serves all callers."""
    code: dict[str, str] = {}
    for part in re.split(r"^\s*Function : ", cuobjdump("-arch", arch, "-sass", binary), flags=re.M)[1:]:
        name, _, rest = part.partition("\n")
        code[name.strip()] = rest
    found = {}
    usage = cuobjdump("-arch", arch, "-res-usage", binary)
    for name, numbers in re.findall(r"^ Function (\S+):\n\s*(.*)$", usage, re.M):
        if name in code:
            resources = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", numbers)}
            found[name] = Kernel(code[name], resources)
    return found
