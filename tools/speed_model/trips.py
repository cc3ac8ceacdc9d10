# SPDX-License-Identifier: BSD-3-Clause
"""How often a warp goes from one mark to the next, counted by the emulator of tests/simt.

The first block stands for all of them: no block has more tiles, and tiles at the edge of the image execute
the same instructions, with other predicates. The numbers are those of the thread that passes the most marks.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from bench.workloads import Transposed, Workload
from tools.speed_model.counts import MARKS, ROOT, Pair

sys.path[:0] = [str(ROOT / "tests" / "support"), str(ROOT / "build" / "tests")]

import emulated  # noqa: E402
import fused_subpixel_simt as simt  # noqa: E402
from cases import Case, Tensors  # noqa: E402

H100 = emulated.Target(90, 132, 232448)
TYPES = {"float16": "Float16", "bfloat16": "BFloat16", "tf32": "TF32"}
TORCH_TYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "tf32": torch.float32}


class Trips(NamedTuple):
    """A launch of the convolution: kernel, grid, and what a warp of one block does."""

    kernel: str
    tiles: int  # times blocks of output channels
    blocks: int
    threads: int
    shared_bytes: int
    multiplications: int  # mma.sync or wgmma instructions
    packs: int  # whether another kernel packs the weight before
    trips: dict[Pair, int]


def case_of(workload: Workload) -> Case:
    """A workload as the operator has it: a transposed convolution is a convolution, a shuffle and a crop."""
    n, ci, h, w = workload.input_shape
    r, kernel = workload.r, workload.kernel
    if isinstance(workload, Transposed):
        taps = -(-kernel // r)
        pad, crop = taps - 1, workload.cut
        name, weight = workload.name, (workload.c * r * r, ci, taps, taps)
        return Case(name, (n, ci, h, w), weight, (r, r), padding=(pad,) * 4, crop=(crop,) * 4)
    before, after = (kernel - 1) // 2, kernel // 2
    return Case(
        workload.name, (n, ci, h, w), workload.weight_shape, (r, r), padding=(before, before, after, after),
        activation=workload.activation,
    )  # fmt: skip


def instance(kernel: int, dtype: str, block_oc: int, block_k_bytes: int, staging: int) -> str:
    """The kernel as launch_mma and launch_wgmma choose it."""
    vectorised = str(staging != 0).lower()
    if kernel == emulated.WGMMA:
        return f"conv_wgmma_kernel<{TYPES[dtype]}, {block_k_bytes // 16}, {vectorised}>"
    oc_warps = 2 if block_oc > 64 else 1
    tiles = block_oc // 8 // oc_warps
    return f"conv_mma_kernel<{TYPES[dtype]}, {block_k_bytes}, {tiles}, {oc_warps}, {vectorised}>"


def count(case: Case, dtype: str, target: emulated.Target = H100, blocks: tuple[int, ...] = (0,)) -> Trips:
    """Runs blocks (none: all) of the forward pass in channels_last; the trips are of one that does most."""
    of_type, tf32 = TORCH_TYPES[dtype], dtype == "tf32"
    plan = emulated.plan(case, of_type, True, target, tf32=tf32)
    if plan.kernel == emulated.GENERIC:
        raise ValueError(f"{case}: the tensor-core kernels do not compute it, refusal {plan.refusal}")

    def zeros(*shape: int) -> torch.Tensor:
        tensor = torch.zeros(shape, dtype=of_type)
        return tensor.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else tensor

    tensors = Tensors(zeros(*case.input), zeros(*case.weight), zeros(case.weight[0]))
    simt.set_blocks(list(blocks))
    try:
        emulated.forward(case, tensors, True, target, tf32=tf32)
    finally:
        simt.set_blocks([])
    found = simt.statistics()
    trips = {
        (MARKS[i], MARKS[j]): count
        for i, row in enumerate(found["marks"])
        for j, count in enumerate(row)
        if count
    }
    warps = found["blocks"] * found["threads"] // 32
    return Trips(
        instance(plan.kernel, dtype, plan.columns, plan.block_k_bytes, plan.staging), plan.tiles,
        found["grid_x"] * found["grid_y"], found["threads"], found["shared_bytes"],
        (found["mmas"] + found["wgmmas"]) // warps, plan.packs_weight, trips,
    )  # fmt: skip
