# SPDX-License-Identifier: BSD-3-Clause
"""What the sections of the CUDA forward kernels execute, which bounds their speed: compiled with marks."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import machine_code
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tools.speed_model import counts  # noqa: E402

# Of the sections of a kernel, from one mark of csrc/cuda/marks.h to the next, in instructions. A little more
# than the compiler makes now; the speed model (docs/speed_model.md) tells what they cost.
SECTIONS = {
    "conv_mma_kernel<Float16, 64, 2, 1, true>": {
        "pixel_table to pixel_table": 32, "pixels to pixels": 18, "pixel_parts to pixel_parts": 18,
        "weights to weights": 18, "step to tap": 72, "step to pixels": 47, "tap to tap": 27,
        "line_table to stage": 41, "stage to store": 210, "store to aligned": 9, "aligned to store": 16,
        "place to store": 36,
    },
    "conv_mma_kernel<TF32, 64, 2, 1, true>": {"tap to tap": 27, "round to round": 21, "stage to store": 210},
    "conv_wgmma_kernel<Float16, 8, true>": {
        "pixel_table to pixel_table": 32, "pixels to pixels": 18, "step to tap": 22, "step to pixels": 42,
        "tap to step": 49, "stage to store": 390, "store to aligned": 9, "aligned to store": 16,
    },
    "conv_wgmma_kernel<TF32, 8, true>": {"round to round": 21, "tap to step": 49, "stage to store": 550},
}  # fmt: skip


@pytest.mark.skipif(
    shutil.which("nvcc") is None or machine_code.tools() is None, reason="nvcc and cuobjdump are needed"
)
def test_sections_keep_their_budgets() -> None:
    """Each section by its name, so that a failure says what has grown."""
    kernels = counts.count(counts.compiled(list(SECTIONS)))
    grown = []
    for kernel, budgets in SECTIONS.items():
        for section, budget in budgets.items():
            first, _, second = section.partition(" to ")
            instructions = kernels[kernel].ways[first, second]
            if not 0.5 * budget <= instructions <= budget:
                grown.append(f"{kernel}, {section}: {instructions:.0f} instructions, budget {budget}")
    assert not grown, "\n".join(grown)
