# SPDX-License-Identifier: BSD-3-Clause
"""What the present kernels execute for the benchmark's workloads: trips and instructions."""

from __future__ import annotations

from collections.abc import Mapping

from bench.workloads import SUITE
from tools.speed_model import counts, trips
from tools.speed_model.model import Launch, Section

DTYPES = ("float16", "tf32")


def sections_of(counted: Mapping[counts.Pair, int], ways: Mapping[counts.Pair, float]) -> dict[str, Section]:
    """Of each mark: how often a warp passes it, and the mean of the instructions to the next mark."""
    missing = counted.keys() - ways.keys()
    if missing:
        raise ValueError(f"the machine code has no way between these marks: {sorted(missing)}")
    found = {}
    for mark in counts.MARKS:
        passed = sum(count for (here, _), count in counted.items() if here == mark)
        if passed:
            total = sum(count * ways[pair] for pair, count in counted.items() if pair[0] == mark)
            found[mark] = Section(passed, total / passed)
    return found


def planned(nvcc: str = "nvcc") -> list[Launch]:
    """Launches of all workloads on an H100. Compiles their kernels: a minute or two."""
    counted = [
        (workload, dtype, trips.count(trips.case_of(workload), dtype))
        for dtype in DTYPES
        for workload in SUITE
    ]
    kernels = counts.count(counts.compiled(sorted({trip.kernel for *_, trip in counted}), nvcc))
    return [
        Launch(
            "planned", workload.name, dtype, trip.kernel, trip.tiles, trip.blocks, trip.threads,
            trip.shared_bytes, kernels[trip.kernel].registers, trip.multiplications,
            workload.elements(backward=False) * trips.TORCH_TYPES[dtype].itemsize,
            sections_of(trip.trips, kernels[trip.kernel].ways), trip.packs,
        )
        for workload, dtype, trip in counted
    ]  # fmt: skip
