# SPDX-License-Identifier: BSD-3-Clause
"""What the compiler made of the CUDA kernels: tensor cores, 16-byte accesses, nothing spilled."""

from __future__ import annotations

import re
from pathlib import Path

import machine_code
import pytest
from machine_code import Kernel

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


pytestmark = [
    pytest.mark.skipif(not LIBRARY.exists(), reason=f"{LIBRARY.name} is not built"),
    pytest.mark.skipif(
        machine_code.tools() is None, reason="no cuobjdump and nvdisasm: they come with the extra `test`"
    ),
]


def instances(kernel: str, arch: str, of_type: str = "") -> dict[str, Kernel]:
    """All instances of a template, or those for one element type; skips if there is no code for ``arch``."""
    built = machine_code.architectures(LIBRARY)
    if arch not in built:
        pytest.skip(f"the library is built for {', '.join(sorted(built))}, not for {arch}")
    kernels = machine_code.kernels(LIBRARY, arch)
    pattern = re.compile(rf"\d{kernel}I.*?{len(of_type)}{of_type}[^a-z]" if of_type else rf"\d{kernel}")
    found = {name: code for name, code in kernels.items() if pattern.search(name)}
    assert found, f"no {kernel}{f' of {of_type}' if of_type else ''} among: {', '.join(kernels)}"
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


# Of the kernels that move whole vectors, in instructions: the loops that store and load 16 bytes to a thread,
# and all of the longest instance. A little more than the compiler makes now. sm_90a has three more for each
# asynchronous copy.
BUDGETS = {
    "sm_80": {"store": 57, "load": 21, "conv_mma_kernel": 1950},
    "sm_90a": {"store": 58, "load": 22, "conv_mma_kernel": 2150, "conv_wgmma_kernel": 1950},
}
# And the longest of those for elements.
ELEMENTS = {
    "sm_80": {"conv_mma_kernel": 2750},
    "sm_90a": {"conv_mma_kernel": 2950, "conv_wgmma_kernel": 2250},
}


def vectorised(kernel: str, arch: str) -> dict[str, Kernel]:
    return {name: code for name, code in instances(kernel, arch).items() if "Lb1E" in name}


@pytest.mark.parametrize(("arch", "kernel"), [(arch, kernel) for arch in ARCHS for kernel in ELEMENTS[arch]])
def test_kernels_of_elements_are_not_long(kernel: str, arch: str) -> None:
    """Every block waits for instructions that its multiprocessor has not met yet."""
    for instance, code in instances(kernel, arch).items():
        if "Lb0E" in instance:
            assert code.instructions <= ELEMENTS[arch][kernel], f"{instance}: {code.instructions}"


@pytest.mark.parametrize(
    ("arch", "kernel"),
    [(arch, kernel) for arch in ARCHS for kernel in BUDGETS[arch] if kernel.startswith("conv")],
)
def test_loops_of_vectors_are_short(kernel: str, arch: str) -> None:
    """A longer loop costs all layers that it bounds: the kernels wait for dependent instructions."""
    for instance, code in vectorised(kernel, arch).items():
        stores = code.loops_with(r"STG\.E(\.\w+)*\.128\b")
        loads = code.loops_with(r"LDGSTS\.E(\.\w+)*\.128\b")
        assert len(stores) == 1 and stores[0] <= BUDGETS[arch]["store"], f"{instance}: store loop {stores}"
        assert max(loads) <= BUDGETS[arch]["load"], f"{instance}: load loops {loads}"
        assert code.instructions <= BUDGETS[arch][kernel], f"{instance}: {code.instructions}"
        assert code.count(r"(I2F|MUFU)\b") == 0, f"{instance}: divides"


@pytest.mark.parametrize("arch", ARCHS)
def test_unshuffle_stores_16_bytes_at_a_time(arch: str) -> None:
    """And divides by multiplications, without conversions to floating point."""
    for instance, kernel in instances("unshuffle_reduce_kernel", arch).items():
        assert kernel.count(r"STG\.E(\.\w+)*\.128\b") == 1, instance
        assert kernel.count(r"I2F\b") == 0, instance


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
