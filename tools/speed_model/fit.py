# SPDX-License-Identifier: BSD-3-Clause
"""Fits the model's constants to measured kernels, and shows its errors on those that it was not fitted to."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tools.speed_model.model import H100, Constants, Launch, kernel_us

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
MEASURED, PLANNED, PREDICTED = (HERE / f"{name}.csv" for name in ("measured", "planned", "predicted"))
RESULTS = ROOT / "bench" / "results"
GRAPHS = (
    RESULTS / "2026-11-27_1952_nvidia-h100-80gb-hbm3_float16.csv",
    RESULTS / "2026-11-27_1953_nvidia-h100-80gb-hbm3_tf32_graph.csv",
)
START = Constants(latency=5.0, contention=0.5, launch_us=1.0, pack_share=0.5)


def error(modelled: float, measured: float) -> float:
    """As a logarithm, so that twice and half are equally wrong."""
    return math.log(modelled / measured)


def rms(errors: Iterable[float]) -> float:
    some = list(errors)
    return math.sqrt(sum(e * e for e in some) / len(some))


def errors_of(launches: Sequence[Launch], constants: Constants) -> list[float]:
    return [error(kernel_us(launch, constants), launch.kernel_us) for launch in launches]


def minimum(cost: Callable[[Sequence[float]], float], start: Sequence[float]) -> list[float]:
    """By a pattern search: steps along each axis, and half as long when none helps. Nothing gets negative."""
    best, least, step = list(start), cost(start), 0.5
    while step > 1e-3:
        better = False
        for axis in range(len(best)):
            for sign in (1, -1):
                there = list(best)
                there[axis] = max(0.0, there[axis] + sign * step)
                if (found := cost(there)) < least - 1e-9:
                    best, least, better = there, found, True
        step = step if better else step / 2
    return best


def fit(launches: Sequence[Launch]) -> Constants:
    """The constants with the least rms error; only launches that have been measured."""
    if len(launches) < len(START):
        raise ValueError(f"{len(launches)} measured kernels are too few for {len(START)} constants")

    def cost(values: Sequence[float]) -> float:
        return (
            rms(errors_of(launches, Constants(*values))) if values[0] > 0.1 and values[3] <= 1 else math.inf
        )

    return Constants(*minimum(cost, START))


def left_out(launches: Sequence[Launch]) -> list[float]:
    """The error of each launch by constants fitted to all the others."""
    errors = []
    for i, launch in enumerate(launches):
        others = [*launches[:i], *launches[i + 1 :]]
        errors += errors_of([launch], fit(others))
    return errors


def roofline_rms(fitted: Sequence[Launch], shown: Sequence[Launch]) -> float:
    """Of a constant and a factor on the larger of the memory's and the tensor cores' time."""

    def limit(launch: Launch) -> float:
        warps = launch.blocks * launch.threads / 32 / (4 * H100.multiprocessors)
        wgmma = launch.kernel.startswith("conv_wgmma")
        clocks = H100.wgmma_clocks if wgmma else H100.mma_clocks / 2  # Hopper's full rate
        tensor = launch.multiplications * warps * clocks / H100.clocks_per_us
        return max(tensor, launch.dram_bytes / H100.dram_bytes_per_us)

    def errors(launches: Sequence[Launch], values: Sequence[float]) -> list[float]:
        return [error(values[0] + values[1] * limit(one) + 1e-9, one.kernel_us) for one in launches]

    return rms(errors(shown, minimum(lambda values: rms(errors(fitted, values)), [10.0, 2.0])))


class Split(NamedTuple):
    """Measured launches, by what they are for."""

    half: list[Launch]
    tf32: list[Launch]
    without_wgmma: list[Launch]


def split(launches: Sequence[Launch]) -> Split:
    planned = [launch for launch in launches if launch.configuration == "planned"]
    return Split(
        [launch for launch in planned if launch.dtype == "float16"],
        [launch for launch in planned if launch.dtype == "tf32"],
        [launch for launch in launches if launch.configuration == "without wgmma"],
    )


class Figures(NamedTuple):
    """rms errors."""

    fitted: float  # half precision
    tf32: float
    without_wgmma: float
    left_out: float  # all that is planned, one at a time
    roofline: float  # the same rows by a roofline fitted to half precision
    constants: Constants


def figures(launches: Sequence[Launch]) -> Figures:
    half, tf32, without = split(launches)
    constants = fit(half)
    return Figures(
        rms(errors_of(half, constants)),
        rms(errors_of(tf32, constants)),
        rms(errors_of(without, constants)),
        rms(left_out([*half, *tf32])),
        roofline_rms(half, tf32),
        constants,
    )


def profiled(path: Path, launches: Sequence[Launch], versions: Sequence[str] = ()) -> list[Launch]:
    """Launches with the times of a profile: columns workload, dtype, pass, contender and kernels_us.

    A row counts if its kernel is the launch's. With ``versions``, which the column version names, the last
    one that has a row counts.
    """
    found: dict[tuple[str, str, str], tuple[float, float]] = {}
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for version in versions or [""]:
        for row in rows:
            if row["pass"] != "forward" or row["contender"] != "fused channels_last":
                continue
            if version and row["version"] != version:
                continue
            conv = re.search(r"([\d.]+) (conv_\w+)(<[^;]*>)", row["kernels_us"])
            pack = re.search(r"([\d.]+) pack_filter", row["kernels_us"])
            if conv:
                kernel = f"{conv[2].removesuffix('_kernel')}_kernel{conv[3]}"
                found[row["workload"], row["dtype"], kernel] = (
                    float(conv[1]),
                    float(pack[1]) if pack else math.nan,
                )
    measured = []
    for launch in launches:
        if times := found.get((launch.workload, launch.dtype, launch.kernel)):
            measured.append(dataclasses.replace(launch, kernel_us=times[0], pack_us=times[1]))
    return measured


def whole_times() -> dict[tuple[str, str], tuple[float, float, str]]:
    """Of the forward pass in CUDA graphs, by (workload, dtype): ours, the best baseline's and its name."""
    ours: dict[tuple[str, str], float] = {}
    best: dict[tuple[str, str], tuple[float, str]] = {}
    for path in GRAPHS:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                if row["pass"] != "forward" or row["graph"] != "yes":
                    continue
                key, us = (row["workload"], row["dtype"]), float(row["median_ms"]) * 1000
                if row["contender"] == "fused channels_last":
                    ours[key] = us
                elif not row["contender"].startswith("fused"):
                    best[key] = min(best.get(key, (math.inf, "")), (us, row["contender"]))
    return {key: (us, *best[key]) for key, us in ours.items() if key in best}


