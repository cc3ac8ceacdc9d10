# SPDX-License-Identifier: BSD-3-Clause
"""What the compiler made of the CUDA kernels: tensor cores, 16-byte accesses, nothing spilled."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

import fused_subpixel

LIBRARY = Path(fused_subpixel.__file__).parent / "fused_subpixel_cuda.so"
MULTIPLY = {  # by element type, which stands as a word in a mangled name
    "Float16": "HMMA.16816.F32",
    "BFloat16": "HMMA.16816.F32.BF16",
    "TF32": "HMMA.1688.F32.TF32",
}
KERNELS = [
    *(("conv_mma_kernel", of_type) for of_type in MULTIPLY),
    *(("weight_grad_mma_kernel", of_type) for of_type in MULTIPLY),
]
STORES_16_BYTES = {"conv_mma_kernel"}
ARCHS = ("sm_80", "sm_90a")


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
    command = [shutil.which("cuobjdump", path=path), *map(str, arguments)]
    env = {**os.environ, "PATH": path or ""}
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr[:2000]
    return done.stdout


pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY.name} is not built"),
    pytest.mark.skipif(tools() is None, reason="no cuobjdump and nvdisasm: they come with the extra `test`"),
]


class Kernel(NamedTuple):
    code: str  # its instructions, one a line
    resources: dict[str, int]  # REG, STACK, LOCAL, SHARED, in bytes

    def count(self, instruction: str) -> int:
        """How many instructions match a regular expression from the operation on: r"HMMA\\."."""
        return len(re.findall(rf"^\s*/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?{instruction}", self.code, re.M))


@functools.cache
def architectures() -> frozenset[str]:
    return frozenset(re.findall(r"\.(sm_\w+)\.cubin", cuobjdump("-lelf", LIBRARY)))


@functools.cache
def kernels(arch: str) -> dict[str, Kernel]:
    """All kernels of one architecture, by mangled name. One dump serves all tests."""
    code: dict[str, str] = {}
    for part in re.split(r"^\s*Function : ", cuobjdump("-arch", arch, "-sass", LIBRARY), flags=re.M)[1:]:
        name, _, rest = part.partition("\n")
        code[name.strip()] = rest
    found = {}
    usage = cuobjdump("-arch", arch, "-res-usage", LIBRARY)
    for name, numbers in re.findall(r"^ Function (\S+):\n\s*(.*)$", usage, re.M):
        if name in code:
            resources = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", numbers)}
            found[name] = Kernel(code[name], resources)
    return found


def instances(kernel: str, arch: str, of_type: str = "") -> dict[str, Kernel]:
    """All instances of a template, or those for one element type; skips if there is no code for ``arch``."""
    if arch not in architectures():
        pytest.skip(f"the library is built for {', '.join(sorted(architectures()))}, not for {arch}")
    pattern = re.compile(rf"\d{kernel}I.*?{len(of_type)}{of_type}[^a-z]" if of_type else rf"\d{kernel}")
    found = {name: code for name, code in kernels(arch).items() if pattern.search(name)}
    assert found, f"no {kernel}{f' of {of_type}' if of_type else ''} among: {', '.join(kernels(arch))}"
    return found


@pytest.mark.parametrize("arch", ARCHS)
def test_nothing_is_spilled(arch: str) -> None:
    """Local memory is as slow as the GPU's memory: an array with run-time indices, or too few registers."""
    spilled = [
        f"{name}: {kernel.resources['STACK']} bytes of stack, {kernel.resources['REG']} registers"
        for name, kernel in instances("", arch).items()
        if kernel.resources["STACK"] or kernel.resources["LOCAL"] or kernel.count(r"(LDL|STL)\b")
    ]
    assert not spilled, "\n".join(spilled)


@pytest.mark.parametrize("of_type", ["Float16", "BFloat16"])
def test_hopper_multiplies_by_warpgroups(of_type: str) -> None:
    """In the background, that is: one group of wgmmas to each commit, and 16-byte stores."""
    for instance, kernel in instances("conv_wgmma_kernel", "sm_90a", of_type).items():
        assert kernel.count(r"HGMMA\.64x128x16\.F32") >= 2, instance
        assert kernel.count(r"HGMMA.*gsb0") == 1, instance
        assert kernel.count(r"UBLKCP") > 0, instance
        assert kernel.count(r"STG\.E(\.\w+)*\.128\b") > 0, instance


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("name", "of_type"), KERNELS)
class TestTensorCoreKernels:
    def test_multiplies_on_tensor_cores(self, name: str, of_type: str, arch: str) -> None:
        for instance, kernel in instances(name, arch, of_type).items():
            assert kernel.count(rf"{re.escape(MULTIPLY[of_type])}\s") > 0, instance

    def test_moves_16_bytes_at_a_time(self, name: str, of_type: str, arch: str) -> None:
        """From global memory, through registers or asynchronously; and back, if it writes what users see."""
        for instance, kernel in instances(name, arch, of_type).items():
            assert kernel.count(r"(LDG\.E|LDGSTS\.E)(\.\w+)*\.128\b") > 0, instance
            if name in STORES_16_BYTES:
                assert kernel.count(r"STG\.E(\.\w+)*\.128\b") > 0, instance
