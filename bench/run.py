# SPDX-License-Identifier: BSD-3-Clause
"""Measure the fused convolution against what users write today; bench/README.md is the protocol.

    python -m bench.run --quick                         a first look, under a minute
    python -m bench.run                                 the figures that may be quoted
    python -m bench.run --peers all                     with torch.compile and others as opponents
    python -m bench.run --only srvgg_x4 --only tiny     these only
    python -m bench.run --growth                        how time grows with the image and with the factor
    python -m bench.run --against ../other              another checkout, built, in the same turns
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
from contextlib import closing, nullcontext
from pathlib import Path

if not __package__:  # python bench/run.py: the packages are one folder up
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from tqdm import tqdm

from bench import correctness, cuda, environment, memory, report, runtimes
from bench.against import OtherBuild, Unusable, clock
from bench.limits import Rates
from bench.peers import ALL, CHEAP, FURTHER_PEERS, GROUPS, PEERS, Peer, Prepared, contenders
from bench.timing import FEWEST_ROUNDS, interleave
from bench.workloads import BY_NAME, DTYPES, GROWING, SUITE, TINY, Operands, Workload, operands

RESULTS = Path(__file__).resolve().parent / "results"
GRAPHS = {"no": (False,), "only": (True,), "both": (False, True)}
ROUNDS, QUICK_ROUNDS = 21, 3
SECONDS = 10  # of rounds for a workload and pass: `make bench` shall take less than 20 minutes
MIN_TIME = 0.01  # seconds; 10 000 times the clock's own noise
TINY_ROUNDS = 5  # times as many for the tiny call, of a fifth of the time each
CUDA_WARM_UP = 0.05  # seconds, by when a GPU has raised its clocks
MOST_LOAD = 1  # of the machine per core, for plain calls on a GPU
PAUSE = 0.002  # seconds before a sample, where threads other than PyTorch's take part
# Guesses for the progress bar only: seconds until a contender's first call is done; operations per second.
PREPARATION, SPEED = {"compile": 5, "max-autotune": 20}, 1e11


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    options = parse(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        other = OtherBuild(options.against) if options.against else None
    except Unusable as problem:
        print(f"--against: {problem}", file=sys.stderr)
        return 2
    with closing(other) if other else nullcontext():
        try:
            return run(options, other)
        except KeyboardInterrupt:
            print("Interrupted before anything was measured.", file=sys.stderr)
            return 130
        except Unusable as problem:  # in the middle; what was finished is in the file
            print(f"--against: {problem}", file=sys.stderr)
            return 1


def run(options: argparse.Namespace, other: OtherBuild | None) -> int:
    on_gpu = options.device == "cuda"
    workloads = [BY_NAME[n] for n in options.only] or (GROWING if options.growth else SUITE)
    passes = [name == "backward" for name in options.passes]
    peers = PEERS + tuple(peer for peer in FURTHER_PEERS if peer.group in options.peers)
    facts = environment.describe(command(options))  # before there is load of our own
    rates = Rates.of(options.device, options.dtypes)
    facts |= (cuda.facts() if on_gpu else {}) | rates.facts()
    torch.backends.cudnn.benchmark = on_gpu  # the peers at their best
    path = options.out or RESULTS / default_name(options, str(facts["gpu" if on_gpu else "cpu"]))

    print(", ".join(f"{key} {value}" for key, value in facts.items() if key not in ("date", "command")))
    if float(facts["load_before"]) > 0.5:
        print("The machine is busy with something else; figures to be quoted want it idle.")
    if not on_gpu and rates.arithmetic[options.dtypes[0]].by == "matmul":
        print("The limit of arithmetic is that of a matrix product, not of a loop in registers.")
    print(
        f"{', '.join(options.dtypes)}; {'µs' if on_gpu else 'ms'} per call, median ± half the interquartile "
        f"range of {options.rounds} rounds; x: fastest peer / fused"
    )
    build = other.name if other else ""
    ours = [peer for peer in PEERS if peer.fused] + list(other.peers.values() if other else ())

    results: list[report.Result] = []
    total = sum(duration(w, contenders(w, peers), passes, options) for w in workloads) * len(options.dtypes)
    bar_format = "{percentage:3.0f}% |{bar:30}| {elapsed}, {remaining} left  {desc}"
    status = 0
    with (
        warnings.catch_warnings(),
        report.CsvFile(path, facts) as file,
        tqdm(total=total, bar_format=bar_format, disable=None, leave=False) as bar,
    ):
        # what the plain convolution says of even kernels; the extra copy is part of what it costs
        warnings.filterwarnings("ignore", message="Using padding='same' with even kernel")
        try:
            for dtype in options.dtypes:
                tqdm.write(
                    ("" if len(options.dtypes) == 1 else f"{dtype}\n") + report.heading(ours, on_gpu, build)
                )
                for workload in workloads:
                    bar.set_description_str(workload.name)
                    try:
                        for result in measure(
                            workload, dtype, passes, peers, options, rates, other, bar.update
                        ):
                            results.append(result)
                            file.write(result)
                            tqdm.write(report.line(result, ours, build))
                    except correctness.WrongNumbers as wrong:
                        tqdm.write(f"Wrong numbers, so nothing is timed: {wrong}", file=sys.stderr)
                        status = 1
        except KeyboardInterrupt:
            tqdm.write(f"Interrupted; what was finished is in {path}", file=sys.stderr)
            status = 130
    if not results:  # all was wrong or refused
        status = status or 1
    for dtype in options.dtypes:
        if summary := report.summary((result for result in results if result.dtype == dtype), build):
            print(summary if len(options.dtypes) == 1 else f"{dtype}\n{summary}")
    print(f"written: {path}")
    if results and options.plots and status != 130:
        draw(path)
    return status


def draw(path: Path) -> None:
    try:
        from bench import plots
    except ImportError as problem:
        print(f"no plots: {problem}")
    else:
        print(*(f"written: {image}" for image in plots.draw(path)), sep="\n")


def measure(
    workload: Workload,
    dtype: str,
    passes: Sequence[bool],
    peers: Sequence[Peer],
    options: argparse.Namespace,
    rates: Rates,
    other: OtherBuild | None,
    advance: Callable[[float], object],
) -> Iterator[report.Result]:
    """Check all contenders, then time them, forward and backward apart."""
    peers = contenders(workload, peers)
    on_gpu, tf32, uniform = options.device == "cuda", dtype == "tf32", "conv_transpose2d" in options.peers
    device, sets = "cpu", 1
    if on_gpu:
        cuda.allow_tf32(tf32)
        device, sets = cuda.DEVICE, cuda.rotation(workload.elements(False) * DTYPES[dtype].itemsize)
    tensors = operands(workload, DTYPES[dtype], device, uniform)
    if any(passes):
        tensors = correctness.avoid_kink(workload, tensors, tf32)
    prepared = prepare(workload, tensors, sets, peers)
    first = {peer: own[0] for peer, own in prepared.items()}
    for peer, problem in correctness.check(workload, tensors, first, any(passes), tf32).items():
        leave_out(workload, peer.name, problem)
        del prepared[peer]
    elsewhere: dict[tuple[Peer, bool], int] = {}
    if other:
        try:
            elsewhere = other.prepare(workload, dtype, any(passes), uniform)
        except Unusable as problem:
            leave_out(workload, f"fused@{other.name}", str(problem))
    advance(sum(map(preparation, peers)))

    tiny = workload is TINY
    rounds = options.rounds * TINY_ROUNDS if tiny and not on_gpu else options.rounds
    min_time = options.min_time / TINY_ROUNDS if tiny else options.min_time
    for backward, graph in itertools.product(passes, GRAPHS[options.graph]):
        some = {peer: own for peer, own in prepared.items() if not (backward and peer.runtime)}
        extra = {
            peer: memory.extra_bytes(own[0], backward, on_gpu)
            for peer, own in some.items()
            if not peer.runtime
        }
        cpu: dict[Peer, float] = {}
        share = rounds_duration(workload, peers, backward, options)

        def step(fraction: float, share: float = share) -> None:
            advance(fraction * share)

        with torch.set_grad_enabled(backward):
            if not on_gpu:
                functions = {peer: own[0].run(backward) for peer, own in some.items()}
                for peer, both in elsewhere:
                    if both == backward:
                        functions[peer] = other.function(peer, backward)
                        extra[peer] = elsewhere[peer, both]
                pause = PAUSE if elsewhere or any(peer.runtime for peer in functions) else 0
                timings = interleave(functions, rounds, min_time, step, clock, 0, options.seconds, pause)
            else:
                functions = {
                    peer: cuda.in_turn([each.run(backward) for each in own]) for peer, own in some.items()
                }
                if graph:
                    functions = captured(workload, functions)
                elif refused(workload, backward):
                    step(1)
                    continue
                # a sample is one turn through all sets, however long that takes
                ticker = cuda.Clock(sets, graph)
                timings = interleave(functions, rounds, 0, step, ticker, CUDA_WARM_UP, options.seconds)
                if not graph:
                    if refused(workload, backward):
                        continue
                    cpu = {peer: ticker.cpu_time(functions[peer], timings[peer].rounds) for peer in timings}
        limit = rates.limit(workload, dtype, backward)
        yield report.Result(workload, backward, timings, limit, extra, dtype, on_gpu, graph, cpu)


def refused(workload: Workload, backward: bool) -> bool:
    """Whether the machine is too busy for plain calls on a GPU, whose time is in part the host's; say so."""
    load = environment.load_per_core()
    if load > MOST_LOAD:
        tqdm.write(
            f"{workload.name}: {report.PASSES[report.pass_name(backward)]} without a graph is not reported: "
            f"the machine's load is {load:.2f} per core, at most {MOST_LOAD} is allowed",
            file=sys.stderr,
        )
    return load > MOST_LOAD