class Prediction(NamedTuple):
    """A row of predicted.csv; microseconds. Times before are measured with the kernels of measured.csv."""

    workload: str
    dtype: str
    kernel: str  # present
    kernel_before: float  # measured
    modelled_before: float
    modelled: float  # present kernel
    whole_before: float  # measured, in CUDA graphs
    whole: float  # predicted: the kernel's time changes as the model's does
    baseline: float  # measured, the fastest
    baseline_name: str
    ratio: float  # baseline / whole


def predict(measured: Sequence[Launch], planned: Sequence[Launch], constants: Constants) -> list[Prediction]:
    before = {(one.workload, one.dtype): one for one in measured if one.configuration == "planned"}
    whole = whole_times()
    rows = []
    for launch in planned:
        key = (launch.workload, launch.dtype)
        if key not in before or key not in whole:
            continue
        old = before[key]
        old_us = kernel_us(old, constants)
        new_us = kernel_us(dataclasses.replace(launch, pack_us=old.pack_us * launch.packs), constants)
        whole_before, baseline, name = whole[key]
        now = whole_before - old.kernel_us * (1 - new_us / old_us)
        rows.append(
            Prediction(
                *key,
                launch.kernel,
                old.kernel_us,
                old_us,
                new_us,
                whole_before,
                now,
                baseline,
                name,
                baseline / now,
            )
        )
    return rows


def geomean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs))
