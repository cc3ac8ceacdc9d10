# SPDX-License-Identifier: BSD-3-Clause
"""Measure the fused convolution against what users write today; bench/README.md is the protocol.

    python -m bench.run --quick                         a first look, under a minute
    python -m bench.run                                 the figures that may be quoted
    python -m bench.run --only srvgg_x4 --only tiny     these only

Finished rows are on the disk at once; an interrupted run keeps them.
"""

from __future__ import annotations

import argparse
import datetime
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

if not __package__:  # python bench/run.py: the packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from tqdm import tqdm

from bench import correctness, environment, report
from bench.peers import PEERS, Prepared
from bench.timing import interleave
from bench.workloads import BY_NAME, TINY, Workload, operands

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = ("float32", "bfloat16", "float16", "float64")
ROUNDS, QUICK_ROUNDS = 21, 3
MIN_TIME = 0.01  # seconds; 10 000 times the clock's own noise
TINY_ROUNDS = 5  # times as many for the tiny call, of a fifth of the time each


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    workloads = [BY_NAME[name] for name in options.only or BY_NAME]
    passes = [name == "backward" for name in options.passes]
    facts = environment.describe(command(options))
    path = options.out or RESULTS / default_name(options, str(facts["cpu"]))

    print(", ".join(f"{key} {value}" for key, value in facts.items() if key not in ("date", "command")))
    if float(facts["load_before"]) > 0.5:
        print("The machine is busy with something else; figures to be quoted want it idle.")
    print(
        f"{options.dtype}; ms per call, median ± half the interquartile range of {options.rounds} rounds; "
        "x: fastest peer / fused"
    )
    print(report.heading(PEERS))

    results: list[report.Result] = []
    total = sum(cost(workload, backward) for workload in workloads for backward in passes)
    bar_format = "{percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left  {desc}"
    status = 0
    with (
        warnings.catch_warnings(),
        report.CsvFile(path, options.dtype, facts) as file,
        tqdm(total=total, bar_format=bar_format, disable=None, leave=False) as bar,
    ):
        # what the plain convolution says of even kernels; the extra copy is part of what it costs
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
        try:
            for workload in workloads:
                bar.set_description_str(workload.name)
                for result in measure(workload, passes, options, bar.update):
                    results.append(result)
                    file.write(result)
                    tqdm.write(report.line(result))
        except correctness.WrongNumbers as wrong:
            tqdm.write(f"Wrong numbers, so nothing is timed: {wrong}", file=sys.stderr)
            status = 1
        except KeyboardInterrupt:
            tqdm.write("Interrupted.", file=sys.stderr)
            status = 130
    if summary := report.summary(results):
        print(summary)
    print(f"written: {path}")
    return status


def measure(
    workload: Workload,
    passes: Sequence[bool],
    options: argparse.Namespace,
    advance: Callable[[float], object],
) -> Iterator[report.Result]:
    """Check all contenders, then time them, forward and backward apart."""
    tensors = operands(workload, getattr(torch, options.dtype))
    if any(passes):
        tensors = correctness.avoid_kink(workload, tensors)
    contenders = {peer: peer.prepare(workload, tensors) for peer in PEERS}
    correctness.check(workload, tensors, contenders, backward=any(passes))

    tiny = workload is TINY
    rounds = options.rounds * TINY_ROUNDS if tiny else options.rounds
    min_time = options.min_time / TINY_ROUNDS if tiny else options.min_time
    for backward in passes:
        functions = {peer: timed(prepared, backward) for peer, prepared in contenders.items()}
        share = cost(workload, backward) / (len(functions) * (rounds + 1))  # one more for the warm-up
        with torch.set_grad_enabled(backward):
            timings = interleave(functions, rounds, min_time, lambda share=share: advance(share))
        yield report.Result(workload, backward, timings)


def timed(prepared: Prepared, backward: bool) -> Callable[[], object]:
    return prepared.forward_backward if backward else prepared.forward


def cost(workload: Workload, backward: bool) -> float:
    """A guess at the time of a measurement, in an unknown unit, so that the bar can tell the time left."""
    return workload.flops(backward) + 1e9


# ---- command line ----------------------------------------------------------------------------------------


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", action="append", type=_workload_name, metavar="NAME", help="a workload; may be repeated"
    )
    parser.add_argument(
        "--pass", dest="passes", choices=("forward", "backward", "both"), default="both",
        help="backward is forward and backward, with the gradients of input, weight and bias",
    )  # fmt: skip
    parser.add_argument("--rounds", type=_positive(int), help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument(
        "--min-time", type=_positive(float), default=MIN_TIME, metavar="SECONDS",
        help="calls shorter than this are timed several at a time (default %(default)s)",
    )  # fmt: skip
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--threads", type=_positive(int), help="default: as PyTorch chooses")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds: a look, not a figure")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    options.passes = ("forward", "backward") if options.passes == "both" else (options.passes,)
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def _workload_name(name: str) -> str:
    if name not in BY_NAME:
        raise argparse.ArgumentTypeError(f"unknown workload {name!r}; known are {', '.join(BY_NAME)}")
    return name


def _positive(kind: Callable[[str], float]) -> Callable[[str], float]:
    def convert(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise ValueError
        return value

    convert.__name__ = f"positive {kind.__name__}"  # for argparse's message
    return convert


def command(options: argparse.Namespace) -> str:
    """How to repeat the run; not as it was typed, which could hold paths."""
    words = ["python -m bench.run"]
    words += [f"--only {name}" for name in options.only or ()]
    words += [f"--pass {name}" for name in options.passes if len(options.passes) == 1]
    words += [f"--rounds {options.rounds} --min-time {options.min_time:g} --dtype {options.dtype}"]
    words += [f"--threads {torch.get_num_threads()}"]
    return " ".join(words)


def default_name(options: argparse.Namespace, cpu: str) -> str:
    """Like 2025-01-31_1405_intel-xeon_float32.csv."""
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    partial = "_quick" if options.quick else "_part" if options.only or len(options.passes) == 1 else ""
    return f"{date}_{environment.slug(cpu)}_{options.dtype}{partial}.csv"


if __name__ == "__main__":
    sys.exit(main())