def captured(
    workload: Workload, functions: dict[Peer, Callable[[], object]]
) -> dict[Peer, Callable[[], object]]:
    """CUDA graphs of the functions. Further contenders that cannot be captured are left out."""
    graphs: dict[Peer, Callable[[], object]] = {}
    for peer, function in functions.items():
        try:
            graphs[peer] = cuda.captured(function)
        except RuntimeError as problem:
            if not peer.group:
                raise
            leave_out(workload, f"{peer.name} in a CUDA graph", str(problem).splitlines()[0])
    return graphs


def leave_out(workload: Workload, name: str, problem: str) -> None:
    tqdm.write(f"{workload.name}: {name} is left out: {problem}", file=sys.stderr)


def prepare(
    workload: Workload, tensors: Operands, sets: int, peers: Sequence[Peer]
) -> dict[Peer, list[Prepared]]:
    """All contenders with as many ``sets`` of equal tensors; those of one layout share them."""
    copies = [tensors, *(tensors.clone() for _ in range(sets - 1))]
    by_layout = {layout: [copy.to_layout(layout) for copy in copies] for layout in (False, True)}
    return {peer: [peer.prepare(workload, own) for own in by_layout[peer.channels_last]] for peer in peers}


def duration(
    workload: Workload, peers: Sequence[Peer], passes: Sequence[bool], options: argparse.Namespace
) -> float:
    """A guess at the seconds that a workload takes, so that the bar can tell the time left."""
    rounds = sum(rounds_duration(workload, peers, backward, options) for backward in passes)
    return sum(map(preparation, peers)) + rounds * len(GRAPHS[options.graph])


