# SPDX-License-Identifier: BSD-3-Clause
"""Measure the CPU time of a tiny eager call of the CUDA library, without a GPU, against PyTorch's own pair.

    python -m bench.launch_cost             the figures that may be quoted, a minute
    python -m bench.launch_cost --quick     three rounds, a look

Ours is ``fs.subpixel_conv2d`` as users call it, with the CUDA library's own host code, whose kernels and CUDA
runtime functions are replaced by functions that return at once (launch_stubs.cpp). PyTorch's is conv2d and
pixel_shuffle on its CPU backend, with their arithmetic. See "The cost of a call" in bench/README.md.
"""

from __future__ import annotations

import argparse
import csv
import ctypes
import datetime
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

_ROOT = Path(__file__).resolve().parent.parent
STUBBED = _ROOT / "build/tests/fused_subpixel_cuda_stubbed.so"
# The CPU library would register the same operators for CPU tensors. build/tests holds none.
os.environ["FUSED_SUBPIXEL_LIBRARY_DIR"] = str(STUBBED.parent)
# ruff: noqa: E402

import torch
import torch.nn.functional as F
from torch import Tensor

import fused_subpixel as fs
from bench import environment
from bench.run import MIN_TIME, QUICK_ROUNDS, RESULTS
from bench.timing import Timing, interleave
from bench.workloads import TINY, operands
from fused_subpixel.dispatch import backends, choose
from fused_subpixel.dispatch.call import Call
from fused_subpixel.ops import library

ROUNDS = 41
LAYOUTS = ("NCHW", "channels_last")
PASSES = ("forward, no_grad", "forward", "forward + backward")
COLUMNS = ("pass", "layout", "contender", "median_us", "low_us", "high_us", "rounds", "ratio", "launches")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.launch_cost",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="three rounds, nothing to quote")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--out", type=Path, help="the CSV file; by default one in bench/results")
    options = parser.parse_args(arguments)
    rounds = QUICK_ROUNDS if options.quick else options.rounds
    if (problem := use_stubbed_library()) is not None:
        print(problem, file=sys.stderr)
        return 1
    torch.set_num_threads(1)
    facts = environment.describe(f"python -m bench.launch_cost --rounds {rounds}")
    name = f"{datetime.date.today().isoformat()}-{environment.slug(str(facts['cpu']))}-launch-cost.csv"
    path = options.out or RESULTS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    print("CPU time per call in us: median of the rounds ± half the distance of the quartiles\n")
    print("| pass | layout | fused, launches nothing | PyTorch's pair | PyTorch / fused | launches |")
    print("|---|---|---|---|---|---|")
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, (*COLUMNS, *facts))
        writer.writeheader()
        for which in PASSES:
            for layout in LAYOUTS:
                timings, launches = measure(which, layout, rounds)
                ours, theirs = timings["fused"], timings["PyTorch"]
                ratio = theirs.median / ours.median
                cells = (f"{t.median * 1e6:.2f} ± {t.spread * 1e6:.2f}" for t in (ours, theirs))
                print(f"| {which} | {layout} | {' | '.join(cells)} | {ratio:.2f} | {launches} |", flush=True)
                for contender, timing in timings.items():
                    numbers = (f"{n * 1e6:.5g}" for n in (timing.median, timing.low, timing.high))
                    values = (which, layout, contender, *numbers, timing.rounds, f"{ratio:.4f}")
                    row = dict(zip(COLUMNS, (*values, launches), strict=True))
                    writer.writerow({**row, **facts})
                file.flush()
    print(f"\nwritten: {path}")
    return 0


def use_stubbed_library() -> str | None:
    """Have CPU tensors take the path of CUDA tensors, into the library with stubs; or say why that fails.

    What is replaced here is asked once for equal calls: which backend and which GPU they have, and whether
    tf32 is allowed. The last is asked in every call of CUDA tensors; :func:`measure` does that.
    """
    if not STUBBED.exists():
        return (
            f"{STUBBED.name} is not built. It needs the headers of a CUDA toolkit and no GPU: "
            "`python setup.py fetch_cuda_toolkit` installs them by pip where no nvcc is found; then "
            "`python setup.py build_host_tests` builds it"
        )
    torch.ops.load_library(STUBBED)
    library.libraries["cuda"] = library.LoadedLibrary(STUBBED)

    prepare = choose.prepare

    def prepare_with_tf32(requested: str, tf32: bool, *rest: Any) -> Call:
        return prepare(requested, True, *rest)

    def choose_backend(requested: str, device: torch.device) -> str:
        return "cuda" if backends._gpu_refusal(0) is None else "reference"

    choose.prepare = prepare_with_tf32
    backends.choose = choose_backend
    backends._index = lambda device: 0
    return None


def measure(which: str, layout: str, rounds: int) -> tuple[dict[str, Timing], int]:
    """CPU seconds per call by contender, and how many kernels one of our calls launches."""
    backward = which == PASSES[2]
    x, weight, bias, gradient = operands(TINY, torch.float32).to_layout(layout == "channels_last")
    assert bias is not None
    for leaf in (x, weight, bias):
        leaf.requires_grad_()
    padding, r = TINY.kernel // 2, TINY.r

    def fused() -> Tensor:
        backends.allows_tf32()  # a call of CUDA tensors asks it
        return fs.subpixel_conv2d(x, weight, bias, r, padding=padding)

    def pytorch() -> Tensor:
        return F.pixel_shuffle(F.conv2d(x, weight, bias, padding=padding), r)

    def with_backward(function: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(), (x, weight, bias), gradient)

    functions: dict[str, Callable[[], object]] = {"fused": fused, "PyTorch": pytorch}
    if backward:
        functions = {"fused": with_backward(fused), "PyTorch": with_backward(pytorch)}
    count = launch_counter()
    with torch.set_grad_enabled(which != PASSES[0]):
        functions["fused"]()
        before = count()
        functions["fused"]()
        launches = count() - before
        if launches == 0:
            raise SystemExit("the call does not reach the CUDA library")
        timings = interleave(functions, rounds, MIN_TIME, clock=cpu_seconds_per_call)
    return timings, launches


def launch_counter() -> Callable[[], int]:
    """What counts the kernels that the stubbed library has launched so far."""
    count: Any = ctypes.CDLL(str(STUBBED)).fused_subpixel_launches
    count.restype = ctypes.c_int64
    return cast("Callable[[], int]", count)


def cpu_seconds_per_call(function: Callable[[], object], calls: int) -> float:
    """By the process's CPU time: what other processes take of the processor does not count."""
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


if __name__ == "__main__":
    sys.exit(main())
