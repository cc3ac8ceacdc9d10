# SPDX-License-Identifier: BSD-3-Clause
"""A few small calls of every CUDA kernel, for compute-sanitizer: python tools/cuda_short.py."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT)]

import cases  # noqa: E402
import torch  # noqa: E402

SHORT = (
    *cases.BASES,
    *(cases.variant(base, residual="high", activation="silu", clamp=(-4, 9)) for base in cases.BASES),
    cases.Case("tiles", (2, 40, 19, 70), (48, 40, 3, 3), (4, 4), padding=cases.SAME3),
    cases.Case("points", (1, 300, 7, 33), (128, 300, 1, 1)),
    cases.Case("groups", (2, 6, 4, 19), (24, 2, 3, 2), groups=3),
    cases.Case("crop", (2, 3, 4, 36), (12, 3, 3, 3), padding=cases.SAME3, crop=(1, 1, 1, 1)),
)


def main() -> None:
    for case, dtype, layout in itertools.product(SHORT, cases.DTYPES, cases.LAYOUTS.values()):
        tensors = cases.Tensors(
            *(None if t is None else t.cuda() for t in cases.integers(case).to(dtype, layout))
        )
        geometry = case.geometry._replace(tf32=1)
        output = cases.operators.subpixel_conv2d(*tensors, geometry, *case.epilogue)
        cases.operators.subpixel_conv2d_weight_grad(output, tensors.input, *case.weight[2:], geometry)
        cases.operators.subpixel_conv2d_input_grad(
            output, tensors.weight, *case.input[2:], geometry, layout is torch.channels_last
        )
    torch.cuda.synchronize()
    print("done")


if __name__ == "__main__":
    main()
