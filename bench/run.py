# SPDX-License-Identifier: BSD-3-Clause
"""Measure the fused convolution against what users write today; bench/README.md is the protocol.

    python -m bench.run --quick                         a first look, under a minute
    python -m bench.run                                 the figures that may be quoted
    python -m bench.run --only srvgg_x4 --only tiny     these only
    python -m bench.run --device cuda --graph           on a GPU, in CUDA graphs

Finished rows are on the disk at once; an interrupted run keeps them.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # python bench/run.py: the packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from tqdm import tqdm

from bench import correctness, cuda, environment, report
from bench.peers import FURTHER_PEERS, GROUPS, PEERS, Peer, Prepared
from bench.timing import interleave
from bench.workloads import BY_NAME, TINY, Operands, Workload, operands

RESULTS = Path(__file__).resolve().parent / "results"
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
    "tf32": torch.float32,  # the same tensors, multiplied by tensor cores
}
CUDA_PEERS = ("conv_transpose2d", "nearest")  # cheap there, so measured without asking
GRAPHS = {"no": (False,), "only": (True,), "both": (False, True)}
ROUNDS, QUICK_ROUNDS = 21, 3
MIN_TIME = 0.01  # seconds; 10 000 times the clock's own noise
TINY_ROUNDS = 5  # times as many for the tiny call, of a fifth of the time each
CUDA_WARM_UP = 0.05  # seconds, by when a GPU has raised its clocks


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    on_gpu = options.device == "cuda"
    workloads = [BY_NAME[name] for name in options.only or BY_NAME]
    passes = [name == "backward" for name in options.passes]
    peers = PEERS + tuple(peer for peer in FURTHER_PEERS if peer.group in options.peers)
    facts = environment.describe(command(options))
    rates = Rates.of(options.dtypes) if on_gpu else None
    if rates:
        facts = {**facts, **cuda.facts(), **rates.facts()}
        torch.backends.cudnn.benchmark = True  # the peers at their best
    path = options.out or RESULTS / default_name(options, str(facts["gpu" if on_gpu else "cpu"]))

    print(", ".join(f"{key} {value}" for key, value in facts.items() if key not in ("date", "command")))
    if float(facts["load_before"]) > 0.5:
        print("The machine is busy with something else; figures to be quoted want it idle.")
    print(
        f"{', '.join(options.dtypes)}; {'µs' if on_gpu else 'ms'} per call, median ± half the interquartile "
        f"range of {options.rounds} rounds; x: fastest peer / fused"
    )
    all_shown = len(peers) <= report.MOST_COLUMNS

    results: list[report.Result] = []
    total = sum(cost(w, backward) for w in workloads for backward in passes)
    total *= len(options.dtypes) * len(GRAPHS[options.graph])
    bar_format = "{percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left  {desc}"
    status = 0
    with (
        warnings.catch_warnings(),
        report.CsvFile(path, facts, gpu=on_gpu) as file,
        tqdm(total=total, bar_format=bar_format, disable=None, leave=False) as bar,
    ):
        # what the plain convolution says of even kernels; the extra copy is part of what it costs
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
        try:
            for dtype in options.dtypes:
                tqdm.write(("" if len(options.dtypes) == 1 else f"{dtype}\n") + report.heading(peers, on_gpu))
                for workload in workloads:
                    bar.set_description_str(workload.name)
                    try:
                        for result in measure(workload, dtype, passes, peers, options, rates, bar.update):
                            results.append(result)
                            file.write(result)
                            tqdm.write(report.line(result, all_shown))
                    except correctness.WrongNumbers as wrong:
                        tqdm.write(f"Wrong numbers, so nothing is timed: {wrong}", file=sys.stderr)
                        status = 1
        except KeyboardInterrupt:
            tqdm.write("Interrupted.", file=sys.stderr)
            status = 130
    for dtype in options.dtypes:
        if summary := report.summary(result for result in results if result.dtype == dtype):
            print(summary if len(options.dtypes) == 1 else f"{dtype}\n{summary}")
    print(f"written: {path}")
    return status


class Rates(NamedTuple):
    """What the GPU reaches: bytes per second of a copy; by dtype, operations per second of a product."""

    copy: float
    matmul: dict[str, float]

    @classmethod
    def of(cls, dtypes: Sequence[str]) -> Rates:
        copy, matmul = cuda.copy_rate(), {}
        for dtype in dtypes:
            cuda.allow_tf32(dtype == "tf32")
            matmul[dtype] = cuda.matmul_rate(DTYPES[dtype])
        return cls(copy, matmul)

    def limit(self, workload: Workload, dtype: str, backward: bool) -> float:
        """Seconds below which nothing can be: the longer of arithmetic and traffic."""
        size = workload.elements(backward) * DTYPES[dtype].itemsize
        return max(size / self.copy, workload.flops(backward) / self.matmul[dtype])

    def facts(self) -> dict[str, str | int]:
        matmul = "; ".join(f"{dtype} {rate / 1e12:.1f}" for dtype, rate in self.matmul.items())
        return {"copy_gb_per_s": f"{self.copy / 1e9:.0f}", "matmul_tflop_per_s": matmul}


def measure(
    workload: Workload,
    dtype: str,
    passes: Sequence[bool],
    peers: Sequence[Peer],
    options: argparse.Namespace,
    rates: Rates | None,
    advance: Callable[[float], object],
) -> Iterator[report.Result]:
    """Check all contenders, then time them, forward and backward apart."""
    device, tf32, sets = "cpu", dtype == "tf32", 1
    if rates:
        cuda.allow_tf32(tf32)
        device, sets = cuda.DEVICE, cuda.rotation(workload.elements(False) * DTYPES[dtype].itemsize)
    tensors = operands(workload, DTYPES[dtype], device, uniform_bias="conv_transpose2d" in options.peers)
    if any(passes):
        tensors = correctness.avoid_kink(workload, tensors, tf32)
    contenders = prepare(workload, tensors, sets, peers)
    first = {peer: prepared[0] for peer, prepared in contenders.items()}
    for peer, problem in correctness.check(workload, tensors, first, any(passes), tf32).items():
        tqdm.write(f"{workload.name}: {peer.name} is left out: {problem}", file=sys.stderr)
        del contenders[peer]

    tiny = workload is TINY
    rounds = options.rounds * TINY_ROUNDS if tiny and not rates else options.rounds
    min_time = options.min_time / TINY_ROUNDS if tiny else options.min_time
    for backward, graph in itertools.product(passes, GRAPHS[options.graph]):
        share = cost(workload, backward) / (len(contenders) * (rounds + 1))  # one more for the warm-up

        def step(share: float = share) -> None:
            advance(share)

        with torch.set_grad_enabled(backward):
            if rates is None:
                functions = {peer: timed(own[0], backward) for peer, own in contenders.items()}
                timings = interleave(functions, rounds, min_time, step)
            else:
                functions = {
                    peer: cuda.in_turn([timed(prepared, backward) for prepared in own])
                    for peer, own in contenders.items()
                }
                if graph:
                    functions = {peer: cuda.captured(function) for peer, function in functions.items()}
                # a sample is one turn through all sets, however long that takes
                timings = interleave(functions, rounds, 0, step, cuda.Clock(sets, graph), CUDA_WARM_UP)
        limit = rates.limit(workload, dtype, backward) if rates else None
        yield report.Result(workload, backward, timings, dtype, graph, limit)


def prepare(
    workload: Workload, tensors: Operands, sets: int, peers: Sequence[Peer]
) -> dict[Peer, list[Prepared]]:
    """All contenders with as many ``sets`` of equal tensors; those of one layout share them."""
    copies = [tensors, *(tensors.clone() for _ in range(sets - 1))]
    by_layout = {layout: [copy.to_layout(layout) for copy in copies] for layout in (False, True)}
    return {peer: [peer.prepare(workload, own) for own in by_layout[peer.channels_last]] for peer in peers}


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
        help="calls shorter than this are timed several at a time (default %(default)s; not with CUDA)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", dest="dtypes", action="append", choices=DTYPES,
        help="default float32, by tensor cores only as tf32; may be repeated",
    )  # fmt: skip
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--graph", choices=GRAPHS, nargs="?", const="only", default="no",
        help="CUDA: time the replay of CUDA graphs, only or both these and plain calls",
    )  # fmt: skip
    parser.add_argument(
        "--peers", action="append", choices=(*GROUPS, "all", "none"),
        help=f"further contenders; may be repeated; default: none, with CUDA {' and '.join(CUDA_PEERS)}",
    )  # fmt: skip
    parser.add_argument("--threads", type=_positive(int), help="default: as PyTorch chooses")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds: a look, not a figure")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    options.passes = ("forward", "backward") if options.passes == "both" else (options.passes,)
    options.dtypes = tuple(dict.fromkeys(options.dtypes or ("float32",)))
    asked = options.peers or (CUDA_PEERS if options.device == "cuda" else ())
    options.peers = GROUPS if "all" in asked else tuple(name for name in GROUPS if name in asked)
    if options.device == "cuda" and (problem := cuda.problem()):
        parser.error(f"--device cuda: {problem}")
    graphs = options.graph != "no"
    if options.device != "cuda" and (graphs or "tf32" in options.dtypes):
        parser.error(f"{'--graph' if graphs else '--dtype tf32'} needs --device cuda")
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
    on_gpu = options.device == "cuda"
    words += [f"--rounds {options.rounds}"] + ([] if on_gpu else [f"--min-time {options.min_time:g}"])
    words += [f"--dtype {name}" for name in options.dtypes]
    words += [f"--peers {name}" for name in options.peers or (("none",) if on_gpu else ())]
    words += ["--device cuda"] if on_gpu else [f"--threads {torch.get_num_threads()}"]
    words += [f"--graph {options.graph}"] if options.graph != "no" else []
    return " ".join(words)


def default_name(options: argparse.Namespace, processor: str) -> str:
    """Like 2025-01-31_1405_intel-xeon_float32.csv."""
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    partial = "_quick" if options.quick else "_part" if options.only or len(options.passes) == 1 else ""
    graph = "_graph" if options.graph == "only" else ""
    return f"{date}_{environment.slug(processor)}_{'-'.join(options.dtypes)}{graph}{partial}.csv"


if __name__ == "__main__":
    sys.exit(main())
