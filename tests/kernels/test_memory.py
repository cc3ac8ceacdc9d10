# SPDX-License-Identifier: BSD-3-Clause
"""The tensor of C*r_h*r_w low-resolution channels never exists, and no memory but the tensors' is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases
import pytest
import torch
from cases import DTYPES, LAYOUTS, Case
from conftest import needs_cpu_library
from tiers import tiered
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

pytestmark = needs_cpu_library

ROOT = Path(__file__).resolve().parents[2]
SUPPORT = ROOT / "tests" / "support"
MB = 1 << 20
SAME = cases.SAME3
CASES = (
    Case("narrow", (1, 8, 40, 50), (12, 8, 3, 3), padding=SAME, activation="silu", clamp=(-1, 1)),
    Case("wide", (2, 16, 9, 11), (256, 16, 3, 3), activation="prelu", slopes=256, residual="low"),
    Case("groups", (1, 8, 20, 30), (36, 4, 3, 3), (3, 3), padding=SAME, groups=2, residual="nearest"),
)  # fmt: skip


def allocations(function: Callable[[], Any]) -> list[int]:
    """Bytes of everything that torch's allocator hands out while ``function`` runs."""
    function()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    return [event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0]


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_allocates_its_output_and_nothing_else(
    case: Case, layout: str, dtype: torch.dtype, number: int
) -> None:
    tensors = cases.integers(case).to(dtype, LAYOUTS[layout])
    output = cases.plain(case, tensors)
    with cases.threads(number):
        assert allocations(lambda: cases.run(case, tensors)) == [output.nbytes]
    assert (
        sum(allocations(lambda: cases.plain(case, tensors))) >= 2 * output.nbytes
    )  # this can see the others


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_allocate_no_unshuffled_copy(case: Case, layout: str) -> None:
    tensors = cases.integers(case).to(torch.float32, LAYOUTS[layout])
    grad = torch.ones(case.output).contiguous(memory_format=LAYOUTS[layout])
    x, weight, bias, *_ = tensors
    assert bias is not None
    found = allocations(
        lambda: cases.operators.subpixel_conv2d_input_grad(grad, weight, *x.shape[2:], case.geometry, False)
    )
    assert found == [x.nbytes]

    def weight_gradient() -> tuple[Tensor, Tensor]:
        return cases.operators.subpixel_conv2d_weight_grad(grad, x, *weight.shape[2:], case.geometry)

    results = sorted([weight.nbytes, bias.nbytes])
    with cases.threads(1):
        assert sorted(allocations(weight_gradient)) == results
    with cases.threads(2):
        found = sum(allocations(weight_gradient))
    # and sums of each thread: 16 positions instead of 9 taps, in whole vectors
    assert found - sum(results) <= 2 * 4 * weight.nbytes


# ---- resident memory: what does not come from torch's allocator counts as well --------------------------

# The output, like the tensor before the shuffle, is 192 MB.
RESIDENT = """
import sys, torch, torch.nn.functional as F, fused_subpixel as fs
torch.set_num_threads(2)
x, weight = torch.randn(1, 4, 512, 512), torch.randn(192, 4, 3, 3)

def status(name):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(name))

def fused(x):
    return fs.subpixel_conv2d(x, weight, None, 8, padding=1, backend="cpu")

def pytorch(x):
    return F.pixel_shuffle(F.conv2d(x, weight, padding=1), 8)

function = {"fused": fused, "pytorch": pytorch}[sys.argv[1]]
"""
PEAK = """
function(x[..., :8, :8])
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # forget the peak so far
before = status("VmRSS")
output = function(x)
print([status("VmHWM") - before, output.nbytes])
"""
GROWTH = """
def some(k):
    for n in range(k):
        for c in (1, 3, 4):
            fs.subpixel_conv2d(x[:, :c, : 20 + n % 7, : 30 + n % 5], weight[:64, :c], backend="cpu")

with fs.use_backend("cpu"):
    some(100)
    before = status("VmRSS")
    some(1000)
    print([status("VmRSS") - before])
"""


def child(arguments: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    paths = [str(ROOT), str(SUPPORT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


def measured(program: str, function: str) -> list[int]:
    result = child(["-c", program, function])
    if "clear_refs" in result.stderr:
        pytest.skip("this kernel does not reset a process's peak of memory")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.full
def test_peak_is_the_output_and_bounded_scratch() -> None:
    """16 MB: for each of 2 threads a strip of the input and a part of the filter, sized for L2, and some."""
    grown, output = measured(RESIDENT + PEAK, "fused")
    assert output == 192 * MB
    assert grown <= output + 16 * MB
    grown, output = measured(RESIDENT + PEAK, "pytorch")
    assert grown >= 2 * output - 16 * MB, "the measurement sees no intermediate where there is one"


@pytest.mark.full
def test_repeated_calls_keep_nothing() -> None:
    """Whatever the shapes: they differ from call to call."""
    [grown] = measured(RESIDENT + GROWTH, "fused")
    assert grown <= 2 * MB


# ---- nothing outside the tensors -------------------------------------------------------------------------

MALLOC_CHECK = {"LD_PRELOAD": "libc_malloc_debug.so.0", "MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165"}


@tiered("choice", ["some", "all"], fast=["some"])
def test_nothing_outside_the_tensors_is_read_or_written(choice: str) -> None:
    """Next to every input lies a page that cannot be read; glibc watches the bytes behind every output."""
    result = child([str(SUPPORT / "guarded.py"), choice], **MALLOC_CHECK)
    assert result.returncode == 0, result.stderr
    assert "done" in result.stdout


@pytest.mark.full
@pytest.mark.parametrize("what", ["read", "write"])
def test_the_guards_guard(what: str) -> None:
    result = child([str(SUPPORT / "guarded.py"), what], **MALLOC_CHECK)
    if what == "write" and result.returncode == 0:
        pytest.skip("no glibc with libc_malloc_debug.so here")
    assert result.returncode < 0, "a stray access went unnoticed"
