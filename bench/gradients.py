# SPDX-License-Identifier: BSD-3-Clause
"""Measure single gradients on the CPU: by the kernels of this package, by PyTorch's, and as the plan chooses.

    python -m bench.gradients                  workloads and body layers: the figures that may be quoted
    python -m bench.gradients --random 100     so many random layers, to see how good the plan's estimates are
    python -m bench.gradients --quick          three rounds, a look

From the gradient of the output, which is there already: the gradient of the input, that of weight and bias,
and all three. PyTorch's convolution backward first copies the gradient unshuffled. All are compared before
they are timed; they take turns. A ratio is of PyTorch's time to ours, in the same layout; the summary is of
the faster layouts.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import functools
import inspect
import math
import random
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from bench import environment
from bench.layers import LAYERS, ROUNDS
from bench.run import MIN_TIME, QUICK_ROUNDS, RESULTS
from bench.timing import Timing, interleave
from bench.workloads import DTYPES, TRANSPOSED, WORKLOADS, Transposed, Workload, operands
from fused_subpixel import functional
from fused_subpixel.dispatch import backward, choose
from fused_subpixel.dispatch.call import BackwardPlan, Call
from fused_subpixel.dispatch.checks import describe
from fused_subpixel.dispatch.resolve import resolve_conv_transpose2d, resolve_subpixel_conv2d
from fused_subpixel.ops.gradients import Operands, convolution_gradients, transposed_convolution_gradients

BODY = tuple(
    Workload(
        f"body_{layer.name}",
        *layer.input_shape,
        c=layer.channels,
        r=1,
        kernel=layer.kernel,
        what="a body layer",
    )
    for layer in LAYERS
    if layer.series == "body" and not layer.name.startswith(("silu", "sigmoid"))  # the same without them
)
NEEDED = {"input": (True, False, False), "weight": (False, True, True), "all": (True, True, True)}
LAYOUTS = {"NCHW": False, "channels_last": True}
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-10, torch.bfloat16: 3e-2, torch.float16: 1e-2}
COLUMNS = (
    "layer", "layout", "gradient", "contender", "median_ms", "low_ms", "high_ms", "rounds",
    "estimated_cycles",
)  # fmt: skip


def random_layers(count: int) -> Iterator[Workload]:
    """Layers of all sizes that take from microseconds to a good part of a second; always the same."""
    source = random.Random(0)
    while count > 0:
        kernel, factor = source.choice((1, 2, 3, 3, 3, 3, 4, 5, 7)), source.choice((1, 1, 2, 2, 3, 4))
        channels, rows = (max(1, round(2 ** source.uniform(0, 10))) for _ in range(2))
        if source.random() < 0.7:  # as in networks
            channels, rows = (max(8, n // 8 * 8) for n in (channels, rows))
        height = round(2 ** source.uniform(0, 8.5))
        width = max(1, round(height * source.uniform(0.7, 1.6)))
        layer = Workload(
            "", source.choice((1, 1, 2, 4, 16, 64)), channels, height, width, max(1, rows // factor), factor,
            kernel, "random",
        )  # fmt: skip
        largest = max(math.prod(layer.input_shape), math.prod(layer.output_shape))
        if not 1e5 < layer.flops(False) < 1e10 or largest > 2e7:
            continue
        count -= 1
        n, ci, h, w = layer.input_shape
        yield Workload(**{**vars(layer), "name": f"{n}x{ci}x{h}x{w} to {layer.c} x{factor} k{kernel}"})


class Measured(NamedTuple):
    """Of one layer and layout: seconds by (gradient, contender), and estimates where there are some."""

    timings: dict[tuple[str, str], Timing]
    estimates: dict[tuple[str, str], float]


def call_of(layer: Workload, x: Tensor, weight: Tensor, bias: Tensor | None) -> Call:
    """The layer as eager code calls it."""
    arguments: dict[str, Any] = {"padding": layer.padding}
    if isinstance(layer, Transposed):
        function, resolve = functional.conv_transpose2d, resolve_conv_transpose2d
        arguments = {"stride": layer.r, "padding": layer.cut}
    else:
        function, resolve = functional.subpixel_conv2d, resolve_subpixel_conv2d
        arguments["upscale_factor"] = layer.r
    bound = inspect.signature(function).bind(x, weight, bias, **arguments)
    bound.apply_defaults()
    options = (bound.arguments[name] for name in functional.OPTION_NAMES[resolve])
    infos = ((t.shape, t.dtype, t.device) for t in (x, weight))
    return choose.prepare("cpu", False, resolve, *infos, describe(bias), None, None, *options)


def decided_by_estimates(layer: Workload, x: Tensor, weight: Tensor) -> bool:
    """Not those layers whose gradient PyTorch gets wrong."""
    problem = call_of(layer, x, weight, None).problem
    return backward.estimates_decide(problem.geometry, problem.input_shape, x.dtype)


@torch.no_grad()
def measure(layer: Workload, dtype: torch.dtype, channels_last: bool, rounds: int) -> Measured:
    x, weight, bias, grad = operands(layer, dtype).to_layout(channels_last)
    call = call_of(layer, x, weight, bias)
    problem = call.problem

    def run(needed: tuple[bool, bool, bool], plan: BackwardPlan) -> tuple[Tensor | None, ...]:
        if problem.transposed is not None:
            return transposed_convolution_gradients(
                grad, x, weight, problem, channels_last, needed, plan, call.options
            )
        wanted = Operands(x, weight, problem.geometry, problem.input_shape, problem.weight_shape, needed)
        return convolution_gradients(grad, None, problem.epilogue, wanted, channels_last, plan, call.options)

    plans = {"pytorch": BackwardPlan(False, False), "ours": BackwardPlan(True, True), "plan": call.plan}
    contenders: dict[str, Callable[[], object]] = {}
    for gradient, needed in NEEDED.items():
        expected = run(needed, plans["pytorch"])
        for name, plan in plans.items():
            for found, right in zip(run(needed, plan), expected, strict=True):
                if found is not None and right is not None and right.numel():
                    error = ((found - right).abs().max() / right.abs().max()).item()
                    if not error < TOLERANCE[dtype] * 2:
                        raise ArithmeticError(f"{layer.name}, {name}, {gradient}: relative error {error:.2g}")
            contenders[f"{gradient} {name}"] = functools.partial(run, needed, plan)
    timings = interleave(contenders, rounds, MIN_TIME, pause=0)
    ours, theirs = backward.estimate(
        problem.geometry, problem.input_shape, problem.weight_shape, dtype, problem.transposed is not None
    )
    estimates = {
        ("input", "ours"): ours.input_grad,
        ("weight", "ours"): ours.weight_grad,
        ("input", "pytorch"): theirs.input_grad + theirs.once,
        ("weight", "pytorch"): theirs.weight_grad + theirs.once,
    }
    return Measured({(*name.split(),): timing for name, timing in timings.items()}, estimates)  # type: ignore[misc]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run with ``arguments``, by default those of the process; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gradients",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--random", type=int, default=0, metavar="N", help="so many random layers instead")
    parser.add_argument("--only", action="append", metavar="LAYER", help="may be repeated; default: all")
    parser.add_argument("--dtype", choices=sorted(set(DTYPES) - {"tf32"}), default="float32")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}, quick {QUICK_ROUNDS}")
    parser.add_argument("--threads", type=int, help="default: as PyTorch chooses")
    parser.add_argument("--quick", action="store_true", help="few rounds: not a figure")
    parser.add_argument("--out", type=Path, metavar="FILE.csv", help="default: a new file in bench/results")
    options = parser.parse_args(arguments)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    if options.threads:
        torch.set_num_threads(options.threads)
    layers = tuple(random_layers(options.random)) or (*WORKLOADS, *TRANSPOSED, *BODY)
    layers = tuple(layer for layer in layers if not options.only or layer.name in options.only)
    if not layers:
        parser.error(f"--only: there is no layer {' or '.join(options.only)}")
    command = f"python -m bench.gradients --rounds {rounds} --threads {torch.get_num_threads()}"
    command += f" --random {options.random}" * bool(options.random)
    command += f" --dtype {options.dtype}" * (options.dtype != "float32")
    command += "".join(f" --only {name}" for name in options.only or ())
    facts = environment.describe(command)
    date = datetime.datetime.now().strftime("%Y-%m-%d_%H%M")
    kind = "gradients" + "_random" * bool(options.random)
    path = options.out or RESULTS / f"{date}_{environment.slug(str(facts['cpu']))}_{options.dtype}_{kind}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    found: list[Measured] = []
    best: dict[str, dict[str, float]] = {gradient: {} for gradient in NEEDED}
    print("| layer | layout | input: PyTorch, ours, ratio | weight | all: PyTorch, plan, ratio |")
    print("|---|---|---|---|---|")
    with path.open("w", newline="") as file, tqdm(layers, unit="layer", disable=None, leave=False) as bar:
        writer = csv.DictWriter(file, (*COLUMNS, *facts))
        writer.writeheader()
        for layer in bar:
            bar.set_description_str(layer.name)
            x, weight, *_ = operands(layer, DTYPES[options.dtype])
            if options.random and not decided_by_estimates(layer, x, weight):
                continue
            by_layout = {
                layout: measure(layer, DTYPES[options.dtype], channels_last, rounds)
                for layout, channels_last in LAYOUTS.items()
            }
            for layout, measured in by_layout.items():
                for (gradient, contender), timing in measured.timings.items():
                    names = {"layer": layer.name, "layout": layout, "gradient": gradient}
                    names |= {"contender": contender, **timing.columns()}
                    estimated = measured.estimates.get((gradient, contender), "")
                    writer.writerow({**names, "estimated_cycles": estimated, **facts})
                cells = " | ".join(pair(measured, gradient) for gradient in NEEDED)
                bar.write(f"| {layer.name} | {layout} | {cells} |")
            file.flush()
            found += by_layout.values()
            for gradient in NEEDED:
                times = (times_of(measured, gradient) for measured in by_layout.values())
                pytorch, fused = (min(of_layouts) for of_layouts in zip(*times, strict=True))
                best[gradient][layer.name] = pytorch / fused
    print()
    for gradient, ratios in best.items():
        least = min(ratios, key=lambda name: ratios[name])
        mean = statistics.geometric_mean(ratios.values())
        print(f"{gradient}: geometric mean {mean:.2f}, least {ratios[least]:.2f} ({least})")
    for line in judge(found):
        print(line)
    print(f"written: {path}")
    return 0


def times_of(measured: Measured, gradient: str) -> tuple[float, float]:
    """Seconds of PyTorch, and of ours or, for all gradients, of the plan."""
    ours = "plan" if gradient == "all" else "ours"
    return measured.timings[gradient, "pytorch"].median, measured.timings[gradient, ours].median


def pair(measured: Measured, gradient: str) -> str:
    pytorch, fused = times_of(measured, gradient)
    return f"{pytorch * 1e3:.4g}, {fused * 1e3:.4g}, {pytorch / fused:.2f}"


def judge(found: Sequence[Measured]) -> Iterator[str]:
    """How good the estimates are, and the plan."""
    for gradient in ("input", "weight"):
        for who in ("ours", "pytorch"):
            logs = [
                math.log(m.estimates[gradient, who] / m.timings[gradient, who].median)
                for m in found
                if (gradient, who) in m.estimates
            ]
            if len(logs) > 1:
                rate = math.exp(statistics.median(logs))
                yield (
                    f"estimate, {gradient} gradient, {who}: median {rate:.3g} cycles per second, standard "
                    f"deviation of its logarithm {statistics.stdev(logs):.2f}"
                )
    chosen = [m.timings["all", "plan"].median for m in found]
    lost = [
        taken / min(m.timings["all", who].median for who in ("pytorch", "ours"))
        for taken, m in zip(chosen, found, strict=True)
    ]
    slower = sum(m.timings["all", "plan"].median > 1.05 * m.timings["all", "pytorch"].median for m in found)
    yield (
        f"plan, all gradients: {statistics.geometric_mean(lost):.3f} of the time of the better of PyTorch "
        f"and ours; more than 5 % slower than PyTorch in {slower} of {len(found)}"
    )


if __name__ == "__main__":
    sys.exit(main())