def preparation(peer: Peer) -> float:
    return PREPARATION.get(peer.group, 0.2)


def rounds_duration(
    workload: Workload, peers: Sequence[Peer], backward: bool, options: argparse.Namespace
) -> float:
    sample = max(options.min_time, workload.flops(backward) / SPEED)
    return min(sample * len(peers) * (options.rounds + 1), options.seconds)


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
        "--peers", action="append", choices=(*GROUPS, "all", "none"), metavar="NAME",
        help=f"further contenders: {', '.join(GROUPS)}, all, none; may be repeated; default: none, "
        f"with CUDA {' and '.join(CHEAP)}",
    )  # fmt: skip
    parser.add_argument(
        "--seconds", type=_positive(float), default=SECONDS,
        help=f"fewer rounds, but {FEWEST_ROUNDS}, where a workload's pass takes longer (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--growth", action="store_true",
        help=f"instead: how time grows with the image and the factor; default peers {' and '.join(CHEAP)}",
    )  # fmt: skip
    parser.add_argument(
        "--against", type=Path, metavar="DIRECTORY", help="another checkout of this project, built; CPU only"
    )  # fmt: skip
    parser.add_argument("--no-plots", dest="plots", action="store_false", help="only the CSV file")
    parser.add_argument("--threads", type=_positive(int), help="default: as PyTorch chooses")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds: a look, not a figure")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    options.passes = ("forward", "backward") if options.passes == "both" else (options.passes,)
    options.dtypes = tuple(dict.fromkeys(options.dtypes or ("float32",)))
    options.only = list(dict.fromkeys(options.only or ()))
    options.peers = usable_peers(options)
    if options.device == "cuda" and (problem := cuda.problem()):
        parser.error(f"--device cuda: {problem}")
    if options.against and options.device == "cuda":
        parser.error("--against needs --device cpu")
    graphs = options.graph != "no"
    if options.device != "cuda" and (graphs or "tf32" in options.dtypes):
        parser.error(f"{'--graph' if graphs else '--dtype tf32'} needs --device cuda")
    options.rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    return options


