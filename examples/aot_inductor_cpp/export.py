# SPDX-License-Identifier: BSD-3-Clause
"""Compile a small super-resolution network to an AOTInductor package, with the fused operator in it.

    python export.py model.pt2

The network and its input are made of fixed numbers: main.cpp has to print the same checksums.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim

import fused_subpixel as fs


class Upscaler(nn.Module):
    """[N, 3, H, W] -> [N, 3, 2H, 2W]: a convolution, a sub-pixel convolution, the enlarged image added."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 12, 3, padding=1)
        for parameter in self.parameters():
            parameter.data = torch.arange(parameter.numel()).remainder(11).sub(5).div(32).view_as(parameter)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.head(F.relu(self.body(x))), 2)
        return (y + F.interpolate(x, scale_factor=2, mode="nearest")).clamp(0, 1)


def picture(batch: int, height: int, width: int) -> Tensor:
    """As in main.cpp."""
    return torch.arange(batch * 3 * height * width).remainder(17).div(16).view(batch, 3, height, width)


def checksum(y: Tensor) -> float:
    """As in main.cpp: unlike a plain sum, it depends on where each value stands."""
    return float((y.double().flatten() * torch.arange(y.numel()).remainder(13)).sum())


def main(path: str) -> None:
    sizes = {0: Dim("N", max=16), 2: Dim("H", max=4096), 3: Dim("W", max=4096)}
    program = torch.export.export(Upscaler(), (picture(2, 8, 9),), dynamic_shapes=(sizes,))
    fused, report = fs.fuse(program, return_report=True)
    print(report)
    torch._inductor.aoti_compile_and_package(fused, package_path=path)
    for size in ((1, 24, 32), (2, 17, 40)):
        print(f"checksum {checksum(Upscaler()(picture(*size))):.3f}")


if __name__ == "__main__":
    with torch.no_grad():
        main(sys.argv[1])
