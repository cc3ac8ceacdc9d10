# SPDX-License-Identifier: BSD-3-Clause
"""Which kernels a call runs on a GPU and how long each takes, by torch.profiler.

    python -m bench.profile_cuda                                  all workloads, float16 and tf32
    python -m bench.profile_cuda --only srvgg_x4 --dtype bfloat16 --out FILE.csv

One row per dtype, workload, pass and contender, written as soon as it is known.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import fused_subpixel as fs
from bench import cuda, environment, memory, report  # noqa: F401 - memory keeps the profiler quiet
from bench.peers import PEERS, contenders
from bench.workloads import BY_NAME, DTYPES, SUITE, operands

RESULTS = Path(__file__).resolve().parent / "results"
ACTIVITY, DEVICE_TYPE = ProfilerActivity.CUDA, DeviceType.CUDA
WARM_UP, CALLS = 3, 5
COLUMNS = (
    "version", "dtype", "workload", "pass", "contender", "total_us", "kernels_us", "gpu", "torch", "measured",
)  # fmt: skip
MEASURED = f"mean of {CALLS} calls in a row, torch.profiler; a kernel that starts early counts its wait"


def kernel_times(function: Callable[[], object]) -> dict[str, float]:
    """Microseconds per call by kernel, the longest first. Raises RuntimeError if the profiler sees none."""
    for _ in range(WARM_UP):
        function()
    torch.cuda.synchronize()
    with profile(activities=[ACTIVITY]) as profiler:
        for _ in range(CALLS):
            function()
        torch.cuda.synchronize()
    times: defaultdict[str, float] = defaultdict(float)
    for event in profiler.profiler.kineto_results.events():
        if event.device_type() == DEVICE_TYPE and not event.is_user_annotation():
            times[short(event.name())] += event.duration_ns() / 1e3 / CALLS
    if not times:
        raise RuntimeError("torch.profiler has seen no kernel: may this user read the GPU's counters?")
    return dict(sorted(times.items(), key=lambda item: -item[1]))


def short(kernel: str) -> str:
    """The name without return type, namespaces of ours, and parameters: conv_mma<Float16, 64>."""
    name = re.sub(r"\(anonymous namespace\)::|fused_subpixel::(cuda::)?|^void ", "", kernel)
    depth = 0
    for at, letter in enumerate(name):
        depth += {"<": 1, ">": -1}.get(letter, 0)
        if letter == "(" and depth == 0:  # inside a template's arguments there may be casts
            return name[:at].strip()
    return name


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.profile_cuda",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", action="append", choices=BY_NAME, metavar="NAME", help="may be repeated")
    parser.add_argument("--dtype", dest="dtypes", action="append", choices=DTYPES, help="may be repeated")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    if problem := cuda.problem():
        parser.error(problem)
    workloads = [BY_NAME[name] for name in options.only] if options.only else SUITE
    gpu = torch.cuda.get_device_properties(cuda.DEVICE).name
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    path = options.out or RESULTS / f"{date}_{environment.slug(gpu)}_profile.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.benchmark = True
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for dtype in options.dtypes or ("float16", "tf32"):
            cuda.allow_tf32(dtype == "tf32")
            for workload in workloads:
                tensors = operands(workload, DTYPES[dtype], cuda.DEVICE)
                for peer in contenders(workload, PEERS):
                    prepared = peer.prepare(workload, tensors)
                    for backward in (False, True):
                        with torch.set_grad_enabled(backward):
                            times = kernel_times(prepared.run(backward))
                        row = {
                            "version": fs.__version__,
                            "dtype": dtype,
                            "workload": workload.name,
                            "pass": report.pass_name(backward),
                            "contender": peer.name,
                            "total_us": f"{sum(times.values()):.1f}",
                            "kernels_us": "; ".join(f"{time:.1f} {name}" for name, time in times.items()),
                            "gpu": gpu,
                            "torch": torch.__version__,
                            "measured": MEASURED,
                        }
                        writer.writerow(row)
                        file.flush()
                        print(*(row[name] for name in COLUMNS[1:7]), sep="  ", flush=True)
    print(f"written: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