def usable_peers(options: argparse.Namespace) -> tuple[str, ...]:
    """The groups of contenders that were asked for and can run; a note of those that cannot."""
    asked = options.peers or (CHEAP if options.device == "cuda" or options.growth else ())
    names = dict.fromkeys(n for name in asked for n in (ALL[options.device] if name == "all" else (name,)))
    for name in [name for name in names if name in runtimes.SESSIONS]:
        if options.device != "cpu" or options.dtypes != ("float32",):
            problem: str | None = "is measured on the CPU in float32 only"
        else:
            problem = (module := runtimes.missing(name)) and f"needs the package {module}"
        if problem:
            print(f"{name} is left out: it {problem}", file=sys.stderr)
            del names[name]
    return tuple(name for name in GROUPS if name in names)


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
    words += ["--growth"] if options.growth else []
    words += [f"--only {name}" for name in options.only]
    words += [f"--pass {name}" for name in options.passes if len(options.passes) == 1]
    on_gpu = options.device == "cuda"
    words += [f"--rounds {options.rounds} --seconds {options.seconds:g}"] + (
        [] if on_gpu else [f"--min-time {options.min_time:g}"]
    )
    words += [f"--dtype {name}" for name in options.dtypes]
    words += [f"--peers {name}" for name in options.peers or ("none",)]
    words += ["--device cuda"] if on_gpu else [f"--threads {torch.get_num_threads()}"]
    words += [f"--graph {options.graph}"] if options.graph != "no" else []
    return " ".join(words)


def default_name(options: argparse.Namespace, processor: str) -> str:
    """Like 2025-01-31_1405_intel-xeon_float32.csv."""
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    partial = "_quick" if options.quick else "_part" if options.only or len(options.passes) == 1 else ""
    partial = ("_growth" if options.growth else "") + partial
    graph = "_graph" if options.graph == "only" else ""
    return f"{date}_{environment.slug(processor)}_{'-'.join(options.dtypes)}{graph}{partial}.csv"


if __name__ == "__main__":
    sys.exit(main())
