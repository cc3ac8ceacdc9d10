# SPDX-License-Identifier: BSD-3-Clause
"""The speed model of the CUDA forward kernels: python -m tools.speed_model COMMAND.

fit      fits the constants to measured.csv (half precision) and prints the errors, also on rows held out
predict  writes predicted.csv: the present kernels beside the measured ones and the best baseline
count    writes planned.csv: what the present kernels execute. Needs nvcc and `setup.py build_host_tests`
refit PROFILE.csv
         fits the constants to a profile of the present kernels (`count` first if they changed), and prints
         model and measurement side by side. Columns of the profile: docs/speed_model.md
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Sequence
from pathlib import Path

from tools.speed_model.fit import (
    MEASURED,
    PLANNED,
    PREDICTED,
    Prediction,
    error,
    errors_of,
    figures,
    fit,
    geomean,
    left_out,
    predict,
    profiled,
    rms,
    split,
)  # fmt: skip
from tools.speed_model.model import Constants, Launch, kernel_us, read, write

GOALS = {"float16": 1.6, "tf32": 1.4}


def show(constants: Constants) -> None:
    print("constants: " + ", ".join(f"{name} {value:.3g}" for name, value in constants._asdict().items()))


def show_rows(launches: Sequence[Launch], constants: Constants) -> None:
    print(f"{'workload':14} {'dtype':8} {'measured':>8} {'model':>8} {'error':>6}  kernel")
    for one in launches:
        modelled = kernel_us(one, constants)
        share = math.expm1(error(modelled, one.kernel_us))
        times = f"{one.kernel_us:8.1f} {modelled:8.1f} {share:+6.0%}"
        print(f"{one.workload:14} {one.dtype:8} {times}  {one.kernel}")


def run_fit() -> None:
    launches = read(MEASURED)
    found = figures(launches)
    show(found.constants)
    half, tf32, without = split(launches)
    show_rows([*half, *tf32, *without], found.constants)
    print(f"rms error: {found.fitted:.1%} on {len(half)} rows in half precision, which are fitted")
    print(f"           {found.tf32:.1%} on {len(tf32)} rows in tf32, held out")
    print(
        f"           {found.without_wgmma:.1%} on {len(without)} rows of wide layers without wgmma, held out"
    )
    print(f"           {found.left_out:.1%} on {len(half) + len(tf32)} rows, each left out of the fit")
    print(f"           {found.roofline:.1%} by a roofline fitted to half precision, on tf32")


def run_predict() -> None:
    measured = read(MEASURED)
    rows = predict(measured, read(PLANNED), fit(split(measured).half))
    with PREDICTED.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Prediction._fields)
        for row in rows:
            writer.writerow([f"{value:.3g}" if isinstance(value, float) else value for value in row])
    print(f"{PREDICTED}: {len(rows)} workloads")
    for dtype, goal in GOALS.items():
        ratios = [row.ratio for row in rows if row.dtype == dtype]
        worst = min((row for row in rows if row.dtype == dtype), key=lambda row: row.ratio)
        print(
            f"{dtype}: predicted {geomean(ratios):.2f} times as fast as the best measured baseline, "
            f"geometric mean of {len(ratios)} (goal {goal}); {sum(r < 1 for r in ratios)} are slower, "
            f"at worst {worst.workload} {worst.ratio:.2f}"
        )


def run_count(nvcc: str) -> None:
    from tools.speed_model.planned import planned  # needs the emulator

    launches = planned(nvcc)
    write(PLANNED, launches)
    print(f"{PLANNED}: {len(launches)} launches of {len({launch.kernel for launch in launches})} kernels")


def run_refit(profile: Path) -> None:
    measured = profiled(profile, read(PLANNED))
    if not measured:
        raise SystemExit(f"{profile} has no forward pass of `fused channels_last` by a kernel of {PLANNED}")
    before = fit(split(read(MEASURED)).half)
    show(before)
    print(f"rms error of the committed constants: {rms(errors_of(measured, before)):.1%}")
    constants = fit(measured)
    show(constants)
    show_rows(measured, constants)
    print(
        f"rms error: {rms(errors_of(measured, constants)):.1%} fitted, {rms(left_out(measured)):.1%} left out"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fit")
    commands.add_parser("predict")
    commands.add_parser("count").add_argument("--nvcc", default="nvcc")
    commands.add_parser("refit").add_argument("profile", type=Path)
    args = parser.parse_args()
    match args.command:
        case "fit":
            run_fit()
        case "predict":
            run_predict()
        case "count":
            run_count(args.nvcc)
        case "refit":
            run_refit(args.profile)


if __name__ == "__main__":
    main()
