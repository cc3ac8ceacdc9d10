# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA library's host code on CPU tensors, in the library of bench.launch_cost, whose kernels do nothing.

Shapes, layouts, launches and errors are all there is to test. The library registers its operators for CPU
tensors, so each test has a process of its own.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STUBBED = ROOT / "build/tests/fused_subpixel_cuda_stubbed.so"
pytestmark = pytest.mark.skipif(not STUBBED.exists(), reason="built only where the headers of CUDA are found")

SETUP = """
from bench import launch_cost
import torch, itertools
assert launch_cost.use_stubbed_library() is None
import fused_subpixel as fs
launched = launch_cost.launch_counter()

def launches(function):
    before = launched()
    result = function()
    return launched() - before, result
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SETUP + code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_launches_shapes_and_layouts() -> None:
    """Forward: two kernels, one more for a contiguous input. Backward: two for each operand's gradient, and
    before them one for the gradient of an activation, where the output tells it."""
    run(
        """
weight, wide = torch.ones(4, 4, 3, 3, requires_grad=True), torch.ones(8, requires_grad=True)
for layout, activation, bias in itertools.product(
    (torch.contiguous_format, torch.channels_last), (None, "relu", "silu"), (None, wide[:4], wide[::2])
):
    x = torch.ones(2, 4, 8, 6).contiguous(memory_format=layout).requires_grad_()
    conv = lambda: fs.subpixel_conv2d(x, weight, bias, padding=1, activation=activation)
    count, output = launches(conv)
    assert count == 3 - (layout == torch.channels_last), count
    assert output.shape == (2, 1, 16, 12) and output.requires_grad
    leaves = [x, weight] + ([] if bias is None else [wide])
    grad = torch.ones_like(output)
    count, gradients = launches(lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True))
    assert count == 4 + (activation == "relu"), count
    for leaf, gradient in zip(leaves, gradients):
        assert gradient.shape == leaf.shape and gradient.dtype == leaf.dtype
    assert gradients[0].is_contiguous(memory_format=layout)
    frozen = fs.subpixel_conv2d(x, weight.detach(), padding=1)
    assert launches(lambda: torch.autograd.grad(frozen, x, grad))[0] == 2
    with torch.no_grad():
        assert not conv().requires_grad
"""
    )


@pytest.mark.full
def test_the_fakes_agree() -> None:
    run(
        """
operators = torch.ops.fused_subpixel
numbers = (2, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1, 0, 0), 0, 0.01, None, None
weight = torch.ones(4, 4, 3, 3)
for layout, n in itertools.product((torch.contiguous_format, torch.channels_last), (0, 1, 2)):
    x = torch.ones(n, 4, 8, 6).contiguous(memory_format=layout)
    found, fake = (
        operators.subpixel_conv2d(*tensors, None, None, None, *numbers)
        for tensors in ((x, weight), (x.to("meta"), weight.to("meta")))
    )
    assert found.shape == fake.shape and found.stride() == fake.stride() and found.dtype == fake.dtype
"""
    )


@pytest.mark.full
def test_second_derivatives_launch_nothing_of_ours() -> None:
    run(
        """
x, weight = torch.ones(1, 4, 8, 8, requires_grad=True), torch.ones(4, 4, 3, 3, requires_grad=True)
output = fs.subpixel_conv2d(x, weight, padding=1)
count, first = launches(
    lambda: torch.autograd.grad(output, (x, weight), torch.ones_like(output), create_graph=True)
)
assert count == 0 and first[0].requires_grad
"""
    )


@pytest.mark.full
def test_the_benchmark_writes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "cost.csv"
    command = [sys.executable, "-m", "bench.launch_cost", "--quick", "--out", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with path.open() as file:
        rows = list(csv.DictReader(file))
    launches = {(row["pass"], row["layout"]): int(row["launches"]) for row in rows}
    assert len(rows) == 12
    assert all(float(row["median_us"]) > 0 for row in rows)
    assert launches["forward", "NCHW"] == 3
    assert launches["forward + backward", "channels_last"] == 6
